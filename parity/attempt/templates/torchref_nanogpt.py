"""An attempt in PyTorch: model, optimizer and schedule in one file, to be edited.

It starts as the recipe `nanogpt`. The harness owns the data, the clock, the evaluation and the log; this file owns the
model, the optimizer and the schedule. Letters: B rows of a batch, T positions, D width, H heads, K width of a head,
V tokens.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from parity.recipes import NanoGPT
from torchref import model, optim, sharding
from torchref.attention import NEGATIVE, causal_attention
from torchref.program import TorchProgram


@dataclass(frozen=True, kw_only=True)
class Mine(NanoGPT):
    """Sizes, rates and steps. A field given here, such as `steps: int = 200`, is what runs, before what the track or the command
    line says; `parameters` names every weight with its shape, first value and optimizer group."""

    name: ClassVar[str] = "mine"

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of every optimizer group at a step: a linear rise, then a cosine."""
        if step < self.warmup_steps:
            rate = self.peak_rate * (step + 1) / self.warmup_steps
        else:
            progress = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
            fraction = self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
            rate = self.peak_rate * fraction
        return {"decay": rate, "no_decay": rate}


class Attention(nn.Module):
    """Causal attention with one matrix for q, k and v."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.qkv = model.Linear(recipe.dim, 3 * recipe.dim, recipe.dtypes)
        self.proj = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim = recipe.head_dim

    def forward(self, x_BTD):
        q, k, v = (model.heads(x, self.head_dim) for x in self.qkv(x_BTD).chunk(3, dim=-1))
        y_BTHK = causal_attention(q, k, v, self.head_dim**-0.5)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class MLP(nn.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.fc = model.Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = model.Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)
        self.gelu = recipe.gelu

    def forward(self, x_BTD):
        return self.proj(model.gelu(self.fc(x_BTD), self.gelu))


class Block(nn.Module):
    def __init__(self, recipe: Mine):
        super().__init__()
        self.norm1 = model.LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = model.LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nn.Module):
    """Token plus position embedding, blocks, LayerNorm, head tied to the token embedding. Attribute paths are the
    weights' names."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.embed = model.Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding)
        self.positions = model.Embedding(recipe.context, recipe.dim, recipe.dtypes.weights)
        self.blocks = nn.ModuleList([Block(recipe) for _ in range(recipe.layers)])
        self.norm_out = model.LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.tokenizer_size = recipe.tokenizer_size
        self.dtype, self.wide = model.torch_dtype(recipe.dtypes.products), model.torch_dtype(recipe.dtypes.wide)

    def forward(self, tokens_BT):
        x_BTD = self.embed(tokens_BT) + self.positions(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm_out(x_BTD)

    def logits(self, x_BTD):
        logits = model.product(x_BTD, self.embed.weight, self.dtype).to(self.wide)
        if logits.shape[-1] == self.tokenizer_size:
            return logits
        return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= self.tokenizer_size, NEGATIVE)


def make_optimizer(recipe: Mine, weights) -> optim.ByGroup:
    """Torch optimizers of {name: parameter}, with their rates: clipping, then AdamW with decay on tensors of two or
    more dimensions."""
    of, decays = optim.group_of(recipe), {"decay": recipe.weight_decay, "no_decay": 0.0}
    parts = {group: {name: w for name, w in weights.items() if of[name] == group} for group in decays}
    adamw = optim.adamw(parts, recipe.betas, recipe.adam_eps, decays)
    return optim.ByGroup(
        {"adamw": adamw}, {group: optim.learning_rates(recipe, group) for group in decays}, recipe.clip_norm
    )


def make_recipe(base: NanoGPT) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> TorchProgram:
    """What the harness runs."""
    chosen = sharding.pick_device(device, devices)
    return TorchProgram(recipe, chosen, lambda weights: make_optimizer(recipe, weights), make_model=Model)
