"""The model of `muon`, the optimization track's baseline. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun.attention import causal_attention, rotary
from jaxrun.kernels.remat import maybe_remat
from jaxrun.layers import Embedding, Linear, RMSNorm, merge_heads, rational_softcap, rms_norm, split_heads
from parity.recipes import Muon


class Attention(nnx.Module):
    """Causal self-attention; q and k are RMS-normed per head, then rotated, half of their channels."""

    def __init__(self, recipe: Muon):
        D, dtypes = recipe.dim, recipe.dtypes
        self.q = Linear(D, D, dtypes)
        self.k = Linear(D, D, dtypes)
        self.v = Linear(D, D, dtypes)
        self.proj = Linear(D, D, dtypes)
        self.head_dim, self.softmax_scale, self.rotary_base = recipe.head_dim, recipe.softmax_scale, recipe.rotary_base
        self.eps, self.accum = recipe.norm_eps, dtypes.accum

    def __call__(self, x_BTD):
        q_BTHK, k_BTHK, v_BTHK = (split_heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q_BTHK = rotary(rms_norm(q_BTHK, self.eps, self.accum), self.rotary_base, self.accum)
        k_BTHK = rotary(rms_norm(k_BTHK, self.eps, self.accum), self.rotary_base, self.accum)
        y_BTHK = causal_attention(q_BTHK, k_BTHK, v_BTHK, self.softmax_scale)
        return self.proj(merge_heads(y_BTHK))


class MLP(nnx.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Muon):
        D, dtypes = recipe.dim, recipe.dtypes
        self.fc = Linear(D, 4 * D, dtypes)
        self.proj = Linear(4 * D, D, dtypes)

    def __call__(self, x_BTD):
        return self.proj(jnp.square(jax.nn.relu(self.fc(x_BTD))))


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: Muon):
        self.norm1 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def __call__(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nnx.Module):
    """Maps (B, T) tokens to activations (B, T, D); `logits` maps these to (B, T, V)."""

    def __init__(self, recipe: Muon):
        D, dtypes = recipe.dim, recipe.dtypes
        self.embed = Embedding(recipe.vocab_size, D, dtypes)
        self.norm_in = RMSNorm(D, recipe.norm_eps, dtypes)
        self.blocks = nnx.List([Block(recipe) for _ in range(recipe.layers)])
        self.norm_out = RMSNorm(D, recipe.norm_eps, dtypes)
        self.head = Linear(D, recipe.vocab_size, dtypes)
        self.logit_bound, self.accum = recipe.logit_cap, dtypes.accum

    def __call__(self, tokens_BT):
        x_BTD = self.norm_in(self.embed(tokens_BT))
        for block in self.blocks:
            x_BTD = maybe_remat(block)(x_BTD)
        return self.norm_out(x_BTD)

    def raw_logits(self, x_BTD):
        return self.head(x_BTD)

    def softcap(self, raw_logits_BTV):
        """c z / sqrt(z^2 + c^2): the recipe has c = 15."""
        return rational_softcap(raw_logits_BTV.astype(self.accum), self.logit_bound)

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
