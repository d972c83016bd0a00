"""The model of `record-58`, the speedrun's record of January 2026. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

from typing import Any, NamedTuple

import torch
from torch import nn

from parity.recipes.record_40 import GATE_INPUTS
from parity.recipes.record_58 import Record58
from torchref.attention import (
    offset_keys,
    pair_heads,
    pair_tables,
    rotary_tables,
    rotate_neighbours,
    segment_ids,
    window_attention,
)
from torchref.kernels.fp8 import fp8_matmul
from torchref.layers import (
    Embedding,
    Gate,
    Linear,
    Norm,
    Scalars,
    StackedLinear,
    merge_heads,
    rms_norm,
    scale_by,
    split_heads,
    torch_dtype,
)
from torchref.models.record_21 import MLP
from torchref.models.record_40 import Smear


class Stage(NamedTuple):
    """What attention has of the stage of the run: windows in positions before a query's own; rotary's cosines and sines
    of T positions, (T, 1, K / 4), and of heads in pairs, (T, H, K / 4); the factor of q k^T."""

    long: int
    short: int
    tables: tuple[Any, Any]
    paired_tables: tuple[Any, Any]
    scale: float


class Attention(nn.Module):
    """Causal self-attention within a token's document and a window: position t sees t - w .. t.

    q and k are RMS-normed per head, then rotated; v has the block's value embedding, times a gate. In some blocks heads
    j and j + H / 2 attend together, as two rows of a sequence of twice the length; in those with the long window some
    channels of a key are those of the position before. Every head's result is multiplied by a gate.
    """

    def __init__(self, recipe: Record58, layer: int):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.qkv = StackedLinear(3, D, D, dtypes)
        self.factors = Scalars(2, dtypes)
        self.gate = Gate(recipe.heads, GATE_INPUTS, dtypes)
        self.value_gate = Gate(recipe.heads, GATE_INPUTS, dtypes) if layer in recipe.value_embedding_of else None
        self.proj = Linear(D, D, dtypes, bias=False)
        self.head_dim, self.eps, self.accum = recipe.head_dim, recipe.norm_eps, dtypes.accum
        self.long, self.paired = layer in recipe.long_window_layers, layer in recipe.paired_layers
        self.offset_channels = recipe.offset_channels

    def forward(self, x_BTD, value_BTD, segments_BT, stage: Stage):
        qkv = self.qkv(x_BTD, self.factors(x_BTD, 0))
        q_BTHK, k_BTHK, v_BTHK = (split_heads(y_BTD, self.head_dim) for y_BTD in qkv.chunk(3, dim=-1))
        tables = stage.paired_tables if self.paired else stage.tables
        q_BTHK = rotate_neighbours(rms_norm(q_BTHK, self.eps, self.accum), *tables, stage.scale)
        k_BTHK = rotate_neighbours(rms_norm(k_BTHK, self.eps, self.accum), *tables)
        if self.value_gate is not None:
            v_BTHK = v_BTHK + 2 * self.value_gate(x_BTD)[..., None] * split_heads(value_BTD, self.head_dim)
        window = (stage.long if self.long else stage.short) + 1  # with the query's own position
        window_tensor = torch.tensor(window, dtype=torch.int32, device=x_BTD.device)
        if self.paired:
            q_BTHK, k_BTHK, v_BTHK = (pair_heads(y_BTHK) for y_BTHK in (q_BTHK, k_BTHK, v_BTHK))
            segments_BT = segments_BT.repeat_interleave(2, dim=1)
        elif self.long:
            k_BTHK = offset_keys(k_BTHK, self.offset_channels)
        y_BTHK: Any = window_attention(q_BTHK, k_BTHK, v_BTHK, 1.0, segments_BT, window_tensor, 1, window)
        y_BTHK = y_BTHK.reshape(*x_BTD.shape[:2], -1, self.head_dim)  # pairs as heads again
        return self.proj(merge_heads(y_BTHK * self.gate(x_BTD)[..., None]), self.factors(x_BTD, 1))


class Block(nn.Module):
    """x = x + attn(norm1(x)), in all blocks but one; x = x + mlp(norm2(x)). The norms are RMS norms without a gain."""

    def __init__(self, recipe: Record58, layer: int):
        super().__init__()
        attends = layer != recipe.no_attention_layer
        self.norm1 = Norm(recipe.norm_eps, recipe.dtypes) if attends else None
        self.attn = Attention(recipe, layer) if attends else None
        self.norm2 = Norm(recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD, value_BTD, segments_BT, stage: Stage):
        if self.norm1 is not None and self.attn is not None:
            x_BTD = x_BTD + self.attn(self.norm1(x_BTD), value_BTD, segments_BT, stage)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Skip(nn.Module):
    """x + sigmoid(s) 2 g(x0) y, s a learned scalar and g a gate of the input: y is the output of another block."""

    def __init__(self, recipe: Record58):
        super().__init__()
        self.gate = Gate(1, GATE_INPUTS, recipe.dtypes)
        self.factor = Scalars(1, recipe.dtypes)

    def forward(self, x_BTD, x0_BTD, y_BTD):
        return x_BTD + scale_by(2 * self.gate(x0_BTD) * y_BTD, torch.sigmoid(self.factor(x_BTD)))


class Model(nn.Module):
    """Maps (B, T) tokens and the number of the stage of attention to (B, T, D); `logits` maps these to (B, T, V).

    The stage is an int, which the program looks up by the step (`recipe.attention_stage`), in training as in
    evaluation; code is compiled for each. Embedding and head have V rows, the vocabulary padded to whole tiles; for two
    thirds of the run the optimizer keeps them equal.
    """

    def __init__(self, recipe: Record58):
        super().__init__()
        D, V, dtypes, count = recipe.dim, recipe.vocab_size, recipe.dtypes, recipe.value_embedding_count
        self.embed = Embedding(V, D, dtypes)
        self.smear = Smear(recipe)
        self.norm_in = Norm(recipe.norm_eps, dtypes)
        self.value_embeds = nn.ModuleList([Embedding(recipe.tokenizer_size, D, dtypes) for _ in range(count)])
        self.residual = Scalars(recipe.layers, dtypes)
        self.input_residual = Scalars(recipe.layers, dtypes)
        self.skip = Skip(recipe)
        self.blocks = nn.ModuleList([Block(recipe, i) for i in range(recipe.layers)])
        self.backout = Scalars(1, dtypes)
        self.norm_out = Norm(recipe.norm_eps, dtypes)
        self.head = Linear(D, V, dtypes.narrow, bias=False)
        self.skip_layer, self.no_attention_layer = recipe.skip_layer, recipe.no_attention_layer
        self.backout_layer, self.value_embedding_of = recipe.backout_layer, recipe.value_embedding_of
        self.end_of_text, self.heads, self.dtypes = recipe.end_of_text, recipe.heads, dtypes
        self.stages, self.rotating = recipe.attention_stages, recipe.head_dim // 4
        self.logit_bound, self.logit_shift, self.logit_slope = recipe.logit_cap, recipe.logit_shift, recipe.logit_slope
        self.fp8, self.fp8_scales = recipe.fp8 and dtypes.fp8, recipe.fp8_scales

    def forward(self, tokens_BT, stage: int):
        x_BTD = x0_BTD = self.norm_in(self.smear(self.embed(tokens_BT)))
        values = [embed(tokens_BT) for embed in self.value_embeds]
        segments_BT = segment_ids(tokens_BT, self.end_of_text)  # a document starts with the end-of-text token
        attention = self.stage(stage, tokens_BT.shape[1], tokens_BT.device)
        skipped_BTD = backed_out_BTD = x_BTD
        for i, block in enumerate(self.blocks):
            if i == self.no_attention_layer:
                x_BTD = self.skip(x_BTD, x0_BTD, skipped_BTD)
            x_BTD = scale_by(x_BTD, self.residual(x_BTD, i)) + scale_by(x0_BTD, self.input_residual(x_BTD, i))
            value_BTD = values[self.value_embedding_of[i]] if i in self.value_embedding_of else None
            x_BTD = block(x_BTD, value_BTD, segments_BT, attention)
            if i == self.skip_layer:
                skipped_BTD = x_BTD
            if i == self.backout_layer:
                backed_out_BTD = x_BTD
        return self.norm_out(x_BTD - scale_by(backed_out_BTD, self.backout(x_BTD)))

    def stage(self, stage: int, T: int, device: torch.device) -> Stage:
        """The stage of a number."""
        long, short, frequencies, scale = self.stages[stage]
        accum, table_dtype = torch_dtype(self.dtypes.accum), torch_dtype(self.dtypes.rotary)
        tables, doubled = (
            rotary_tables(n, frequencies[: self.rotating], accum, table_dtype, device) for n in (T, 2 * T)
        )
        return Stage(long, short, tables, pair_tables(*doubled, self.heads), scale)

    def raw_logits(self, x_BTD):
        return self.head(x_BTD)

    def training_raw_logits(self, x_BTD, grad_scale: float):
        """The raw logits in training: at bfloat16 the product of x and W rounded to 8 bits.

        The gradient of these logits is rounded to 8 bits too, after it has been multiplied by `grad_scale`, which turns
        it into the gradient of the sum of a row's losses, and by the last of the recipe's `fp8_scales`.
        """
        if not self.fp8:
            return self.raw_logits(x_BTD)
        x_BTD = x_BTD.to(torch_dtype(self.dtypes.matmul))
        return fp8_matmul(x_BTD, self.head.weight, self.fp8_scales, grad_scale)

    def softcap(self, raw_logits_BTV):
        """c sigmoid((z + h) / s), rounded to bfloat16 at that precision: the recipe has c = 23, h = 5 and s = 7.5."""
        shifted_BTV = (raw_logits_BTV.to(torch_dtype(self.dtypes.accum)) + self.logit_shift) / self.logit_slope
        logits_BTV = self.logit_bound * torch.sigmoid(shifted_BTV)
        return logits_BTV.to(torch_dtype(self.dtypes.softcap)).to(torch_dtype(self.dtypes.accum))

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
