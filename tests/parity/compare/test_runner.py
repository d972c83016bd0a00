"""The order and the repetition of levels, with results that are given."""

import pytest

from parity.compare import runner
from parity.compare.observation import Finding, Result


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [(["fails", "holds"], "holds"), (["fails", "fails", "holds"], "holds"), (["fails"] * 3, "fails")],
)
def test_a_trajectory_in_float32_that_fails_is_judged_with_two_other_seeds(case, clean, monkeypatch, outcomes, status):
    seeds = []

    def judged(level, a, b, *rest):
        status = outcomes[len(seeds) - 1]
        finding = Finding(level, "losses", "of 20 steps", 1.0, 0.1, "", "") if status == "fails" else None
        return Result(level, status, finding=finding)

    def observe(side, level, case, memo):
        if side is clean["jaxrun"]:
            seeds.append(case.seed)
        return []

    monkeypatch.setattr(runner, "judge", judged)
    monkeypatch.setattr(type(clean["jaxrun"]), "observe", observe)
    a, b = clean["jaxrun"], clean["torchref"]
    levels = runner.chosen_levels("trajectory")
    comparison = runner.Comparison(a, b, case("nanogpt", "float32"), levels, diagnose=False, truth=b)
    (result,) = comparison.run()
    assert result.status == status and seeds == [0, 10_000, 20_000][: len(outcomes)]
    assert ("parted from float64 by chance" in result.reason) == (status == "holds")
