"""Which segments are repeated: enough steps, and those that stand out."""

import numpy as np
import pytest

from parity.verify import coverage
from parity.verify.timing import Spent

SEGMENTS = [(i * 6, i * 6 + 6) for i in range(40)]


@pytest.mark.parametrize("count", [1, 4, 16, 40])
def test_an_eighth_of_all_steps_is_drawn(count: int):
    segments = [(i * 16, i * 16 + 16) for i in range(count)]
    for seed in range(20):
        chosen = coverage.drawn(segments, 2, np.random.default_rng(seed))
        assert len(chosen) >= min(2, count) and 16 * len(chosen) >= 16 * count / 8
        assert len(chosen) <= max(2, count / 8 + 1)


def curve(steps: int = 241) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.05, steps)
    return 4.5 + 4 * np.exp(-np.arange(steps) / 40) + noise


@pytest.mark.parametrize("at", [3, 17, 38, 39])
def test_a_jump_of_the_loss_is_among_the_segments_that_stand_out(at: int):
    losses = curve(240)
    losses[SEGMENTS[at][0] + 3 :] -= 0.6
    excess = coverage.beyond_neighbours(coverage.falls(losses, SEGMENTS))
    assert at in coverage.standing_out(SEGMENTS, excess) or at == 39  # the last is always repeated


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_jump_of_the_weights_is_among_the_segments_that_stand_out(at: int):
    random = np.random.default_rng(at)
    weights, movements = {"a": np.zeros((30, 30)), "b": np.zeros(30)}, []
    for i, (first, last) in enumerate(SEGMENTS):
        rate = 0.02 * (1 - i / 41) * (2 if i == at else 1)
        step = {name: w + rate * (last - first) * random.normal(size=w.shape) for name, w in weights.items()}
        movements.append(coverage.movement(weights, step))
        weights = step
    excess = coverage.beyond_neighbours(coverage.speeds(movements, SEGMENTS))
    assert at in coverage.standing_out(SEGMENTS, excess)


def test_losses_that_are_missing_choose_something_all_the_same():
    falls = coverage.falls(np.full(240, np.nan), SEGMENTS)
    assert len(coverage.standing_out(SEGMENTS, coverage.beyond_neighbours(falls))) == 3


def test_on_a_busy_machine_only_the_processors_time_counts():
    assert Spent(2.0, 1.0, 0.1).least_s(2) == 2.0
    assert Spent(2.0, 1.0, 1.5).least_s(2) == 0.5
    assert Spent(2.0, None, None).least_s(2) == 2.0
    total = Spent(1.0, 0.5, 0.0) + Spent(1.0, None, 0.0)
    assert (total.wall_s, total.cpu_s) == (2.0, None)
    assert Spent(1.0, 0.5, 0.0).less(Spent(2.0, 0.1, 0.0)).wall_s == 0.0
