"""The recipes: model sizes, hyperparameters, weights, schedules and batch plan, one module a recipe.

A recipe names no framework. Its model is in `jaxrun/models` and `torchref/models`, in the module of the same name.
"""

import dataclasses
from typing import Any

from parity.errors import InputError, nearest
from parity.recipes.base import OPTIMIZERS, RMS_EPS, SIZES, Dtypes, Parameter, ParameterTable, Precision, Recipe
from parity.recipes.muon import Muon
from parity.recipes.nanogpt import NanoGPT
from parity.recipes.record_11 import Record11
from parity.recipes.record_21 import Record21
from parity.recipes.record_40 import Record40
from parity.recipes.record_58 import Record58
from parity.recipes.speedrun import QUINTIC, SpeedrunRecipe

__all__ = [
    "OPTIMIZERS", "QUINTIC", "RECIPES", "RMS_EPS", "SIZES", "Dtypes", "Muon", "NanoGPT", "Parameter", "ParameterTable",
    "Precision", "Recipe", "Record11", "Record21", "Record40", "Record58", "SpeedrunRecipe", "from_fields",
    "recipe_for", "to_fields",
]  # fmt: skip

RECIPES: dict[str, type[Recipe]] = {kind.name: kind for kind in (NanoGPT, Muon, Record11, Record21, Record40, Record58)}


def recipe_for(name: str, scale: str) -> Recipe:
    """The recipe of a name at a scale (tiny, pocket, small); InputError with the nearest name where there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    if scale not in SIZES:
        raise InputError(f"unknown scale {scale!r}; {nearest(scale, SIZES)}")
    fields: dict[str, Any] = SIZES[scale] | RECIPES[name].sizes.get(scale, {})
    return RECIPES[name](**fields)


def to_fields(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values: its name and its fields."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}
    return {"name": recipe.name, "fields": fields}


def from_fields(data: dict[str, Any]) -> Recipe:
    """The recipe that `to_fields` wrote; InputError where a name or a field is not known here."""
    name, fields = data["name"], data["fields"]
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    known = {field.name for field in dataclasses.fields(RECIPES[name])}
    if unknown := set(fields) - known:
        field = min(unknown)
        raise InputError(f"recipe {name} has no field {field!r}; {nearest(field, known)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return RECIPES[name](**values)
