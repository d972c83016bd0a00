"""Builds a recipe's model and runs it as a pure function of its weights.

Models are Flax NNX modules because their attribute paths read like PyTorch's: they are the canonical names, so weights
need no renaming. A model is built once, empty; `apply` runs it on a flat mapping of weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from jaxrun.models import model_class
from parity.errors import InputError
from parity.recipes import Recipe
from parity.weights import check

WRONG_WEIGHTS = "a model's attribute paths are the names in its recipe's parameters()"


class Definition(NamedTuple):
    """A model without its weights: its structure, and the arrays that its constructor made as constants."""

    graph: Any
    constants: Any


def make_model(recipe: Recipe, make: Callable[[Recipe], nnx.Module] | None = None) -> Definition:
    """The recipe's model without its weights.

    `make` builds a user's model in place of the recipe's; it is built for real, so that arrays among its attributes
    have values. Raises InputError where its weights are not the recipe's, or it has variables that are no weights.
    """
    module = make(recipe) if make else nnx.eval_shape(lambda: model_class(recipe)(recipe))
    graph, weights, variables, constants = nnx.split(module, nnx.Param, nnx.Variable, ...)
    for path, variable in nnx.to_flat_state(variables):
        raise InputError(
            f"the model's attribute {_name(path)}: expected weights (nnx.Param) and constant arrays, found "
            f"{type(variable).__name__}, whose value would be lost: keep what changes in the optimizer's state, and "
            "derive randomness from the step"
        )
    check({_name(path): weight for path, weight in nnx.to_flat_state(weights)}, recipe, "the model", WRONG_WEIGHTS)
    return Definition(graph, constants)


def apply(definition: Definition, weights, method, *args):
    """Runs `method(model, *args)` on the model that has these weights: {canonical name: array}."""
    state = nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in weights.items()])
    return method(nnx.merge(definition.graph, state, definition.constants), *args)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _path(name: str):
    return tuple(int(key) if key.isdigit() else key for key in name.split("."))
