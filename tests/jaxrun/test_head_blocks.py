"""jaxrun.kernels.head_blocks: losses and gradients in blocks are those of the whole batch at once, and no memory holds
its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrun import layers
from jaxrun.kernels import head_blocks
from jaxrun.kernels.platform import compiling_for

B, T, D, V = 3, 8, 16, 40


def bounded(scores):
    return 30.0 * jnp.tanh(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / 30)


bounded.bound = 30.0  # its exponentials are summed without the logits' maximum, on a CPU
HEADS = {
    "bounded": bounded,
    "plain": lambda scores: scores,
    "capped": lambda scores: layers.rational_softcap(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), 15.0),
    "padded": lambda scores: jnp.where(jnp.arange(V) < V - 3, scores, -1e30),
}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def made(kind: str, dtype=np.float64):
    rng = np.random.default_rng(0)
    weights = {
        "head.weight": jnp.asarray(rng.standard_normal((V, D)), dtype),
        "head.bias": jnp.asarray(rng.standard_normal(V), dtype),
        "other": jnp.ones(3, dtype),
    }

    def raw_logits(weights, x):
        return layers.matmul_t(x, weights["head.weight"], x.dtype.name) + weights["head.bias"].astype(x.dtype)

    x, targets = jnp.asarray(3 * rng.standard_normal((B, T, D)), dtype), jnp.asarray(rng.integers(0, V - 3, (B, T)))
    return head_blocks.Head(raw_logits, raw_logits, HEADS[kind]), weights, x, targets


def plain(one, weights, x, targets):
    logits = one.softcap(one.raw_logits(weights, x))
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("limit", [1, 5, 8, 10**6])  # a token a block, odd sizes, a row, all at once
@pytest.mark.parametrize("kind", HEADS)
def test_losses_and_gradients_are_those_of_the_whole_batch(kind, limit, platform, monkeypatch):
    """Float64 sums of up to 40 terms, twice over 24 tokens: 1e-16 x 1e3 is 1e-13 of the largest entry."""
    monkeypatch.setattr(head_blocks, "BLOCK_TOKENS", {"cpu": limit, "gpu": limit})
    one, weights, x, targets = made(kind)
    counted = jnp.asarray(np.random.default_rng(1).integers(0, 2, (B, T)))
    with compiling_for(platform):
        np.testing.assert_allclose(
            head_blocks.token_losses(one, weights, x, targets), plain(one, weights, x, targets), rtol=1e-12
        )
        for some in (None, counted):

            def in_blocks(w, x, some=some):
                return 0.3 * head_blocks.total_loss(one, w, x, targets, some)

            def whole(w, x, some=some):
                return 0.3 * jnp.sum(plain(one, w, x, targets) * (1 if some is None else some))

            ours = jax.jit(jax.value_and_grad(in_blocks, (0, 1)))(weights, x)
            theirs = jax.value_and_grad(whole, (0, 1))(weights, x)
            for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                assert got.dtype == expected.dtype
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * max(1, float(jnp.abs(expected).max())))


def test_the_head_knows_which_weights_it_uses():
    one, weights, x, _ = made("plain")
    assert head_blocks.head_weights(one, weights, x) == ["head.bias", "head.weight"]


def test_narrow_gradients_are_summed_wide_over_blocks(monkeypatch):
    """In bfloat16 a sum of 24 blocks' gradients, were it narrow, would lose up to 24 x 2^-9 of the largest; kept wide
    it is rounded once."""
    one, weights, x, targets = made("capped", jnp.bfloat16)
    weights = {name: w.astype(jnp.float32) for name, w in weights.items()}
    found = {}
    for limit in (1, 10**6):
        monkeypatch.setattr(head_blocks, "BLOCK_TOKENS", {"cpu": limit})
        found[limit] = jax.grad(lambda w: head_blocks.total_loss(one, w, x, targets))(weights)["head.weight"]
    assert found[1].dtype == jnp.float32
    assert float(jnp.abs(found[1] - found[10**6]).max() / jnp.abs(found[10**6]).max()) < 2 * 2**-8


def test_no_array_of_the_program_has_the_size_of_the_whole_batchs_logits(monkeypatch):
    monkeypatch.setattr(head_blocks, "BLOCK_TOKENS", {"cpu": 4})
    one, weights, x, targets = made("capped")
    text = (
        jax.jit(jax.grad(lambda w, x: head_blocks.total_loss(one, w, x, targets), (0, 1)))
        .lower(weights, x)
        .compile()
        .as_text()
    )
    assert f"[{B},{T},{V}]" not in text and f"[{B * T},{V}]" not in text and f"[4,{V}]" in text


@pytest.mark.parametrize("cap", [5.0, 15.0, 30.0])
def test_the_caps_gradient_is_its_slope(cap):
    x, h = jnp.linspace(-100, 100, 41), 1e-6
    slope = (layers.rational_softcap(x + h, cap) - layers.rational_softcap(x - h, cap)) / (2 * h)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda x: layers.rational_softcap(x, cap)))(x), slope, atol=1e-8
    )  # h^2 and 1e-16 cap / h
