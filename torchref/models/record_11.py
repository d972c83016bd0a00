"""The model of `record-11`, the speedrun's record of 2024-11-10. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes import Record11
from torchref.attention import causal_attention, rotary
from torchref.layers import (
    Embedding,
    InputResidual,
    Linear,
    Norm,
    SkipConnections,
    empty,
    merge_heads,
    rms_norm,
    scale_by,
    split_heads,
    torch_dtype,
)


class FirstValueMix(nn.Module):
    """v = (1 - a) v + a v1, v1 the first block's v before it is mixed; there v1 is v itself."""

    def __init__(self, recipe: Record11):
        super().__init__()
        self.weight = empty((1,), recipe.dtypes.scalars)

    def forward(self, v_BTHK, first_v_BTHK):
        a = self.weight[0].to(v_BTHK.dtype)
        return scale_by(v_BTHK, 1 - a) + scale_by(v_BTHK if first_v_BTHK is None else first_v_BTHK, a)


class Attention(nn.Module):
    """Causal self-attention; q and k are RMS-normed per head, then rotated; v is mixed with the first block's.

    Returns what it adds to the residual stream, and its v before it is mixed.
    """

    def __init__(self, recipe: Record11):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.q = Linear(D, D, dtypes, bias=False)
        self.k = Linear(D, D, dtypes, bias=False)
        self.v = Linear(D, D, dtypes, bias=False)
        self.proj = Linear(D, D, dtypes, bias=False)
        self.lambdas = FirstValueMix(recipe)
        self.head_dim, self.softmax_scale, self.rotary_base = recipe.head_dim, recipe.softmax_scale, recipe.rotary_base
        self.eps, self.accum, self.rotary_dtype = recipe.norm_eps, dtypes.accum, dtypes.rotary

    def forward(self, x_BTD, first_v_BTHK):
        q_BTHK, k_BTHK, v_BTHK = (split_heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q_BTHK, k_BTHK = (
            rotary(rms_norm(x_BTHK, self.eps, self.accum), self.rotary_base, self.accum, True, self.rotary_dtype)
            for x_BTHK in (q_BTHK, k_BTHK)
        )
        mixed_BTHK = self.lambdas(v_BTHK, first_v_BTHK)
        y_BTHK = causal_attention(q_BTHK, k_BTHK, mixed_BTHK, self.softmax_scale)
        return self.proj(merge_heads(y_BTHK)), v_BTHK


class MLP(nn.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Record11):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.fc = Linear(D, 4 * D, dtypes, bias=False)
        self.proj = Linear(4 * D, D, dtypes, bias=False)

    def forward(self, x_BTD):
        return self.proj(F.relu(self.fc(x_BTD)).square())


class Block(nn.Module):
    """x = l0 x + l1 x0, two learned scalars; x = x + attn(norm1(x)); x = x + mlp(norm2(x)).

    The norms are RMS norms without a gain. Returns x and the attention's v.
    """

    def __init__(self, recipe: Record11):
        super().__init__()
        self.lambdas = InputResidual(recipe.dtypes)
        self.norm1 = Norm(recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = Norm(recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD, x0_BTD, first_v_BTHK):
        x_BTD = self.lambdas(x_BTD, x0_BTD)
        y_BTD, v_BTHK = self.attn(self.norm1(x_BTD), first_v_BTHK)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.norm2(x_BTD)), v_BTHK


class Model(nn.Module):
    """Maps (B, T) tokens to activations (B, T, D); `logits` maps these to (B, T, V)."""

    def __init__(self, recipe: Record11):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.embed = Embedding(recipe.vocab_size, D, dtypes)
        self.norm_in = Norm(recipe.norm_eps, dtypes)
        self.blocks = nn.ModuleList([Block(recipe) for _ in range(recipe.layers)])
        self.skips = SkipConnections(recipe.layers // 2, dtypes)
        self.norm_out = Norm(recipe.norm_eps, dtypes)
        self.head = Linear(D, recipe.vocab_size, dtypes, bias=False)
        self.logit_bound, self.dtypes = recipe.logit_cap, dtypes

    def forward(self, tokens_BT):
        x0_BTD = self.norm_in(self.embed(tokens_BT))
        x_BTD, first_v_BTHK = x0_BTD, None
        half, outputs = len(self.blocks) // 2, []
        for i, block in enumerate(self.blocks):
            if i >= half:
                x_BTD = self.skips(x_BTD, outputs, i - half)  # x + w_j outputs[-1 - j], j = i - half
            x_BTD, v_BTHK = block(x_BTD, x0_BTD, first_v_BTHK)
            first_v_BTHK = v_BTHK if i == 0 else first_v_BTHK
            if i < half:
                outputs.append(x_BTD)
        return self.norm_out(x_BTD)

    def raw_logits(self, x_BTD):
        return self.head(x_BTD)

    def softcap(self, raw_logits_BTV):
        """c tanh(z / c), rounded to bfloat16 at that precision: the recipe has c = 30."""
        logits_BTV = self.logit_bound * torch.tanh(raw_logits_BTV.to(torch_dtype(self.dtypes.accum)) / self.logit_bound)
        return logits_BTV.to(torch_dtype(self.dtypes.softcap)).to(torch_dtype(self.dtypes.accum))

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
