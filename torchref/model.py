"""The models of the recipes in PyTorch: modules named as the canonical weights, one forward each.

Attribute paths are the canonical names, so weights need no renaming. A model is built empty and filled with
`load_state_dict`. Letters: parity/recipe.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipe import Dtypes, Muon, NanoGPT, Recipe
from torchref.attention import NEGATIVE, causal_attention, rotary


class Linear(nn.Module):
    """x W^T + b: weight (out, in), bias (out,), cast to the type of products."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes):
        super().__init__()
        self.weight = _empty((outputs, inputs), dtypes.weights)
        self.bias = _empty((outputs,), dtypes.weights)
        self.dtype = torch_dtype(dtypes.products)

    def forward(self, x):
        return product(x, self.weight, self.dtype, self.bias)


class Embedding(nn.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtype: str):
        super().__init__()
        self.weight = _empty((rows, dim), dtype)

    def forward(self, index):
        return F.embedding(index, self.weight)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, variance biased, in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = _empty((dim,), dtypes.weights)
        self.bias = _empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, torch_dtype(dtypes.wide), torch_dtype(dtypes.stream)

    def forward(self, x):
        return F.layer_norm(x.to(self.wide), self.weight.shape, self.weight, self.bias, self.eps).to(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = _empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, torch_dtype(dtypes.wide), torch_dtype(dtypes.stream)

    def forward(self, x):
        return rms_norm(x, self.eps, self.wide, self.weight.to(self.dtype))


class NanoAttention(nn.Module):
    """Causal self-attention with one matrix for q, k and v, scale 1 / sqrt(K)."""

    def __init__(self, recipe: NanoGPT):
        super().__init__()
        self.qkv = Linear(recipe.dim, 3 * recipe.dim, recipe.dtypes)
        self.proj = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim = recipe.head_dim

    def forward(self, x_BTD):
        q, k, v = (heads(x, self.head_dim) for x in self.qkv(x_BTD).chunk(3, dim=-1))
        y_BTHK = causal_attention(q, k, v, self.head_dim**-0.5)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class NanoMLP(nn.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, recipe: NanoGPT):
        super().__init__()
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)
        self.gelu = recipe.gelu

    def forward(self, x_BTD):
        return self.proj(gelu(self.fc(x_BTD), self.gelu))


class NanoBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: NanoGPT):
        super().__init__()
        self.norm1 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = NanoAttention(recipe)
        self.norm2 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = NanoMLP(recipe)

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class NanoModel(nn.Module):
    """GPT-2: token plus position embedding, blocks, LayerNorm, head tied to the token embedding.

    Columns of the head above the tokenizer's size take no part in the softmax.
    """

    def __init__(self, recipe: NanoGPT):
        super().__init__()
        self.embed = Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding)
        self.positions = Embedding(recipe.context, recipe.dim, recipe.dtypes.weights)
        self.blocks = nn.ModuleList([NanoBlock(recipe) for _ in range(recipe.layers)])
        self.norm_out = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.tokenizer_size = recipe.tokenizer_size
        self.dtype, self.wide = torch_dtype(recipe.dtypes.products), torch_dtype(recipe.dtypes.wide)

    def forward(self, tokens_BT):
        x_BTD = self.embed(tokens_BT) + self.positions(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm_out(x_BTD)

    def logits(self, x_BTD):
        logits = product(x_BTD, self.embed.weight, self.dtype).to(self.wide)
        if logits.shape[-1] == self.tokenizer_size:
            return logits
        return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= self.tokenizer_size, NEGATIVE)


class MuonAttention(nn.Module):
    """Causal self-attention with separate q, k, v; q and k RMS-normalised per head without gain, then rotary."""

    def __init__(self, recipe: Muon):
        super().__init__()
        self.q = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.k = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.v = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.proj = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim, self.scale, self.base = recipe.head_dim, recipe.scale, recipe.rotary_base
        self.eps, self.wide = recipe.norm_eps, torch_dtype(recipe.dtypes.wide)

    def forward(self, x_BTD):
        q, k, v = (heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q, k = (rotary(rms_norm(x, self.eps, self.wide), self.base, self.wide) for x in (q, k))
        y_BTHK = causal_attention(q, k, v, self.scale)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class MuonMLP(nn.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Muon):
        super().__init__()
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)

    def forward(self, x_BTD):
        return self.proj(F.relu(self.fc(x_BTD)).square())


class MuonBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: Muon):
        super().__init__()
        self.norm1 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = MuonAttention(recipe)
        self.norm2 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MuonMLP(recipe)

    def forward(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class MuonModel(nn.Module):
    """The public optimization track's model: normed embedding, blocks, untied head with bias, capped logits."""

    def __init__(self, recipe: Muon):
        super().__init__()
        self.embed = Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding)
        self.norm_in = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.blocks = nn.ModuleList([MuonBlock(recipe) for _ in range(recipe.layers)])
        self.norm_out = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.head = Linear(recipe.dim, recipe.vocab_size, recipe.dtypes)
        self.cap, self.wide = recipe.logit_cap, torch_dtype(recipe.dtypes.wide)

    def forward(self, tokens_BT):
        x_BTD = self.norm_in(self.embed(tokens_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm_out(x_BTD)

    def logits(self, x_BTD):
        return capped(self.head(x_BTD).to(self.wide), self.cap)


MODELS = {"nanogpt": NanoModel, "muon": MuonModel}


def product(x, weight, dtype: torch.dtype, bias=None):
    """x W^T, plus the bias if there is one, all cast to `dtype`; sums are kept in float32 or wider."""
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")


def capped(x, cap: float):
    """cap x / sqrt(x^2 + cap^2): never beyond the cap on either side."""
    return cap * x * torch.rsqrt(x * x + cap**2)


def heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.unflatten(-1, (-1, head_dim))


def rms_norm(x, eps: float, wide: torch.dtype, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `wide`, returned in the type of x."""
    return F.rms_norm(x.to(wide), x.shape[-1:], None if gain is None else gain.to(wide), eps).to(x.dtype)


def token_losses(logits_BTV, targets_BT):
    """-log softmax(logits)[target]: (B, T), in the type of the logits, nats."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape)


def make_model(recipe: Recipe, make: Callable[[Recipe], nn.Module] | None = None) -> nn.Module:
    """The recipe's model with no memory behind its weights; `make` makes another one than the recipe's name stands for."""
    with torch.device("meta"):
        return (make or MODELS[recipe.name])(recipe)


def torch_dtype(name: str) -> torch.dtype:
    """The type of a name in parity.recipe.Dtypes."""
    return getattr(torch, name)


def _empty(shape, dtype: str) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch_dtype(dtype)))
