"""Causal attention and rotary position embedding, in JAX. Letters: parity/recipes/base.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NEGATIVE = -1e30  # a masked score: exp(NEGATIVE - max) is exactly 0 in every precision in use
BLOCK = 64  # positions; smaller products cost more than the scores they save
SHORT = 4 * BLOCK  # positions up to which every block is compiled by itself

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

    On a GPU, narrow types go to cuDNN's fused kernels. Elsewhere queries go in blocks of positions, each against the keys up to its
    own end: that leaves out almost half of the scores, all of them masked.
    """
    if target_platform() == "gpu" and q_BTHK.dtype in (jnp.bfloat16, jnp.float16):
        return jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, scale=scale, is_causal=True, implementation="cudnn")
    B, T, H, K = q_BTHK.shape
    if T > SHORT:
        return _in_chunks(q_BTHK, k_BTHK, v_BTHK, None, None, scale, 1, None)
    q, k, v = (jnp.swapaxes(x, 1, 2).reshape(B * H, T, K) for x in (q_BTHK, k_BTHK, v_BTHK))
    return jnp.swapaxes(_in_blocks(q, k, v, scale).reshape(B, H, T, K), 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_blocks(q_gTK, k_gTK, v_gTK, scale):
    return _blocks_forward(q_gTK, k_gTK, v_gTK, scale)[0]


def _blocks_forward(q, k, v, scale):
    scaled, later = _scaled(q, scale)

    def attended(own):
        scores = _scores(scaled[:, own], k[:, : own.stop], later, _causal(own))
        largest = jnp.max(scores, axis=-1, keepdims=True)
        exponentials = jnp.exp(scores - largest)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        y = _product("gts,gsk->gtk", exponentials.astype(v.dtype), v[:, : own.stop])
        return (y / total).astype(q.dtype), largest + jnp.log(total)

    y, sums = (jnp.concatenate(parts, axis=1) for parts in zip(*map(attended, _blocks(q.shape[1]))))
    return y, (q, k, v, y, sums)


def _blocks_backward(scale, kept, dy):
    q, k, v, y, sums = kept
    (scaled, later), blocks = _scaled(q, scale), _blocks(q.shape[1])

    def gradients(own):
        seen = slice(0, own.stop)
        dq, dk, dv = _gradients(
            scaled[:, own],
            k[:, seen],
            v[:, seen],
            dy[:, own],
            _along(dy[:, own], y[:, own]),
            sums[:, own],
            later,
            _causal(own),
            *_turned(scaled[:, own], dy[:, own]),
        )
        return dq, *_turned(dk, dv)

    dq, dk, dv = zip(*map(gradients, blocks))

    def added(parts):  # what a block of keys gets from its own queries and all behind them
        return [sum(part[:, own] for part in parts[i:]) for i, own in enumerate(blocks)]

    dq, dk, dv = (jnp.concatenate(parts, axis=1) for parts in (dq, added(dk), added(dv)))
    return (dq * scale).astype(q.dtype), (dk * later).astype(k.dtype), dv.astype(v.dtype)


_in_blocks.defvjp(_blocks_forward, _blocks_backward)


def _blocks(T: int) -> list[slice]:
    """Positions in blocks of queries."""
    return [slice(start, min(T, start + BLOCK)) for start in range(0, T, BLOCK)]


def _causal(own: slice):
    """Which positions up to the block's end each of its own sees: itself and all before."""
    return jnp.tril(jnp.ones((own.stop - own.start, own.stop), bool), own.start)


CHUNK = 128  # positions, about, that are taken at once: the scores of two chunks stay in the caches
CHAINS = 8  # into which the matrices are divided on a CPU; each is compiled by itself


def window_attention(q_BTHK, k_BTHK, v_BTHK, scale: float, documents_BT, window, block: int, most: int):
    """softmax(scale q k^T, over what a position sees) v: earlier positions and the own one, in the own document, in the own block of
    `block` positions and the `window` - 1 blocks before it (a window of 0 counts as 1).

    q, k, v: (B, T, H, K), one type; documents (B, T), int32, never falling along a row; `window` an int32 that may be traced, at most
    `most`. Returns (B, T, H, K) in the type of q; scores and softmax in float32 or wider. The cost grows with the window. This is what
    record 21's rule for blocks comes to (tests/twins/test_window_attention.py has the rule as it is written there). On a GPU narrow
    types have kernels of their own.
    """
    if target_platform() == "gpu":
        from jaxrun.kernels import window_pallas

        if window_pallas.fits(q_BTHK.dtype, block, q_BTHK.shape[3]):
            return window_pallas.window_attention(q_BTHK, k_BTHK, v_BTHK, scale, documents_BT, window, block, most)
    return _in_chunks(q_BTHK, k_BTHK, v_BTHK, documents_BT, jnp.asarray(window, jnp.int32), scale, block, most)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _in_chunks(q_BTHK, k_BTHK, v_BTHK, documents_BT, window, scale, block, most):
    """Flash attention (arXiv 2205.14135 and 2307.08691) by chunks of positions; documents and window may be None."""
    return _chunks_forward(q_BTHK, k_BTHK, v_BTHK, documents_BT, window, scale, block, most)[0]


def _chunks_forward(q, k, v, documents, window, scale, block, most):
    chunks = _Chunks(q.shape, documents, window, block, most)
    scaled, later = _scaled(q, scale)

    def pair(seen, of_queries, of_keys, state, _):
        (q,), (k, v), (y, largest, total) = of_queries, of_keys, state
        scores = _scores(q, k, later, seen)
        top = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        exponentials, fall = jnp.exp(scores - top), jnp.exp(largest - top)
        y = y * fall + _product("gts,gsk->gtk", exponentials.astype(v.dtype), v)
        return (y, top, total * fall + jnp.sum(exponentials, axis=-1, keepdims=True)), ()

    def start(q):
        nothing = jnp.zeros(q.shape, _wide(q))
        return nothing, jnp.full_like(nothing[..., :1], NEGATIVE), nothing[..., :1]

    def end(y, largest, total):
        return (y / total).astype(q.dtype), largest + jnp.log(total)

    queries, keys = chunks.chains(scaled), chunks.chains(k, v)
    ends, _ = chunks.each(pair, queries, keys, [()] * len(keys), start, end)
    ys, sums = zip(*ends)
    (y,) = chunks.rows(zip(ys))
    return y, (q, k, v, documents, window, y, sums)


def _chunks_backward(scale, block, most, kept, dy):
    q, k, v, documents, window, y, sums = kept
    chunks = _Chunks(q.shape, documents, window, block, most)
    scaled, later = _scaled(q, scale)

    def start(q, dy, y, *_):
        return jnp.zeros(q.shape, _wide(q)), _along(dy, y)

    def pair(seen, of_queries, of_keys, state, state_of_keys):
        (q, dy, _, sums, *turned), (dq, along) = of_queries, state
        more, *changes = _gradients(q, *of_keys, dy, along, sums, later, seen, *turned)
        return (dq + more, along), tuple(x + change for x, change in zip(state_of_keys, changes))

    queries, keys = chunks.chains(scaled, dy, y), chunks.chains(k, v)
    queries = [(q, dy, y, own, *_turned(q, dy)) for (q, dy, y), own in zip(queries, sums)]
    states = [(jnp.zeros(turned.shape, _wide(turned)),) * 2 for *_, turned in queries]
    ends, ends_of_keys = chunks.each(pair, queries, keys, states, start, lambda dq, _: (dq,))
    dq, dk, dv = chunks.rows([(*own, *_turned(*turned)) for own, turned in zip(ends, ends_of_keys)])
    return (dq * scale).astype(q.dtype), (dk * later).astype(k.dtype), dv.astype(v.dtype), None, None


_in_chunks.defvjp(_chunks_forward, _chunks_backward)


class _Chunks:
    """Rows (B, T) in n chunks of C positions, their B H matrices in chains of g that need nothing of each other: XLA on the CPU makes a
    product of several matrices on one core, and what is independent side by side."""

    def __init__(self, shape, documents_BT, window, block, most):
        self.B, self.T, self.H = shape[:3]
        self.block, self.window = block, window
        self.C = block * -(-self.T // (block * -(-self.T // max(CHUNK, block))))
        self.n = -(-self.T // self.C)
        self.most = self.n if most is None else min(self.n, self._reached(max(1, most)))
        matrices, chains = self.B * self.H, min(self.B * self.H, CHAINS if target_platform() == "cpu" else 1)
        self.parts = [slice(p * matrices // chains, (p + 1) * matrices // chains) for p in range(chains)]
        ids = None if documents_BT is None else jnp.broadcast_to(documents_BT[:, :, None], (self.B, self.T, self.H))
        self.documents = None if ids is None else self.chains(ids)

    def _reached(self, window):
        """How many chunks the first queries of a chunk see something of, if there are so many: their own is one."""
        return 1 - (1 - window) * self.block // self.C

    def chains(self, *xs_BTH):
        """Arrays (B, T, H, ...) -> for every chain of g matrices each array's (n, g, C, ...)."""

        def cut(x):
            x = jnp.pad(x, ((0, 0), (0, self.n * self.C - self.T)) + ((0, 0),) * (x.ndim - 2))
            x = jnp.moveaxis(x, 2, 1).reshape(self.B * self.H, self.n, self.C, *x.shape[3:])
            return [jnp.swapaxes(x[part], 0, 1) for part in self.parts]

        return list(zip(*map(cut, xs_BTH)))

    def rows(self, chains):
        """The reverse."""

        def joined(*xs):
            x = jnp.concatenate([jnp.swapaxes(x, 0, 1) for x in xs]).reshape(self.B, self.H, self.n * self.C, -1)
            return jnp.moveaxis(x, 1, 2)[:, : self.T]

        return [joined(*xs) for xs in zip(*chains)]

    def each(self, function, queries, keys, states, start, end):
        """For every chunk of queries, goes through the chunks of keys that it sees, its own first. For every chain there are tuples of
        arrays: what `function` reads of the chunk of queries and of the chunk of keys, (n, ...); what every chunk of queries starts
        with; and `states` of the chunks of keys, (n, ...). It gets what queries and keys see of each other, then these four of two
        chunks, and returns the last two anew. Gives what `end` makes of what the queries end with, (n, ...), and the states at the end."""

        def row(states, i):
            own = _at(queries, i)
            rounds = i + 1 if self.window is None else jnp.minimum(i + 1, self._reached(jnp.maximum(self.window, 1)))

            def one(round):
                d, state, states = round
                seen = self._seen(i, i - d)
                found = [function(*xs) for xs in zip(seen, own, _at(keys, i - d), state, _at(states, i - d))]
                state, changed = (list(xs) for xs in zip(*found))
                return (
                    d + 1,
                    state,
                    [
                        tuple(jax.lax.dynamic_update_index_in_dim(x, y, i - d, 0) for x, y in zip(*xs))
                        for xs in zip(states, changed)
                    ],
                )

            def more(round):  # that there are so many at most is said for what counts the products
                return (round[0] < rounds) & (round[0] < self.most)

            _, state, states = jax.lax.while_loop(more, one, (np.int32(0), [start(*xs) for xs in own], states))
            return states, [end(*xs) for xs in state]

        states, ends = jax.lax.scan(row, list(states), jnp.arange(self.n, dtype=jnp.int32))
        return ends, states

    def _seen(self, i, j):
        """Which keys of chunk j the queries of chunk i see, for every chain: (1 or g, C, C)."""
        t, s = (jnp.arange(self.C) + i * self.C)[:, None], (jnp.arange(self.C) + j * self.C)[None, :]
        near = s <= t
        if self.window is not None:
            near &= s // self.block > t // self.block - jnp.maximum(self.window, 1)
        if self.documents is None:
            return [near[None]] * len(self.parts)
        return [
            near & (own[:, :, None] == other[:, None, :])
            for (own,), (other,) in zip(_at(self.documents, i), _at(self.documents, j))
        ]


def _at(tuples, i):
    return [tuple(jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in xs) for xs in tuples]


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _scaled(q, scale):
    """q, and by what its scores are yet to be scaled: a wide q can be scaled itself, and has fewer numbers."""
    return (q * scale, 1) if q.dtype == _wide(q) else (q, scale)


def _scores(q_gtk, k_gsk, scale, seen):
    scores = _product("gtk,gsk->gts", q_gtk, k_gsk)
    return jnp.where(seen, scores if scale == 1 else scores * scale, NEGATIVE)


def _gradients(q, k, v, dy, along, sums, scale, seen, q_turned, dy_turned):
    """Gradients of q (g, t, k), and of k and v, (g, k, s), in the wide type. With p the probabilities and dp = dy v^T, that of the scores
    is p (dp - sum p dp), and the sum is `along`."""
    probs = jnp.exp(_scores(q, k, scale, seen) - sums)
    dscores = (probs * (_product("gtk,gsk->gts", dy, v) - along)).astype(q.dtype)
    return (
        _product("gts,gsk->gtk", dscores, k),
        _product("gkt,gts->gks", q_turned, dscores),
        _product("gkt,gts->gks", dy_turned, probs.astype(dy.dtype)),
    )


def _along(dy, y):
    return jnp.sum(dy.astype(_wide(y)) * y.astype(_wide(y)), axis=-1, keepdims=True)


def _product(which, x, y):
    return jnp.einsum(which, x, y, preferred_element_type=_wide(x), precision="highest")


def _turned(*xs):
    """Matrices transposed in memory: without the barrier XLA puts that into their products, of which the CPU has fast ones for what
    is not transposed alone."""
    return jax.lax.optimization_barrier(tuple(jnp.swapaxes(x, -1, -2) for x in xs))


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
