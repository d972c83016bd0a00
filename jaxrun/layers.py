"""The layers that models are built from, in Flax (NNX): products, embeddings, norms, learned scalars, losses.

Letters: parity/recipes/base.py. Gradients and platform tuning: jaxrun/kernels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun.kernels.cross_entropy import cross_entropy
from jaxrun.kernels.matmul import add_bias, matmul_transposed, scale_by_scalar
from jaxrun.kernels.platform import MASKED
from parity.recipes import Dtypes


class Linear(nnx.Module):
    """x W^T + b, in the type of products: weight (out, in), bias (out,) if there is one. `factor` multiplies W."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes, bias: bool = True):
        self.weight = empty((outputs, inputs), dtypes.weights)
        self.bias = empty((outputs,), dtypes.weights) if bias else None
        self.dtype, self.truncate = dtypes.matmul, dtypes.truncate

    def __call__(self, x, factor=None):
        weight = cast_weight(self.weight[...], self.dtype, self.truncate, factor)
        return matmul_t(x, weight, self.dtype, None if self.bias is None else self.bias[...])


class StackedLinear(nnx.Module):
    """x W[i]^T for each matrix of a stack (N, out, in), side by side: (B, T, N out). `factor` multiplies W."""

    def __init__(self, count: int, inputs: int, outputs: int, dtypes: Dtypes):
        self.weight = empty((count, outputs, inputs), dtypes.weights)
        self.dtype, self.truncate = dtypes.matmul, dtypes.truncate

    def __call__(self, x_BTD, factor=None):
        weight = cast_weight(self.weight[...].reshape(-1, x_BTD.shape[-1]), self.dtype, self.truncate, factor)
        return matmul_t(x_BTD, weight, self.dtype)


class Embedding(nnx.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtypes: Dtypes):
        self.weight = empty((rows, dim), dtypes.embedding)
        self.dtype, self.accum = dtypes.embedding, dtypes.accum

    def __call__(self, index):
        # Looked up in the accumulation dtype, so that its gradient, a sum over a token's positions, is summed there.
        return self.weight[...].astype(self.accum)[index].astype(self.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, in the accumulation dtype; variance
    biased."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = empty((dim,), dtypes.weights)
        self.bias = empty((dim,), dtypes.weights)
        self.eps, self.accum, self.dtype = eps, dtypes.accum, dtypes.residual

    def __call__(self, x):
        x = x.astype(self.accum)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * self.weight[...] + self.bias[...]).astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, in the accumulation dtype."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = empty((dim,), dtypes.weights)
        self.eps, self.accum, self.dtype = eps, dtypes.accum, dtypes.residual

    def __call__(self, x):
        return rms_norm(x, self.eps, self.accum, self.weight[...].astype(self.dtype))


class Norm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, in the accumulation dtype: RMS norm without a gain."""

    def __init__(self, eps: float, dtypes: Dtypes):
        self.eps, self.accum = eps, dtypes.accum

    def __call__(self, x):
        return rms_norm(x, self.eps, self.accum)


class Gate(nnx.Module):
    """sigmoid(x[:n] W^T), one number a head, of the first n channels: weight (heads, n)."""

    def __init__(self, heads: int, inputs: int, dtypes: Dtypes):
        self.weight = empty((heads, inputs), dtypes.narrow.weights)
        self.dtype = dtypes.matmul

    def __call__(self, x_BTD):
        weight = self.weight[...]
        return jax.nn.sigmoid(matmul_t(x_BTD[..., : weight.shape[-1]], weight, self.dtype))


class Scalars(nnx.Module):
    """A few learned scalars, each in the type of the activations that it multiplies."""

    def __init__(self, count: int, dtypes: Dtypes):
        self.weight = empty((count,), dtypes.scalars)

    def __call__(self, x, i: int = 0):
        return self.weight[...][i].astype(x.dtype)


class InputResidual(nnx.Module):
    """l0 x + l1 x0, x0 the normed embedding (record 8)."""

    def __init__(self, dtypes: Dtypes):
        self.weight = empty((2,), dtypes.scalars)

    def __call__(self, x_BTD, x0_BTD):
        lambdas = self.weight[...].astype(x_BTD.dtype)
        return scale_by(x_BTD, lambdas[0]) + scale_by(x0_BTD, lambdas[1])


class SkipConnections(nnx.Module):
    """x + w_i y: the i-th block of the second half adds the output of its mirror image, the last of the first half
    first (U-net, record 11). `outputs` are those of the first half, in order."""

    def __init__(self, count: int, dtypes: Dtypes):
        self.weight = empty((count,), dtypes.scalars)

    def __call__(self, x_BTD, outputs, i: int):
        return x_BTD + scale_by(outputs[-1 - i], self.weight[...][i].astype(x_BTD.dtype))


def cast_weight(weight, dtype: str, truncate: bool, factor=None):
    """The weight in `dtype`, rounded or, with `truncate`, without the lower 16 of its 32 bits; times a learned number
    if there is one, which is cast first. The gradient passes as if nothing were cut off."""
    if truncate:
        upper = jax.lax.bitcast_convert_type(weight, jnp.uint32) & jnp.uint32(0xFFFF0000)
        weight = weight + jax.lax.stop_gradient(jax.lax.bitcast_convert_type(upper, weight.dtype) - weight)
    weight = weight.astype(dtype)
    return weight if factor is None else scale_by(weight, factor.astype(dtype))


def matmul_t(x, weight, dtype: str, bias=None):
    """x W^T, plus the bias if there is one, all cast to `dtype`; sums are kept in float32 or wider."""
    y = matmul_transposed(x.astype(dtype), weight.astype(dtype))
    return y if bias is None else add_bias(y, bias.astype(dtype))


def scale_by(x, factor):
    """factor x, with one learned number of the type of x, whose gradient is summed in float32 or wider."""
    return scale_by_scalar(x, factor)


@partial(jax.checkpoint, static_argnums=1)  # keeps x alone for the gradient
def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (jax.nn.gelu(y) if form == "tanh" else 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def rational_softcap(x, cap: float):
    """cap x / sqrt(x^2 + cap^2)."""
    return cap * x * jax.lax.rsqrt(x * x + cap**2)


rational_softcap.defvjp(
    lambda x, cap: (rational_softcap(x, cap), x),  # keeps x alone for the gradient
    lambda cap, x, dy: (dy * (cap * jax.lax.rsqrt(x * x + cap**2)) ** 3,),
)


def mask_padding(logits_BTV, size: int):
    """The logits with those of the rows above `size` masked: they take no part in a softmax."""
    if logits_BTV.shape[-1] == size:
        return logits_BTV
    return jnp.where(jnp.arange(logits_BTV.shape[-1]) < size, logits_BTV, MASKED)


def split_heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.reshape(*x_BTD.shape[:2], -1, head_dim)


def merge_heads(x_BTHK):
    """(B, T, H, K) -> (B, T, D)."""
    return x_BTHK.reshape(*x_BTHK.shape[:2], -1)


def rms_norm(x, eps: float, accum: str, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `accum`, returned in the type of x."""
    y = x.astype(accum)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y if gain is None else y * gain.astype(accum)).astype(x.dtype)


def token_losses(raw_logits_BTV, targets_BT, softcap: Callable = lambda raw_logits: raw_logits):
    """-log softmax(softcap(raw logits))[target]: (B, T), in the type of the capped logits, nats."""
    return cross_entropy(softcap, raw_logits_BTV, targets_BT)


def weighted_token_losses(raw_logits_BTV, targets_BTN, weights_BTN, softcap: Callable = lambda raw_logits: raw_logits):
    """The sum of N targets' losses at each position, each times its weight: (B, T), in the type of the capped
    logits."""
    return cross_entropy(softcap, raw_logits_BTV, targets_BTN, weights_BTN)


def shifted_targets(targets_BT, weights_N, length=None):
    """The N tokens from each position's target on, and their weights, both (B, T, N); 0 for those behind the first
    `length` positions of the row (None: all). `weights_N`: those of the first target, the second and so on."""
    T, N = targets_BT.shape[1], weights_N.shape[0]
    ahead_TN = jnp.arange(T)[:, None] + jnp.arange(N)
    targets_BTN = targets_BT[:, jnp.minimum(ahead_TN, T - 1)]
    weights_TN = jnp.where(ahead_TN < (T if length is None else length), weights_N, 0)
    return targets_BTN, jnp.broadcast_to(weights_TN, targets_BTN.shape)


def empty(shape: tuple[int, ...], dtype: str) -> nnx.Param:
    """A weight with no memory behind it yet."""
    return nnx.Param(jnp.zeros(shape, dtype))
