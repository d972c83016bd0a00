"""Bounds of float64, derived from counts of roundings."""

import pytest

from parity.compare import bounds
from parity.recipes import recipe_for


def test_the_bound_is_twice_lambda_root_n_units():
    assert bounds.rounding(400).allowed == 2 * 8 * 20 * 2.0**-53
    assert bounds.rounding(400, 3, "why").basis == "400 roundings x 3 (why)"


def test_a_deeper_value_is_allowed_more():
    recipe = recipe_for("muon", "tiny")
    allowed = [bounds.forward(recipe, blocks).allowed for blocks in range(4)]
    assert (
        allowed == sorted(allowed)
        and allowed[0] < bounds.losses(recipe).allowed < bounds.gradients(recipe, 1024).allowed
    )


def test_a_muon_weight_is_allowed_what_the_orthogonalization_is_by_as_much_as_it_moves_it():
    recipe = recipe_for("muon", "tiny")
    allowed = [
        bounds.updated(recipe, 1, "matrix", shape, largest).allowed
        for shape, largest in (((64, 64), 0.5), ((64, 64), 1.0), ((256, 64), 1.0))
    ]
    orthogonal = bounds.orthogonalization(recipe, 12).allowed
    assert allowed == pytest.approx([orthogonal * 0.025 / 0.5, orthogonal * 0.025, orthogonal * 0.025 * 2], rel=1e-3)
    assert bounds.updated(recipe, 1, "head", (512, 64), 1.0) == bounds.update(recipe)
