"""Products with a weight, a bias and a learned scalar, with gradients that XLA computes fast and sums in float32."""

import jax
import jax.numpy as jnp

from jaxrun.kernels.platform import target_platform

WIDE_VOCABULARY = 8192  # rows of a weight above which XLA:CPU's fast and slow paths swap


@jax.custom_vjp
def matmul_transposed(x, weight):
    """x W^T, of one type; x (..., D), W (F, D). Sums in float32 or wider, and float32 is never narrowed."""
    return dot(x, weight, (x.ndim - 1,), (1,))


def _matmul_forward(x, weight):
    return matmul_transposed(x, weight), (x, weight)


def _matmul_backward(residuals, dy):
    x, weight = residuals
    rows = tuple(range(x.ndim - 1))
    if weight.shape[1] <= weight.shape[0] <= WIDE_VOCABULARY:
        # XLA:CPU copies the left operand transposed, so the narrower one goes left; without the barrier XLA swaps them.
        dweight = jax.lax.optimization_barrier(dot(x, dy, rows, rows)).T
    else:
        dweight = dot(dy, x, rows, rows)
    return dot(dy, weight, (x.ndim - 1,), (0,)), dweight


matmul_transposed.defvjp(_matmul_forward, _matmul_backward)


def dot(a, b, a_axes, b_axes):
    """Contracts axes of a with axes of b, of one type, in full precision."""
    dimensions = ((a_axes, b_axes), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision="highest", preferred_element_type=a.dtype)


@jax.custom_vjp
def add_bias(y, bias):
    """y + bias over the last axis, of one type; the bias' gradient is summed in float32 or wider."""
    return y + bias


def _add_bias_backward(_, dy):
    rows, accum = dy.reshape(-1, dy.shape[-1]), jnp.promote_types(dy.dtype, jnp.float32)
    if target_platform() == "cpu" and rows.shape[1] > WIDE_VOCABULARY:  # XLA:CPU's sum over so long rows is 10 x slower
        total = _inner(jnp.ones(len(rows), dy.dtype), rows, accum)
    else:
        total = jnp.sum(rows, axis=0, dtype=accum)
    return dy, total.astype(dy.dtype)


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _add_bias_backward)


@jax.custom_vjp
def scale_by_scalar(x, factor):
    """factor x, with one learned number of the type of x, whose gradient is summed in float32 or wider."""
    return factor * x


def _scale_by_backward(residuals, dy):
    x, factor = residuals
    total = _inner(dy.reshape(-1), x.reshape(-1), jnp.promote_types(dy.dtype, jnp.float32))
    return factor * dy, total.astype(factor.dtype)


scale_by_scalar.defvjp(lambda x, factor: (scale_by_scalar(x, factor), (x, factor)), _scale_by_backward)


def _inner(a, b, dtype):
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision="highest", preferred_element_type=dtype)
