"""Builds a recipe's model. Attribute paths are the canonical names, so weights need no renaming."""

from collections.abc import Callable

import torch
from torch import nn

from parity.recipes import Recipe
from parity.weights import check
from torchref.models import model_class

WRONG_WEIGHTS = "a model's attribute paths are the names in its recipe's parameters()"


def make_model(recipe: Recipe, make: Callable[[Recipe], nn.Module] | None = None) -> nn.Module:
    """The recipe's model with no memory behind its weights; `make` builds a user's model in place of the recipe's.

    That is built for real, so that its buffers have values. Raises InputError where its weights are not the recipe's.
    """
    with torch.device("cpu" if make else "meta"):
        model = (make or model_class(recipe))(recipe)
    check(dict(model.named_parameters()), recipe, "the model", WRONG_WEIGHTS)
    return model
