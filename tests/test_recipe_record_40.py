"""The numbers of `record-40`, as the public program and its logs have them: windows, scales, rates, momentum, parts."""

import dataclasses
import math

import pytest

from parity.data.stream import Segment
from parity.recipes import recipe_for
from parity.recipes.schedules import yarn


def test_the_stages_of_record_40_are_the_public_ones():
    recipe = recipe_for("record-40", "small")
    stages = recipe.attention_stages
    assert [(stage.long // 128, stage.short // 128) for stage in stages] == [(3, 1), (7, 3), (11, 5), (20, 6)]
    assert [stage.scale for stage in stages] == pytest.approx([0.1, 0.116946, 0.127518, 0.131778], abs=5e-7)
    first, last = stages[0].frequencies, stages[3].frequencies
    assert len(first) == 64 and first[:32] == tuple(1024 ** (-i / 31) for i in range(32)) and not any(first[32:])
    assert last[0] == 1.0 and last[31] == pytest.approx(2.2536e-4, rel=1e-4) and not any(last[32:])
    assert recipe.window_stages() == [0, 764, 1528, 2330]
    assert [recipe.attention_window(step) for step in (0, 763, 764, 1528, 2329, 2330)] == [3, 3, 7, 11, 11, 20]


def test_a_frequency_is_kept_where_it_turns_often_and_scaled_where_it_turns_once():
    turns_32, turns_once = (2 * math.pi * turns / 384 for turns in (32, 1))
    assert yarn(turns_32, 384, 896) == pytest.approx(turns_32, rel=1e-15)
    assert yarn(1.0, 384, 896) == 1.0 and yarn(0.0, 384, 896) == 0.0
    assert yarn(turns_once, 384, 896) == pytest.approx(turns_once * 3 / 7, rel=1e-15)
    between = 2 * math.pi * 16.5 / 384  # half way
    assert yarn(between, 384, 896) == pytest.approx(between * (3 / 7 + 0.5 * 4 / 7), rel=1e-15)


def test_the_schedules_of_record_40_are_the_public_ones():
    recipe = recipe_for("record-40", "small")
    momentum = [recipe.momentum_at(step) for step in (0, 150, 299, 300, 2280, 2281, 2305, 2329)]
    kept = 0.85 + 0.1 * 299 / 300
    assert momentum == pytest.approx([0.85, 0.9, kept, kept, kept, 0.948, 0.9, 0.852], rel=1e-15)
    rates = [recipe.learning_rates(step)["head"] / 0.008 for step in (0, 1259, 1260, 2290, 2329)]
    last = 0.1 + 0.9 * 0.0001 / 0.45
    assert rates == pytest.approx([1, 1, (1 - 1260 / 2290) / 0.45 * 0.9 + 0.1, last, last], rel=1e-12)
    assert recipe.learning_rates(0) == {"embed": 0.6, "head": 0.008, "scalar": 0.04, "matrix": 0.06}
    assert recipe.plan == (Segment(2330, 8 * 32_768, 32_768, 2048),)


@pytest.mark.parametrize("scale", ["tiny", "pocket", "small"])
def test_record_40_has_the_parts_of_the_public_program_in_proportion(scale):
    recipe = recipe_for("record-40", scale)
    weights, layers = recipe.parameters(), recipe.layers
    assert not [name for name in weights if name.startswith("blocks.0.")]
    attends = {int(name.split(".")[1]) for name in weights if name.endswith("attn.qkv.weight")}
    assert attends == set(range(1, layers)) - {7 * layers // 12}
    assert recipe.value_embedding_of.keys() <= attends
    if scale == "small":
        assert recipe.value_embedding_of == {1: 1, 2: 2, 9: 0, 10: 1, 11: 2} and recipe.backout_layer == 8
        assert recipe.long_window_layers == {4, 11} and weights["skips.weight"].value == (-1.5,) * 5
        assert weights["blocks.1.attn.gate.weight"].shape == (6, 12)
    narrow = dataclasses.replace(recipe, precision="bfloat16")
    stored = {name for name in weights if narrow.storage_dtype(name) == "bfloat16"}
    assert stored == {name for name in weights if "embed" in name or ".gate." in name or name == "head.weight"}
    assert recipe.batch_tokens // recipe.context == 8
