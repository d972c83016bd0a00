"""The parts that the recipes' models are made of, in PyTorch, by the names of parity/parts.py. Letters: parity/recipes/base.py."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes import Recipe
from torchref import layers
from torchref.attention import NEGATIVE, causal_attention, rotary, window_attention
from torchref.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Norm,
    RMSNorm,
    capped,
    empty,
    gelu,
    heads,
    product,
    rms_norm,
    times,
    torch_dtype,
)


class Seen(NamedTuple):
    """What the positions of a batch may see: ids of their documents (B, T), int32, the long window in blocks, int32, and numbers of
    blocks that the long and the short window are within."""

    documents_BT: Any = None
    window: Any = None
    most: tuple[int, int] = (0, 0)


class Flow(NamedTuple):
    """What a block gets beside the stream: the normed embedding x0 (B, T, D), the first block's v (B, T, H, K), the block's own value
    embedding (B, T, D), and what positions may see; None for what the recipe does not have."""

    x0_BTD: Any = None
    first_BTHK: Any = None
    value_BTD: Any = None
    seen: Seen = Seen()


class LearnedPositions(Embedding):
    """A row for each position."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe.context, recipe.dim, recipe.dtypes.embedding)


class Attention(nn.Module):
    """Self-attention: q, k, v as a subclass makes and projects them, then the recipe's parts for turn, values and mask, and a projection.

    Gives what it adds to the stream, and v as it was before it was mixed.
    """

    def __init__(self, recipe: Recipe, index: int):
        super().__init__()
        self.make(recipe)
        self.proj = Linear(recipe.dim, recipe.dim, recipe.dtypes, recipe.biases)
        self.lambdas = part(recipe, "values", index)
        self.turn, self.attend = part(recipe, "turn"), part(recipe, "mask", index)
        self.head_dim, self.scale = recipe.head_dim, recipe.scale

    def forward(self, x_BTD, flow: Flow):
        q, k, v = (heads(y, self.head_dim) for y in self.project(x_BTD))
        if self.turn:
            q, k = self.turn(q), self.turn(k)
        mixed = self.lambdas(v, flow) if self.lambdas else v
        y_BTHK = self.attend(q, k, mixed, self.scale, flow.seen)
        return self.proj(y_BTHK.reshape(x_BTD.shape)), v


class MergedQKV(Attention):
    """One (3 D, D) matrix, its results cut into q, k, v."""

    def make(self, recipe: Recipe):
        self.qkv = Linear(recipe.dim, 3 * recipe.dim, recipe.dtypes, recipe.biases)

    def project(self, x_BTD):
        return self.qkv(x_BTD).chunk(3, dim=-1)


class SeparateQKV(Attention):
    """A matrix for each of q, k, v."""

    def make(self, recipe: Recipe):
        self.q, self.k, self.v = (Linear(recipe.dim, recipe.dim, recipe.dtypes, recipe.biases) for _ in range(3))

    def project(self, x_BTD):
        return [layer(x_BTD) for layer in (self.q, self.k, self.v)]


class Stack(nn.Module):
    """x W[i]^T for each of the matrices of a stack (N, D, D): (B, T, N D)."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.weight = empty((3, recipe.dim, recipe.dim), recipe.dtypes.weights)
        self.dtype = torch_dtype(recipe.dtypes.products)

    def forward(self, x_BTD):
        return product(x_BTD, self.weight.flatten(0, 1), self.dtype)


class StackedQKV(Attention):
    """q, k, v from one stack of matrices, in one product."""

    def make(self, recipe: Recipe):
        self.qkv = Stack(recipe)

    def project(self, x_BTD):
        return self.qkv(x_BTD).chunk(3, dim=-1)


class HalfRotary:
    """q or k normed over the head, then turned: K/4 frequencies base^(-i / (K/4 - 1)), the other pairs stand still."""

    def __init__(self, recipe: Recipe):
        self.base, self.eps = recipe.rotary_base, recipe.norm_eps
        self.wide, self.tables = torch_dtype(recipe.dtypes.wide), torch_dtype(recipe.dtypes.tables)

    def __call__(self, x_BTHK):
        return rotary(rms_norm(x_BTHK, self.eps, self.wide), self.base, self.wide)


class FullRotary(HalfRotary):
    """q or k normed over the head, then turned: K/2 frequencies base^(-2 i / K); cosines and sines in a type of their own."""

    def __call__(self, x_BTHK):
        return rotary(rms_norm(x_BTHK, self.eps, self.wide), self.base, self.wide, full=True, tables=self.tables)


class FirstValues(nn.Module):
    """v = (1 - a) v + a v1, v1 the first block's own v."""

    def __init__(self, recipe: Recipe, index: int):
        super().__init__()
        self.weight = empty((1,), recipe.dtypes.scalars)

    def forward(self, v_BTHK, flow: Flow):
        a = self.weight[0].to(v_BTHK.dtype)
        return times(v_BTHK, 1 - a) + times(v_BTHK if flow.first_BTHK is None else flow.first_BTHK, a)


class ValueEmbeddings(nn.Module):
    """v = a0 v + a1 e, e the block's value embedding of the token; a0 v where it has none."""

    def __init__(self, recipe: Recipe, index: int):
        super().__init__()
        self.weight = empty((2,), recipe.dtypes.scalars)

    def forward(self, v_BTHK, flow: Flow):
        a = self.weight.to(v_BTHK.dtype)
        v = times(v_BTHK, a[0])
        return v if flow.value_BTD is None else v + times(heads(flow.value_BTD, v_BTHK.shape[-1]), a[1])


class Causal:
    """Every position sees the earlier ones and itself."""

    def __init__(self, recipe: Recipe, index: int):
        pass

    def __call__(self, q_BTHK, k_BTHK, v_BTHK, scale: float, seen: Seen):
        return causal_attention(q_BTHK, k_BTHK, v_BTHK, scale)

    @staticmethod
    def seen(recipe: Recipe, tokens_BT, window) -> Seen:
        return Seen()


class DocumentWindow:
    """Every position sees those before it in its document, in its block and the W - 1 blocks before; half of W in the short blocks."""

    def __init__(self, recipe: Recipe, index: int):
        self.share = 1 if index in recipe.long else 2
        self.block = recipe.block

    def __call__(self, q_BTHK, k_BTHK, v_BTHK, scale: float, seen: Seen):
        return window_attention(
            q_BTHK,
            k_BTHK,
            v_BTHK,
            scale,
            seen.documents_BT,
            seen.window // self.share,
            self.block,
            seen.most[self.share - 1],
        )

    @staticmethod
    def seen(recipe: Recipe, tokens_BT, window) -> Seen:
        return Seen(documents(tokens_BT, recipe.end_of_text), *window)


class GELU(nn.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes, recipe.biases)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes, recipe.biases)
        self.gelu = recipe.gelu

    def forward(self, x_BTD):
        return self.proj(gelu(self.fc(x_BTD), self.gelu))


class ReLUSquared(nn.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes, recipe.biases)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes, recipe.biases)

    def forward(self, x_BTD):
        return self.proj(F.relu(self.fc(x_BTD)).square())


class InputResidual(nn.Module):
    """l0 x + l1 x0, x0 the normed embedding."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.weight = empty((2,), recipe.dtypes.scalars)

    def forward(self, x_BTD, x0_BTD):
        scale = self.weight.to(x_BTD.dtype)
        return times(x_BTD, scale[0]) + times(x0_BTD, scale[1])


class UNet(nn.Module):
    """x + w_i y, y what the partner of the i-th block of the second half gave: the last of the first half first."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.weight = empty((recipe.layers // 2,), recipe.dtypes.scalars)

    def forward(self, x_BTD, partner_BTD, i: int):
        return x_BTD + times(partner_BTD, self.weight[i].to(x_BTD.dtype))


class TiedHead(nn.Module):
    """Scores x E^T, E the token embedding's weight."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.dtype = torch_dtype(recipe.dtypes.products)

    def forward(self, x_BTD, embed: Embedding):
        return product(x_BTD, embed.weight, self.dtype)


class Head(Linear):
    """Scores x W^T, with a bias if the recipe has biases."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe.dim, recipe.vocab_size, recipe.dtypes, recipe.biases)

    def forward(self, x_BTD, embed: Embedding):
        return product(x_BTD, self.weight, self.dtype, self.bias)


class FP8Head(Head):
    """Scores x W^T; in training, where the precision has 8 bits, of x and W rounded to them."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.fp8, self.scales = recipe.dtypes.fp8 and recipe.fp8, recipe.fp8_scales

    def training_scores(self, x_BTD, embed: Embedding, reduction: str):
        """As in training; gradients come of the mean or the sum of the losses of the rows."""
        if not self.fp8:
            return self(x_BTD, embed)
        rows, length = x_BTD.shape[:2]
        return layers.fp8_product(
            x_BTD.to(self.dtype), self.weight, self.scales, rows if reduction == "mean" else 1 / length
        )


class MaskedPadding:
    """Scores of columns above the tokenizer's are masked."""

    def __init__(self, recipe: Recipe):
        self.tokenizer_size, self.wide = recipe.tokenizer_size, torch_dtype(recipe.dtypes.wide)

    def __call__(self, scores_BTV):
        logits = scores_BTV.to(self.wide)
        if logits.shape[-1] == self.tokenizer_size:
            return logits
        return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= self.tokenizer_size, NEGATIVE)


class RationalCap:
    """c z / sqrt(z^2 + c^2)."""

    def __init__(self, recipe: Recipe):
        self.cap, self.wide = recipe.logit_cap, torch_dtype(recipe.dtypes.wide)

    def __call__(self, scores_BTV):
        return capped(scores_BTV.to(self.wide), self.cap)


class TanhCap:
    """c tanh(z / c), rounded to a type of its own."""

    def __init__(self, recipe: Recipe):
        self.cap, self.wide, self.capped = (
            recipe.logit_cap,
            torch_dtype(recipe.dtypes.wide),
            torch_dtype(recipe.dtypes.capped),
        )

    def __call__(self, scores_BTV):
        logits = self.cap * torch.tanh(scores_BTV.to(self.wide) / self.cap)
        return logits.to(self.capped).to(self.wide)


class SigmoidCap:
    """c sigmoid(z / s)."""

    def __init__(self, recipe: Recipe):
        self.cap, self.slope, self.wide = recipe.logit_cap, recipe.logit_slope, torch_dtype(recipe.dtypes.wide)

    def __call__(self, scores_BTV):
        return self.cap * torch.sigmoid(scores_BTV.to(self.wide) / self.slope)


PARTS = {
    kind.__name__: kind
    for kind in (
        LearnedPositions,
        MergedQKV,
        SeparateQKV,
        StackedQKV,
        HalfRotary,
        FullRotary,
        FirstValues,
        ValueEmbeddings,
        Causal,
        DocumentWindow,
        GELU,
        ReLUSquared,
        InputResidual,
        UNet,
        TiedHead,
        Head,
        FP8Head,
        MaskedPadding,
        RationalCap,
        TanhCap,
        SigmoidCap,
    )
} | {
    "LayerNorm": lambda recipe: LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes),
    "RMSNorm": lambda recipe: RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes),
    "Norm": lambda recipe: Norm(recipe.norm_eps, recipe.dtypes),
}


def part(recipe: Recipe, slot: str, *place: int) -> Any:
    """The recipe's part for a slot, of the block of a number where there is one in each; None where it has none."""
    return PARTS[recipe.parts[slot]](recipe, *place) if slot in recipe.parts else None


def documents(tokens_BT, end_of_text: int):
    """Number of the document that each token is in, counted along its row; a document starts with the end-of-text token."""
    return (tokens_BT == end_of_text).cumsum(dim=-1, dtype=torch.int32)
