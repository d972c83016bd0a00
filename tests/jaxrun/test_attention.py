"""jaxrun.attention: causal attention and its gradient against a plain one in float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrun.attention import causal_attention

SCALE = 0.3
LENGTHS = (
    1,
    2,
    63,
    64,
    65,
    256,
    257,
    300,
    600,
)  # one block, whole blocks, a last block cut short; loops over chunks, one filled up


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def inputs(T: int, dtype=np.float64, B: int = 2, H: int = 2, K: int = 8):
    """q, k, v and an output's gradient, (B, T, H, K)."""
    rng = np.random.default_rng(T)
    return [jnp.asarray(rng.standard_normal((B, T, H, K)), dtype) for _ in range(4)]


def naive(q, k, v, dy):
    """Attention and its gradient in numpy, by the chain rule over the whole matrix of probabilities."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    T = q.shape[1]
    scores = np.where(np.tril(np.ones((T, T), bool)), SCALE * np.einsum("bthk,bshk->bhts", q, k), -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    y = np.einsum("bhts,bshk->bthk", probs, v)
    dprobs = np.einsum("bthk,bshk->bhts", dy, v)
    dscores = SCALE * probs * (dprobs - (probs * dprobs).sum(-1, keepdims=True))
    return (
        y,
        np.einsum("bhts,bshk->bthk", dscores, k),
        np.einsum("bhts,bthk->bshk", dscores, q),
        np.einsum("bhts,bthk->bshk", probs, dy),
    )


@jax.jit
def ours(q, k, v, dy):
    y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, SCALE), q, k, v)
    return y, *pull(dy)


def distance(x, y) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64) - y) / max(1e-300, np.linalg.norm(y)))


@pytest.mark.parametrize("T", LENGTHS)
def test_output_and_gradient_are_those_of_plain_attention(T):
    for name, x, y in zip(("y", "dq", "dk", "dv"), ours(*inputs(T)), naive(*inputs(T)), strict=True):
        if np.linalg.norm(y) < 1e-12:  # one position: the softmax of a single score is constant
            assert np.linalg.norm(x) < 1e-12, name
        else:
            assert distance(x, y) < 1e-13, name


@pytest.mark.parametrize("T", (65, 256, 300))
def test_bfloat16_comes_as_near_as_its_eight_bits_allow(T):
    given = inputs(T, jnp.bfloat16)
    for name, x, y in zip(("y", "dq", "dk", "dv"), ours(*given), naive(*given), strict=True):
        assert x.dtype == jnp.bfloat16
        assert distance(x, y) < 2**-7, name  # probabilities, score gradients and results each rounded by at most 2^-9


@pytest.mark.parametrize("dtype", (np.float32, jnp.bfloat16))
@pytest.mark.parametrize(("T", "cut"), ((65, 64), (256, 100), (300, 255)))
def test_the_future_changes_no_bit_of_the_past(T, cut, dtype):
    q, k, v, dy = inputs(T, dtype)
    y = ours(q, k, v, dy)[0]
    changed = ours(*(x.at[:, cut:].set(1000) for x in (q, k, v)), dy)[0]
    assert (y[:, :cut] == changed[:, :cut]).all()
    assert (y[:, cut:] != changed[:, cut:]).any()


@pytest.mark.parametrize(("T", "cut"), ((65, 64), (256, 100), (300, 255)))
def test_early_outputs_have_no_gradient_at_all_in_late_inputs(T, cut):
    q, k, v, dy = inputs(T, np.float32)
    for gradient in ours(q, k, v, dy.at[:, cut:].set(0))[1:]:
        assert (gradient[:, cut:] == 0).all()
        assert (gradient[:, :cut] != 0).any()


def test_large_scores_neither_overflow_nor_lose_the_largest():
    q, k, v, dy = inputs(65, np.float32)
    results = ours(1e4 * q, 1e4 * k, v, dy)
    assert all(np.isfinite(x).all() for x in results)
    assert distance(results[0], naive(1e4 * q, 1e4 * k, v, dy)[0]) < 1e-3


MESH = """
import numpy as np, jax, jax.numpy as jnp
from jaxrun import sharding
from jaxrun.attention import causal_attention
rng = np.random.default_rng(0)
given = [jnp.asarray(rng.standard_normal((8, LENGTH, 2, 8)), jnp.float32) for _ in range(4)]
def ours(q, k, v, dy):
    y, pull = jax.vjp(lambda *x: causal_attention(*x, 0.3), q, k, v)
    return y, *pull(dy)
assert len(jax.devices()) == 4
mesh = sharding.make_mesh(jax.devices())
rows = jax.sharding.NamedSharding(mesh, sharding.ROWS)
step = jax.jit(lambda *x: sharding.shard_map_rows(mesh, lambda _, *own: ours(*own), sharding.ROWS)({}, *x),
               in_shardings=rows, out_shardings=rows)
assert not any(word in step.lower(*given).compile().as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
for one, four in zip(jax.jit(ours)(*given), step(*jax.device_put(given, rows))):
    assert len(four.sharding.device_set) == 4
    np.testing.assert_allclose(one, four, rtol=2e-6, atol=2e-6)
print("equal")
"""


@pytest.mark.parametrize("T", (100, 300))
def test_four_devices_with_a_quarter_of_the_rows_each_give_what_one_gives_and_exchange_nothing(T):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", MESH.replace("LENGTH", str(T))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr
