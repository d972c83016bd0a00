"""The recipes: model, optimizer, schedules and batch plan, without a framework. One module a recipe, and what they share in `base`."""

from parity.recipes.base import *  # noqa: F403
