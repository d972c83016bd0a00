"""Recipes: schedules at their corners, sizes against known counts, groups, plans, and what is refused."""

import dataclasses
import itertools
import math

import pytest

from parity.errors import InputError
from parity.recipe import Muon, NanoGPT, from_fields, recipe_for, to_fields

NAMES = ("nanogpt", "muon")


def count(recipe):
    return sum(math.prod(p.shape) for p in recipe.parameters().values())


def test_nanogpt_rises_linearly_and_reaches_its_peak_at_the_last_step_of_the_warmup():
    recipe = recipe_for("nanogpt", "small")
    assert recipe.rates(0)["decay"] == 6e-4 / 700
    assert recipe.rates(349)["decay"] == 6e-4 / 2
    assert recipe.rates(699)["decay"] == recipe.rates(700)["decay"] == 6e-4
    assert recipe.rates(0)["no_decay"] == recipe.rates(0)["decay"]


def test_nanogpt_falls_as_a_cosine_to_its_final_fraction_at_the_last_step():
    recipe = NanoGPT(tokenizer_size=8, vocab_size=8, dim=4, layers=1, head_dim=4, context=4, batch_tokens=4, steps=101,
                     val_every=10, final_val_every=10, warmup_steps=0, peak_rate=1.0, final_fraction=0.1)
    # steps 0 .. 100: 1 at the first, 0.1 at the last, halfway between them in the middle, cos(pi/4) at a quarter
    expected = {0: 1.0, 25: 0.55 + 0.45 * math.sqrt(0.5), 50: 0.55, 100: 0.1}
    assert {step: recipe.rates(step)["decay"] for step in expected} == pytest.approx(expected, rel=1e-15)
    assert dataclasses.replace(recipe, final_fraction=0.0).rates(100)["decay"] == pytest.approx(0.0, abs=1e-16)


def test_nanogpt_without_steps_after_the_warmup_stays_finite():
    recipe = dataclasses.replace(recipe_for("nanogpt", "tiny"), steps=7, warmup_steps=6)
    assert [recipe.rates(step)["decay"] for step in (5, 6)] == pytest.approx([3e-3, 3e-3], rel=1e-15)


def test_muon_holds_its_rates_and_then_falls_linearly_towards_zero():
    recipe = recipe_for("muon", "small")
    peaks = {"embed": 0.7, "head": 0.004, "vector": 0.015, "matrix": 0.025}
    assert recipe.rates(0) == peaks
    assert recipe.rates(974) == peaks  # 975 = 30% of 3250
    assert recipe.rates(975) == pytest.approx(peaks, rel=1e-15)
    half = 975 + 2275 // 2
    assert recipe.rates(half) == pytest.approx({k: v * (3250 - half) / 2275 for k, v in peaks.items()}, rel=1e-12)
    assert recipe.rates(3249) == pytest.approx({k: v / 2275 for k, v in peaks.items()}, rel=1e-12)


def test_nanogpt_without_padding_has_the_parameters_of_gpt2():
    recipe = recipe_for("nanogpt", "small")
    assert count(dataclasses.replace(recipe, vocab_size=50257)) == 124_439_808  # OpenAI's smallest GPT-2
    assert count(recipe) == 124_439_808 + 47 * 768


def test_muon_has_the_parameters_of_its_description():
    V, D, L = 50304, 768, 12
    # embedding, untied head with bias, first and last gain; a block: 12 D^2 in matrices, 4 D + 5 D biases, 2 D gains
    assert count(recipe_for("muon", "small")) == 2 * V * D + V + 2 * D + L * (12 * D * D + 11 * D)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_that_has_a_rate(name):
    recipe = recipe_for(name, "tiny")
    assert {p.group for p in recipe.parameters().values()} == set(recipe.rates(0))


def test_groups_are_told_apart_by_dimensions_and_place():
    for name, p in recipe_for("nanogpt", "tiny").parameters().items():
        assert p.group == ("decay" if len(p.shape) >= 2 else "no_decay"), name
    for name, p in recipe_for("muon", "tiny").parameters().items():
        place = "matrix" if name.startswith("blocks.") else name.split(".")[0]
        assert p.group == (place if len(p.shape) == 2 else "vector"), name


def test_first_values_have_the_deviations_of_the_description():
    nano, muon = recipe_for("nanogpt", "small").parameters(), recipe_for("muon", "small").parameters()
    assert nano["embed.weight"].std == nano["positions.weight"].std == nano["blocks.3.attn.qkv.weight"].std == 0.02
    assert nano["blocks.0.attn.proj.weight"].std == nano["blocks.0.mlp.proj.weight"].std == 0.02 / math.sqrt(24)
    assert muon["embed.weight"].std == 1.0
    assert muon["blocks.0.mlp.fc.weight"].std == muon["blocks.0.attn.v.weight"].std == math.sqrt(0.33 / 768)
    for name in ("blocks.0.attn.proj.weight", "blocks.0.mlp.proj.weight", "head.weight", "head.bias"):
        assert (muon[name].std, muon[name].value) == (None, 0.0)
    assert muon["norm_in.weight"].value == nano["norm_out.weight"].value == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_model_flops_follow_from_the_matrices_and_the_attention(name):
    recipe = recipe_for(name, "small")
    V, D, L, T = 50304, 768, 12, 1024
    assert recipe.product_weights() == 12 * L * D * D + V * D  # the head once, tied or not; no lookups, no biases
    assert recipe.model_flops_per_token() == 6 * (12 * L * D * D + V * D) + 12 * L * D * T


def test_the_attention_scale_is_the_descriptions_at_128_and_keeps_the_spread_elsewhere():
    recipe = recipe_for("muon", "small")
    assert recipe.scale == 0.12
    assert dataclasses.replace(recipe, head_dim=32).scale == pytest.approx(0.24, rel=1e-15)
    assert dataclasses.replace(recipe, attention_scale=0.5).scale == 0.5


def test_evaluations_are_at_both_ends_and_denser_in_the_last_tenth():
    steps = recipe_for("muon", "small").eval_steps()
    assert (steps[0], steps[1], steps[-1]) == (0, 125, 3250)
    assert all(b - a == 25 for a, b in itertools.pairwise(steps) if a >= 2925)
    assert all(b - a == 125 for a, b in itertools.pairwise(steps) if b <= 2875)


def test_checkpoints_are_evenly_spaced_from_the_start_to_the_end():
    assert recipe_for("muon", "tiny").checkpoint_steps() == (0, 15, 30, 45, 60)


def test_precision_decides_every_type():
    recipe = recipe_for("muon", "tiny")
    assert set(dataclasses.astuple(recipe.dtypes)) == {"float32"}
    assert set(dataclasses.astuple(dataclasses.replace(recipe, precision="float64").dtypes)) == {"float64"}
    narrow = dataclasses.replace(recipe, precision="bfloat16").dtypes
    assert dataclasses.astuple(narrow) == ("float32", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "float32")
    narrow = dataclasses.replace(recipe_for("nanogpt", "tiny"), precision="bfloat16").dtypes
    assert (narrow.products, narrow.stream, narrow.embedding) == ("bfloat16", "float32", "float32")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_goes_through_plain_fields_unchanged(name):
    recipe = dataclasses.replace(recipe_for(name, "pocket"), betas=(0.5, 0.25))
    assert from_fields(to_fields(recipe)) == recipe


@pytest.mark.parametrize(("name", "change", "words"), [
    ("muon", {"head_dim": 24}, "--head-dim must be a divisor of dim 64"),
    ("nanogpt", {"batch_tokens": 1000}, "--batch-tokens must be a multiple of context 64"),
    ("nanogpt", {"vocab_size": 511}, "--vocab-size must be at least tokenizer_size 512"),
    ("nanogpt", {"warmup_steps": 60}, "--warmup-steps must be from 0 to steps - 1 = 59"),
    ("nanogpt", {"gelu": "fast"}, "--gelu must be exact or tanh"),
    ("muon", {"precision": "float16"}, "--precision must be float32, bfloat16 or float64"),
    ("muon", {"head_dim": 4}, "--head-dim must be at least 8"),
    ("muon", {"cooldown": 0.0}, "--cooldown must be in (0, 1]"),
    ("muon", {"layers": 0}, "--layers must be a positive number"),
])
def test_a_value_that_cannot_be_is_refused_with_its_reason(name, change, words):
    with pytest.raises(InputError) as error:
        dataclasses.replace(recipe_for(name, "tiny"), **change)
    assert words in str(error.value)
    assert repr(next(iter(change.values()))) in str(error.value)


def test_unknown_names_get_the_nearest_one():
    for call, near in ((lambda: recipe_for("moun", "tiny"), "muon"), (lambda: recipe_for("muon", "poket"), "pocket"),
                       (lambda: from_fields({"name": "muon", "fields": {"layer": 2}}), "layers")):
        with pytest.raises(InputError, match=near):
            call()


def test_muon_and_nanogpt_are_frozen():
    for recipe in (recipe_for("nanogpt", "tiny"), recipe_for("muon", "tiny")):
        assert isinstance(recipe, NanoGPT | Muon)
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.layers = 3
