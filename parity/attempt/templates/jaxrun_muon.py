"""An attempt in JAX: model, optimizer and schedule in one file, to be edited.

It starts as the recipe `muon`. The harness owns the data, the clock, the evaluation and the log; this file owns the
model, the optimizer and the schedule. Letters: B rows of a batch, T positions, D width, H heads, K width of a head,
V tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun import model, optim
from jaxrun.attention import causal_attention, rotary
from jaxrun.program import JaxProgram, keep_compiled
from jaxrun.sharding import pick_devices
from parity.recipes import Muon


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


class Attention(nnx.Module):
    """Causal attention; q and k RMS-normalised per head, then rotary."""

    def __init__(self, recipe: Mine):
        self.q = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.k = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.v = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.proj = model.Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim, self.scale, self.base = recipe.head_dim, recipe.scale, recipe.rotary_base
        self.eps, self.wide = recipe.norm_eps, recipe.dtypes.wide

    def __call__(self, x_BTD):
        q, k, v = (model.heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q, k = (rotary(model.rms_norm(x, self.eps, self.wide), self.base, self.wide) for x in (q, k))
        y_BTHK = causal_attention(q, k, v, self.scale)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class MLP(nnx.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Mine):
        self.fc = model.Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = model.Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)

    def __call__(self, x_BTD):
        return self.proj(jnp.square(jax.nn.relu(self.fc(x_BTD))))


class Block(nnx.Module):
    def __init__(self, recipe: Mine):
        self.norm1 = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def __call__(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nnx.Module):
    """Normed embedding, blocks, untied head with bias, capped logits. Attribute paths are the weights' names."""

    def __init__(self, recipe: Mine):
        self.embed = model.Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding, recipe.dtypes.wide)
        self.norm_in = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.blocks = nnx.List([Block(recipe) for _ in range(recipe.layers)])
        self.norm_out = model.RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.head = model.Linear(recipe.dim, recipe.vocab_size, recipe.dtypes)
        self.cap, self.dtypes = recipe.logit_cap, recipe.dtypes

    def __call__(self, tokens_BT):
        x_BTD = self.norm_in(self.embed(tokens_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm_out(x_BTD)

    def logits(self, x_BTD):
        return model.capped(self.head(x_BTD).astype(self.dtypes.wide), self.cap)


def make_optimizer(recipe: Mine):
    """An optax transform of {name: gradient}: Muon on the blocks' matrices, AdamW on the rest."""
    groups = {
        group: optim.adamw(optim.learning_rates(recipe, group), recipe.betas, recipe.adam_eps, recipe.adam_decay)
        for group in ("embed", "head", "vector")
    }
    groups["matrix"] = optim.muon(
        optim.learning_rates(recipe, "matrix"),
        recipe.muon_decay,
        recipe.momentum,
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        recipe.dtypes.newton_schulz,
    )
    return optim.by_group(groups, optim.group_of(recipe))


def make_recipe(base: Muon) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> JaxProgram:
    """What the harness runs."""
    keep_compiled()  # so that the next run starts sooner
    return JaxProgram(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)
