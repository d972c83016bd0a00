"""Recipes: schedules at their corners, sizes against known counts, groups, plans, and what is refused."""

import dataclasses
import itertools
import math

import pytest

from parity.errors import InputError
from parity.recipes import OPTIMIZERS, QUINTIC, RECIPES, Muon, NanoGPT, Record21, from_fields, recipe_for, to_fields

NAMES = tuple(RECIPES)


def count(recipe):
    return sum(math.prod(p.shape) for p in recipe.parameters().values())


def test_nanogpt_rises_linearly_and_reaches_its_peak_at_the_last_step_of_the_warmup():
    recipe = recipe_for("nanogpt", "small")
    assert recipe.learning_rates(0)["decay"] == 6e-4 / 700
    assert recipe.learning_rates(349)["decay"] == 6e-4 / 2
    assert recipe.learning_rates(699)["decay"] == recipe.learning_rates(700)["decay"] == 6e-4
    assert recipe.learning_rates(0)["no_decay"] == recipe.learning_rates(0)["decay"]


def test_nanogpt_falls_as_a_cosine_to_its_final_fraction_at_the_last_step():
    recipe = NanoGPT(
        tokenizer_size=8,
        vocab_size=8,
        dim=4,
        layers=1,
        head_dim=4,
        context=4,
        batch_tokens=4,
        steps=101,
        val_every=10,
        final_val_every=10,
        warmup_steps=0,
        peak_rate=1.0,
        final_fraction=0.1,
    )
    # steps 0 .. 100: 1 at the first, 0.1 at the last, halfway between them in the middle, cos(pi/4) at a quarter
    expected = {0: 1.0, 25: 0.55 + 0.45 * math.sqrt(0.5), 50: 0.55, 100: 0.1}
    assert {step: recipe.learning_rates(step)["decay"] for step in expected} == pytest.approx(expected, rel=1e-15)
    assert dataclasses.replace(recipe, final_fraction=0.0).learning_rates(100)["decay"] == pytest.approx(0.0, abs=1e-16)


def test_nanogpt_without_steps_after_the_warmup_stays_finite():
    recipe = dataclasses.replace(recipe_for("nanogpt", "tiny"), steps=7, warmup_steps=6)
    assert [recipe.learning_rates(step)["decay"] for step in (5, 6)] == pytest.approx([3e-3, 3e-3], rel=1e-15)


def test_muon_holds_its_rates_and_then_falls_linearly_towards_zero():
    recipe = recipe_for("muon", "small")
    peaks = {"embed": 0.7, "head": 0.004, "vector": 0.015, "matrix": 0.025}
    assert recipe.learning_rates(0) == peaks
    assert recipe.learning_rates(974) == peaks  # 975 = 30% of 3250
    assert recipe.learning_rates(975) == pytest.approx(peaks, rel=1e-15)
    half = 975 + 2275 // 2
    assert recipe.learning_rates(half) == pytest.approx(
        {k: v * (3250 - half) / 2275 for k, v in peaks.items()}, rel=1e-12
    )
    assert recipe.learning_rates(3249) == pytest.approx({k: v / 2275 for k, v in peaks.items()}, rel=1e-12)


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
    assert {p.group for p in recipe.parameters().values()} == set(recipe.learning_rates(0))


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


@pytest.mark.parametrize("name", ["nanogpt", "muon", "record-11"])
def test_model_flops_follow_from_the_matrices_and_the_attention(name):
    recipe = recipe_for(name, "small")
    V, D, L, T = 50304, 768, 12, 1024
    assert recipe.matmul_params() == 12 * L * D * D + V * D  # the head once, tied or not; no lookups, no biases
    assert recipe.model_flops_per_token() == 6 * (12 * L * D * D + V * D) + 12 * L * D * T


def test_model_flops_of_record_21_count_the_widest_windows_and_leave_out_what_the_bare_block_lacks():
    recipe = recipe_for("record-21", "small")
    V, D, L = 50304, 768, 12
    assert recipe.matmul_params() == (12 * L - 4) * D * D + V * D
    assert recipe.attention_spans() == [14 * 128 if i in (0, 4, 11) else 7 * 128 for i in range(12) if i != 7]
    assert recipe.model_flops_per_token() == 6 * recipe.matmul_params() + 12 * D * (3 * 14 + 8 * 7) * 128


def test_the_attention_scale_is_the_descriptions_at_128_and_keeps_the_spread_elsewhere():
    recipe = recipe_for("muon", "small")
    assert recipe.softmax_scale == 0.12
    assert dataclasses.replace(recipe, head_dim=32).softmax_scale == pytest.approx(0.24, rel=1e-15)
    assert dataclasses.replace(recipe, attention_scale=0.5).softmax_scale == 0.5


def test_evaluations_are_at_both_ends_and_denser_in_the_last_tenth():
    steps = recipe_for("muon", "small").eval_steps()
    assert (steps[0], steps[1], steps[-1]) == (0, 125, 3250)
    assert all(b - a == 25 for a, b in itertools.pairwise(steps) if a >= 2925)
    assert all(b - a == 125 for a, b in itertools.pairwise(steps) if b <= 2875)


def test_checkpoints_are_evenly_spaced_from_the_start_to_the_end():
    assert recipe_for("muon", "tiny").checkpoint_steps() == (0, 15, 30, 45, 60)


def test_precision_decides_every_type():
    recipe = recipe_for("muon", "tiny")
    for name in NAMES:
        for precision in ("float32", "float64"):
            assert set(
                dataclasses.astuple(dataclasses.replace(recipe_for(name, "tiny"), precision=precision).dtypes)
            ) == {precision, False}
    narrow = dataclasses.replace(recipe, precision="bfloat16").dtypes
    assert dataclasses.astuple(narrow) == (
        "float32",
        "bfloat16",
        "bfloat16",
        "bfloat16",
        "bfloat16",
        *["float32"] * 5,
        False,
        False,
    )
    narrow = dataclasses.replace(recipe_for("record-11", "tiny"), precision="bfloat16")
    assert {
        narrow.dtypes.scalars,
        narrow.dtypes.rotary,
        narrow.dtypes.softcap,
        narrow.storage_dtype("skips.weight"),
    } == {"bfloat16"}
    assert narrow.storage_dtype("blocks.0.attn.q.weight") == "float32" and not narrow.dtypes.fp8
    narrow = dataclasses.replace(recipe_for("record-21", "tiny"), precision="bfloat16")
    assert (
        narrow.storage_dtype("value_embeds.0.weight") == "bfloat16"
        and narrow.storage_dtype("skips.weight") == "float32"
        and narrow.dtypes.fp8
    )
    narrow = dataclasses.replace(recipe_for("nanogpt", "tiny"), precision="bfloat16").dtypes
    assert (narrow.matmul, narrow.residual, narrow.embedding) == ("bfloat16", "float32", "float32")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_goes_through_plain_fields_unchanged(name):
    recipe = dataclasses.replace(recipe_for(name, "pocket"), betas=(0.5, 0.25))
    assert from_fields(to_fields(recipe)) == recipe


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("muon", {"head_dim": 24}, "--head-dim must be a divisor of dim 64"),
        ("nanogpt", {"batch_tokens": 1000}, "--batch-tokens must be a multiple of context 64"),
        ("nanogpt", {"vocab_size": 511}, "--vocab-size must be at least tokenizer_size 512"),
        ("nanogpt", {"warmup_steps": 60}, "--warmup-steps must be from 0 to steps - 1 = 59"),
        ("nanogpt", {"gelu": "fast"}, "--gelu must be exact or tanh"),
        ("muon", {"precision": "float16"}, "--precision must be float32, bfloat16 or float64"),
        ("muon", {"momentum": 1.0}, "--momentum must be in [0, 1)"),
        ("record-21", {"long_blocks": (0, 4)}, "--long-blocks must be from 0 to 3"),
        ("record-21", {"bare_block": 4}, "--bare-block must be -1, or from 0 to 3"),
        ("record-21", {"window": 0}, "--window must be positive"),
        ("record-21", {"fp8_scales": (1.0, 0.0, 1.0)}, "--fp8-scales must be three positive numbers"),
        ("record-21", {"final_fraction": 1.5}, "--final-fraction must be in [0, 1]"),
        ("muon", {"cooldown": 0.0}, "--cooldown must be in (0, 1]"),
        ("muon", {"layers": 0}, "--layers must be a positive number"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_reason(name, change, words):
    with pytest.raises(InputError) as error:
        dataclasses.replace(recipe_for(name, "tiny"), **change)
    assert words in str(error.value)
    assert repr(next(iter(change.values()))) in str(error.value)


def test_unknown_names_get_the_nearest_one():
    for call, near in (
        (lambda: recipe_for("moun", "tiny"), "muon"),
        (lambda: recipe_for("muon", "poket"), "pocket"),
        (lambda: from_fields({"name": "muon", "fields": {"layer": 2}}), "layers"),
    ):
        with pytest.raises(InputError, match=near):
            call()


def test_muon_and_nanogpt_are_frozen():
    for recipe in (recipe_for("nanogpt", "tiny"), recipe_for("muon", "tiny")):
        assert isinstance(recipe, NanoGPT | Muon)
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.layers = 3


# Records 11 and 21, by the figures of the public runs


def test_record_11_holds_its_rates_and_falls_to_zero_over_the_last_900_steps():
    recipe = recipe_for("record-11", "small")
    peaks = {"embed": 0.6, "head": 0.008, "scalar": 0.04, "matrix": 0.04}
    assert recipe.steps == 3000 and recipe.learning_rates(0) == recipe.learning_rates(2099) == peaks
    assert recipe.learning_rates(2100) == pytest.approx(peaks, rel=1e-14)
    assert recipe.learning_rates(2550) == pytest.approx({k: v / 2 for k, v in peaks.items()}, rel=1e-13)
    assert recipe.learning_rates(2999) == pytest.approx({k: v / 900 for k, v in peaks.items()}, rel=1e-12)


def test_record_21_holds_its_rates_and_falls_to_a_tenth_over_the_last_two_fifths():
    recipe = recipe_for("record-21", "small")
    peaks = {"embed": 0.6, "head": 0.008, "scalar": 0.04, "matrix": 0.05}
    assert recipe.steps == 1770 and recipe.learning_rates(0) == recipe.learning_rates(1061) == peaks
    assert recipe.learning_rates(1062) == pytest.approx(peaks, rel=1e-14)  # 60% of 1770
    assert recipe.learning_rates(1416) == pytest.approx(
        {k: v * 0.55 for k, v in peaks.items()}, rel=1e-13
    )  # halfway from 1 to 0.1
    assert recipe.learning_rates(1769) == pytest.approx({k: v * (0.1 + 0.9 / 708) for k, v in peaks.items()}, rel=1e-12)


@pytest.mark.parametrize(("name", "over"), [("record-11", 500), ("record-21", 300)])
def test_momentum_rises_in_a_line_and_stays(name, over):
    recipe = recipe_for(name, "small")
    expected = {0: 0.85, over // 2: 0.9, over - 1: 0.95 - 0.1 / over, over: 0.95, recipe.steps - 1: 0.95}
    assert {step: recipe.momentum_at(step) for step in expected} == pytest.approx(expected, rel=1e-14)
    assert recipe.momentum_at(0) == 0.85 and recipe.momentum_at(over) == 0.95


def test_momentum_that_needs_no_steps_to_rise_is_there_at_once():
    assert dataclasses.replace(recipe_for("record-21", "tiny"), momentum_steps=0).momentum_at(0) == 0.95


def test_the_window_grows_by_whole_blocks_from_one_to_the_next_above_1728_tokens():
    recipe = recipe_for("record-21", "small")
    windows = [recipe.attention_window(step) for step in range(recipe.steps + 1)]
    # 1728 step / 1770 tokens in blocks of 128, upwards: 0 counts as 1, and a block is 131.1 steps long
    assert [windows[step] for step in (0, 1, 131, 132, 885, 1769, 1770)] == [1, 1, 1, 2, 7, 14, 14]
    assert windows == sorted(windows) and set(windows) == set(range(1, 15))
    assert all(128 * (w - 1) < 1728 * step / 1770 <= 128 * w for step, w in enumerate(windows) if step)
    assert recipe.attention_window(99_999) == 14
    assert recipe.window_stages() == [0, 132, 263, 525, 1049]  # the first steps with 1, 2, 3, 5 and 9 blocks


def test_record_21_says_which_block_has_what():
    recipe = recipe_for("record-21", "small")
    assert recipe.long_window_layers == {0, 4, 7, 11} and recipe.no_attention_layer == 7
    assert recipe.value_embedding_of == {0: 0, 1: 1, 2: 2, 9: 0, 10: 1, 11: 2}
    assert recipe.end_of_text == 50256 and recipe.eval_context == 4 * 64 * 1024 and recipe.softmax_scale == 0.12
    assert dataclasses.replace(recipe, bare_block=-1).no_attention_layer is None
    small = dataclasses.replace(recipe, layers=2, val_context=None)
    assert (small.no_attention_layer, small.long_window_layers, small.value_embedding_of, small.eval_context) == (
        None,
        {0, 1},
        {0: 0, 1: 0},
        4 * 48 * 1024,
    )


def test_the_records_have_the_parameters_of_their_descriptions():
    V, rows, D, L = 50304, 50257, 768, 12
    assert count(recipe_for("record-11", "small")) == 2 * V * D + 12 * L * D * D + 3 * L + L // 2
    recipe = recipe_for("record-21", "small")
    assert count(recipe) == 4 * rows * D + V * D + (12 * L - 4) * D * D + 2 * L + 2 * (L - 1) + L // 2
    assert recipe.parameters()["blocks.0.attn.qkv.weight"].shape == (3, D, D)
    assert not any(name.startswith("blocks.7.attn") for name in recipe.parameters())


def test_the_records_first_values_are_those_of_their_descriptions():
    eleven, twenty_one = (recipe_for(name, "small").parameters() for name in ("record-11", "record-21"))
    for table in (eleven, twenty_one):
        assert table["embed.weight"].std == 1.0
        assert table["blocks.3.lambdas.weight"].value == (1.0, 0.0) and table["skips.weight"].value == (1.0,) * 6
        for name in ("head.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.proj.weight"):
            assert (table[name].std, table[name].bound, table[name].value) == (None, None, 0.0)
    assert eleven["blocks.0.attn.lambdas.weight"].value == (0.5,) and twenty_one[
        "blocks.0.attn.lambdas.weight"
    ].value == (0.5, 0.5)
    assert eleven["blocks.0.mlp.fc.weight"].bound == eleven["blocks.0.attn.q.weight"].bound == 1 / math.sqrt(768)
    # uniform within b has the standard deviation b / sqrt(3)
    assert twenty_one["blocks.0.attn.qkv.weight"].bound / math.sqrt(3) == pytest.approx(0.5 / math.sqrt(768), rel=1e-15)
    assert twenty_one["value_embeds.2.weight"].std == 1.0


@pytest.mark.parametrize("name", ["record-11", "record-21"])
def test_the_records_matrices_alone_are_muons(name):
    recipe = recipe_for(name, "small")
    assert recipe.newton_schulz == QUINTIC and recipe.newton_schulz_steps == 5
    for weight, p in recipe.parameters().items():
        matrix = weight.startswith("blocks.") and len(p.shape) > 1
        expected = "matrix" if matrix else "scalar" if p.scalar else "head" if weight == "head.weight" else "embed"
        assert p.group == expected and recipe.group_weight_decay(p.group) == 0, weight
    assert recipe.optimizers["matrix"] == {"record-11": "MuonSGD", "record-21": "Muon"}[name]


# What does not fit


def derived(base, **attributes):
    """The recipe with other class attributes, under another name."""
    kind = type("Derived", (type(base),), {"name": "derived"} | attributes)
    return kind(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("record-11", {"layers": 3}, "--layers must be even"),
        ("record-21", {"layers": 3}, "--layers must be even"),
        ("record-21", {"bare_block": 0}, "--bare-block must be a block without a value embedding"),
        ("record-21", {"bare_block": 3}, "--bare-block must be a block without a value embedding"),
        ("record-21", {"value_embeddings": 3}, "--value-embeddings must be from 1 to 2"),
        ("record-21", {"block": 5}, "--context must be a multiple of --block 5 (rows are made of whole blocks)"),
        ("record-21", {"val_context": 130}, "--val-context must be a multiple of --block 4"),
        ("record-21", {"window": 129}, "--window must be at most the context, 128"),
        ("muon", {"head_dim": 4}, "--head-dim must be a multiple of 4, at least 8"),
        ("record-40", {"layers": 4}, "--layers must be even, at least 6"),
        ("record-40", {"windows": (3, 2)}, "--windows must be positive, rising, at most --final-window"),
        ("record-40", {"windows": (3, 40), "final_window": 40}, "--windows must be at most the context, 128"),
        ("record-40", {"max_len": 1}, "--max-len must be at least 2"),
        ("record-40", {"extension": 60}, "--extension must be below 60"),
        ("record-40", {"newton_schulz": (1.0,) * 6}, "--newton-schulz must be 3 or 15 numbers"),
        ("record-40", {"momentum_cooldown": 0}, "--momentum-cooldown must be 1 to 60"),
    ],
)
def test_sizes_that_do_not_fit_a_model_are_refused(name, change, words):
    with pytest.raises(InputError) as error:
        dataclasses.replace(recipe_for(name, "tiny"), **change)
    assert str(error.value).startswith(f"recipe {name}: ") and words in str(error.value)


def test_vectors_are_refused_to_an_optimizer_of_matrices():
    base = recipe_for("muon", "tiny")
    with pytest.raises(InputError, match=r"the optimizer Muon needs matrices, found shape \(64,\)"):
        derived(base, optimizers=base.optimizers | {"vector": "Muon"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: own | {"matrix": "Muonn"}, "the optimizer Muonn of matrix is unknown; did you mean Muon[?]"),
        (lambda own: {"matrix": "Muon"}, "embed.weight is of the group embed, which has no optimizer"),
    ],
)
def test_an_optimizer_that_is_unknown_or_missing_is_refused(change, words):
    base = recipe_for("muon", "tiny")
    with pytest.raises(InputError, match=words):
        derived(base, optimizers=change(base.optimizers))


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_the_backends_have_the_optimizers_and_the_models_of_the_recipes(backend):
    assert tuple(pytest.importorskip(f"{backend}.optim").OPTIMIZERS) == OPTIMIZERS
    assert pytest.importorskip(f"{backend}.models").MODELS.keys() == RECIPES.keys()


def test_a_field_of_a_class_that_is_no_dataclass_is_told():
    class Forgotten(Record21):
        name = "forgotten"
        logit_shift: float = 5.0

    with pytest.raises(InputError, match=r"Forgotten.logit_shift is no field yet: put @dataclass"):
        Forgotten(
            **{
                field.name: getattr(recipe_for("record-21", "tiny"), field.name)
                for field in dataclasses.fields(Record21)
            }
        )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("val_context", -512, "--val-context must be positive"),
        ("val_context", 0, "--val-context must be positive"),
        ("momentum_steps", -3, "--momentum-steps must be not negative"),
        ("value_embeddings", 9, "--value-embeddings must be from 1 to 2"),
    ],
)
def test_numbers_that_make_no_sense_in_record_21_are_refused(field, value, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(recipe_for("record-21", "tiny"), **{field: value})
