"""Attention within documents and windows, of both backends, against the public record's rule for blocks as it is
written."""

import itertools

import numpy as np
import pytest

from parity.recipes.schedules import window_schedule

T, BLOCK, H, K, SCALE = 96, 8, 2, 16, 0.3
STARTS = {
    "none": [],
    "inside blocks": [3, 13, 41, 45],
    "at edges": [8, 40, 88],
    "before and behind edges": [7, 9, 39, 41, 95],
    "every token": list(range(T)),
    "the first and the last": [0, T - 1],
    "one long": [50],
}
WINDOWS = (0, 1, 2, 3, 5, 11, 12, 40)


def documents(starts):
    return np.cumsum(np.isin(np.arange(T), starts)).astype(np.int32)


def kept_blocks(documents_T, query: int, window: int) -> set[int]:
    """The key blocks of a query block: of those wholly in its document (F of them), and of those that share one with it
    in part (P)."""
    low, high = documents_T[::BLOCK], documents_T[BLOCK - 1 :: BLOCK]
    shares = [j for j in range(query + 1) if high[j] >= low[query]]
    whole = [j for j in shares if j < query and low[j] == high[j] == low[query] == high[query]]
    part = [j for j in shares if j not in whole]
    F, P = len(whole), len(part)
    most_part, most_whole = min(P, max(1, window - F)), max(0, min(F, window - 1))
    return set(part[P - most_part :]) | set(whole[F - most_whole :])


def visible(documents_T, window: int):
    """(T, T): a query's row of keys; a kept block is masked token by token."""
    kept = np.zeros((T // BLOCK, T // BLOCK), bool)
    for query in range(T // BLOCK):
        kept[query, sorted(kept_blocks(documents_T, query, window))] = True
    by_token = np.kron(kept, np.ones((BLOCK, BLOCK), bool))
    return by_token & np.tril(np.ones((T, T), bool)) & (documents_T[:, None] == documents_T)


def dense(q, k, v, seen_BTS):
    """Attention and its gradients for a gradient of all ones times an array, in float64, by PyTorch."""
    import torch

    q, k, v = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) * SCALE
    y = torch.einsum(
        "bhts,bshk->bthk", scores.masked_fill(~torch.from_numpy(seen_BTS)[:, None], -torch.inf).softmax(-1), v
    )
    return y, torch.autograd.grad((y * WEIGHT.torch).sum(), (q, k, v))


class Weight:
    """What the results are multiplied by before they are summed."""

    def __init__(self):
        self.numpy = np.random.default_rng(9).standard_normal((2, T, H, K))

    @property
    def torch(self):
        import torch

        return torch.from_numpy(self.numpy)


WEIGHT = Weight()


def jaxrun(q, k, v, documents_BT, window, most, block=BLOCK):
    import jax
    import jax.numpy as jnp

    from jaxrun.attention import window_attention

    def run(q, k, v, documents_BT, window):
        y, pull = jax.vjp(lambda q, k, v: window_attention(q, k, v, SCALE, documents_BT, window, block, most), q, k, v)
        return y, pull(jnp.asarray(WEIGHT.numpy))

    y, grads = COMPILED.setdefault((most, block, *chunks()), jax.jit(run))(q, k, v, documents_BT, jnp.int32(window))
    return np.asarray(y), [np.asarray(g) for g in grads]


COMPILED = {}


def chunks() -> tuple[int, int]:
    from jaxrun.kernels import attention_cpu

    return attention_cpu.CHUNK, attention_cpu.CHAINS


def torchref(q, k, v, documents_BT, window, most, block=BLOCK):
    import torch

    from torchref.attention import window_attention

    q, k, v = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
    y = window_attention(
        q, k, v, SCALE, torch.from_numpy(documents_BT), torch.tensor(window, dtype=torch.int32), block, most
    )
    grads = torch.autograd.grad((y * WEIGHT.torch).sum(), (q, k, v))
    return y.detach().numpy(), [g.numpy() for g in grads]


@pytest.mark.parametrize("attend", [jaxrun, torchref])
@pytest.mark.parametrize("first, second", [*itertools.pairwise(STARTS)])
def test_attention_is_the_dense_mask_of_the_rule(x64, attend, first, second):
    """Up to 96 terms of float64 in each sum, through three sums: 1e-16 sqrt(96) 3 is 3e-15 of the largest; 1e-13 leaves
    room."""
    documents_BT = np.stack([documents(STARTS[first]), documents(STARTS[second])])
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, T, H, K))
    for window in WINDOWS:
        expected, grads = dense(q, k, v, np.stack([visible(row, window) for row in documents_BT]))
        y, found = attend(q, k, v, documents_BT, window, 12)
        np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-13)
        for g, wanted in zip(found, grads, strict=True):
            np.testing.assert_allclose(g, wanted.numpy(), atol=1e-13 * np.abs(wanted.numpy()).max() * 10)


def seen_positions(documents_T, window: int):
    """(T, T): position t sees the last `window` positions of its document, itself included."""
    t = np.arange(T)
    apart = t[:, None] - t[None, :]
    return (apart >= 0) & (apart < window) & (documents_T[:, None] == documents_T)


@pytest.mark.parametrize("attend", [jaxrun, torchref])
@pytest.mark.parametrize("first, second", [*itertools.pairwise(STARTS)])
def test_with_blocks_of_1_the_window_counts_positions(x64, attend, first, second):
    """The tolerance is that of the rule for blocks."""
    documents_BT = np.stack([documents(STARTS[first]), documents(STARTS[second])])
    q, k, v = np.random.default_rng(5).standard_normal((3, 2, T, H, K))
    for window in (1, 2, 7, 33, 64, T, 2 * T):
        expected, grads = dense(q, k, v, np.stack([seen_positions(row, window) for row in documents_BT]))
        y, found = attend(q, k, v, documents_BT, window, 2 * T, block=1)
        np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-13)
        for g, wanted in zip(found, grads, strict=True):
            largest = max(1.0, np.abs(wanted.numpy()).max())  # one position alone has no gradient of q and k
            np.testing.assert_allclose(g, wanted.numpy(), atol=1e-12 * largest)


def test_torchrefs_form_for_gpus_counts_positions_too(monkeypatch):
    torch = pytest.importorskip("torch")
    from torchref.kernels import window as kernels

    monkeypatch.setattr(kernels, "CHUNK", 16)  # six tiles of the row
    rows = np.stack([documents(STARTS["inside blocks"]), documents(STARTS["one long"])])
    q, k, v = np.random.default_rng(6).standard_normal((3, 2, T, H, K))
    for window in (1, 5, 16, 17, 40, T):
        expected, _ = dense(q, k, v, np.stack([seen_positions(row, window) for row in rows]))
        arrays = (torch.from_numpy(x) for x in (q, k, v))
        w = torch.tensor(window, dtype=torch.int32)
        found = kernels.flex_window_attention(*arrays, SCALE, torch.from_numpy(rows), w, 1)
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), atol=1e-13)


@pytest.mark.parametrize(("chunk", "chains"), [(BLOCK, 8), (20, 3), (40, 1)])
def test_nothing_depends_on_how_rows_are_cut(monkeypatch, x64, chunk, chains):
    """Chunks of one block, of three and of four; four matrices side by side, in uneven chains, and together."""
    pytest.importorskip("jax")
    from jaxrun.kernels import attention_cpu

    monkeypatch.setattr(attention_cpu, "CHUNK", chunk)
    monkeypatch.setattr(attention_cpu, "CHAINS", chains)
    for first, second in itertools.pairwise(STARTS):
        test_attention_is_the_dense_mask_of_the_rule(None, jaxrun, first, second)


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_the_rule_comes_to_a_window_of_whole_blocks_in_the_own_document(starts):
    row = documents(starts)
    block_T = np.arange(T) // BLOCK
    for window in WINDOWS:
        near = block_T[None, :] > block_T[:, None] - max(1, window)
        assert (visible(row, window) == (near & np.tril(np.ones((T, T), bool)) & (row[:, None] == row))).all()


def test_pytorchs_own_flex_attention_agrees(x64):
    torch = pytest.importorskip("torch")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    row = documents(STARTS["inside blocks"])
    q, k, v = (torch.from_numpy(x) for x in np.random.default_rng(2).standard_normal((3, 1, T, H, K)))
    for window in (0, 1, 2, 5):
        seen = torch.from_numpy(visible(row, window))
        mask = create_block_mask(
            lambda b, h, t, s, seen=seen: seen[t, s], 1, None, T, T, device="cpu", BLOCK_SIZE=BLOCK
        )
        theirs = (
            flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask, scale=SCALE)
            .transpose(1, 2)
            .numpy()
        )
        for attend in (jaxrun, torchref):
            ours, _ = attend(*(np.repeat(x.numpy(), 2, 0) for x in (q, k, v)), np.stack([row, row]), window, 12)
            np.testing.assert_allclose(ours[:1], theirs, atol=1e-13)


def test_torchrefs_form_for_gpus_agrees_with_its_form_for_cpus():
    torch = pytest.importorskip("torch")
    from torchref.attention import window_attention
    from torchref.kernels.window import flex_window_attention

    rows = torch.from_numpy(np.stack([documents(STARTS["inside blocks"]), documents(STARTS["at edges"])]))
    q, k, v = (torch.from_numpy(x) for x in np.random.default_rng(3).standard_normal((3, 2, T, H, K)))
    for window in (0, 1, 4):
        w = torch.tensor(window, dtype=torch.int32)
        found = flex_window_attention(q, k, v, SCALE, rows, w, BLOCK)
        np.testing.assert_allclose(
            found.numpy(), window_attention(q, k, v, SCALE, rows, w, BLOCK, 12).numpy(), atol=1e-13
        )


def test_the_window_grows_without_being_compiled_again(x64):
    jax = pytest.importorskip("jax")
    from jaxrun.attention import window_attention

    traced = []

    @jax.jit
    def run(q, documents_BT, window):
        traced.append(window)
        return window_attention(q, q, q, SCALE, documents_BT, window, BLOCK, 12)

    q, row = np.random.default_rng(4).standard_normal((1, T, H, K)), documents([20])[None]
    different = [np.asarray(run(q, row, jax.numpy.int32(window))) for window in range(1, 13)]
    assert len(traced) == 1
    assert all(np.abs(a - b).max() > 1e-6 for a, b in itertools.pairwise(different[:9]))


def test_the_window_of_the_public_record():
    """1,728 tokens in blocks of 128 over 1,770 steps: the next multiple of 128 at or above 1728 step / 1770, at least
    one block."""
    found = [window_schedule(step, 1770, 1728, 128) for step in range(1771)]
    assert found == [max(1, -(-1728 * step // (1770 * 128))) for step in range(1771)]
    assert (found[0], found[131], found[132], found[885], found[1770]) == (1, 1, 2, 7, 14)
