"""The layers that models are built from, in PyTorch: products, embeddings, norms, learned scalars, losses.

Letters: parity/recipes/base.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes import Dtypes

_MASKED = -1e30  # a masked score: exp(_MASKED - max) is exactly 0 in every precision in use


class Linear(nn.Module):
    """x W^T + b, in the type of products: weight (out, in), bias (out,) if there is one. `factor` multiplies W."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes, bias: bool = True):
        super().__init__()
        self.weight = empty((outputs, inputs), dtypes.weights)
        self.bias = empty((outputs,), dtypes.weights) if bias else None
        self.dtype, self.truncate = dtypes.matmul, dtypes.truncate

    def forward(self, x, factor=None):
        return matmul_t(x, cast_weight(self.weight, self.dtype, self.truncate, factor), self.dtype, self.bias)


class StackedLinear(nn.Module):
    """x W[i]^T for each matrix of a stack (N, out, in), side by side: (B, T, N out). `factor` multiplies W."""

    def __init__(self, count: int, inputs: int, outputs: int, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((count, outputs, inputs), dtypes.weights)
        self.dtype, self.truncate = dtypes.matmul, dtypes.truncate

    def forward(self, x_BTD, factor=None):
        return matmul_t(x_BTD, cast_weight(self.weight.flatten(0, 1), self.dtype, self.truncate, factor), self.dtype)


class Embedding(nn.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((rows, dim), dtypes.embedding)

    def forward(self, index):
        return F.embedding(index, self.weight)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, in the accumulation dtype; variance
    biased."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((dim,), dtypes.weights)
        self.bias = empty((dim,), dtypes.weights)
        self.eps, self.accum, self.dtype = eps, dtypes.accum, dtypes.residual

    def forward(self, x):
        x = x.to(torch_dtype(self.accum))
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(torch_dtype(self.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, in the accumulation dtype."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((dim,), dtypes.weights)
        self.eps, self.accum, self.dtype = eps, dtypes.accum, dtypes.residual

    def forward(self, x):
        return rms_norm(x, self.eps, self.accum, self.weight.to(torch_dtype(self.dtype)))


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, in the accumulation dtype: RMS norm without a gain."""

    def __init__(self, eps: float, dtypes: Dtypes):
        super().__init__()
        self.eps, self.accum = eps, dtypes.accum

    def forward(self, x):
        return rms_norm(x, self.eps, self.accum)


class Gate(nn.Module):
    """sigmoid(x[:n] W^T), one number a head, of the first n channels: weight (heads, n)."""

    def __init__(self, heads: int, inputs: int, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((heads, inputs), dtypes.narrow.weights)
        self.dtype = dtypes.matmul

    def forward(self, x_BTD):
        return torch.sigmoid(matmul_t(x_BTD[..., : self.weight.shape[-1]], self.weight, self.dtype))


class Scalars(nn.Module):
    """A few learned scalars, each in the type of the activations that it multiplies."""

    def __init__(self, count: int, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((count,), dtypes.scalars)

    def forward(self, x, i: int = 0):
        return self.weight[i].to(x.dtype)


class InputResidual(nn.Module):
    """l0 x + l1 x0, x0 the normed embedding (record 8)."""

    def __init__(self, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((2,), dtypes.scalars)

    def forward(self, x_BTD, x0_BTD):
        lambdas = self.weight.to(x_BTD.dtype)
        return scale_by(x_BTD, lambdas[0]) + scale_by(x0_BTD, lambdas[1])


class SkipConnections(nn.Module):
    """x + w_i y: the i-th block of the second half adds the output of its mirror image, the last of the first half
    first (U-net, record 11). `outputs` are those of the first half, in order."""

    def __init__(self, count: int, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((count,), dtypes.scalars)

    def forward(self, x_BTD, outputs, i: int):
        return x_BTD + scale_by(outputs[-1 - i], self.weight[i].to(x_BTD.dtype))


def cast_weight(weight, dtype: str, truncate: bool, factor=None):
    """The weight in `dtype`, rounded or, with `truncate`, without the lower 16 of its 32 bits; times a learned number
    if there is one, which is cast first. The gradient passes as if nothing were cut off."""
    if truncate:
        upper = (weight.detach().view(torch.int32) & -0x10000).view(weight.dtype)
        weight = weight + (upper - weight).detach()
    weight = weight.to(torch_dtype(dtype))
    return weight if factor is None else scale_by(weight, factor.to(weight.dtype))


def matmul_t(x, weight, dtype: str, bias=None):
    """x W^T, plus the bias if there is one, all cast to `dtype`; sums are kept in float32 or wider."""
    kind = torch_dtype(dtype)
    return F.linear(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind))


def scale_by(x, factor):
    """factor x, with one learned number of the type of x, whose gradient is summed in float32 or wider."""
    return factor * x


def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")


def rational_softcap(x, cap: float):
    """cap x / sqrt(x^2 + cap^2)."""
    return cap * x * torch.rsqrt(x * x + cap**2)


def mask_padding(logits_BTV, size: int):
    """The logits with those of the rows above `size` masked: they take no part in a softmax."""
    if logits_BTV.shape[-1] == size:
        return logits_BTV
    return logits_BTV.masked_fill(torch.arange(logits_BTV.shape[-1], device=logits_BTV.device) >= size, _MASKED)


def split_heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.unflatten(-1, (-1, head_dim))


def merge_heads(x_BTHK):
    """(B, T, H, K) -> (B, T, D)."""
    return x_BTHK.flatten(2)


def rms_norm(x, eps: float, accum: str, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `accum`, returned in the type of x."""
    kind = torch_dtype(accum)
    return F.rms_norm(x.to(kind), x.shape[-1:], None if gain is None else gain.to(kind), eps).to(x.dtype)


def token_losses(raw_logits_BTV, targets_BT, softcap: Callable = lambda raw_logits: raw_logits):
    """-log softmax(softcap(raw logits))[target]: (B, T), in the type of the capped logits, nats."""
    logits_NV = softcap(raw_logits_BTV).flatten(0, 1)
    return F.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none").view(targets_BT.shape)


def weighted_token_losses(raw_logits_BTV, targets_BTN, weights_BTN, softcap: Callable = lambda raw_logits: raw_logits):
    """The sum of N targets' losses at each position, each times its weight: (B, T), in the type of the capped
    logits."""
    logits_BTV = softcap(raw_logits_BTV)
    weights_BTN = weights_BTN.to(logits_BTV.dtype)
    at_targets_BT = (logits_BTV.gather(-1, targets_BTN.long()) * weights_BTN).sum(-1)
    return logits_BTV.logsumexp(-1) * weights_BTN.sum(-1) - at_targets_BT


def shifted_targets(targets_BT, weights_N, length: int | None = None):
    """The N tokens from each position's target on, and their weights, both (B, T, N); 0 for those behind the first
    `length` positions of the row (None: all). `weights_N`: those of the first target, the second and so on."""
    T, N = targets_BT.shape[1], weights_N.shape[0]
    ahead_TN = torch.arange(T, device=targets_BT.device)[:, None] + torch.arange(N, device=targets_BT.device)
    targets_BTN = targets_BT[:, ahead_TN.clamp(max=T - 1)]
    weights_TN = torch.where(ahead_TN < (T if length is None else length), weights_N, 0)
    return targets_BTN, weights_TN.expand(targets_BTN.shape)


def torch_dtype(name: str) -> torch.dtype:
    """The type of a name in parity.recipes.Dtypes."""
    return getattr(torch, name)


def empty(shape: tuple[int, ...], dtype: str) -> nn.Parameter:
    """A weight with no memory behind it yet."""
    return nn.Parameter(torch.empty(shape, dtype=torch_dtype(dtype)))
