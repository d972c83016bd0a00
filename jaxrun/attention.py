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


CHUNK = 64  # queries that are taken together, each chunk against the keys that its own window reaches


@partial(jax.custom_vjp, nondiff_argnums=(3, 6, 7))
def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, documents_BT, window, block: int, most: int):
    """softmax(scale q k^T, over what a position sees) v: earlier positions and the own one, in the own document, in the own block of
    `block` positions and the `window` - 1 blocks before it (a window of 0 counts as 1).

    q, k, v: (B, T, H, K), one type; documents (B, T), int32, never falling along a row; `window` an int32 that may be traced, at most
    `most`. Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider. The cost grows with the window. This is what
    record 21's rule for blocks comes to (tests/jaxrun/test_window_attention.py has the rule as it is written there).
    """
    return _by_reach(lambda reach: partial(_chunks, scale, block, reach), q_BTHK, k_BTHK, v_BTHK, documents_BT, window, block, most)


def _window_forward(q, k, v, scale, documents, window, block, most):
    return window_attention(q, k, v, scale, documents, window, block, most), (q, k, v, documents, window)


def _window_backward(scale, block, most, kept, dy):
    q, k, v, documents, window = kept

    def made_again(reach):
        def gradients(q, k, v, documents, window, dy):
            return jax.vjp(lambda q, k, v: _chunks(scale, block, reach, q, k, v, documents, window), q, k, v)[1](dy)

        return gradients

    return *_by_reach(made_again, q, k, v, documents, window, block, most, dy), None, None


window_attention.defvjp(_window_forward, _window_backward)


def reaches(T: int, block: int, most: int) -> list[int]:
    """The numbers of earlier chunks that are compiled for: 0, powers of two, and the most that a window of `most` blocks needs."""
    chunk = chunk_size(T, block)
    largest = min(T // chunk - 1, -(-(max(1, most) - 1) * block // chunk))
    return sorted({0, largest, *(2**n for n in range(largest.bit_length()) if 2**n < largest)})


def chunk_size(T: int, block: int) -> int:
    """Positions in a chunk: whole blocks, a divisor of T, about CHUNK."""
    return max((n for n in range(block, max(CHUNK, block) + 1, block) if T % n == 0), default=block)


def _by_reach(make, q, k, v, documents, window, block, most, *more):
    """What `make(reach)` gives for the smallest reach that the window fits into."""
    T = q.shape[1]
    choices = reaches(T, block, most)
    needed = -(-(jnp.maximum(window, 1) - 1) * block // chunk_size(T, block))
    index = jnp.minimum(jnp.sum(needed > jnp.asarray(choices)), len(choices) - 1)
    return jax.lax.switch(index, [make(reach) for reach in choices], q, k, v, documents, window, *more)


def _chunks(scale, block, reach, q_BTHK, k_BTHK, v_BTHK, documents_BT, window):
    """Attention of every chunk of queries to its own positions and those of the `reach` chunks before."""
    B, T = documents_BT.shape
    C = chunk_size(T, block)
    n, S = T // C, (reach + 1) * C

    def own(x):  # (B, T, H, K) -> (B n, H, C, K)
        return jnp.swapaxes(x.reshape(B * n, C, *x.shape[2:]), 1, 2)

    def reached(x, empty=0):  # (B, T, ...) -> (B, n, S, ...)
        x = jnp.pad(x.reshape(B, n, C, *x.shape[2:]), ((0, 0), (reach, 0)) + ((0, 0),) * (x.ndim - 1), constant_values=empty)
        return jnp.concatenate([x[:, i:i + n] for i in range(reach + 1)], axis=2)

    k, v = (jnp.swapaxes(reached(x).reshape(B * n, S, *x.shape[2:]), 1, 2) for x in (k_BTHK, v_BTHK))
    t, s = jnp.arange(reach * C, S)[:, None], jnp.arange(S)[None, :]  # of a chunk whose keys begin at 0
    seen = (s <= t) & (s // block > t // block - jnp.maximum(window, 1))
    seen = seen & (documents_BT.reshape(B, n, C, 1) == reached(documents_BT, -1)[:, :, None, :])
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    scores = jnp.einsum("nhtk,nhsk->nhts", own(q_BTHK), k, preferred_element_type=wide, precision="highest") * scale
    scores = jnp.where(seen.reshape(B * n, 1, C, S), scores, NEGATIVE)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("nhts,nhsk->nhtk", probs, v, precision="highest")
    return jnp.swapaxes(y, 1, 2).reshape(q_BTHK.shape)


def rotary(x_BTHK, base: float, wide, full: bool = False, tables=None):
    """Turns pairs of channels by an angle that grows with the position (rotary embedding).

    Half-truncated: K/4 frequencies base^(-i / (K/4 - 1)), then K/4 zeros, so that half of the channels stand still. `full`: K/2
    frequencies base^(-2 i / K). With x1, x2 the halves of a head: y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos, in `wide`, cosines and
    sines rounded to the type `tables` first.
    """
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    if full:
        frequency_K2 = (1 / base) ** (jnp.arange(K // 2, dtype=wide) * 2 / K)
    else:
        turning = (1 / base) ** (jnp.arange(K // 4, dtype=wide) / (K // 4 - 1))
        frequency_K2 = jnp.concatenate([turning, jnp.zeros(K // 4, wide)])
    theta_T1K2 = jnp.arange(T, dtype=wide)[:, None, None] * frequency_K2
    cos, sin = (f(theta_T1K2).astype(tables or wide).astype(wide) for f in (jnp.cos, jnp.sin))
    x1, x2 = jnp.split(x_BTHK.astype(wide), 2, axis=-1)
    return jnp.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], axis=-1).astype(x_BTHK.dtype)
