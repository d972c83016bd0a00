"""An attempt in PyTorch: model, optimizer and schedule in one file, to be edited.

It starts as the recipe `muon`. The harness owns the data, the clock, the evaluation and the log; this file owns the
model, the optimizer and the schedule. Letters: B rows of a batch, T positions, D width, H heads, K width of a head,
V tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from parity.recipes import Muon
from torchref import model, optim, sharding
from torchref.attention import causal_attention, rotary
from torchref.program import TorchProgram


@dataclass(frozen=True, kw_only=True)
class Mine(Muon):
    """Sizes, rates and steps. A field given here, such as `steps: int = 200`, is what runs, before what the track or the command
    line says; `parameters` names every weight with its shape, first value and optimizer group."""

    name: ClassVar[str] = "mine"

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of every optimizer group at a step."""
        fraction = min(1.0, (1 - step / self.steps) / self.cooldown)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "vector": self.vector_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


class Attention(nn.Module):
    """Causal attention; q and k RMS-normalised per head, then rotary."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.q = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.k = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.v = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.proj = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim, self.scale, self.base = recipe.head_dim, recipe.scale, recipe.rotary_base
        self.eps, self.wide = recipe.norm_eps, model.torch_dtype(recipe.dtypes.wide)

    def forward(self, x_BTD):
        q, k, v = (model.heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q, k = (rotary(model.rms_norm(x, self.eps, self.wide), self.base, self.wide) for x in (q, k))
        y_BTHK = causal_attention(q, k, v, self.scale)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class MLP(nn.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.fc = model.Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = model.Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)

    def forward(self, x_BTD):
        return self.proj(F.relu(self.fc(x_BTD)).square())


class Block(nn.Module):
    def __init__(self, recipe: Mine):
        super().__init__()
        self.norm1 = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nn.Module):
    """Normed embedding, blocks, untied head with bias, capped logits. Attribute paths are the weights' names."""

    def __init__(self, recipe: Mine):
        super().__init__()
        self.embed = model.Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding)
        self.norm_in = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.blocks = nn.ModuleList([Block(recipe) for _ in range(recipe.layers)])
        self.norm_out = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.head = model.Linear(recipe.dim, recipe.vocab_size, recipe.dtypes)
        self.cap, self.wide = recipe.logit_cap, model.torch_dtype(recipe.dtypes.wide)

    def forward(self, tokens_BT):
        x_BTD = self.norm_in(self.embed(tokens_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm_out(x_BTD)

    def logits(self, x_BTD):
        return model.capped(self.head(x_BTD).to(self.wide), self.cap)


def make_optimizer(recipe: Mine, weights) -> optim.ByGroup:
    """Torch optimizers of {name: parameter}, with their rates: Muon on the blocks' matrices, AdamW on the rest."""
    of = optim.group_of(recipe)
    parts = {group: {name: w for name, w in weights.items() if of[name] == group} for group in sorted(set(of.values()))}
    matrix = {"matrix": parts.pop("matrix")}
    adamw = optim.adamw(parts, recipe.betas, recipe.adam_eps, dict.fromkeys(parts, recipe.adam_decay))
    muon = optim.muon(
        matrix,
        recipe.muon_decay,
        recipe.momentum,
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        model.torch_dtype(recipe.dtypes.newton_schulz),
    )
    rates = {group: optim.learning_rates(recipe, group) for group in sorted(set(of.values()))}
    return optim.ByGroup({"adamw": adamw, "muon": muon}, rates)


def make_recipe(base: Muon) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> TorchProgram:
    """What the harness runs."""
    chosen = sharding.pick_device(device, devices)
    return TorchProgram(recipe, chosen, lambda weights: make_optimizer(recipe, weights), make_model=Model)
