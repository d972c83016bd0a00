"""What parts and own models are made of, in PyTorch: products, embeddings, norms, caps, losses. Letters: parity/recipes/base.py."""

import torch
import torch.nn.functional as F
from torch import nn

from parity.recipes import Dtypes


class Linear(nn.Module):
    """x W^T + b: weight (out, in), bias (out,) if there is one, cast to the type of products."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes, bias: bool = True):
        super().__init__()
        self.weight = empty((outputs, inputs), dtypes.weights)
        self.bias = empty((outputs,), dtypes.weights) if bias else None
        self.dtype = torch_dtype(dtypes.products)

    def forward(self, x):
        return product(x, self.weight, self.dtype, self.bias)


class Embedding(nn.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtype: str):
        super().__init__()
        self.weight = empty((rows, dim), dtype)

    def forward(self, index):
        return F.embedding(index, self.weight)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, variance biased, in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((dim,), dtypes.weights)
        self.bias = empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, torch_dtype(dtypes.wide), torch_dtype(dtypes.stream)

    def forward(self, x):
        return F.layer_norm(x.to(self.wide), self.weight.shape, self.weight, self.bias, self.eps).to(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        super().__init__()
        self.weight = empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, torch_dtype(dtypes.wide), torch_dtype(dtypes.stream)

    def forward(self, x):
        return rms_norm(x, self.eps, self.wide, self.weight.to(self.dtype))


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, computed in the wide type."""

    def __init__(self, eps: float, dtypes: Dtypes):
        super().__init__()
        self.eps, self.wide = eps, torch_dtype(dtypes.wide)

    def forward(self, x):
        return rms_norm(x, self.eps, self.wide)


def product(x, weight, dtype: torch.dtype, bias=None):
    """x W^T, plus the bias if there is one, all cast to `dtype`; sums are kept in float32 or wider."""
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def times(x, factor):
    """factor x, with one learned number of the type of x, whose gradient is summed in float32 or wider."""
    return factor * x


def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")


def capped(x, cap: float):
    """cap x / sqrt(x^2 + cap^2): never beyond the cap on either side."""
    return cap * x * torch.rsqrt(x * x + cap**2)


def fp8_product(x_BTD, weight, scales: tuple[float, float, float], share: float):
    """x W^T of x and W as they are in 8 bits (e4m3), in the type of x; its gradient from dy in 8 bits (e5m2).

    W is float32, and takes the type of x first. `scales`: what x, W and dy are multiplied by before they are rounded; dy times `share` is
    the gradient of a row's mean loss. Sums are in float32, and so is W's gradient. On a CPU, which has no such products, the rounded numbers are multiplied in float32.
    """
    return _FP8Product.apply(x_BTD, weight, scales, share)


def eight_bits(x, scale: float, dtype: torch.dtype):
    """`scale` x in 8 bits."""
    return (x.float() * scale).to(dtype)


class _FP8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scales, share):
        x8, weight8 = (
            eight_bits(x, scales[0], torch.float8_e4m3fn),
            eight_bits(weight.to(x.dtype), scales[1], torch.float8_e4m3fn),
        )
        ctx.save_for_backward(x8, weight8)
        ctx.scales, ctx.share = scales, share
        return _fp8_matmul(x8.flatten(0, -2), weight8.T, scales[0] * scales[1], x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, dy):
        x8, weight8 = ctx.saved_tensors
        scale = ctx.scales[2] * ctx.share
        dy8 = eight_bits(dy, scale, torch.float8_e5m2).flatten(0, -2)
        dx = _fp8_matmul(dy8, weight8, scale * ctx.scales[1], dy.dtype).unflatten(0, dy.shape[:-1])
        return dx, _fp8_matmul(dy8.T, x8.flatten(0, -2), scale * ctx.scales[0], torch.float32), None, None


def _fp8_matmul(a, b, scale: float, dtype: torch.dtype):
    """a b / scale. The GPU's product takes its left side by rows and its right side by columns."""
    if a.device.type == "cpu":
        return ((a.float() @ b.float()) / scale).to(dtype)
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a.contiguous(), b.T.contiguous().T, out_dtype=dtype, scale_a=one / scale, scale_b=one)


def heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.unflatten(-1, (-1, head_dim))


def rms_norm(x, eps: float, wide: torch.dtype, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `wide`, returned in the type of x."""
    return F.rms_norm(x.to(wide), x.shape[-1:], None if gain is None else gain.to(wide), eps).to(x.dtype)


def token_losses(logits_BTV, targets_BT):
    """-log softmax(logits)[target]: (B, T), in the type of the logits, nats."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape)


def torch_dtype(name: str) -> torch.dtype:
    """The type of a name in parity.recipes.Dtypes."""
    return getattr(torch, name)


def empty(shape, dtype: str) -> nn.Parameter:
    """A weight with no memory behind it yet."""
    return nn.Parameter(torch.empty(shape, dtype=torch_dtype(dtype)))
