"""The model of `record-40`, the speedrun's record of October 2025. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes.record_40 import GATE_INPUTS, Record40
from torchref.attention import rotary_tables, rotate, segment_ids, window_attention
from torchref.kernels.fp8 import fp8_matmul
from torchref.layers import (
    Embedding,
    Gate,
    InputResidual,
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
from torchref.models.record_21 import MLP, ValueMix


class Stage(NamedTuple):
    """What attention has of the stage of the run: windows in positions before a query's own, rotary's cosines and
    sines (T, 1, K / 2), the factor of q k^T."""

    long: int
    short: int
    cos: torch.Tensor
    sin: torch.Tensor
    scale: float


class Attention(nn.Module):
    """Causal self-attention within a token's document and a window: position t sees t - w .. t.

    q and k are RMS-normed per head, then rotated (half of the channels, by the stage's frequencies). Every head's
    result is multiplied by a gate of the input.
    """

    def __init__(self, recipe: Record40, layer: int):
        super().__init__()
        D, dtypes = recipe.dim, recipe.dtypes
        self.qkv = StackedLinear(3, D, D, dtypes)
        self.proj = Linear(D, D, dtypes, bias=False)
        self.lambdas = ValueMix(recipe)
        self.gate = Gate(recipe.heads, GATE_INPUTS, dtypes)
        self.head_dim, self.eps, self.accum = recipe.head_dim, recipe.norm_eps, dtypes.accum
        self.long = layer in recipe.long_window_layers

    def forward(self, x_BTD, value_BTD, segments_BT, stage: Stage):
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).chunk(3, dim=-1)
        q_BTHK, k_BTHK, v_BTHK = (split_heads(y_BTD, self.head_dim) for y_BTD in (q_BTD, k_BTD, v_BTD))
        q_BTHK = rotate(rms_norm(q_BTHK, self.eps, self.accum), stage.cos, stage.sin, stage.scale)
        k_BTHK = rotate(rms_norm(k_BTHK, self.eps, self.accum), stage.cos, stage.sin)
        v_BTHK = self.lambdas(v_BTHK, value_BTD)
        window = (stage.long if self.long else stage.short) + 1  # with the query's own position
        window_tensor = torch.tensor(window, dtype=torch.int32, device=x_BTD.device)
        y_BTHK = window_attention(q_BTHK, k_BTHK, v_BTHK, 1.0, segments_BT, window_tensor, 1, window)
        return self.proj(merge_heads(y_BTHK * self.gate(x_BTD)[..., None]))


class Block(nn.Module):
    """x = l0 x + l1 x0, two learned scalars; x = x + attn(norm1(x)), in all blocks but one; x = x + mlp(norm2(x)).

    The norms are RMS norms without a gain.
    """

    def __init__(self, recipe: Record40, layer: int):
        super().__init__()
        self.lambdas = InputResidual(recipe.dtypes)
        attends = layer != recipe.no_attention_layer
        self.norm1 = Norm(recipe.norm_eps, recipe.dtypes) if attends else None
        self.attn = Attention(recipe, layer) if attends else None
        self.norm2 = Norm(recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD, x0_BTD, value_BTD, segments_BT, stage: Stage):
        x_BTD = self.lambdas(x_BTD, x0_BTD)
        if self.norm1 is not None and self.attn is not None:
            x_BTD = x_BTD + self.attn(self.norm1(x_BTD), value_BTD, segments_BT, stage)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Smear(nn.Module):
    """e_t + s g(e_t) e_{t-1}, s a learned scalar and g a gate; the row's first position stays as it is."""

    def __init__(self, recipe: Record40):
        super().__init__()
        self.gate = Gate(1, GATE_INPUTS, recipe.dtypes)
        self.factor = Scalars(1, recipe.dtypes)

    def forward(self, e_BTD):
        before_BTD = F.pad(e_BTD[:, :-1], (0, 0, 1, 0))
        return e_BTD + scale_by(self.gate(e_BTD) * before_BTD, self.factor(e_BTD))


class Model(nn.Module):
    """Maps (B, T) tokens and the number of the stage of attention to (B, T, D); `logits` maps these to (B, T, V).

    The stage is an int, which the program looks up by the step (`recipe.attention_stage`), in training as in
    evaluation; code is compiled for each. V is the vocabulary padded to whole tiles; embeddings have only the
    tokenizer's rows. Block 0 is empty.
    """

    def __init__(self, recipe: Record40):
        super().__init__()
        D, rows, dtypes = recipe.dim, recipe.tokenizer_size, recipe.dtypes
        self.embed = Embedding(rows, D, dtypes)
        self.smear = Smear(recipe)
        self.norm_in = Norm(recipe.norm_eps, dtypes)
        self.value_embeds = nn.ModuleList([Embedding(rows, D, dtypes) for _ in range(recipe.value_embedding_count)])
        self.blocks = nn.ModuleList([nn.Identity(), *(Block(recipe, i) for i in range(1, recipe.layers))])
        self.skips = Scalars(recipe.layers // 2 - 1, dtypes)
        self.backout = Scalars(1, dtypes)
        self.norm_out = Norm(recipe.norm_eps, dtypes)
        self.head = Linear(D, recipe.vocab_size, dtypes.narrow, bias=False)
        self.layers, self.backout_layer = recipe.layers, recipe.backout_layer
        self.value_embedding_of, self.end_of_text = recipe.value_embedding_of, recipe.end_of_text
        self.stages, self.dtypes = recipe.attention_stages, dtypes
        self.logit_bound, self.logit_slope = recipe.logit_cap, recipe.logit_slope
        self.fp8, self.fp8_scales = recipe.fp8 and dtypes.fp8, recipe.fp8_scales

    def forward(self, tokens_BT, stage: int):
        x_BTD = x0_BTD = self.norm_in(self.smear(self.embed(tokens_BT)))
        values = [embed(tokens_BT) for embed in self.value_embeds]
        segments_BT = segment_ids(tokens_BT, self.end_of_text)  # a document starts with the end-of-text token
        attention, half, outputs, backed_out_BTD = (
            self.stage(stage, tokens_BT.shape[1], tokens_BT.device),
            self.layers // 2,
            [],
            x_BTD,
        )
        for i in range(1, self.layers):
            if half <= i < self.layers - 1:  # the outputs of the first half, the last first; none for the last block
                factor = torch.sigmoid(self.skips(x_BTD, i - half))
                x_BTD = x_BTD + scale_by(outputs.pop(), factor)
            value_BTD = values[self.value_embedding_of[i]] if i in self.value_embedding_of else None
            x_BTD = self.blocks[i](x_BTD, x0_BTD, value_BTD, segments_BT, attention)
            if i < half:
                outputs.append(x_BTD)
            if i == self.backout_layer:
                backed_out_BTD = x_BTD
        return self.norm_out(x_BTD - scale_by(backed_out_BTD, self.backout(x_BTD)))

    def stage(self, stage: int, T: int, device: torch.device) -> Stage:
        """The stage of a number."""
        long, short, frequencies, scale = self.stages[stage]
        accum, table_dtype = torch_dtype(self.dtypes.accum), torch_dtype(self.dtypes.rotary)
        return Stage(long, short, *rotary_tables(T, frequencies, accum, table_dtype, device), scale)

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
        """c sigmoid(z / s), rounded to bfloat16 at that precision: the recipe has c = 30 and s = 7.5."""
        logits_BTV = self.logit_bound * torch.sigmoid(
            raw_logits_BTV.to(torch_dtype(self.dtypes.accum)) / self.logit_slope
        )
        return logits_BTV.to(torch_dtype(self.dtypes.softcap)).to(torch_dtype(self.dtypes.accum))

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
