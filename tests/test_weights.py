"""Canonical weights: pinned first values, rounding, digests, and the file format."""

import dataclasses
import hashlib

import numpy as np
import pytest

from parity import weights
from parity.errors import InputError
from parity.recipes import recipe_for

PINNED = {
    ("nanogpt", "tiny"): "232f6a0fb6b1105d6edb7399feb7069dae6858848a2ecab377339896fc386e1b",
    ("nanogpt", "pocket"): "7172fca40eae2a73d2cc8df1a881f7559fb3af5987f1967dbe516ea048a21651",
    ("muon", "tiny"): "a438e84468906a9123b563a4efea0ce4c4541bb6cce86c394ce41a94ef9bd2a3",
    ("muon", "pocket"): "ea7cd844ce6c8708f45e79e97312d534ffd1e7ba48dbc305cd83a391293f0f2f",
}


@pytest.fixture
def tiny():
    return recipe_for("muon", "tiny")


@pytest.mark.parametrize(("name", "scale"), PINNED)
def test_initial_weights_are_the_same_bytes_on_every_machine(name, scale):
    assert weights.digest(weights.initial_weights(recipe_for(name, scale), 0)) == PINNED[name, scale]


def test_a_weight_is_drawn_from_philox_keyed_by_seed_and_name(tiny):
    key = int.from_bytes(hashlib.sha256(b"7:blocks.1.attn.k.weight").digest()[:16], "little")
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal((64, 64))
    expected = (normal * np.sqrt(0.33 / 64)).astype(np.float32)
    assert np.array_equal(weights.initial_weights(tiny, 7)["blocks.1.attn.k.weight"], expected)


def test_a_deeper_model_begins_with_the_weights_of_a_shallower_one(tiny):
    few, more = (weights.initial_weights(dataclasses.replace(tiny, layers=n), 0) for n in (1, 2))
    assert all(np.array_equal(few[name], more[name]) for name in few)


def test_seeds_give_different_weights(tiny):
    first, second = (weights.initial_weights(tiny, seed)["embed.weight"] for seed in (0, 1))
    # two independent draws of 512 x 64 normals: correlation of deviation 1 / sqrt(32768) = 0.0055; five of them
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.028


def test_uniform_weights_are_drawn_from_the_same_stream_within_their_bound():
    key = int.from_bytes(hashlib.sha256(b"7:blocks.1.attn.qkv.weight").digest()[:16], "little")
    uniform = np.random.Generator(np.random.Philox(key=key)).uniform(-1, 1, (3, 64, 64))
    initial = weights.initial_weights(recipe_for("record-21", "tiny"), 7)
    assert np.array_equal(initial["blocks.1.attn.qkv.weight"], (uniform * (0.5 * 3**0.5 / 64**0.5)).astype(np.float32))
    # the standard deviation is 0.5 / sqrt(64); of 12,288 numbers it is known to 0.4%
    assert abs(initial["blocks.1.attn.qkv.weight"].std() * 16 - 1) < 0.02
    assert initial["blocks.0.lambdas.weight"].tolist() == [1, 0] and initial["skips.weight"].tolist() == [1, 1]


def test_only_embeddings_that_are_looked_up_alone_are_rounded_to_bfloat16():
    """record-11's factors are stored so too, and bfloat16 has their first values."""
    for name, narrow in (
        ("muon", {"embed.weight"}),
        ("nanogpt", set()),
        ("record-11", {"embed.weight"}),
        ("record-21", {"embed.weight", "value_embeds.0.weight"}),
    ):
        recipe = dataclasses.replace(recipe_for(name, "tiny"), precision="bfloat16")
        first = weights.initial_weights(recipe, 0)
        wide = weights.initial_weights(recipe_for(name, "tiny"), 0)
        assert {key for key in first if not np.array_equal(first[key], wide[key])} == narrow
        assert all(w.dtype == np.float32 for w in first.values())


def test_bfloat16_rounding_is_that_of_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0).standard_normal(10_000)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 2 - 2**-8, 0.0, -0.0, 1.0, 2.0**-120, 3e38])
    for value in (random, ties):
        exact = value.astype(np.float32).astype(np.float64)  # torch rounds from float32, so start from one
        expected = torch.from_numpy(exact.astype(np.float32)).to(torch.bfloat16).float().numpy()
        assert np.array_equal(weights.round_to(exact, "bfloat16"), expected)


def test_bfloat16_is_rounded_once_and_not_by_way_of_float32():
    above_tie = 1 + 2**-8 + 2**-40  # float32 would drop the last bit, and the tie would go down to 1
    assert weights.round_to(np.array(above_tie), "bfloat16") == np.float32(1 + 2**-7)


def test_a_digest_sees_names_types_shapes_and_values_but_not_order():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    same = weights.digest(base)
    assert weights.digest(dict(reversed(base.items()))) == same
    for other in (
        {"a": base["a"], "c": base["b"]},
        base | {"a": np.zeros((3, 2), np.float32)},
        base | {"b": np.ones(2, np.float64)},
        base | {"b": np.array([1, np.nextafter(1, 2, dtype=np.float32)])},
        {"a": base["a"]},
    ):
        assert weights.digest(other) != same


def test_a_file_holds_weights_bit_for_bit_and_equal_weights_give_equal_bytes(tiny, tmp_path):
    first = weights.initial_weights(tiny, 0)
    weights.save(tmp_path / "a.safetensors", first)
    weights.save(tmp_path / "b.safetensors", dict(reversed(first.items())))
    assert weights.digest(weights.load(tmp_path / "a.safetensors")) == weights.digest(first)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_file_that_is_missing_or_damaged_is_named(tiny, tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="weights.safetensors: no weights here"):
        weights.load(path)
    weights.save(path, weights.initial_weights(tiny, 0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"weights.safetensors: expected a safetensors file"):
        weights.load(path)


def test_weights_of_another_recipe_are_refused_by_name(tiny):
    first = weights.initial_weights(tiny, 0)
    weights.check(first, tiny, "here")
    missing = {name: w for name, w in first.items() if name != "head.bias"}
    for wrong, words in (
        (missing, "here: weight head.bias is missing"),
        (first | {"extra": np.zeros(1)}, "here: weight extra is not part of recipe muon"),
        (first | {"head.bias": np.zeros(3)}, r"head.bias expected shape \(512,\), found \(3,\)"),
    ):
        with pytest.raises(InputError, match=words):
            weights.check(wrong, tiny, "here")
