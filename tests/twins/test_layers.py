"""The parts of the models in both backends, in float64, against closed forms and naive loops."""

import dataclasses
import importlib
import math

import numpy as np
import pytest

from parity.recipes import RMS_EPS, recipe_for

pytestmark = pytest.mark.usefixtures("x64")

# A handful of float64 operations on numbers of order 1, each wrong by at most 1.1e-16 of its result; sums of up to 64
# terms.
CLOSE = {"rtol": 1e-13, "atol": 1e-14}


def naive_attention(q, k, v, scale):
    """Causal attention by a loop over rows, heads and positions."""
    y = np.empty_like(v)
    for b, t, h in np.ndindex(q.shape[:3]):
        scores = k[b, : t + 1, h] @ q[b, t, h] * scale
        weights = np.exp(scores - scores.max())
        y[b, t, h] = weights / weights.sum() @ v[b, : t + 1, h]
    return y


def rotation(position, K, base):
    """The (K, K) matrix that rotary applies at a position, written entry by entry."""
    matrix = np.eye(K)
    for i in range(K // 4):
        angle = position * base ** (-i / (K / 4 - 1))
        matrix[i, i] = matrix[i + K // 2, i + K // 2] = math.cos(angle)
        matrix[i, i + K // 2], matrix[i + K // 2, i] = math.sin(angle), -math.sin(angle)
    return matrix


def rotary(pieces, x, base=1024.0):
    return pieces.get(pieces.attention.rotary(pieces.put(x), base, "float64"))


@pytest.mark.parametrize("T", [1, 2, 65])
def test_attention_is_the_naive_loops(pieces, rng, T):
    q, k, v = rng.standard_normal((3, 2, T, 3, 8))
    found = pieces.get(pieces.attention.causal_attention(*map(pieces.put, (q, k, v)), 0.24))
    np.testing.assert_allclose(found, naive_attention(q, k, v, 0.24), **CLOSE)


def test_attention_to_the_past_does_not_see_the_future(pieces, rng):
    q, k, v = rng.standard_normal((3, 1, 48, 2, 8))
    before = pieces.get(pieces.attention.causal_attention(*map(pieces.put, (q, k, v)), 0.3))
    for x in (q, k, v):
        x[:, 30:] += 7
    after = pieces.get(pieces.attention.causal_attention(*map(pieces.put, (q, k, v)), 0.3))
    assert np.array_equal(before[:, :30], after[:, :30])
    assert not np.isclose(before[:, 30:], after[:, 30:]).all(axis=(0, 2, 3)).any()


def test_rotary_multiplies_by_rotation_matrices(pieces, rng):
    x = rng.standard_normal((1, 50, 2, 16))
    expected = np.stack([x[:, t] @ rotation(t, 16, 1024.0).T for t in range(50)], axis=1)
    # positions up to 49 enlarge an error of the frequency, 1e-16, by 49
    np.testing.assert_allclose(rotary(pieces, x), expected, rtol=1e-12, atol=1e-13)


def test_rotary_leaves_the_slow_half_of_the_channels_and_the_first_position_alone(pieces, rng):
    x = rng.standard_normal((2, 20, 2, 16))
    y = rotary(pieces, x)
    still = [*range(4, 8), *range(12, 16)]
    assert np.array_equal(y[..., still], x[..., still])
    assert np.array_equal(y[:, 0], x[:, 0])
    assert not np.isclose(y[:, 1:], x[:, 1:])[..., [0, 8]].all()


def test_products_of_rotated_vectors_depend_on_their_distance_only(pieces, rng):
    q, k = (np.broadcast_to(rng.standard_normal(16), (1, 40, 1, 16)) for _ in range(2))
    scores = rotary(pieces, q)[0, :, 0] @ rotary(pieces, k)[0, :, 0].T
    for distance in (0, 1, 17):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12, atol=1e-13)
    assert np.ptp(scores[20]) > 0.1  # but on the distance they do


def test_rms_norm_is_its_formula(pieces, rng):
    x, gain = rng.standard_normal((2, 3, 64)), rng.standard_normal(64)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + RMS_EPS)
    accum = "float64"
    np.testing.assert_allclose(pieces.get(pieces.layers.rms_norm(pieces.put(x), RMS_EPS, accum)), expected, **CLOSE)
    found = pieces.get(pieces.layers.rms_norm(pieces.put(x), RMS_EPS, accum, pieces.put(gain)))
    np.testing.assert_allclose(found, expected * gain, **CLOSE)


def test_rms_norm_of_nothing_is_nothing_and_epsilon_counts(pieces):
    accum = "float64"
    assert np.array_equal(
        pieces.get(pieces.layers.rms_norm(pieces.put(np.zeros((1, 8))), RMS_EPS, accum)), np.zeros((1, 8))
    )
    small = pieces.get(pieces.layers.rms_norm(pieces.put(np.full((1, 8), math.sqrt(RMS_EPS))), RMS_EPS, accum))
    np.testing.assert_allclose(small, math.sqrt(0.5), **CLOSE)


def test_layer_norm_is_its_formula(pieces, rng):
    x, gain, bias = rng.standard_normal((2, 3, 64)), rng.standard_normal(64), rng.standard_normal(64)
    norm = pieces.layers.LayerNorm(
        64, 1e-5, dataclasses.replace(recipe_for("nanogpt", "tiny"), precision="float64").dtypes
    )
    if pieces.name == "jaxrun":
        norm.weight[...], norm.bias[...] = pieces.put(gain), pieces.put(bias)
    else:
        norm.load_state_dict({"weight": pieces.put(gain), "bias": pieces.put(bias)})
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias
    np.testing.assert_allclose(pieces.get(norm(pieces.put(x))), expected, rtol=1e-12, atol=1e-14)


def test_token_losses_are_minus_the_log_of_the_softmax(pieces, rng):
    logits, targets = 30 * rng.standard_normal((2, 5, 11)), rng.integers(0, 11, (2, 5))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    expected = -np.log(np.take_along_axis(probs / probs.sum(-1, keepdims=True), targets[..., None], -1))[..., 0]
    found = pieces.get(pieces.layers.token_losses(pieces.put(logits), pieces.put(targets)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_gelu_has_both_forms(pieces, gelu):
    recipe = dataclasses.replace(recipe_for("nanogpt", "tiny"), precision="float64", dim=16, gelu=gelu)
    x = np.zeros((1, 1, 16))
    x[..., 0] = 1.5  # through an identity and back, so that the activation can be read off
    fc, proj = np.eye(64, 16), np.eye(16, 64)
    mlp = importlib.import_module(f"{pieces.name}.models.nanogpt").MLP(recipe)
    if pieces.name == "jaxrun":
        mlp.fc.weight[...], mlp.proj.weight[...] = pieces.put(fc), pieces.put(proj)
    else:
        mlp.load_state_dict(
            {
                "fc.weight": pieces.put(fc),
                "proj.weight": pieces.put(proj),
                "fc.bias": pieces.put(np.zeros(64)),
                "proj.bias": pieces.put(np.zeros(16)),
            }
        )
    exact = 1.5 * 0.5 * (1 + math.erf(1.5 / math.sqrt(2)))
    tanh = 1.5 * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)))
    assert abs(exact - tanh) > 1e-4
    np.testing.assert_allclose(pieces.get(mlp(pieces.put(x)))[0, 0, 0], {"exact": exact, "tanh": tanh}[gelu], **CLOSE)


# A singular value s becomes 2 s - 1.5 s^3 + 0.5 s^5 each step: small ones double, from 0.03 to 0.8 in 5 or 6 steps, and
# near 1
# the distance e becomes e^2 / 2, so 12 steps end at rounding: 36 products of up to 40 terms, 1e-13 to 1e-12 in all.
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_orthogonalize_gives_the_orthogonal_factor_of_the_singular_value_decomposition(pieces, rng, shape):
    u, _, vt = np.linalg.svd(rng.standard_normal((3, *shape)), full_matrices=False)
    x = (
        (u * np.linspace(0.1, 1.0, min(shape))) @ vt * 5
    )  # singular values apart from zero, so that U V^T is well defined
    found = pieces.get(pieces.transforms.newton_schulz(pieces.put(x), 12, (2.0, -1.5, 0.5), pieces.dtype("float64")))
    np.testing.assert_allclose(found, u @ vt, rtol=0, atol=1e-12)


def test_orthogonalize_leaves_zero_at_zero(pieces):
    found = pieces.transforms.newton_schulz(
        pieces.put(np.zeros((1, 4, 6))), 12, (2.0, -1.5, 0.5), pieces.dtype("float64")
    )
    assert np.array_equal(pieces.get(found), np.zeros((1, 4, 6)))


def test_norms_are_those_of_all_numbers_together_and_of_each_group(pieces, rng):
    values = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5), "c": rng.standard_normal(2)}
    tensors = {name: pieces.put(x) for name, x in values.items()}
    whole = np.linalg.norm(np.concatenate([x.ravel() for x in values.values()]))
    np.testing.assert_allclose(pieces.get(pieces.optim.global_norm(tensors)), whole, **CLOSE)
    norms = pieces.optim.group_norms(tensors, {"a": "one", "b": "two", "c": "one"})
    np.testing.assert_allclose(
        pieces.get(norms["one"]), np.hypot(np.linalg.norm(values["a"]), np.linalg.norm(values["c"])), **CLOSE
    )
    np.testing.assert_allclose(pieces.get(norms["two"]), np.linalg.norm(values["b"]), **CLOSE)


def test_norms_of_narrow_numbers_are_taken_in_float32(pieces):
    ones = pieces.put(np.ones(1000), "bfloat16")  # a sum in bfloat16 would stop at 256
    np.testing.assert_allclose(pieces.get(pieces.optim.global_norm({"a": ones})), math.sqrt(1000), rtol=1e-6)
