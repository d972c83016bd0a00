"""The model of `record-21`, the speedrun's record of January 2025. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes import Record21, SpeedrunRecipe
from torchref.attention import Window, rotary, segment_ids, window_attention
from torchref.kernels.fp8 import fp8_matmul
from torchref.layers import (
    Embedding,
    InputResidual,
    Linear,
    Norm,
    SkipConnections,
    StackedLinear,
    empty,
    merge_heads,
    rms_norm,
    scale_by,
    split_heads,
    torch_dtype,
)


class ValueMix(nn.Module):
    """v = a0 v + a1 e, e the block's value embedding of the token; a0 v in blocks without one."""

    def __init__(self, recipe: SpeedrunRecipe):
        super().__init__()
        self.weight = empty((2,), recipe.dtypes.scalars)

    def forward(self, v_BTHK, value_BTD):
        a = self.weight.to(v_BTHK.dtype)
        mixed_BTHK = scale_by(v_BTHK, a[0])
        if value_BTD is None:
            return mixed_BTHK
        return mixed_BTHK + scale_by(split_heads(value_BTD, v_BTHK.shape[-1]), a[1])


class Attention(nn.Module):
    """Causal self-attention within a token's document, its own block of positions and the window's blocks before it.

    q and k are RMS-normed per head, then rotated (rotary, half of the channels). The window is the long one in some
    blocks of the model, half of it, rounded down, in the others; a window of 0 counts as 1.
    """

    def __init__(self, recipe: Record21, layer: int):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.qkv = StackedLinear(3, D, D, dtypes)
        self.proj = Linear(D, D, dtypes, bias=False)
        self.lambdas = ValueMix(recipe)
        self.head_dim, self.softmax_scale, self.rotary_base = recipe.head_dim, recipe.softmax_scale, recipe.rotary_base
        self.eps, self.accum = recipe.norm_eps, dtypes.accum
        self.window_divisor = 1 if layer in recipe.long_window_layers else 2
        self.block = recipe.block

    def forward(self, x_BTD, value_BTD, segments_BT, window: Window):
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).chunk(3, dim=-1)
        q_BTHK, k_BTHK, v_BTHK = (split_heads(y_BTD, self.head_dim) for y_BTD in (q_BTD, k_BTD, v_BTD))
        q_BTHK = rotary(rms_norm(q_BTHK, self.eps, self.accum), self.rotary_base, self.accum)
        k_BTHK = rotary(rms_norm(k_BTHK, self.eps, self.accum), self.rotary_base, self.accum)
        v_BTHK = self.lambdas(v_BTHK, value_BTD)
        blocks, max_blocks = window.blocks // self.window_divisor, window.max_blocks[self.window_divisor - 1]
        y_BTHK = window_attention(
            q_BTHK, k_BTHK, v_BTHK, self.softmax_scale, segments_BT, blocks, self.block, max_blocks
        )
        return self.proj(merge_heads(y_BTHK))


class MLP(nn.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: SpeedrunRecipe):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.fc = Linear(D, 4 * D, dtypes, bias=False)
        self.proj = Linear(4 * D, D, dtypes, bias=False)

    def forward(self, x_BTD):
        return self.proj(F.relu(self.fc(x_BTD)).square())


class Block(nn.Module):
    """x = l0 x + l1 x0, two learned scalars; x = x + attn(norm1(x)), in all blocks but one; x = x + mlp(norm2(x)).

    The norms are RMS norms without a gain.
    """

    def __init__(self, recipe: Record21, layer: int):
        super().__init__()
        self.lambdas = InputResidual(recipe.dtypes)
        attends = layer != recipe.no_attention_layer
        self.norm1 = Norm(recipe.norm_eps, recipe.dtypes) if attends else None
        self.attn = Attention(recipe, layer) if attends else None
        self.norm2 = Norm(recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD, x0_BTD, value_BTD, segments_BT, window: Window):
        x_BTD = self.lambdas(x_BTD, x0_BTD)
        if self.norm1 is not None and self.attn is not None:
            x_BTD = x_BTD + self.attn(self.norm1(x_BTD), value_BTD, segments_BT, window)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nn.Module):
    """Maps (B, T) tokens and the long window to (B, T, D); `logits` maps these to (B, T, V).

    The window is in blocks of positions; the program looks it up by the step (`recipe.attention_window`), in training
    as in evaluation. V is the vocabulary padded to whole tiles; embeddings have only the tokenizer's rows.
    """

    def __init__(self, recipe: Record21):
        super().__init__()
        D, rows, dtypes = recipe.dim, recipe.tokenizer_size, recipe.dtypes
        self.embed = Embedding(rows, D, dtypes)
        self.norm_in = Norm(recipe.norm_eps, dtypes)
        self.value_embeds = nn.ModuleList([Embedding(rows, D, dtypes) for _ in range(recipe.value_embedding_count)])
        self.blocks = nn.ModuleList([Block(recipe, i) for i in range(recipe.layers)])
        self.skips = SkipConnections(recipe.layers // 2, dtypes)
        self.norm_out = Norm(recipe.norm_eps, dtypes)
        self.head = Linear(D, recipe.vocab_size, dtypes, bias=False)
        self.value_embedding_of, self.end_of_text = recipe.value_embedding_of, recipe.end_of_text
        self.logit_bound, self.logit_slope, self.dtypes = recipe.logit_cap, recipe.logit_slope, dtypes
        self.fp8, self.fp8_scales = recipe.fp8 and dtypes.fp8, recipe.fp8_scales

    def forward(self, tokens_BT, window: Window):
        x_BTD = x0_BTD = self.norm_in(self.embed(tokens_BT))
        values = [embed(tokens_BT) for embed in self.value_embeds]
        segments_BT = segment_ids(tokens_BT, self.end_of_text)  # a document starts with the end-of-text token
        half, outputs = len(self.blocks) // 2, []
        for i, block in enumerate(self.blocks):
            if i >= half:
                x_BTD = self.skips(x_BTD, outputs, i - half)  # x + w_j outputs[-1 - j], j = i - half
            value_BTD = values[self.value_embedding_of[i]] if i in self.value_embedding_of else None
            x_BTD = block(x_BTD, x0_BTD, value_BTD, segments_BT, window)
            if i < half:
                outputs.append(x_BTD)
        return self.norm_out(x_BTD)

    def raw_logits(self, x_BTD):
        return self.head(x_BTD)

    def training_raw_logits(self, x_BTD, grad_scale: float):
        """The raw logits in training: at bfloat16 the product of x and W rounded to 8 bits.

        The gradient of these logits is rounded to 8 bits too, after it has been multiplied by `grad_scale`, which turns
        it into the gradient of a row's mean loss, and by the last of the recipe's `fp8_scales`.
        """
        if not self.fp8:
            return self.raw_logits(x_BTD)
        x_BTD = x_BTD.to(torch_dtype(self.dtypes.matmul))
        return fp8_matmul(x_BTD, self.head.weight, self.fp8_scales, grad_scale)

    def softcap(self, raw_logits_BTV):
        """c sigmoid(z / s): the recipe has c = 30 and s = 7.5."""
        return self.logit_bound * torch.sigmoid(raw_logits_BTV.to(torch_dtype(self.dtypes.accum)) / self.logit_slope)

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
