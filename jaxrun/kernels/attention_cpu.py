"""Attention on CPUs (and for float32 on GPUs): products of blocks that the mask does not hide, gradients by hand.

XLA:CPU computes a batch of matrix products on one core, and half as fast where the left operand is transposed. So the
B H matrices of a batch are divided into chains that need nothing of each other and run side by side, and operands are
transposed in memory. Letters in comments: g matrices of a chain, t queries, s keys, K width of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrun.kernels.platform import MASKED, target_platform

BLOCK = 64  # positions of a block in `block_attention`; smaller products cost more than the scores they save
SHORT = 4 * BLOCK  # positions up to which `block_attention` unrolls every block
CHUNK = 128  # positions of a chunk in `chunked_attention`, about: the scores of two chunks stay in the caches
CHAINS = 8  # chains on a CPU; each is compiled by itself


def block_attention(q_BTHK, k_BTHK, v_BTHK, scale: float):
    """Causal attention of short rows (T <= SHORT): each block of queries against the keys up to its own end."""
    B, T, H, K = q_BTHK.shape
    q, k, v = (jnp.swapaxes(x, 1, 2).reshape(B * H, T, K) for x in (q_BTHK, k_BTHK, v_BTHK))
    return jnp.swapaxes(jnp.reshape(_in_blocks(q, k, v, scale), (B, H, T, K)), 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_blocks(q_gTK, k_gTK, v_gTK, scale):
    return _blocks_forward(q_gTK, k_gTK, v_gTK, scale)[0]


def _blocks_forward(q, k, v, scale):
    scaled_q, score_scale = _scale_queries(q, scale)

    def attend(block):
        scores_gts = _scores(scaled_q[:, block], k[:, : block.stop], score_scale, _causal_mask(block))
        largest = jnp.max(scores_gts, axis=-1, keepdims=True)
        exps_gts = jnp.exp(scores_gts - largest)
        total = jnp.sum(exps_gts, axis=-1, keepdims=True)
        y_gtK = _einsum("gts,gsk->gtk", exps_gts.astype(v.dtype), v[:, : block.stop])
        return (y_gtK / total).astype(q.dtype), largest + jnp.log(total)

    outputs = zip(*map(attend, _blocks(q.shape[1])), strict=True)
    y, logsumexp = (jnp.concatenate(blocks, axis=1) for blocks in outputs)
    return y, (q, k, v, y, logsumexp)


def _blocks_backward(scale, residuals, dy):
    q, k, v, y, logsumexp = residuals
    (scaled_q, score_scale), blocks = _scale_queries(q, scale), _blocks(q.shape[1])

    def gradients(block):
        q_gtK, dy_gtK = scaled_q[:, block], dy[:, block]
        k_gsK, v_gsK = k[:, : block.stop], v[:, : block.stop]
        delta = _delta(dy_gtK, y[:, block])
        dq, dk, dv = _gradients(
            q_gtK, k_gsK, v_gsK, dy_gtK, delta, logsumexp[:, block], score_scale, _causal_mask(block),
            *_transposed(q_gtK, dy_gtK),
        )  # fmt: skip
        return dq, *_transposed(dk, dv)

    dq, dk, dv = zip(*map(gradients, blocks), strict=True)

    def sum_over_queries(parts):  # a block of keys gets a gradient from its own queries and all later blocks
        return [sum(part[:, block] for part in parts[i:]) for i, block in enumerate(blocks)]

    dq, dk, dv = (jnp.concatenate(x, axis=1) for x in (dq, sum_over_queries(dk), sum_over_queries(dv)))
    return (dq * scale).astype(q.dtype), (dk * score_scale).astype(k.dtype), dv.astype(v.dtype)


_in_blocks.defvjp(_blocks_forward, _blocks_backward)


def _blocks(T: int) -> list[slice]:
    """The positions of a row in blocks."""
    return [slice(start, min(T, start + BLOCK)) for start in range(0, T, BLOCK)]


def _causal_mask(block: slice):
    """(t, s): whether each query of a block sees each key up to the block's end."""
    return jnp.tril(jnp.ones((block.stop - block.start, block.stop), bool), block.start)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def chunked_attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, window, scale, block, max_window):
    """Flash attention (arXiv 2205.14135 and 2307.08691) by chunks of positions.

    Causal; within segments and within `window` blocks of `block` positions where these are not None.
    """
    return _chunks_forward(q_BTHK, k_BTHK, v_BTHK, segments_BT, window, scale, block, max_window)[0]


def _chunks_forward(q, k, v, segments, window, scale, block, max_window):
    chunks = _Chunks(q.shape, segments, window, block, max_window)
    scaled_q, score_scale = _scale_queries(q, scale)

    def pair(mask, query_chunk, key_chunk, query_state, _):
        (q,), (k, v), (y, largest, total) = query_chunk, key_chunk, query_state
        scores_gts = _scores(q, k, score_scale, mask)
        new_largest = jnp.maximum(largest, jnp.max(scores_gts, axis=-1, keepdims=True))
        exps_gts, decay = jnp.exp(scores_gts - new_largest), jnp.exp(largest - new_largest)
        y = y * decay + _einsum("gts,gsk->gtk", exps_gts.astype(v.dtype), v)
        return (y, new_largest, total * decay + jnp.sum(exps_gts, axis=-1, keepdims=True)), ()

    def start(q):
        zeros = jnp.zeros(q.shape, _accum_dtype(q))
        return zeros, jnp.full_like(zeros[..., :1], MASKED), zeros[..., :1]

    def finish(y, largest, total):
        return (y / total).astype(q.dtype), largest + jnp.log(total)

    queries, keys = chunks.split(scaled_q), chunks.split(k, v)
    outputs, _ = chunks.loop(pair, queries, keys, [()] * len(keys), start, finish)
    ys, logsumexp = zip(*outputs, strict=True)
    (y,) = chunks.join([(y,) for y in ys])
    return y, (q, k, v, segments, window, y, logsumexp)


def _chunks_backward(scale, block, max_window, residuals, dy):
    q, k, v, segments, window, y, logsumexp = residuals
    chunks = _Chunks(q.shape, segments, window, block, max_window)
    scaled_q, score_scale = _scale_queries(q, scale)

    def start(q, dy, y, *_):
        return jnp.zeros(q.shape, _accum_dtype(q)), _delta(dy, y)

    def pair(mask, query_chunk, key_chunk, query_state, key_state):
        (q, dy, _, lse, q_t, dy_t), (k, v), (dq, delta) = query_chunk, key_chunk, query_state
        dq_part, *changes = _gradients(q, k, v, dy, delta, lse, score_scale, mask, q_t, dy_t)
        return (dq + dq_part, delta), tuple(x + change for x, change in zip(key_state, changes, strict=True))

    queries, keys = chunks.split(scaled_q, dy, y), chunks.split(k, v)
    queries = [(q, dy, y, lse, *_transposed(q, dy)) for (q, dy, y), lse in zip(queries, logsumexp, strict=True)]
    key_states = [(jnp.zeros(dy_t.shape, _accum_dtype(dy_t)),) * 2 for *_, dy_t in queries]
    dqs, key_states = chunks.loop(pair, queries, keys, key_states, start, lambda dq, _: (dq,))
    dq, dk, dv = chunks.join([(*dq, *_transposed(*dkv)) for dq, dkv in zip(dqs, key_states, strict=True)])
    return (dq * scale).astype(q.dtype), (dk * score_scale).astype(k.dtype), dv.astype(v.dtype), None, None


chunked_attention.defvjp(_chunks_forward, _chunks_backward)


class _Chunks:
    """Rows (B, T) as n chunks of C positions, and their B H matrices as chains of g matrices."""

    def __init__(self, shape, segments_BT, window, block, max_window):
        self.B, self.T, self.H = shape[:3]
        self.block, self.window = block, window
        self.C = block * -(-self.T // (block * -(-self.T // max(CHUNK, block))))
        self.n = -(-self.T // self.C)
        self.max_rounds = self.n if max_window is None else min(self.n, self._visible_chunks(max(1, max_window)))
        matrices, chains = self.B * self.H, min(self.B * self.H, CHAINS if target_platform() == "cpu" else 1)
        self.chains = [slice(c * matrices // chains, (c + 1) * matrices // chains) for c in range(chains)]
        self.segments = None
        if segments_BT is not None:
            self.segments = self.split(jnp.broadcast_to(segments_BT[:, :, None], (self.B, self.T, self.H)))

    def _visible_chunks(self, window):
        """How many chunks of keys the first queries of a chunk see, their own included, where there are so many."""
        return 1 - (1 - window) * self.block // self.C

    def split(self, *xs_BTH):
        """Arrays (B, T, H, ...) -> for every chain each array's (n, g, C, ...)."""

        def split_one(x):
            x = jnp.pad(x, ((0, 0), (0, self.n * self.C - self.T)) + ((0, 0),) * (x.ndim - 2))
            x = jnp.moveaxis(x, 2, 1).reshape(self.B * self.H, self.n, self.C, *x.shape[3:])
            return [jnp.swapaxes(x[chain], 0, 1) for chain in self.chains]

        return list(zip(*map(split_one, xs_BTH), strict=True))

    def join(self, chains):
        """For every chain some arrays (n, g, C, K) -> each of these arrays as (B, T, H, K)."""

        def join_one(*xs):
            x = jnp.concatenate([jnp.swapaxes(x, 0, 1) for x in xs]).reshape(self.B, self.H, self.n * self.C, -1)
            return jnp.moveaxis(x, 1, 2)[:, : self.T]

        return [join_one(*xs) for xs in zip(*chains, strict=True)]

    def loop(self, pair, queries, keys, key_states, start, finish):
        """For each query chunk, loops over the visible key chunks, newest first, carrying (query state, key states).

        For every chain, `queries` and `keys` are tuples of arrays (n, ...) that `pair` reads, `key_states` such tuples
        that it updates: `pair(mask, query chunk, key chunk, query state, key state)` returns the updated states. A
        query chunk's state begins as `start(*query chunk)` and ends in `finish(*query state)`. Returns the finished
        query states and the key states, (n, ...).
        """

        def query_row(key_states, i):
            query_chunks = _chunk(queries, i)
            rounds = i + 1
            if self.window is not None:
                rounds = jnp.minimum(rounds, self._visible_chunks(jnp.maximum(self.window, 1)))

            def key_round(carry):
                distance, states, key_states = carry
                j = i - distance
                inputs = zip(
                    self._mask(i, j), query_chunks, _chunk(keys, j), states, _chunk(key_states, j), strict=True
                )
                states, updated = (list(xs) for xs in zip(*(pair(*xs) for xs in inputs), strict=True))
                return distance + 1, states, _with_chunk(key_states, updated, j)

            def more(carry):  # the second bound is static, for what counts the products
                return (carry[0] < rounds) & (carry[0] < self.max_rounds)

            initial = np.int32(0), [start(*chunk) for chunk in query_chunks], key_states
            _, states, key_states = jax.lax.while_loop(more, key_round, initial)
            return key_states, [finish(*state) for state in states]

        key_states, outputs = jax.lax.scan(query_row, list(key_states), jnp.arange(self.n, dtype=jnp.int32))
        return outputs, key_states

    def _mask(self, i, j):
        """Which keys of chunk j the queries of chunk i see, for every chain: (1 or g, C, C)."""
        t, s = (jnp.arange(self.C) + i * self.C)[:, None], (jnp.arange(self.C) + j * self.C)[None, :]
        near = s <= t
        if self.window is not None:
            near &= s // self.block > t // self.block - jnp.maximum(self.window, 1)
        if self.segments is None:
            return [near[None]] * len(self.chains)
        pairs = zip(_chunk(self.segments, i), _chunk(self.segments, j), strict=True)
        return [near & (mine[:, :, None] == other[:, None, :]) for (mine,), (other,) in pairs]


def _chunk(chains, i):
    """Chunk i of every array of every chain."""
    return [tuple(jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in arrays) for arrays in chains]


def _with_chunk(chains, values, i):
    """The chains with chunk i of every array replaced."""
    return [
        tuple(jax.lax.dynamic_update_index_in_dim(x, y, i, 0) for x, y in zip(arrays, new, strict=True))
        for arrays, new in zip(chains, values, strict=True)
    ]


def _accum_dtype(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _scale_queries(q, scale):
    """(q, scale still to be applied to the scores): float32 queries are scaled themselves, being fewer numbers."""
    return (q * scale, 1) if q.dtype == _accum_dtype(q) else (q, scale)


def _scores(q_gtK, k_gsK, scale, mask):
    scores_gts = _einsum("gtk,gsk->gts", q_gtK, k_gsK)
    return jnp.where(mask, scores_gts if scale == 1 else scores_gts * scale, MASKED)


def _gradients(q_gtK, k_gsK, v_gsK, dy_gtK, delta, logsumexp, scale, mask, q_gKt, dy_gKt):
    """Gradients of q (g, t, K), and of k and v as (g, K, s), in the accumulation dtype.

    With p the probabilities and dp = dy v^T, the scores' gradient is p (dp - delta), delta = sum p dp = sum y dy.
    """
    probs_gts = jnp.exp(_scores(q_gtK, k_gsK, scale, mask) - logsumexp)
    dscores_gts = (probs_gts * (_einsum("gtk,gsk->gts", dy_gtK, v_gsK) - delta)).astype(q_gtK.dtype)
    dq = _einsum("gts,gsk->gtk", dscores_gts, k_gsK)
    dk = _einsum("gkt,gts->gks", q_gKt, dscores_gts)
    return dq, dk, _einsum("gkt,gts->gks", dy_gKt, probs_gts.astype(dy_gtK.dtype))


def _delta(dy, y):
    return jnp.sum(dy.astype(_accum_dtype(y)) * y.astype(_accum_dtype(y)), axis=-1, keepdims=True)


def _einsum(subscripts, x, y):
    return jnp.einsum(subscripts, x, y, preferred_element_type=_accum_dtype(x), precision="highest")


def _transposed(*xs):
    """Matrices transposed in memory: without the barrier XLA fuses the transposes into slower products."""
    return jax.lax.optimization_barrier(tuple(jnp.swapaxes(x, -1, -2) for x in xs))
