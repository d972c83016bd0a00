"""Builds a recipe's model and runs it as a pure function of its weights.

Models are Flax NNX modules because their attribute paths read like PyTorch's: they are the canonical names, so weights
need no renaming. A model is built once, empty; `apply` runs it on a flat mapping of weights.
"""

from collections.abc import Callable

from flax import nnx

from jaxrun.models import model_class
from parity.recipes import Recipe


def make_model(recipe: Recipe, make: Callable[[Recipe], nnx.Module] | None = None):
    """The recipe's model with no memory behind its weights, split into (definition, {canonical name: empty}).

    `make` builds a user's model in place of the recipe's.
    """
    return nnx.split(nnx.eval_shape(lambda: (make or model_class(recipe))(recipe)))


def apply(definition, weights, method, *args):
    """Runs `method(model, *args)` on the model that has these weights: {canonical name: array}."""
    state = nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in weights.items()])
    return method(nnx.merge(definition, state), *args)


def _path(name: str):
    return tuple(int(key) if key.isdigit() else key for key in name.split("."))
