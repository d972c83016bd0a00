"""Neither backend drifts from the recorded figures."""

import copy

import pytest

from parity.recipes import RECIPES


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_backend_computes_the_recorded_figures_to_1e_12(golden, commands, backend, recipe):
    assert golden.differences(golden.figures(backend, recipe, commands.data), golden.recorded(recipe)) == []


def test_a_figure_that_moved_is_named_with_both_values(golden):
    old = golden.recorded("muon")
    new = copy.deepcopy(old)
    new["loss"]["3"] *= 1 + 1e-11
    del new["weight norm"]["head.bias"]
    lines = golden.differences(new, old)
    assert lines == [f"loss 3: was {old['loss']['3']!r}, is {new['loss']['3']!r}", "weight norm head.bias: gone"]
