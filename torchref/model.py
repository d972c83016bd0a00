"""The models of the recipes in PyTorch: modules named as the canonical weights, made of the recipes' parts.

Attribute paths are the canonical names, so weights need no renaming. A model is built empty and filled with
`load_state_dict`. Letters: parity/recipes/base.py.
"""

from collections.abc import Callable

import torch
from torch import nn

from parity.recipes import Recipe
from torchref.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Norm,
    RMSNorm,
    capped,
    gelu,
    heads,
    product,
    rms_norm,
    token_losses,
    torch_dtype,
)
from torchref.parts import PARTS, Flow, part

__all__ = [
    "Block",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Model",
    "Norm",
    "RMSNorm",
    "capped",
    "gelu",
    "heads",
    "make_model",
    "product",
    "rms_norm",
    "token_losses",
    "torch_dtype",
]


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), behind the recipe's residual; gives v too, for the blocks behind it."""

    def __init__(self, recipe: Recipe, index: int):
        super().__init__()
        self.lambdas = part(recipe, "residual")
        bare = index == recipe.bare
        self.norm1, self.attn = (None, None) if bare else (part(recipe, "norm"), part(recipe, "qkv", index))
        self.norm2, self.mlp = part(recipe, "norm"), part(recipe, "mlp")

    def forward(self, x_BTD, flow: Flow):
        x_BTD, v = self.lambdas(x_BTD, flow.x0_BTD) if self.lambdas else x_BTD, None
        if self.attn:
            y_BTD, v = self.attn(self.norm1(x_BTD), flow)
            x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.norm2(x_BTD)), v


class Model(nn.Module):
    """Embedding, blocks, norm, head: of the recipe's parts. Maps (B, T) tokens to (B, T, D), and `logits` those to (B, T, V).

    `window`: that of attention in blocks, an int32, and what the long and the short one are within, where the recipe's has one.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe, rows = recipe, recipe.embedding_rows
        self.embed = Embedding(rows, recipe.dim, recipe.dtypes.embedding)
        self.positions, self.norm_in = part(recipe, "positions"), part(recipe, "norm_in")
        of = getattr(recipe, "value_embedding_of", {})
        self.value_embeds = nn.ModuleList(
            [Embedding(rows, recipe.dim, recipe.dtypes.embedding) for _ in set(of.values())]
        )
        self.blocks = nn.ModuleList([Block(recipe, i) for i in range(recipe.layers)])
        self.skips = part(recipe, "skips")
        self.norm_out, self.head, self.squash = part(recipe, "norm"), part(recipe, "head"), part(recipe, "cap")

    def forward(self, tokens_BT, window=None):
        recipe, given, first = self.recipe, [], None
        x_BTD = self.embed(tokens_BT)
        if self.positions:
            x_BTD = x_BTD + self.positions(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        x_BTD = x0_BTD = self.norm_in(x_BTD) if self.norm_in else x_BTD
        seen = PARTS[recipe.parts["mask"]].seen(recipe, tokens_BT, window)
        values, of = [embed(tokens_BT) for embed in self.value_embeds], getattr(recipe, "value_embedding_of", {})
        for i, block in enumerate(self.blocks):
            second = i - recipe.layers // 2
            if self.skips and second >= 0:
                x_BTD = self.skips(x_BTD, given[-1 - 2 * second], second)
            x_BTD, v = block(x_BTD, Flow(x0_BTD, first, values[of[i]] if i in of else None, seen))
            given.append(x_BTD)
            first = v if first is None else first
        return self.norm_out(x_BTD)

    def scores(self, x_BTD):
        return self.head(x_BTD, self.embed)

    def training_scores(self, x_BTD, reduction: str):
        return (
            self.head.training_scores(x_BTD, self.embed, reduction)
            if hasattr(self.head, "training_scores")
            else self.scores(x_BTD)
        )

    def logits(self, x_BTD):
        return self.squash(self.scores(x_BTD))


def make_model(recipe: Recipe, make: Callable[[Recipe], nn.Module] | None = None) -> nn.Module:
    """The recipe's model with no memory behind its weights; `make` makes another one than the recipe's parts do."""
    with torch.device("meta"):
        return (make or Model)(recipe)
