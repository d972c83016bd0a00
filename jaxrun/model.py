"""The models of the recipes in Flax (NNX): modules named as the canonical weights, made of the recipes' parts.

NNX, because its modules read like PyTorch's: attribute paths are the canonical names, so weights need no renaming. A
model is built once, empty; `apply` runs it on a flat mapping of weights. Letters: parity/recipes/base.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Norm,
    RMSNorm,
    capped,
    gelu,
    heads,
    plus,
    product,
    rms_norm,
    token_losses,
)
from jaxrun.parts import PARTS, Flow, part
from parity.recipes import Recipe

__all__ = [
    "Block",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Model",
    "Norm",
    "RMSNorm",
    "apply",
    "capped",
    "gelu",
    "heads",
    "make_model",
    "plus",
    "product",
    "remat",
    "rms_norm",
    "token_losses",
]


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), behind the recipe's residual; gives v too, for the blocks behind it."""

    def __init__(self, recipe: Recipe, index: int):
        self.lambdas = part(recipe, "residual")
        bare = index == recipe.bare
        self.norm1, self.attn = (None, None) if bare else (part(recipe, "norm"), part(recipe, "qkv", index))
        self.norm2, self.mlp = part(recipe, "norm"), part(recipe, "mlp")

    def __call__(self, x_BTD, flow: Flow):
        x_BTD, v = self.lambdas(x_BTD, flow.x0_BTD) if self.lambdas else x_BTD, None
        if self.attn:
            y_BTD, v = self.attn(self.norm1(x_BTD), flow)
            x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.norm2(x_BTD)), v


class Model(nnx.Module):
    """Embedding, blocks, norm, head: of the recipe's parts. Maps (B, T) tokens to (B, T, D), and `logits` those to (B, T, V).

    `window`: that of attention in blocks, an int32, where the recipe's attention has one.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, rows, dtypes = recipe, recipe.embedding_rows, recipe.dtypes
        self.embed = Embedding(rows, recipe.dim, dtypes.embedding, dtypes.wide)
        self.positions, self.norm_in = part(recipe, "positions"), part(recipe, "norm_in")
        of = getattr(recipe, "value_embedding_of", {})
        self.value_embeds = nnx.List(
            [Embedding(rows, recipe.dim, dtypes.embedding, dtypes.wide) for _ in set(of.values())]
        )
        self.blocks = nnx.List([Block(recipe, i) for i in range(recipe.layers)])
        self.skips = part(recipe, "skips")
        self.norm_out, self.head, self.squash = part(recipe, "norm"), part(recipe, "head"), part(recipe, "cap")

    def __call__(self, tokens_BT, window=None):
        recipe, given, first = self.recipe, [], None
        x_BTD = self.embed(tokens_BT)
        if self.positions:
            x_BTD = x_BTD + self.positions(jnp.arange(tokens_BT.shape[1]))
        x_BTD = x0_BTD = self.norm_in(x_BTD) if self.norm_in else x_BTD
        seen = PARTS[recipe.parts["mask"]].seen(recipe, tokens_BT, window)
        values, of = [embed(tokens_BT) for embed in self.value_embeds], getattr(recipe, "value_embedding_of", {})
        for i, block in enumerate(self.blocks):
            second = i - recipe.layers // 2
            if self.skips and second >= 0:
                x_BTD = self.skips(x_BTD, given[-1 - 2 * second], second)
            x_BTD, v = kept(block)(x_BTD, Flow(x0_BTD, first, values[of[i]] if i in of else None, seen))
            given.append(x_BTD)
            first = v if first is None else first
        return self.norm_out(x_BTD)

    def scores(self, x_BTD):
        return self.head(x_BTD, self.embed)

    def training_scores(self, x_BTD):
        return (
            self.head.training_scores(x_BTD, self.embed)
            if hasattr(self.head, "training_scores")
            else self.scores(x_BTD)
        )

    def logits(self, x_BTD):
        return self.squash(self.scores(x_BTD))


def kept(block: Callable) -> Callable:
    """The block; for its gradient all that it computes is kept, or what it is given alone (see `remat`)."""
    return jax.checkpoint(lambda x_BTD, flow: block(x_BTD, flow)) if _remat.get() == "blocks" else block


_remat: ContextVar[str] = ContextVar("remat", default="none")


@contextmanager
def remat(policy: str) -> Iterator[None]:
    """What is traced inside keeps for its gradient: "none" is computed again, or all inside "blocks" is."""
    token = _remat.set(policy)
    try:
        yield
    finally:
        _remat.reset(token)


def make_model(recipe: Recipe, make: Callable[[Recipe], nnx.Module] | None = None):
    """The recipe's model with no memory behind its weights, split into (definition, {canonical name: empty}).

    `make` makes another one than the recipe's parts do.
    """
    return nnx.split(nnx.eval_shape(lambda: (make or Model)(recipe)))


def apply(definition, weights, method, *args):
    """Runs `method(model, *args)` on the model that has these weights: {canonical name: array}."""
    state = nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in weights.items()])
    return method(nnx.merge(definition, state), *args)


def _path(name: str):
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
