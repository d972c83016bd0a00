"""The 8-bit product of record 19's head: e4m3 forward, e5m2 for the gradient, sums in float32."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrun.kernels.matmul import dot
from jaxrun.kernels.platform import target_platform


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fp8_matmul(x_BTD, weight, scales: tuple[float, float, float], grad_scale: float):
    """x W^T of x and W rounded to 8 bits (e4m3), in the type of x; its gradient from dy rounded to 8 bits (e5m2).

    W is float32 and is cast to the type of x first. `scales` multiply x, W and dy before they are rounded; dy times
    `grad_scale` is the gradient of a row's mean loss. Sums are in float32, and so is W's gradient. A CPU has no such
    products: there the rounded numbers are multiplied in float32.
    """
    return _fp8_forward(x_BTD, weight, scales, grad_scale)[0]


def round_to_fp8(x, scale: float, dtype):
    """`scale` x, rounded to 8 bits."""
    return (x.astype(jnp.float32) * scale).astype(dtype)


def _fp8_forward(x, weight, scales, grad_scale):
    x8 = round_to_fp8(x, scales[0], jnp.float8_e4m3fn)
    weight8 = round_to_fp8(weight.astype(x.dtype), scales[1], jnp.float8_e4m3fn)
    y = _fp8_dot(x8, weight8, (x.ndim - 1,), (1,), scales[0] * scales[1], x.dtype)
    return y, (x8, weight8)


def _fp8_backward(scales, grad_scale, residuals, dy):
    x8, weight8 = residuals
    scale, rows = scales[2] * grad_scale, tuple(range(dy.ndim - 1))
    dy8 = round_to_fp8(dy, scale, jnp.float8_e5m2)
    dx = _fp8_dot(dy8, weight8, (dy.ndim - 1,), (0,), scale * scales[1], dy.dtype)
    return dx, _fp8_dot(dy8, x8, rows, rows, scale * scales[0], jnp.float32)


fp8_matmul.defvjp(_fp8_forward, _fp8_backward)


def _fp8_dot(a, b, a_axes, b_axes, scale: float, dtype):
    if target_platform() == "cpu":
        return (dot(a.astype(jnp.float32), b.astype(jnp.float32), a_axes, b_axes) / scale).astype(dtype)
    dimensions = ((a_axes, b_axes), ((), ()))  # in the result's own type: else XLA writes a float32 product to memory
    return jax.lax.dot_general(a, b, dimensions, precision="highest", preferred_element_type=dtype) * (1 / scale)
