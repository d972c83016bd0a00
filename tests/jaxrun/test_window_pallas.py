"""Window attention, in Pallas's interpret mode, against a dense mask in float32."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrun.kernels.window_pallas import visible_range, window_attention

SHAPES = [(1, 256, 2, 32, 16), (2, 256, 2, 64, 64), (1, 512, 1, 128, 128), (1, 512, 1, 32, 256)]  # B, T, H, K, block
WINDOWS = (0, 1, 2, 3, 2**31 - 1)
STARTS = {  # positions at which documents start
    "no start": lambda T, block: (),
    "inside blocks": lambda T, block: (3, block // 2, block + 5, block + 6, T // 2 + 7),
    "at edges of blocks": lambda T, block: (block, T // 2, T - block),
    "beside edges": lambda T, block: (block - 1, block + 1, T // 2 - 1, T - 1),
    "everywhere": lambda T, block: range(1, T),
}
SCALE = 0.12


def documents(kind: str, B: int, T: int, block: int) -> np.ndarray:
    """(B, T) int32; the first document has number 5, later rows start theirs one position later."""
    starts = np.zeros((B, T), np.int32)
    for b in range(B):
        starts[b, [min(t + b, T - 1) for t in STARTS[kind](T, block)]] = 1
    return 5 + np.cumsum(starts, axis=1, dtype=np.int32)


def visible(documents_BT, window: int, block: int):
    """The rule, word by word: (B, T, T), queries before keys."""
    t, s = np.arange(documents_BT.shape[1])[:, None], np.arange(documents_BT.shape[1])
    return (s <= t) & (documents_BT[:, :, None] == documents_BT[:, None]) & (s // block > t // block - max(1, window))


def dense(q_BTHK, k_BTHK, v_BTHK, visible_BTS):
    q, k, v = (x.astype(jnp.float32) for x in (q_BTHK, k_BTHK, v_BTHK))
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision="highest") * SCALE
    probs = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", probs, v, precision="highest")


@cache
def with_gradients(block: int | None):
    """The kernels' function of (q, k, v, dy, documents, window), or without a block the dense one's of (q, k, v, dy,
    visible)."""

    def run(q, k, v, dy, *others):
        attend = dense if block is None else partial(kernel, block=block)
        y, back = jax.vjp(lambda *qkv: attend(*qkv, *others), q, k, v)
        return y, *back(dy.astype(y.dtype))

    return jax.jit(run)


def kernel(q, k, v, documents_BT, window, block):
    return window_attention(q, k, v, SCALE, documents_BT, window, block, interpret=True)


def arrays(B, T, H, K, dtype="float32"):
    """q, k, v, dy; scores of about 1."""
    q, *others = (jax.random.normal(key, (B, T, H, K)) for key in jax.random.split(jax.random.key(T + K), 4))
    return [x.astype(dtype) for x in (q * (8 / K**0.5), *others)]


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_dense_mask(shape, kind):
    B, T, H, K, block = shape
    ids, values = documents(kind, B, T, block), arrays(B, T, H, K)
    for window in WINDOWS:
        found = with_gradients(block)(*values, ids, jnp.int32(window))
        expected = with_gradients(None)(*values, visible(ids, window, block))
        for name, one, other in zip(("y", "dq", "dk", "dv"), found, expected, strict=True):
            # float32 sums of up to T terms of about 1, in another order: a few times sqrt(T) 2^-24, of a largest value
            # of a few
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5, err_msg=f"{name}, window {window}")


@pytest.mark.parametrize("kind", ["inside blocks", "everywhere"])
def test_with_blocks_of_1_the_window_counts_positions(kind):
    B, T, H, K = 2, 256, 1, 32
    ids, values = documents(kind, B, T, 64), arrays(B, T, H, K)
    for window in (1, 2, 100, 129, 300):
        found = with_gradients(1)(*values, ids, jnp.int32(window))
        expected = with_gradients(None)(*values, visible(ids, window, 1))
        for name, one, other in zip(("y", "dq", "dk", "dv"), found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5, err_msg=f"{name}, window {window}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_round_only_probabilities_and_results(dtype):
    B, T, H, K, block = SHAPES[1]
    ids, values = documents("inside blocks", B, T, block), arrays(B, T, H, K, dtype)
    found = with_gradients(block)(*values, ids, jnp.int32(2))
    expected = with_gradients(None)(*values, visible(ids, 2, block))
    roundings = (
        4 * float(jnp.finfo(dtype).eps) / 2
    )  # of a gradient: y (in delta), probabilities, their gradient, the result
    for name, one, other in zip(("y", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.dtype == dtype
        error = np.linalg.norm(np.float32(one) - np.float32(other)) / np.linalg.norm(np.float32(other))
        assert error < roundings, f"{name}: {error:.1e}"


def test_window_0_is_window_1():
    B, T, H, K, block = SHAPES[0]
    values = arrays(B, T, H, K)
    none, one = (
        with_gradients(block)(*values, documents("no start", B, T, block), jnp.int32(window)) for window in (0, 1)
    )
    assert all(map(np.array_equal, none, one))


def test_a_window_that_changes_compiles_nothing_again():
    B, T, H, K, block = SHAPES[0]
    traces = []

    @jax.jit
    def run(q, k, v, documents_BT, window):
        traces.append(window)
        return kernel(q, k, v, documents_BT, window, block)

    for window in WINDOWS:
        run(*arrays(B, T, H, K)[:3], documents("no start", B, T, block), jnp.int32(window))
    assert len(traces) == 1


@pytest.mark.parametrize("hidden, window, kind", [(range(128), 2, "no start"), (range(128), 100, "at edges of blocks")])
def test_what_no_query_sees_is_not_read(hidden, window, kind):
    """A key that is read and masked would still give nan: 0 times nan."""
    B, T, H, K, block = 1, 256, 1, 32, 64
    q, k, v, dy = (x[:, :T] for x in arrays(B, T, H, K))
    ids = documents(kind, B, T, block)
    late = slice(192, T)  # the last block, which sees neither of the first two
    hide = jnp.isin(jnp.arange(T), jnp.array(hidden))[:, None, None]
    y, dq, _, _ = with_gradients(block)(
        q, jnp.where(hide, jnp.nan, k), jnp.where(hide, jnp.nan, v), dy, ids, jnp.int32(window)
    )
    assert np.isfinite(y[:, late]).all() and np.isfinite(dq[:, late]).all()
    unread = jnp.arange(T)[:, None, None] >= 192
    _, _, dk, dv = with_gradients(block)(
        jnp.where(unread, jnp.nan, q), k, v, jnp.where(unread, jnp.nan, dy), ids, jnp.int32(window)
    )
    assert np.isfinite(dk[:, :128]).all() and np.isfinite(dv[:, :128]).all()


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_first_key_and_the_last_query_say_what_is_seen(kind, window):
    T, block = 128, 16
    ids = documents(kind, 2, T, block)
    first_BT, last_BT = visible_range(jnp.asarray(ids), jnp.int32(window), block)
    t, s = np.arange(T)[:, None], np.arange(T)
    expected = visible(ids, window, block)
    assert np.array_equal((np.asarray(first_BT)[:, :, None] <= s) & (s <= t), expected)
    assert np.array_equal((s <= t) & (t <= np.asarray(last_BT)[:, None]), expected)
    assert (np.diff(first_BT) >= 0).all() and (np.diff(last_BT) >= 0).all()


def test_three_kernels_are_lowered_for_gpus_and_no_array_of_all_pairs():
    T, block = 1024, 128
    x = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.bfloat16)

    def run(q, k, v, dy, documents_BT, window):
        y, back = jax.vjp(lambda *qkv: window_attention(*qkv, SCALE, documents_BT, window, block), q, k, v)
        return y, *back(dy)

    others = jax.ShapeDtypeStruct((1, T), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(run).trace(x, x, x, x, *others).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 3
    assert f"{T}x{T}x" not in text


def test_what_has_no_kernel_is_named():
    x, ids = jnp.zeros((1, 96, 1, 32)), jnp.zeros((1, 96), jnp.int32)
    with pytest.raises(ValueError, match="expected a block that divides the 96 positions, found 64"):
        window_attention(x, x, x, SCALE, ids, 1, 64)
    with pytest.raises(ValueError, match="powers of 2 from 16 for block and head, found 48 and 32"):
        window_attention(x, x, x, SCALE, ids, 1, 48)
