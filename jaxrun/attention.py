"""Causal attention and rotary position embedding, in JAX. Letters: parity/recipe.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # a masked score: exp(NEGATIVE - max) is exactly 0 in every precision in use
SMALLEST_BLOCK = 64  # positions; smaller products cost more than the scores they save
MOST_BLOCKS = 8  # each is compiled by itself

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced inside is meant for devices of this platform, "cpu" or "gpu", wherever it is traced."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str:
    """The platform that what is traced now is meant for."""
    return _platform.get() or ("cpu" if jax.default_backend() == "cpu" else "gpu")


def causal_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """softmax(scale q k^T, over earlier positions and the own one) v.

    q, k, v: (B, T, H, K), one type. Returns (B, T, H, K) in that type; scores and softmax in float32 or wider.

    On a GPU, narrow types go to cuDNN's fused kernels. Elsewhere queries go in blocks of positions, each against the keys up
    to its own end: that leaves out almost half of the scores, all of them masked.
    """
    if target_platform() == "gpu" and q_BTHK.dtype in (jnp.bfloat16, jnp.float16):
        return jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))  # products are fastest with batch axes in front
    T = q.shape[2]
    size = max(SMALLEST_BLOCK, -(-T // MOST_BLOCKS))
    blocks = [_block(q[:, :, start:start + size], k[:, :, :start + size], v[:, :, :start + size], scale)
              for start in range(0, T, size)]
    return jnp.swapaxes(jnp.concatenate(blocks, axis=2), 1, 2)


@partial(jax.checkpoint, static_argnums=3)  # else the gradient would keep every block's probabilities
def _block(q_BHTK, k_BHSK, v_BHSK, scale):
    """Attention of the last T of S positions."""
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    wide = jnp.promote_types(q_BHTK.dtype, jnp.float32)
    scores = jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK, preferred_element_type=wide, precision="highest") * scale
    scores = jnp.where(jnp.tril(jnp.ones((T, S), bool), S - T), scores, NEGATIVE)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BHSK.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", probs, v_BHSK, precision="highest")


def rotary(x_BTHK, base: float, wide):
    """Turns pairs of channels by an angle that grows with the position (half-truncated rotary embedding).

    K/4 frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels stand still; angles, sine and
    cosine in `wide`. With x1, x2 the halves of a head: y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos.
    """
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    turning = (1 / base) ** (jnp.arange(K // 4, dtype=wide) / (K // 4 - 1))
    frequency_K2 = jnp.concatenate([turning, jnp.zeros(K // 4, wide)])
    theta_T1K2 = jnp.arange(T, dtype=wide)[:, None, None] * frequency_K2
    cos, sin = jnp.cos(theta_T1K2), jnp.sin(theta_T1K2)
    x1, x2 = jnp.split(x_BTHK.astype(wide), 2, axis=-1)
    return jnp.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], axis=-1).astype(x_BTHK.dtype)
