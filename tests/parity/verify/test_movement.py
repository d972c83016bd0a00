"""Weights that a broken optimizer left are found; honest movement of any kind is not."""

import numpy as np
import pytest

from parity.verify.rules.movement import stuck

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.normal(size=(24, 16)).astype(np.float32)
STEP = 0.01 * RANDOM.normal(size=(24, 16)).astype(np.float32)
LEFT = {
    "not at all": FIRST,
    "one number": FIRST + 0.01,
    "one row": FIRST + STEP[:1],
    "one column": FIRST + STEP[:, :1],
    "one row, decayed": 0.9 * FIRST + STEP[:1],
    "decayed alone": 0.9 * FIRST,
}
MOVED = {
    "each by itself": FIRST + STEP,
    "by signs": FIRST + 0.01 * np.sign(STEP),
    "a large common part": FIRST + STEP[:1] + 0.05 * STEP,
    "one row of many": np.concatenate([FIRST[:1] + STEP[:1], FIRST[1:]]),
    "one number of many": FIRST + 1e-4 * np.eye(24, 16, dtype=np.float32),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_matrix_that_did_not_move_by_itself_is_found(name):
    assert stuck(FIRST, LEFT[name].astype(np.float32))


@pytest.mark.parametrize("name", MOVED)
def test_a_matrix_that_moved_is_left_alone(name):
    assert not stuck(FIRST, MOVED[name].astype(np.float32))


def test_numbers_and_vectors_may_move_alike_and_stacks_may_not():
    ones = np.ones(1, np.float32)
    assert not stuck(ones, ones) and not stuck(np.float32(1), np.float32(1))
    assert not stuck(FIRST[0], FIRST[0] + np.float32(0.01)) and stuck(FIRST[0], FIRST[0])
    zeros = np.zeros((3, 24, 16), np.float32)
    assert stuck(zeros, zeros + STEP) and not stuck(zeros, RANDOM.normal(size=zeros.shape).astype(np.float32))


def test_broadcast_steps_are_found_behind_rounding():
    weight = FIRST.copy()
    for i in range(300):
        weight = (weight * np.float32(0.9995) + np.float32(0.002) * np.sign(STEP[i % 24])).astype(np.float32)
    assert stuck(FIRST, weight)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize("recipe", ["muon", pytest.param("nanogpt", marks=pytest.mark.slow)])
def test_runs_of_the_recipes_hold(commands, finished, backend, recipe):
    from parity.verify.rules import RULES
    from parity.verify.run import Settings, verify_run

    others = tuple(name for name in RULES if name != "recompute.moved")
    verdict = verify_run(finished(backend, recipe).path, Settings("recompute", commands.data, without=others))
    judgement = verdict.of("recompute.moved")
    assert judgement.status == "holds" and "weights" in judgement.reason, judgement
