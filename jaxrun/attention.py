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
    return _causal_in_blocks(q_BTHK, k_BTHK, v_BTHK, scale)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _causal_in_blocks(q_BTHK, k_BTHK, v_BTHK, scale):
    return _causal_forward(q_BTHK, k_BTHK, v_BTHK, scale)[0]


def _causal_forward(q_BTHK, k_BTHK, v_BTHK, scale):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))  # products are fastest with batch axes in front
    blocks = _blocks(q.shape[2])
    found = [_attended(q[:, :, own], k[:, :, :own.stop], v[:, :, :own.stop], scale, _seen(own)) for own in blocks]
    y, sums = (jnp.concatenate(parts, axis=2) for parts in zip(*found))
    return jnp.swapaxes(y, 1, 2), (q, k, v, y, sums)


def _causal_backward(scale, kept, dy_BTHK):
    q, k, v, y, sums = kept
    dy, blocks = jnp.swapaxes(dy_BTHK, 1, 2), _blocks(q.shape[2])
    found = [_attended_backward(q[:, :, own], k[:, :, :own.stop], v[:, :, :own.stop], y[:, :, own], sums[:, :, own], dy[:, :, own], scale,
                                _seen(own)) for own in blocks]  # fmt: skip
    dq, dk, dv = zip(*found)

    def added(parts):  # what a block of keys gets from its own queries and all behind them
        return [sum(part[:, :, own] for part in parts[i:]) for i, own in enumerate(blocks)]

    return tuple(jnp.swapaxes(jnp.concatenate(parts, axis=2), 1, 2) for parts in (dq, added(dk), added(dv)))


_causal_in_blocks.defvjp(_causal_forward, _causal_backward)


def _blocks(T: int) -> list[slice]:
    """Positions in blocks of queries."""
    size = max(SMALLEST_BLOCK, -(-T // MOST_BLOCKS))
    return [slice(start, min(T, start + size)) for start in range(0, T, size)]


def _seen(own: slice):
    """Which positions up to the block's end each of its own sees: itself and all before."""
    return jnp.tril(jnp.ones((own.stop - own.start, own.stop), bool), own.start)


def _scores(q_BHTK, k_BHSK, scale, seen):
    wide = jnp.promote_types(q_BHTK.dtype, jnp.float32)
    if q_BHTK.dtype == wide:  # a wide q can be scaled itself, and has fewer numbers
        q_BHTK, scale = q_BHTK * scale, 1
    scores = jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK, preferred_element_type=wide, precision="highest")
    return jnp.where(seen, scores if scale == 1 else scores * scale, NEGATIVE)


def _attended(q_BHTK, k_BHSK, v_BHSK, scale, seen):
    """Attention, (B, H, T, K), and the logarithm of the sum of each position's exponentials, (B, H, T, 1)."""
    scores = _scores(q_BHTK, k_BHSK, scale, seen)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - largest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    y = jnp.einsum("bhts,bhsk->bhtk", exponentials.astype(v_BHSK.dtype), v_BHSK, precision="highest", preferred_element_type=scores.dtype)
    return (y / total).astype(q_BHTK.dtype), largest + jnp.log(total)


def _attended_backward(q, k, v, y, sums, dy, scale, seen):
    """Gradients of q, k, v. With p the probabilities: dp = dy v^T; the scores' is p (dp - sum p dp), and that sum is dy y."""
    probs = jnp.exp(_scores(q, k, scale, seen) - sums)
    dprobs = jnp.einsum("bhtk,bhsk->bhts", dy, v, precision="highest", preferred_element_type=sums.dtype)
    along = jnp.sum(dy.astype(sums.dtype) * y.astype(sums.dtype), axis=-1, keepdims=True)
    dscores = (probs * (dprobs - along)).astype(q.dtype)
    dq = jnp.einsum("bhts,bhsk->bhtk", dscores, k, precision="highest", preferred_element_type=sums.dtype)
    dk = _transposed(q, dscores, sums.dtype)
    dv = _transposed(dy, probs.astype(dy.dtype), dy.dtype)
    return (dq * scale).astype(q.dtype), (dk * scale).astype(k.dtype), dv


def _transposed(x_BHTK, scores_BHTS, dtype):
    """scores^T x, (B, H, S, K), as the transpose of x^T scores: XLA on the CPU copies the left side of such a product, so let it be the
    narrower one; without the barrier XLA turns it back."""
    product = jnp.einsum("bhtk,bhts->bhks", x_BHTK, scores_BHTS, precision="highest", preferred_element_type=dtype)
    return jnp.swapaxes(jax.lax.optimization_barrier(product), 2, 3)


CHUNK = 64  # queries that are taken together, each chunk against the keys that its own window reaches
AT_ONCE = 4  # chunks of a wide window: their scores stay in the caches


def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, documents_BT, window, block: int, most: int):
    """softmax(scale q k^T, over what a position sees) v: earlier positions and the own one, in the own document, in the own block of
    `block` positions and the `window` - 1 blocks before it (a window of 0 counts as 1).

    q, k, v: (B, T, H, K), one type; documents (B, T), int32, never falling along a row; `window` an int32 that may be traced, at most
    `most`. Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider. The cost grows with the window. This is what
    record 21's rule for blocks comes to (tests/torchref/test_window_attention.py has the rule as it is written there). On a GPU narrow
    types have kernels of their own.
    """
    if target_platform() == "gpu":
        from jaxrun import window_kernel

        if window_kernel.fits(q_BTHK.dtype, block, q_BTHK.shape[3]):
            return window_kernel.window_attention(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block, most)
    return _window_in_chunks(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block, most)


@partial(jax.custom_vjp, nondiff_argnums=(3, 6, 7))
def _window_in_chunks(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block, most):
    return _window_forward(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block, most)[0]


def _window_forward(q, k, v, scale, documents, window, block, most):
    def made(chunk, reach):
        def forward(q, k, v, documents, window):
            cut = _Chunks(documents.shape, chunk, reach)
            y, sums = cut.each(lambda q, k, v, seen: _attended(q, k, v, scale, seen),
                               cut.own(q), cut.reached(k), cut.reached(v), cut.seen(documents, window, block))  # fmt: skip
            return cut.whole(y), cut.whole(sums)

        return forward

    y, sums = _by_reach(made, q, k, v, documents, window, block, most)
    return y, (q, k, v, documents, window, y, sums)


def _window_backward(scale, block, most, kept, dy):
    q, k, v, documents, window, y, sums = kept

    def made(chunk, reach):
        def gradients(q, k, v, documents, window, y, sums, dy):
            cut = _Chunks(documents.shape, chunk, reach)
            dq, dk, dv = cut.each(lambda *x: _attended_backward(*x[:6], scale, x[6]), cut.own(q), cut.reached(k), cut.reached(v),
                                  cut.own(y), cut.own(sums), cut.own(dy), cut.seen(documents, window, block))  # fmt: skip
            return cut.whole(dq), cut.gathered(dk), cut.gathered(dv)

        return gradients

    return *_by_reach(made, q, k, v, documents, window, block, most, y, sums, dy), None, None


_window_in_chunks.defvjp(_window_forward, _window_backward)


def reaches(T: int, block: int, most: int) -> list[tuple[int, int]]:
    """What is compiled for: positions in a chunk and chunks before it that its keys come from; the last for `most` blocks of window."""
    chunk = chunk_size(T, block, CHUNK)
    largest = min(T // chunk - 1, -(-(max(1, most) - 1) * block // chunk))
    found = [(chunk, reach) for reach in sorted({0, largest, *(2**n for n in range(largest.bit_length()) if 2**n < largest)})]
    wider = chunk_size(T, block, 2 * CHUNK)
    return [(wider, -(-reach * chunk // wider)) if reach > 2 and wider == 2 * chunk else (chunk, reach) for chunk, reach in found]


def chunk_size(T: int, block: int, about: int) -> int:
    """Positions in a chunk: whole blocks, a divisor of T, at most `about` where a block is."""
    return block * max(n for n in range(1, max(1, about // block) + 1) if T % (block * n) == 0)


def _by_reach(make, q, k, v, documents, window, block, most, *more):
    """What `make(chunk, reach)` gives for the smallest reach that the window fits into."""
    choices = reaches(q.shape[1], block, most)
    before = jnp.asarray([chunk * reach for chunk, reach in choices])
    index = jnp.minimum(jnp.sum((jnp.maximum(window, 1) - 1) * block > before), len(choices) - 1)
    return jax.lax.switch(index, [make(*choice) for choice in choices], q, k, v, documents, window, *more)


class _Chunks:
    """Rows (B, T) in chunks of C positions, each with the keys of its own and of the `reach` chunks before."""

    def __init__(self, shape: tuple[int, int], C: int, reach: int):
        self.shape, self.C, self.reach = shape, C, reach
        self.count = shape[0] * shape[1] // C

    def own(self, x_BTHK):
        """(B, T, H, K) -> (chunks, H, C, K)."""
        return jnp.swapaxes(x_BTHK.reshape(-1, self.C, *x_BTHK.shape[2:]), 1, 2)

    def whole(self, x_nHCK):
        """(chunks, H, C, K) -> (B, T, H, K)."""
        x = jnp.swapaxes(x_nHCK, 1, 2)
        return x.reshape(*self.shape, *x.shape[2:])

    def reached(self, x_BTHK):
        """(B, T, H, K) -> (chunks, H, S, K): for every chunk those before it, filled up before the first, and itself."""
        return jnp.swapaxes(self._reached(x_BTHK), 1, 2)

    def _reached(self, x_BT, empty=0):
        (B, T), n = self.shape, self.shape[1] // self.C
        x = jnp.pad(x_BT.reshape(B, n, self.C, *x_BT.shape[2:]), ((0, 0), (self.reach, 0)) + ((0, 0),) * (x_BT.ndim - 1), constant_values=empty)
        x = jnp.concatenate([x[:, i:i + n] for i in range(self.reach + 1)], axis=2)
        return x.reshape(-1, (self.reach + 1) * self.C, *x_BT.shape[2:])

    def gathered(self, x_nHSK):
        """The transpose of `reached`: what all chunks have for a position, added up."""
        (B, T), (_, H, _, K) = self.shape, x_nHSK.shape
        x = jnp.swapaxes(x_nHSK, 1, 2).reshape(B, T // self.C, self.reach + 1, self.C, H, K)
        total = sum(jnp.pad(x[:, :, i], ((0, 0), (i, self.reach - i), (0, 0), (0, 0), (0, 0))) for i in range(self.reach + 1))
        return total[:, self.reach:].reshape(B, T, H, K)

    def seen(self, documents_BT, window, block):
        """Which of its keys each query sees: (chunks, 1, C, S)."""
        C, S = self.C, (self.reach + 1) * self.C
        t, s = jnp.arange(S - C, S)[:, None], jnp.arange(S)[None, :]  # of a chunk whose keys begin at 0
        near = (s <= t) & (s // block > t // block - jnp.maximum(window, 1))
        return (near & (documents_BT.reshape(-1, C, 1) == self._reached(documents_BT, empty=-1)[:, None, :]))[:, None]

    def each(self, function, *xs):
        """The results of a function of some chunks at a time, for all of them."""
        if self.reach * self.C < 2 * CHUNK or self.count % AT_ONCE:
            return function(*xs)
        ys = jax.lax.map(lambda x: function(*x), tuple(x.reshape(-1, AT_ONCE, *x.shape[1:]) for x in xs))
        return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys)


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
    if target_platform() == "cpu":  # made once: XLA would compute them again for every number that they turn
        cos, sin = jax.lax.optimization_barrier((cos, sin))
    x1, x2 = jnp.split(x_BTHK.astype(wide), 2, axis=-1)
    return jnp.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], axis=-1).astype(x_BTHK.dtype)
