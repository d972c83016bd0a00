"""The model of `nanogpt`, GPT-2 as in nanoGPT. Attribute paths are the weights' names; letters:
parity/recipes/base.py."""

import jax.numpy as jnp
from flax import nnx

from jaxrun.attention import causal_attention
from jaxrun.kernels.remat import maybe_remat
from jaxrun.layers import Embedding, LayerNorm, Linear, gelu, mask_padding, matmul_t, merge_heads, split_heads
from parity.recipes import NanoGPT


class Attention(nnx.Module):
    """Causal self-attention; q, k and v come from one matrix."""

    def __init__(self, recipe: NanoGPT):
        D, dtypes = recipe.dim, recipe.dtypes
        self.qkv = Linear(D, 3 * D, dtypes)
        self.proj = Linear(D, D, dtypes)
        self.head_dim, self.softmax_scale = recipe.head_dim, recipe.softmax_scale

    def __call__(self, x_BTD):
        q_BTD, k_BTD, v_BTD = jnp.split(self.qkv(x_BTD), 3, axis=-1)
        q_BTHK, k_BTHK, v_BTHK = (split_heads(y_BTD, self.head_dim) for y_BTD in (q_BTD, k_BTD, v_BTD))
        y_BTHK = causal_attention(q_BTHK, k_BTHK, v_BTHK, self.softmax_scale)
        return self.proj(merge_heads(y_BTHK))


class MLP(nnx.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, recipe: NanoGPT):
        D, dtypes = recipe.dim, recipe.dtypes
        self.fc = Linear(D, 4 * D, dtypes)
        self.proj = Linear(4 * D, D, dtypes)
        self.gelu = recipe.gelu

    def __call__(self, x_BTD):
        return self.proj(gelu(self.fc(x_BTD), self.gelu))


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: NanoGPT):
        self.norm1 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = Attention(recipe)
        self.norm2 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MLP(recipe)

    def __call__(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Model(nnx.Module):
    """Maps (B, T) tokens to activations (B, T, D); `logits` maps these to (B, T, V)."""

    def __init__(self, recipe: NanoGPT):
        D, dtypes = recipe.dim, recipe.dtypes
        self.embed = Embedding(recipe.vocab_size, D, dtypes)
        self.positions = Embedding(recipe.context, D, dtypes)
        self.blocks = nnx.List([Block(recipe) for _ in range(recipe.layers)])
        self.norm_out = LayerNorm(D, recipe.norm_eps, dtypes)
        self.tokenizer_size, self.dtypes = recipe.tokenizer_size, dtypes

    def __call__(self, tokens_BT):
        x_BTD = self.embed(tokens_BT) + self.positions(jnp.arange(tokens_BT.shape[1]))
        for block in self.blocks:
            x_BTD = maybe_remat(block)(x_BTD)
        return self.norm_out(x_BTD)

    def raw_logits(self, x_BTD):
        """x E^T: the head is tied to the token embedding E."""
        return matmul_t(x_BTD, self.embed.weight[...], self.dtypes.matmul)

    def softcap(self, raw_logits_BTV):
        """No cap; the rows that pad the vocabulary take no part in the softmax."""
        return mask_padding(raw_logits_BTV.astype(self.dtypes.accum), self.tokenizer_size)

    def logits(self, x_BTD):
        return self.softcap(self.raw_logits(x_BTD))
