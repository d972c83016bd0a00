"""Attention within windows and documents as fused kernels for GPUs (Pallas, by Triton).

The kernels know neither windows nor documents: a query at position t sees the keys first_BT[t] .. t, and a key at
position s is seen by the queries s .. last_BT[s]. Both grow along a row, so the first query of a tile says where its
loop over keys begins, and the last key of a tile where its loop over queries ends. The work grows with the window.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxrun.kernels.platform import MASKED

LOG2_E = math.log2(math.e)  # scores are kept in base 2: GPUs have exp2
OWN = 128  # positions of the tile that a program computes; a smaller block makes it smaller
OTHER = 64  # positions of the tiles that it loops over


def supports(dtype, block: int, K: int) -> bool:
    """Whether there are kernels for a type of array, a block (1: a window in positions) and a head width."""
    return dtype in (jnp.bfloat16, jnp.float16) and (block == 1 or _power_of_two(block)) and _power_of_two(K)


def window_attention(
    q_BTHK, k_BTHK, v_BTHK, scale: float, segments_BT, window, block: int, max_window: int | None = None,
    interpret: bool = False,
):  # fmt: skip
    """softmax(scale q k^T, masked) v, in time that grows with the window: see `jaxrun.attention.window_attention`.

    q, k, v: (B, T, H, K), bfloat16 or float16; scores and softmax are float32. `interpret` runs the kernels on any
    platform, slowly. Raises ValueError where T, K or block have no kernel.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    tile = OWN if block == 1 else block
    if T % tile:
        raise ValueError(f"window attention: expected a block that divides the {T} positions, found {tile}")
    if not (_power_of_two(tile) and _power_of_two(K)):
        raise ValueError(f"window attention: expected powers of 2 from 16 for block and head, found {block} and {K}")
    span = min(T, (T if max_window is None else max(1, max_window)) * block)  # the widest, which FLOPs are counted for
    first_BT, last_BT = visible_range(segments_BT, window, block)
    tiles = min(OWN, tile), min(OTHER, tile)
    return _attention(q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, scale, *tiles, span, interpret)


def _power_of_two(size: int) -> bool:
    return size >= 16 and size.bit_count() == 1


def visible_range(segments_BT, window, block: int):
    """The first key that each query sees, and the last query that sees each key: first_BT, last_BT, int32."""
    T = segments_BT.shape[1]
    position_T = jnp.arange(T, dtype=jnp.int32)
    differs_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    begin_BT = jnp.where(jnp.pad(differs_BT, ((0, 0), (1, 0))), position_T, 0)
    end_BT = jnp.where(jnp.pad(differs_BT, ((0, 0), (0, 1))), position_T, T - 1)
    blocks = jnp.clip(window, 1, T // block).astype(jnp.int32)
    first_BT = jnp.maximum(jax.lax.cummax(begin_BT, axis=1), (position_T // block + 1 - blocks) * block)
    last_BT = jnp.minimum(jax.lax.cummin(end_BT, axis=1, reverse=True), (position_T // block + blocks) * block - 1)
    return first_BT, last_BT


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8, 9))
def _attention(q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, scale, own, other, span, interpret):
    return _forward(q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, scale, own, other, span, interpret)[0]


def _forward(q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, scale, own, other, span, interpret):
    B, T, H, K = q_BTHK.shape
    tile, row, whole, line = _specs(own, T, K)
    y_BTHK, lse_BHT = pl.pallas_call(
        partial(_forward_kernel, scale=scale, keys=other),
        name="window_attention",
        grid=(T // own, H, B),
        in_specs=[row, tile, whole, whole],
        out_specs=[tile, line],
        out_shape=[_like(q_BTHK), _like(q_BTHK, (B, H, T), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        cost_estimate=_cost(2, q_BTHK, span),
    )(first_BT, q_BTHK, k_BTHK, v_BTHK)
    return y_BTHK, (q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, y_BTHK, lse_BHT)


def _backward(scale, own, other, span, interpret, residuals, dy_BTHK):
    q_BTHK, k_BTHK, v_BTHK, first_BT, last_BT, y_BTHK, lse_BHT = residuals
    B, T, H, K = q_BTHK.shape
    tile, row, whole, line = _specs(own, T, K)
    whole_line = pl.BlockSpec((None, None, T), lambda i, h, b: (b, h, 0))
    delta_BHT = jnp.einsum("bthk,bthk->bht", y_BTHK, dy_BTHK, preferred_element_type=jnp.float32)
    common = {"grid": (T // own, H, B), "interpret": interpret}
    dq_BTHK = pl.pallas_call(
        partial(_dq_kernel, scale=scale, keys=other),
        name="window_attention_dq",
        out_shape=_like(q_BTHK),
        in_specs=[row, tile, whole, whole, tile, line, line],
        out_specs=tile,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        cost_estimate=_cost(3, q_BTHK, span),
        **common,
    )(first_BT, q_BTHK, k_BTHK, v_BTHK, dy_BTHK, lse_BHT, delta_BHT)
    dk_BTHK, dv_BTHK = pl.pallas_call(
        partial(_dkv_kernel, scale=scale, queries=other),
        name="window_attention_dkv",
        out_shape=[_like(k_BTHK), _like(v_BTHK)],
        in_specs=[row, whole, tile, tile, whole, whole_line, whole_line],
        out_specs=[tile, tile],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        cost_estimate=_cost(4, q_BTHK, span),
        **common,
    )(last_BT, q_BTHK, k_BTHK, v_BTHK, dy_BTHK, lse_BHT, delta_BHT)
    return dq_BTHK, dk_BTHK, dv_BTHK, None, None


_attention.defvjp(_forward, _backward)


def _specs(own: int, T: int, K: int):
    """The blocks of a program (tile, head, row): its tile of (B, T, H, K) and of (B, T), all positions, its tile of
    (B, H, T)."""
    return (
        pl.BlockSpec((None, own, None, K), lambda i, h, b: (b, i, h, 0)),
        pl.BlockSpec((None, own), lambda i, h, b: (b, i)),
        pl.BlockSpec((None, T, None, K), lambda i, h, b: (b, 0, h, 0)),
        pl.BlockSpec((None, None, own), lambda i, h, b: (b, h, i)),
    )


def _cost(products: int, q_BTHK, span: int):
    """The cost of a kernel of so many products, as if every position saw `span` others."""
    return pl.CostEstimate(
        flops=products * 2 * q_BTHK.size * span,
        transcendentals=q_BTHK.size // q_BTHK.shape[3] * span,
        bytes_accessed=4 * q_BTHK.nbytes,
    )


def _like(x, shape=None, dtype=None):
    return jax.ShapeDtypeStruct(shape or x.shape, dtype or x.dtype)


def _product(a_MK, b_NK):
    """a b^T in float32."""
    return jax.lax.dot_general(a_MK, b_NK, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(first_ref, q_ref, k_ref, v_ref, y_ref, lse_ref, *, scale, keys):
    """One tile of queries; a loop over the tiles of keys that it sees, its own last: online softmax (flash
    attention)."""
    T, K = q_ref.shape
    begin = pl.program_id(0) * T
    at_T, first_T, q_TK = begin + jnp.arange(T, dtype=jnp.int32), first_ref[...], q_ref[...]

    def step(j, carry):
        y_TK, top_T, sum_T = carry
        span = pl.ds(j * keys, keys)
        score_TS = _scores(q_TK, k_ref[span, :], scale)
        at_S = j * keys + jnp.arange(keys, dtype=jnp.int32)
        score_TS = jnp.where((first_T[:, None] <= at_S) & (at_S <= at_T[:, None]), score_TS, MASKED)
        new_T = jnp.maximum(top_T, jnp.max(score_TS, axis=1))
        prob_TS, shrink_T = (
            jnp.exp2(score_TS - new_T[:, None]),
            jnp.exp2(top_T - new_T),
        )  # before a visible key these come
        v_SK = v_ref[span, :]  # from masked scores only: the first visible key shrinks them to 0
        y_TK = y_TK * shrink_T[:, None] + jnp.dot(prob_TS.astype(v_SK.dtype), v_SK, preferred_element_type=jnp.float32)
        return y_TK, new_T, sum_T * shrink_T + jnp.sum(prob_TS, axis=1)

    carry = jnp.zeros((T, K), jnp.float32), jnp.full(T, MASKED, jnp.float32), jnp.zeros(T, jnp.float32)
    y_TK, top_T, sum_T = jax.lax.fori_loop(first_ref[0] // keys, (begin + T) // keys, step, carry)
    y_ref[...] = (y_TK * (1 / sum_T)[:, None]).astype(y_ref.dtype)
    lse_ref[...] = top_T + jnp.log2(sum_T)


def _dq_kernel(first_ref, q_ref, k_ref, v_ref, dy_ref, lse_ref, delta_ref, dq_ref, *, scale, keys):
    """The gradient of one tile of queries; a loop over the tiles of keys that it sees."""
    T, K = q_ref.shape
    begin = pl.program_id(0) * T
    at_T, first_T = begin + jnp.arange(T, dtype=jnp.int32), first_ref[...]
    q_TK, dy_TK, lse_T, delta_T = q_ref[...], dy_ref[...], lse_ref[...], delta_ref[...]

    def step(j, dq_TK):
        span = pl.ds(j * keys, keys)
        k_SK, at_S = k_ref[span, :], j * keys + jnp.arange(keys, dtype=jnp.int32)
        prob_TS = jnp.exp2(_scores(q_TK, k_SK, scale) - lse_T[:, None])
        prob_TS = jnp.where((first_T[:, None] <= at_S) & (at_S <= at_T[:, None]), prob_TS, 0)
        dscore_TS = prob_TS * (_product(dy_TK, v_ref[span, :]) - delta_T[:, None])
        return dq_TK + jnp.dot(dscore_TS.astype(k_SK.dtype), k_SK, preferred_element_type=jnp.float32)

    dq_TK = jax.lax.fori_loop(first_ref[0] // keys, (begin + T) // keys, step, jnp.zeros((T, K), jnp.float32))
    dq_ref[...] = (dq_TK * scale).astype(dq_ref.dtype)


def _dkv_kernel(last_ref, q_ref, k_ref, v_ref, dy_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, scale, queries):
    """The gradients of one tile of keys and values; a loop over the tiles of queries that see it."""
    S, K = k_ref.shape
    begin = pl.program_id(0) * S
    at_S, last_S, k_SK, v_SK = begin + jnp.arange(S, dtype=jnp.int32), last_ref[...], k_ref[...], v_ref[...]

    def step(i, carry):
        dk_SK, dv_SK = carry
        span = pl.ds(i * queries, queries)
        q_TK, dy_TK, at_T = q_ref[span, :], dy_ref[span, :], i * queries + jnp.arange(queries, dtype=jnp.int32)
        prob_ST = jnp.exp2(_scores(k_SK, q_TK, scale) - lse_ref[span])
        prob_ST = jnp.where((at_S[:, None] <= at_T) & (at_T <= last_S[:, None]), prob_ST, 0)
        dv_SK += jnp.dot(prob_ST.astype(dy_TK.dtype), dy_TK, preferred_element_type=jnp.float32)
        dscore_ST = prob_ST * (_product(v_SK, dy_TK) - delta_ref[span])
        return dk_SK + jnp.dot(dscore_ST.astype(q_TK.dtype), q_TK, preferred_element_type=jnp.float32), dv_SK

    zeros = jnp.zeros((S, K), jnp.float32)
    dk_SK, dv_SK = jax.lax.fori_loop(begin // queries, last_ref[S - 1] // queries + 1, step, (zeros, zeros))
    dk_ref[...], dv_ref[...] = (dk_SK * scale).astype(dk_ref.dtype), dv_SK.astype(dv_ref.dtype)


def _scores(a_MK, b_NK, scale):
    """scale a b^T, in base 2."""
    return _product(a_MK, b_NK) * (scale * LOG2_E)
