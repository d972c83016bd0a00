"""Builds a recipe's model. Attribute paths are the canonical names, so weights need no renaming."""

from collections.abc import Callable

import torch
from torch import nn

from parity.recipes import Recipe
from torchref.models import model_class


def make_model(recipe: Recipe, make: Callable[[Recipe], nn.Module] | None = None) -> nn.Module:
    """The recipe's model with no memory behind its weights; `make` builds a user's model in place of the recipe's."""
    with torch.device("meta"):
        return (make or model_class(recipe))(recipe)
