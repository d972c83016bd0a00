"""`record-58` against the public program's description, written out in numpy: no layer of either backend is used."""

import dataclasses
import math

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import recipe_for
from parity.recipes.record_40 import POLAR_EXPRESS

BACKENDS = ["jaxrun", "torchref"]
EPS = 1.1920929e-07
L, SKIPPED, WITHOUT, BACKED_OUT, LONG, PAIRED, END = 5, 1, 2, 3, (1, 4), (0, 3), 511


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotary(head_dim: int, windows: list[int]) -> tuple[np.ndarray, float]:
    """The frequencies of K / 4 pairs after these windows, in positions, one after the other; the scale of scores."""
    turning = head_dim // 4
    f, scale = 1024.0 ** (-np.arange(turning) / (turning - 1)), 0.1 * math.sqrt(128 / head_dim)
    for a, b in zip(windows, windows[1:], strict=False):
        c = np.clip((a * f / (2 * math.pi) - 1) / 31, 0, 1)
        f, scale = f * (a / b + c * (1 - a / b)), scale * (1 + 0.2 * math.log(b / a))
    return f, scale


def logits_of(recipe, weights, inputs, windows: list[int], long: int, short: int) -> np.ndarray:
    """(T, V) capped logits of one row, position by position and head by head."""

    def w(name):
        return weights[name + ".weight"].astype(np.float64)

    T, H, K = len(inputs), recipe.heads, recipe.head_dim
    e = w("embed")[inputs]
    before = np.concatenate([np.zeros((1, e.shape[1])), e[:-1]])
    x = x0 = norm(e + w("smear.factor") * sigmoid(e[:, :12] @ w("smear.gate").T) * before)
    document = np.cumsum(inputs == END)
    f, scale = rotary(K, windows)

    def turned(y, position):
        """One head's (T, K) at (T,) positions: neighbours in the first half turn."""
        y, angle = norm(y), position[:, None] * f
        result = y.copy()
        result[:, 0 : K // 2 : 2] = np.cos(angle) * y[:, 0 : K // 2 : 2] + np.sin(angle) * y[:, 1 : K // 2 : 2]
        result[:, 1 : K // 2 : 2] = np.cos(angle) * y[:, 1 : K // 2 : 2] - np.sin(angle) * y[:, 0 : K // 2 : 2]
        return result

    def attend(q, k, v, documents, window):
        t, s = np.arange(len(q))[:, None], np.arange(len(q))
        seen = (s <= t) & (s >= t - window) & (documents[:, None] == documents)
        scores = np.where(seen, q @ k.T * scale, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        return probs / probs.sum(-1, keepdims=True) @ v

    def attention(y, i):
        block, t = f"blocks.{i}.attn.", np.arange(T)
        a = w(block + "factors")
        q, k, v = ((y @ (a[0] * matrix).T).reshape(T, H, K) for matrix in w(block + "qkv"))
        if i == L - 1:
            gates = 2 * sigmoid(y[:, :12] @ w(block + "value_gate").T)
            v = v + gates[..., None] * w("value_embeds.0")[inputs].reshape(T, H, K)
        heads = np.empty((T, H, K))
        if i in PAIRED:
            q, k = (np.stack([turned(z[:, h], 2 * t + h % 2) for h in range(H)], 1) for z in (q, k))
            for j in range(H // 2):  # a sequence of head j and head j + H / 2 of each token in turn
                pair = [z[:, [j, j + H // 2]].reshape(2 * T, K) for z in (q, k, v)]
                heads[:, [j, j + H // 2]] = attend(*pair, np.repeat(document, 2), short).reshape(T, 2, K)
        else:
            for h in range(H):
                keys, window = turned(k[:, h], t), short
                if i in LONG:
                    window, own = long, keys.copy()
                    for first in (K // 4, 3 * K // 4):
                        keys[1:, first : first + K // 4] = own[:-1, first : first + K // 4]
                heads[:, h] = attend(turned(q[:, h], t), keys, v[:, h], document, window)
        heads = heads * sigmoid(y[:, :12] @ w(block + "gate").T)[..., None]
        return heads.reshape(T, -1) @ (a[1] * w(block + "proj")).T

    skipped = backed_out = np.nan
    for i in range(L):
        if i == WITHOUT:
            gate = 2 * sigmoid(x0[:, :12] @ w("skip.gate").T)
            x = x + sigmoid(w("skip.factor")) * gate * skipped
        x = w("residual")[i] * x + w("input_residual")[i] * x0
        if i != WITHOUT:
            x = x + attention(norm(x), i)
        x = x + np.maximum(norm(x) @ w(f"blocks.{i}.mlp.fc").T, 0) ** 2 @ w(f"blocks.{i}.mlp.proj").T
        skipped, backed_out = x if i == SKIPPED else skipped, x if i == BACKED_OUT else backed_out
    return 23 * sigmoid((norm(x - w("backout") * backed_out) @ w("head").T + 5) / 7.5)


def log_probs(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def recipe():
    return dataclasses.replace(recipe_for("record-58", "tiny"), precision="float64")


@pytest.fixture(scope="module")
def weights(recipe):
    rng = np.random.default_rng(5)
    first = canonical.initial_weights(recipe, 0)
    weights = {name: w + 0.1 * rng.standard_normal(w.shape) for name, w in first.items()}
    return weights | {"embed.weight": weights["head.weight"].copy()}


def rows(recipe, length: int):
    rng = np.random.default_rng(6)
    tokens = rng.integers(0, END, (8, length + 1)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 1 / 40] = END
    tokens[:, 0] = END
    tokens[0, 50:54] = END  # documents of one token and of two
    tokens[0, 52] = 3
    return tuple(np.ascontiguousarray(x) for x in (tokens[:, :-1], tokens[:, 1:]))


T = 96
STAGES = (
    (0, [12], 12, 4),
    (20, [12, 28], 28, 12),
    (40, [12, 28, 44], 44, 20),
    (59, [12, 28, 44, 52], 52, 24),
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_are_those_of_the_description_in_every_stage(backend, recipe, weights, x64):
    """Up to 512 float64 terms in a sum through some thirty layers, as in test_twins.py: 1e-12 of the largest. The
    evaluation after the last step has a wider window."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    program = build(backend, recipe, device="cpu")
    for step, windows, long, short in (*STAGES, (60, [12, 28, 44, 52], 80, 24)):
        inputs, targets = rows(recipe, T)
        batch = program.put_global_batch(inputs, targets)
        found = program.fetch(program.token_losses(program.with_step(program.load(weights), step), batch))
        for row in (0, 5):
            expected = -log_probs(logits_of(recipe, weights, inputs[row], windows, long, short))
            expected = expected[np.arange(T), targets[row]]
            np.testing.assert_allclose(found[row], expected, rtol=1e-12)


@pytest.mark.parametrize("backend", [pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"])
def test_the_training_loss_counts_several_targets_of_each_position_within_the_row(backend, recipe, weights, x64):
    """The sum of a row's losses, the mean of rows; some 1,500 terms: 1e-12. A gradient's prefix ends the row there."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    program = build(backend, recipe, device="cpu")
    for step, windows, long, short in STAGES:
        third = step * 3 / 59
        counted = (1, 0.5, 0.25 * (1 - third)) if step < 20 else (1, 0.5 * (2 - third)) if step < 40 else (1,)
        inputs, targets = (x[:2] for x in rows(recipe, T))
        for prefix in (None, 30):
            total = 0.0
            for row in range(2):
                p = log_probs(logits_of(recipe, weights, inputs[row], windows, long, short))
                for k, weight in enumerate(counted):
                    t = np.arange((prefix or T) - k)
                    total -= weight * p[t, targets[row, t + k]].sum()
            state = program.with_step(program.load(weights), step)
            loss, _ = program.loss_and_grads(state, program.put_global_batch(inputs, targets), prefix)
            assert float(loss) == pytest.approx(total if prefix else total / 2, rel=1e-12)


def polar_express(u):
    x, (size, eps) = u.T if u.shape[0] > u.shape[1] else u, (1.02, 1e-6)
    x = x / (size * np.linalg.norm(u) + eps)
    for i in range(5):
        a, b, c = POLAR_EXPRESS[3 * i : 3 * i + 3]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if u.shape[0] > u.shape[1] else x


class Muon:
    """The public update of a stack of matrices: `rows` says whether the equalizer has one number a row or a column."""

    def __init__(self, shape, factor: float, rows: bool):
        self.m, self.factor, self.axis = np.zeros(shape), factor, -1 if rows else -2
        self.s = np.zeros(np.sum(self.m, self.axis, keepdims=True).shape)

    def __call__(self, p, g, lr: float, mu: float):
        self.m = self.m + (1 - mu) * (g - self.m)
        u = g + mu * (self.m - g)
        o = np.stack([polar_express(x) for x in u.reshape(-1, *u.shape[-2:])]).reshape(u.shape)
        self.s = self.s + (1 - 0.95) * ((o * o).mean(self.axis, keepdims=True) - self.s)
        equal = o / np.sqrt(np.maximum(self.s, 1e-10))
        o = (
            equal
            * np.linalg.norm(o, axis=(-2, -1), keepdims=True)
            / np.linalg.norm(equal, axis=(-2, -1), keepdims=True)
        )
        return p - self.factor * lr * (o + (o * p >= 0) * 1.2 * lr * p)


class Adam:
    """The public update on odd steps, of the sum of two gradients."""

    def __init__(self, shape, betas, multiplier: float, decay: float):
        self.m, self.v, self.before, self.t = np.zeros(shape), np.zeros(shape), 0.0, 0
        self.betas, self.multiplier, self.decay = betas, multiplier, decay

    def __call__(self, p, g, lr: float, step: int):
        if step % 2 == 0:
            self.before = g
            return p
        g, (b1, b2), lr = g + self.before, self.betas, lr * self.multiplier
        self.t, self.m, self.v = self.t + 1, b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g * g
        update = lr * math.sqrt(1 - b2**self.t) / (1 - b1**self.t) * self.m / (np.sqrt(self.v) + 1e-10)
        return p - (update + (update * p > 0) * 0.005 * self.decay * lr**2 * p)


def public_optimizer(name: str, shape):
    if "qkv" in name or "attn.proj" in name or "mlp.fc" in name:
        return Muon(shape, 2.0, rows=True)
    if "mlp.proj" in name:  # the public weight is its transpose, with one number a row
        return Muon(shape, 4.0, rows=False)
    if name in ("head.weight", "embed.weight"):
        return Adam(shape, (0.5, 0.95), 1, 150)
    if "value_embeds" in name:
        return Adam(shape, (0.75, 0.95), 75, 5)
    if ".gate." in name or "value_gate" in name:
        multiplier, decay = {"smear.gate.weight": (0.01, 0), "skip.gate.weight": (0.05, 0)}.get(name, (1, 1))
        return Adam(shape, (0.9, 0.99), multiplier, decay)
    return Adam(shape, (0.65, 0.95) if name == "input_residual.weight" else (0.9, 0.99), 5, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_optimizers_are_those_of_the_description_through_the_untying(backend, recipe, weights, x64):
    """60 updates of given gradients, 59 of them scheduled: the head is tied up to step 41 = ceil(2/3 59) | 1. Errors of
    float64 grow by less than tenfold a matrix product in 5 steps of Polar Express: 1e-9 of the largest weight."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    program, rng = build(backend, recipe, device="cpu"), np.random.default_rng(7)
    state, p = program.load(weights), {name: w.copy() for name, w in weights.items()}
    rules = {name: public_optimizer(name, w.shape) for name, w in weights.items()}
    for step in range(60):
        g = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
        state = program.apply_gradients(state, to_backend(backend, g))
        if step <= 41:
            g["head.weight"] = g["embed.weight"] = g["head.weight"] + g["embed.weight"]
        third = 3 * step // 59
        fraction = min(1.0, 2 * max(0.0, 1 - step / 59))
        lr = (1, 1.52, 1.73)[min(third, 2)] * fraction + 0.1 * (1 - fraction)
        mu = 0.85 + 0.1 * min(1, step / 10) if step <= 58 else 0.95 - 0.1 * (step - 58) / 2
        for name, rule in rules.items():
            if isinstance(rule, Muon):
                p[name] = rule(p[name], g[name], 0.023 * lr, mu)
            else:
                p[name] = rule(p[name], g[name], 0.008 * lr, step)
        if step in (3, 41, 43, 59):
            found = program.export(state)
            for name, w in p.items():
                np.testing.assert_allclose(
                    found[name], w, rtol=0, atol=1e-9 * np.abs(w).max(), err_msg=f"{name} {step}"
                )
            assert (np.abs(found["head.weight"] - found["embed.weight"]).max() == 0) == (step <= 41)


def to_backend(backend: str, grads):
    if backend == "jaxrun":
        return grads
    import torch

    return {name: torch.from_numpy(g) for name, g in grads.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_bfloat16_matrices_are_cut_off_and_their_first_values_rounded(backend):
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    recipe = dataclasses.replace(recipe_for("record-58", "tiny"), precision="bfloat16")
    first = canonical.initial_weights(recipe, 0)
    name = "blocks.0.mlp.fc.weight"
    assert recipe.storage_dtype(name) == "float32" and not (first[name].view(np.uint32) & 0xFFFF).any()
    program = build(backend, recipe, device="cpu")
    batch = program.put_global_batch(*rows(recipe, 64))

    def loss(weights):
        return float(program.fetch(program.token_losses(program.load(weights), batch)).sum())

    filled = np.random.default_rng(8).uniform(0.5, 1, first[name].shape).astype(np.float32) * first[name]
    cut = (filled.view(np.uint32) & 0xFFFF0000).view(np.float32)
    others = {n: w + np.float32(0.05) if "proj" in n else w for n, w in first.items()}
    assert loss(others | {name: filled}) == loss(others | {name: cut})
    rounded = canonical.round_to(filled.astype(np.float64), "bfloat16")
    assert loss(others | {name: filled}) != loss(others | {name: rounded})
    state = program.load(others | {name: filled})
    exported = program.export(state)[name]
    assert (exported == filled).all()  # the lower bits are kept
