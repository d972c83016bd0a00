"""The models of the recipes, one module each, in the order in which they compute. `torchref/models` has their twins."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxrun.models import muon, nanogpt, record_11, record_21, record_40, record_58
from parity.errors import InputError
from parity.recipes import Recipe

MODELS: dict[str, Callable[[Any], nnx.Module]] = {
    "nanogpt": nanogpt.Model,
    "muon": muon.Model,
    "record-11": record_11.Model,
    "record-21": record_21.Model,
    "record-40": record_40.Model,
    "record-58": record_58.Model,
}


def model_class(recipe: Recipe) -> Callable[[Any], nnx.Module]:
    """The model of a recipe, or of the recipe that it derives from. Raises InputError where there is none."""
    for kind in type(recipe).__mro__:
        if vars(kind).get("name") in MODELS:
            return MODELS[vars(kind)["name"]]
    raise InputError(
        f"recipe {recipe.name}: expected a model in jaxrun/models, found none: write one and name it there"
    )
