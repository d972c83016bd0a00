"""What parts and own models are made of, in Flax (NNX): products, embeddings, norms, caps, losses. Letters: parity/recipes/base.py."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun.attention import target_platform
from parity.recipes import Dtypes

WIDE_ROWS = 8192  # columns of logits from which on XLA's ways on the CPU change places


class Linear(nnx.Module):
    """x W^T + b: weight (out, in), bias (out,) if there is one, cast to the type of products."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes, bias: bool = True):
        self.weight = empty((outputs, inputs), dtypes.weights)
        self.bias = empty((outputs,), dtypes.weights) if bias else None
        self.dtype = dtypes.products

    def __call__(self, x):
        return product(x, self.weight[...], self.dtype, self.bias if self.bias is None else self.bias[...])


class Embedding(nnx.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtype: str, wide: str):
        self.weight = empty((rows, dim), dtype)
        self.dtype, self.wide = dtype, wide

    def __call__(self, index):
        # Looked up in the wide type, so that its gradient, a sum over a token's places, is summed there.
        return self.weight[...].astype(self.wide)[index].astype(self.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, variance biased, in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = empty((dim,), dtypes.weights)
        self.bias = empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, dtypes.wide, dtypes.stream

    def __call__(self, x):
        x = x.astype(self.wide)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * self.weight[...] + self.bias[...]).astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, dtypes.wide, dtypes.stream

    def __call__(self, x):
        return rms_norm(x, self.eps, self.wide, self.weight[...].astype(self.dtype))


class Norm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis, computed in the wide type."""

    def __init__(self, eps: float, dtypes: Dtypes):
        self.eps, self.wide = eps, dtypes.wide

    def __call__(self, x):
        return rms_norm(x, self.eps, self.wide)


def product(x, weight, dtype: str, bias=None):
    """x W^T, plus the bias if there is one, all cast to `dtype`; sums are kept in float32 or wider, and float32 is never narrowed."""
    y = _product(x.astype(dtype), weight.astype(dtype))
    return y if bias is None else plus(y, bias.astype(dtype))


@jax.custom_vjp
def _product(x, weight):
    return _dot(x, weight, (x.ndim - 1,), (1,))


def _product_forward(x, weight):
    return _product(x, weight), (x, weight)


def _product_backward(kept, dy):
    x, weight = kept
    rows = tuple(range(x.ndim - 1))
    if (
        weight.shape[1] <= weight.shape[0] <= WIDE_ROWS
    ):  # XLA on the CPU copies the left side transposed: let it be the narrower one, or x
        dweight = jax.lax.optimization_barrier(_dot(x, dy, rows, rows)).T  # without the barrier XLA turns it back
    else:
        dweight = _dot(dy, x, rows, rows)
    return _dot(dy, weight, (x.ndim - 1,), (0,)), dweight


_product.defvjp(_product_forward, _product_backward)


def _dot(a, b, a_axes, b_axes):
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), precision="highest", preferred_element_type=a.dtype)


@jax.custom_vjp
def plus(y, bias):
    """y + bias over the last axis, of one type; the bias' gradient is summed in float32 or wider."""
    return y + bias


def _plus_backward(_, dy):
    rows, wide = dy.reshape(-1, dy.shape[-1]), jnp.promote_types(dy.dtype, jnp.float32)
    if (
        target_platform() == "cpu" and rows.shape[1] > WIDE_ROWS
    ):  # XLA's sum over so long rows takes ten times as long as a product with ones
        ones = jnp.ones(len(rows), dy.dtype)
        total = jax.lax.dot_general(
            ones, rows, (((0,), (0,)), ((), ())), precision="highest", preferred_element_type=wide
        )
    else:
        total = jnp.sum(rows, axis=0, dtype=wide)
    return dy, total.astype(dy.dtype)


plus.defvjp(lambda y, bias: (plus(y, bias), None), _plus_backward)


@jax.custom_vjp
def times(x, factor):
    """factor x, with one learned number of the type of x, whose gradient is summed in float32 or wider."""
    return factor * x


def _times_backward(kept, dy):
    x, factor = kept
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    total = jax.lax.dot_general(
        dy.reshape(-1), x.reshape(-1), (((0,), (0,)), ((), ())), precision="highest", preferred_element_type=wide
    )
    return factor * dy, total.astype(factor.dtype)


times.defvjp(lambda x, factor: (times(x, factor), (x, factor)), _times_backward)


@partial(jax.checkpoint, static_argnums=1)  # keeps x alone for the gradient
def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (jax.nn.gelu(y) if form == "tanh" else 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def capped(x, cap: float):
    """cap x / sqrt(x^2 + cap^2)."""
    return cap * x * jax.lax.rsqrt(x * x + cap**2)


def _capped_forward(x, cap):
    return capped(x, cap), x  # keeps x alone for the gradient


def _capped_backward(cap, x, dy):
    return (dy * (cap * jax.lax.rsqrt(x * x + cap**2)) ** 3,)


capped.defvjp(_capped_forward, _capped_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fp8_product(x_BTD, weight, scales: tuple[float, float, float], share: float):
    """x W^T of x and W as they are in 8 bits (e4m3), in the type of x; its gradient from dy in 8 bits (e5m2).

    W is float32, and takes the type of x first. `scales`: what x, W and dy are multiplied by before they are rounded; dy times `share` is
    the gradient of a row's mean loss. Sums are in float32, and so is W's gradient. On a CPU, which has no such products, the rounded numbers are multiplied in float32.
    """
    return _fp8_product_forward(x_BTD, weight, scales, share)[0]


def eight_bits(x, scale: float, dtype):
    """`scale` x in 8 bits."""
    return (x.astype(jnp.float32) * scale).astype(dtype)


def _fp8_product_forward(x, weight, scales, share):
    x8, weight8 = (
        eight_bits(x, scales[0], jnp.float8_e4m3fn),
        eight_bits(weight.astype(x.dtype), scales[1], jnp.float8_e4m3fn),
    )
    y = _fp8_dot(x8, weight8, (x.ndim - 1,), (1,), scales[0] * scales[1], x.dtype)
    return y, (x8, weight8)


def _fp8_product_backward(scales, share, kept, dy):
    x8, weight8 = kept
    dy8, rows = eight_bits(dy, scales[2] * share, jnp.float8_e5m2), tuple(range(dy.ndim - 1))
    dx = _fp8_dot(dy8, weight8, (dy.ndim - 1,), (0,), scales[2] * share * scales[1], dy.dtype)
    return dx, _fp8_dot(dy8, x8, rows, rows, scales[2] * share * scales[0], jnp.float32)


fp8_product.defvjp(_fp8_product_forward, _fp8_product_backward)


def _fp8_dot(a, b, a_axes, b_axes, scale: float, dtype):
    axes = ((a_axes, b_axes), ((), ()))
    if target_platform() == "cpu":
        return (_dot(a.astype(jnp.float32), b.astype(jnp.float32), a_axes, b_axes) / scale).astype(dtype)
    # in the result's own type: else XLA writes a float32 product down
    return jax.lax.dot_general(a, b, axes, precision="highest", preferred_element_type=dtype) * (1 / scale)


def heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.reshape(*x_BTD.shape[:2], -1, head_dim)


def rms_norm(x, eps: float, wide: str, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `wide`, returned in the type of x."""
    y = x.astype(wide)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y if gain is None else y * gain.astype(wide)).astype(x.dtype)


def token_losses(scores_BTV, targets_BT, squash: Callable = lambda scores: scores):
    """-log softmax(squash(scores))[target]: (B, T), in the type of what `squash` gives, nats."""
    return _token_losses(squash, scores_BTV, targets_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(squash, scores_BTV, targets_BT):
    return _token_losses_forward(squash, scores_BTV, targets_BT)[0]


def _token_losses_forward(squash, scores_BTV, targets_BT):
    if _needs_no_shift(squash):
        exps_BTV = jax.lax.optimization_barrier(
            jnp.exp(squash(scores_BTV))
        )  # one pass; XLA would split it before the exponential
        total = jnp.sum(exps_BTV, axis=-1)
        target = squash(jnp.take_along_axis(scores_BTV, targets_BT[..., None], axis=-1)[..., 0])
        return jnp.log(total) - target, (scores_BTV, total, targets_BT, exps_BTV)
    logits_BTV = squash(scores_BTV)
    largest = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    logits_BTV = squash(_read_again(scores_BTV, largest))
    total = jnp.log(jnp.sum(jnp.exp(logits_BTV - largest[..., None]), axis=-1)) + largest
    target = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return total - target, (scores_BTV, total, targets_BT, None)


def _token_losses_backward(squash, kept, dlosses_BT):
    # softmax - 1 at the target, in one pass: the derivatives of its parts would write the logits' size several times
    scores_BTV, total, targets_BT, exps_BTV = kept
    logits_BTV, pull = jax.vjp(squash, _read_again(scores_BTV, total))
    at_target = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    if exps_BTV is not None:
        return pull(exps_BTV * (dlosses_BT / total)[..., None] - at_target * dlosses_BT[..., None])[0], None
    (dscores_BTV,) = pull((jnp.exp(logits_BTV - total[..., None]) - at_target) * dlosses_BT[..., None])
    return _read_again(dscores_BTV), None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def _needs_no_shift(squash) -> bool:
    """Whether exponentials of the logits can be summed as they are, on a CPU, where a pass for their maximum costs as much as one for the sum:
    `squash` may say the `bound` of its results, and exp(50) times any vocabulary is a float32."""
    return target_platform() == "cpu" and getattr(squash, "bound", math.inf) <= 50


def _read_again(x, *after):
    """x itself, for a pass of its own over it, after some other values: else XLA would compute something wide of it once, write it
    down for all of its readers, and a GPU's memory is slower than the arithmetic. On a CPU it is the other way round."""
    return x if target_platform() == "cpu" else jax.lax.optimization_barrier((x, *after))[0]


def empty(shape, dtype):
    """A weight with no memory behind it yet."""
    return nnx.Param(jnp.zeros(shape, dtype))
