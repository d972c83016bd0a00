"""Causal attention, attention within windows and documents, and rotary position embedding, in JAX.

Here are the formulas and the choice of a kernel; the kernels are in jaxrun/kernels. Letters: parity/recipes/base.py.
"""

import jax
import jax.numpy as jnp

from jaxrun.kernels import attention_cpu
from jaxrun.kernels.platform import target_platform


def causal_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """softmax(scale q k^T, masked so that position t sees positions <= t) v.

    q, k, v: (B, T, H, K), one type. Returns (B, T, H, K) in that type; scores and softmax in float32 or wider. On a GPU
    bfloat16 goes to cuDNN's fused kernels.
    """
    if target_platform() == "gpu" and q_BTHK.dtype in (jnp.bfloat16, jnp.float16):
        return jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn")
    if q_BTHK.shape[1] > attention_cpu.SHORT:
        return attention_cpu.chunked_attention(q_BTHK, k_BTHK, v_BTHK, None, None, scale, 1, None)
    return attention_cpu.block_attention(q_BTHK, k_BTHK, v_BTHK, scale)


def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, segments_BT, window, block: int, max_window: int):
    """softmax(scale q k^T, masked) v. Position t sees position s where s <= t, both are in the same segment, and
    s // block > t // block - max(1, window): its own block of `block` positions and the `window` - 1 before it. With
    blocks of 1 the window counts positions, t itself included.

    q, k, v: (B, T, H, K), one type; segments (B, T), int32, never falling along a row; `window` an int32 that may be
    traced, at most `max_window`. Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider. The
    cost grows with the window. This equals record 21's rule for blocks, which tests/twins/test_window_attention.py has
    as it is written there. On a GPU bfloat16 goes to Pallas kernels.
    """
    if target_platform() == "gpu":
        from jaxrun.kernels import window_pallas

        if window_pallas.supports(q_BTHK.dtype, block, q_BTHK.shape[3]):
            return window_pallas.window_attention(q_BTHK, k_BTHK, v_BTHK, scale, segments_BT, window, block, max_window)
    window = jnp.asarray(window, jnp.int32)
    return attention_cpu.chunked_attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, window, scale, block, max_window)


def segment_ids(tokens_BT, end_of_text: int):
    """The number of the document that each token is in, counted along its row: (B, T), int32.

    A document starts with the end-of-text token.
    """
    return jnp.cumsum((tokens_BT == end_of_text).astype(jnp.int32), axis=-1)


def rotary(x_BTHK, base: float, accum: str, full: bool = False, table_dtype: str | None = None):
    """Rotary position embedding: rotates pairs of channels by an angle that grows with the position.

    Half-truncated: K/4 angular frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels are left
    unrotated. `full`: K/2 frequencies base^(-2 i / K). With x1, x2 the halves of a head: y1 = x1 cos + x2 sin,
    y2 = -x1 sin + x2 cos, in `accum`; cosines and sines are rounded to `table_dtype` first.
    """
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    if full:
        frequency_K2 = (1 / base) ** (jnp.arange(K // 2, dtype=accum) * 2 / K)
    else:
        rotating = (1 / base) ** (jnp.arange(K // 4, dtype=accum) / (K // 4 - 1))
        frequency_K2 = jnp.concatenate([rotating, jnp.zeros(K // 4, accum)])
    return rotate(x_BTHK, *rotary_tables(T, frequency_K2, accum, table_dtype))


def rotary_tables(T: int, frequency_K2, accum: str, table_dtype: str | None = None):
    """Cosines and sines of position x frequency, each (T, 1, K/2) in `accum`, rounded to `table_dtype` first."""
    theta_T1K2 = jnp.arange(T, dtype=accum)[:, None, None] * frequency_K2
    cos, sin = (f(theta_T1K2).astype(table_dtype or accum).astype(accum) for f in (jnp.cos, jnp.sin))
    if target_platform() == "cpu":  # computed once: XLA would compute them again for every number that they multiply
        cos, sin = jax.lax.optimization_barrier((cos, sin))
    return cos, sin


def rotate(x_BTHK, cos_T1K2, sin_T1K2, scale=None):
    """y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos, with x1, x2 the halves of a head, in the type of the tables; times
    `scale` if there is one."""
    x1, x2 = jnp.split(x_BTHK.astype(cos_T1K2.dtype), 2, axis=-1)
    y_BTHK = jnp.concatenate([x1 * cos_T1K2 + x2 * sin_T1K2, -x1 * sin_T1K2 + x2 * cos_T1K2], axis=-1)
    return (y_BTHK if scale is None else y_BTHK * scale).astype(x_BTHK.dtype)


def rotate_neighbours(x_BTHK, cos, sin, scale=None):
    """y_2i = cos x_2i + sin x_2i+1, y_2i+1 = cos x_2i+1 - sin x_2i in the first half of a head, the other half as it
    is, in the type of the tables, (T, 1 or H, K / 4); times `scale` if there is one (record 58)."""
    turned, rest = jnp.split(x_BTHK.astype(cos.dtype), 2, axis=-1)
    x1, x2 = turned[..., 0::2], turned[..., 1::2]
    turned = jnp.stack([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1).reshape(turned.shape)
    y_BTHK = jnp.concatenate([turned, rest], axis=-1)
    return (y_BTHK if scale is None else y_BTHK * scale).astype(x_BTHK.dtype)


def offset_keys(k_BTHK, channels: tuple[tuple[int, int], ...]):
    """The keys with some ranges of their channels from the position before, in a row's first position their own."""
    before_BTHK = jnp.concatenate([k_BTHK[:, :1], k_BTHK[:, :-1]], axis=1)
    channel = jnp.arange(k_BTHK.shape[-1])
    moved = sum((channel >= first) & (channel < end) for first, end in channels) > 0
    return jnp.where(moved, before_BTHK, k_BTHK)


def pair_heads(x_BTHK):
    """Head j and head j + H / 2 of each token as two rows of a sequence of twice the length: (B, 2 T, H / 2, K)."""
    B, T, H, K = x_BTHK.shape
    return x_BTHK.reshape(B, 2 * T, H // 2, K)


def pair_tables(cos, sin, heads: int):
    """Tables of 2 T positions (2 T, 1, n) for heads that attend in pairs: token t has position 2 t in even heads and
    2 t + 1 in odd ones: (T, H, n)."""
    cos, sin = (jnp.tile(table.reshape(-1, 2, table.shape[-1]), (1, heads // 2, 1)) for table in (cos, sin))
    return cos, sin
