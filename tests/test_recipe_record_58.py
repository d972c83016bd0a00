"""The numbers of `record-58`, as the public program and its logs have them: stages, scales, rates, targets, parts."""

import dataclasses

import pytest

from parity.data.stream import Segment
from parity.errors import InputError
from parity.recipes import recipe_for


def test_the_plan_of_record_58_is_the_public_one():
    recipe = recipe_for("record-58", "small")
    assert recipe.plan == (
        Segment(579, 8 * 16_384, 16_384, 2048),
        Segment(578, 8 * 32_768, 32_768, 2048),
        Segment(618, 8 * 49_152, 49_152, 2048),
    )
    assert sum(segment.steps * segment.tokens for segment in recipe.plan) == 470_417_408  # 470.4e6
    assert recipe.window_stages() == [0, 579, 1157, 1735, 1775]
    stages = recipe.attention_stages
    assert [(s.long // 128, s.short // 128) for s in stages] == [(3, 1), (7, 3), (11, 5), (13, 6), (20, 6)]
    assert [s.scale for s in stages] == pytest.approx([0.1, 0.116946, 0.127518, 0.131778, 0.131778], abs=5e-7)
    assert stages[3].frequencies == stages[4].frequencies != stages[2].frequencies


def test_the_schedules_of_record_58_are_the_public_ones():
    recipe = recipe_for("record-58", "small")
    progress = [step / 1735 for step in (868, 1157, 1600)]
    falling = [c * 2 * (1 - s) + 0.1 * (1 - 2 * (1 - s)) for c, s in zip((1.52, 1.73, 1.73), progress, strict=True)]
    rates = [recipe.rate_fraction(step) for step in (0, 578, 579, 867, 868, 1157, 1600, 1735, 1774)]
    assert rates == pytest.approx([1, 1, 1.52, 1.52, *falling, 0.1, 0.1], rel=1e-12)
    assert recipe.learning_rates(0) == pytest.approx(
        {
            "head": 0.008, "value": 0.6, "scalar": 0.04, "input": 0.04, "gate": 0.008, "smear": 0.00008,
            "skip": 0.0004, "matrix": 0.046, "down": 0.092,
        }
    )  # fmt: skip
    # 0.005 wd lr_p, and 1.2 lr without the factor of the matrix
    assert recipe.cautious_decay("head", 0) == pytest.approx(0.005 * 150 * 0.008)
    assert recipe.cautious_decay("value", 579) == pytest.approx(0.005 * 5 * 0.6 * 1.52)
    assert recipe.cautious_decay("gate", 0) == pytest.approx(0.005 * 0.008)
    assert recipe.cautious_decay("matrix", 0) == recipe.cautious_decay("down", 0) == pytest.approx(1.2 * 0.023)
    assert [recipe.cautious_decay(group, 0) for group in ("scalar", "input", "smear", "skip")] == [0] * 4
    momentum = [recipe.momentum_at(step) for step in (0, 150, 300, 1725, 1726, 1750, 1774)]
    assert momentum == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.948, 0.9, 0.852], rel=1e-12)
    weights = [recipe.target_weights(step) for step in (0, 289, 578, 579, 868, 1156, 1157, 1774)]
    third = 1735 / 3
    assert weights == [
        pytest.approx(expected)
        for expected in (
            (1, 0.5, 0.25), (1, 0.5, 0.25 * (1 - 289 / third)), (1, 0.5, 0.25 * (1 - 578 / third)),
            (1, 0.5 * (2 - 579 / third), 0), (1, 0.5 * (2 - 868 / third), 0), (1, 0.5 * (2 - 1156 / third), 0),
            (1, 0, 0), (1, 0, 0),
        )
    ]  # fmt: skip
    assert recipe.tied_until("head") == 1157 and recipe.tied_until("value") == -1


@pytest.mark.parametrize("scale", ["tiny", "pocket", "small"])
def test_record_58_has_the_parts_of_the_public_program_in_proportion(scale):
    recipe = recipe_for("record-58", scale)
    weights, layers = recipe.parameters(), recipe.layers
    attends = {int(name.split(".")[1]) for name in weights if name.endswith("attn.qkv.weight")}
    assert attends == set(range(layers)) - {recipe.no_attention_layer}
    assert {*recipe.paired_layers, *recipe.long_window_layers, *recipe.value_embedding_of} <= attends
    if scale == "small":
        assert (recipe.no_attention_layer, recipe.skip_layer, recipe.backout_layer) == (6, 3, 7)
        assert recipe.long_window_layers == {3, 10} and recipe.paired_layers == (0, 2, 5, 9)
        assert recipe.value_embedding_of == {0: 1, 1: 2, 8: 0, 9: 1, 10: 2}
        assert recipe.offset_channels == ((32, 64), (96, 128))
        assert dataclasses.replace(recipe, offset_standing=True).offset_channels == ((64, 128),)
    assert weights["residual.weight"].value == (1.1,) * layers
    narrow = dataclasses.replace(recipe, precision="bfloat16")
    stored = {name for name in weights if narrow.storage_dtype(name) == "bfloat16"}
    assert stored == {n for n in weights if "embed" in n or ".gate." in n or "value_gate" in n or n == "head.weight"}
    assert {segment.tokens // segment.seq_len for segment in recipe.plan} == {8}
    assert recipe.plan[0].seq_len * 3 == recipe.plan[1].seq_len * 3 // 2 == recipe.plan[2].seq_len
    trained = sum(segment.steps * segment.tokens for segment in recipe.plan)
    if scale != "small":
        least = {"tiny": 1.0, "pocket": 0.996}[scale]
        budget = {"tiny": 61_440, "pocket": 1_048_576}[scale]
        assert least * budget <= trained <= budget
        assert set(recipe.eval_steps()) <= set(recipe.checkpoint_steps()) or scale == "tiny"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"paired_layers": (0, 1)}, r"--paired-layers must be from 0 to 4, none of \[1, 2, 4\]"),
        ({"context": 190, "batch_tokens": 8 * 190}, "--context must be a multiple of 3"),
        ({"windows": (3, 7)}, "--windows must be three"),
        ({"rate_steps": (1.0, 2.0)}, "--rate-steps must be three numbers"),
        ({"tokens_ahead": 4}, "--tokens-ahead must be 1, 2 or 3"),
        ({"untie": 1.0}, r"--untie must be in \[0, 1\) \(the head is untied before the end\)"),
        ({"steps": 3}, "--steps must be at least 3 more"),
        ({"layers": 4}, "--layers must be at least 5"),
        ({"equalizer": 1.0}, r"--equalizer must be in \[0, 1\)"),
        ({"windows": (3, 7, 100)}, "--windows must be"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(recipe_for("record-58", "tiny"), **fields)
