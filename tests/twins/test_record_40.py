"""`record-40` against the public program's description, written out in numpy: no layer of either backend is used."""

import dataclasses
import math

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import recipe_for

L, EPS = 6, 1.1920929e-07


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def frequencies(head_dim: int, windows: list[int]) -> tuple[np.ndarray, float]:
    """Rotary's frequencies after these windows, in positions, one after the other; and the scale of the scores."""
    turning = head_dim // 4
    f = np.append(1024.0 ** (-np.arange(turning) / (turning - 1)), np.zeros(turning))
    scale = 0.1 * math.sqrt(128 / head_dim)
    for a, b in zip(windows, windows[1:], strict=False):
        c = np.clip((a * f / (2 * math.pi) - 1) / 31, 0, 1)
        f, scale = f * (a / b + c * (1 - a / b)), scale * (1 + 0.2 * math.log(b / a))
    return f, scale


def losses(recipe, weights, inputs, targets, windows: list[int], long: int, short: int) -> np.ndarray:
    """(T,) losses of one row: `windows` are those that rotary was adapted to; the long and the short one in use."""

    def w(name):
        return weights[name + ".weight"].astype(np.float64)

    T, H, K = len(inputs), recipe.heads, recipe.head_dim
    e = w("embed")[inputs]
    before = np.concatenate([np.zeros((1, e.shape[1])), e[:-1]])
    x = x0 = norm(e + w("smear.factor") * sigmoid(e[:, :12] @ w("smear.gate").T) * before)
    document = np.cumsum(inputs == recipe.tokenizer_size - 1)
    f, scale = frequencies(K, windows)
    cos, sin = (g(np.arange(T)[:, None, None] * f) for g in (np.cos, np.sin))

    def turned(y):
        y = norm(y.reshape(T, H, K))
        y1, y2 = y[..., : K // 2], y[..., K // 2 :]
        return np.concatenate([y1 * cos + y2 * sin, -y1 * sin + y2 * cos], -1)

    def attention(y, i, value):
        block, window = f"blocks.{i}.attn.", long if i in (2, L - 1) else short
        q, k, v = (y @ matrix.T for matrix in w(block + "qkv"))
        a = w(block + "lambdas")
        v = a[0] * v if value is None else a[0] * v + a[1] * value
        q, k, v = turned(q), turned(k), v.reshape(T, H, K)
        t, s = np.arange(T)[:, None], np.arange(T)
        seen = (s <= t) & (s >= t - window) & (document[:, None] == document)
        scores = np.where(seen, np.einsum("thk,shk->hts", q, k) * scale, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        gates = sigmoid(y[:, :12] @ w(block + "gate").T)
        return (np.einsum("hts,shk->thk", probs, v) * gates[..., None]).reshape(T, -1) @ w(block + "proj").T

    kept, backed_out = [], None
    for i in range(1, L):  # block 0 is empty
        if i in (3, 4):
            x = x + sigmoid(w("skips")[i - 3]) * kept.pop()
        factors = w(f"blocks.{i}.lambdas")
        x = factors[0] * x + factors[1] * x0
        if i != 3:
            value = w("value_embeds.0")[inputs] if i == L - 1 else None
            x = x + attention(norm(x), i, value)
        x = x + np.maximum(norm(x) @ w(f"blocks.{i}.mlp.fc").T, 0) ** 2 @ w(f"blocks.{i}.mlp.proj").T
        if i < 3:
            kept.append(x)
        if i == 4:
            backed_out = x
    logits = 30 * sigmoid(norm(x - w("backout") * backed_out) @ w("head").T / 7.5)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return total - logits[np.arange(T), targets]


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_losses_are_those_of_the_description_in_every_stage(backend, x64):
    """Up to 512 float64 terms in a sum through some thirty layers, as in test_twins.py: 1e-12 of the largest."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    recipe = dataclasses.replace(recipe_for("record-40", "tiny"), precision="float64")
    rng = np.random.default_rng(4)
    weights = {name: w + 0.1 * rng.standard_normal(w.shape) for name, w in canonical.initial_weights(recipe, 0).items()}
    tokens = rng.integers(0, 511, (8, recipe.context + 1)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 1 / 40] = 511
    tokens[:, 0] = 511
    tokens[0, 60:64] = 511  # documents of one token and of two
    tokens[0, 62] = 3
    inputs, targets = (np.ascontiguousarray(x) for x in (tokens[:, :-1], tokens[:, 1:]))
    program = build(backend, recipe, device="cpu")
    batch = program.put_global_batch(inputs, targets)
    for step, windows, long, short in (
        (0, [12], 12, 4),
        (20, [12, 28], 28, 12),
        (40, [12, 28, 44], 44, 20),
        (60, [12, 28, 44, 52], 80, 24),
    ):
        found = program.fetch(program.token_losses(program.with_step(program.load(weights), step), batch))
        for row in (0, 5):
            expected = losses(recipe, weights, inputs[row], targets[row], windows, long, short)
            np.testing.assert_allclose(found[row], expected, rtol=1e-12)
