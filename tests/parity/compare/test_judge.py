"""The rules of judging, on synthetic observations."""

import dataclasses
import math

import numpy as np
import pytest

from parity.compare import bounds
from parity.compare.judge import Pairing, judge
from parity.compare.observation import Observation

PAIRING = Pairing("a", "b")
BOUND = bounds.rounding(100)


def shown(value, location="x", line="line", **more):
    return Observation(line, location, np.asarray(value, float), BOUND, **more)


def test_the_first_place_in_order_is_the_finding_and_not_the_worst():
    a = [shown([1.0], "first"), shown([1.0 + 1e-9], "second"), shown([5.0], "third")]
    b = [shown([1.0], "first"), shown([1.0], "second"), shown([1.0], "third")]
    result = judge("forward", a, b, PAIRING, "float64")
    assert result.status == "fails" and result.finding.location == "second" and result.lines[0].worst == "third"


def test_what_one_side_lacks_is_a_finding_between_backends_and_left_out_for_others():
    a, b = [shown([1.0], "x"), shown([1.0], "y")], [shown([1.0], "x")]
    assert judge("forward", a, b, PAIRING, "float64").finding.location == "y"
    other = judge("forward", a, b, dataclasses.replace(PAIRING, strict=False), "float64")
    assert other.status == "holds" and other.lines[0].count == 1


def test_bytes_are_compared_to_the_last_bit():
    b = Observation("line", "x", np.array([0.0, 1.0]))
    for other in ([-0.0, 1.0], [0.0, np.nextafter(1.0, 2)]):
        assert judge("init", [Observation("line", "x", np.array(other))], [b], PAIRING, "float64").status == "fails"
    assert judge("init", [Observation("line", "x", np.float32([0, 1]))], [b], PAIRING, "float64").status == "fails"


def test_each_side_must_be_what_is_expected_of_it_by_itself():
    wrong = Observation("groups", "w", "decay", expected="no_decay")
    result = judge("update", [wrong], [wrong], PAIRING, "float64")
    assert result.status == "fails" and result.finding.message == "a has decay, expected no_decay"


def test_of_a_series_the_first_step_beyond_the_bound_is_named():
    b = shown(np.ones(5), axes=("step",))
    a = shown([1, 1, 1 + 1e-6, 1 + 1e-3, 1], axes=("step",))
    assert judge("trajectory", [a], [b], PAIRING, "float64").finding.where == "step 2"


def test_in_float32_an_error_may_be_four_times_the_recorded_one_and_no_more():
    truth = [shown(np.ones(1000))]
    noise = np.random.default_rng(0).standard_normal(1000)
    sides = [[shown(1 + size * noise)] for size in (1e-7, 3e-7, 5e-7)]
    rms = float(np.sqrt(np.mean(noise**2)))
    recorded = {"forward/line": {"largest": 1e-7 * rms}}
    assert judge("forward", sides[1], sides[0], PAIRING, "float32", truth, recorded).status == "holds"
    assert judge("forward", sides[2], sides[1], PAIRING, "float32", truth, recorded).finding.message.startswith("a ")


def test_in_float32_one_sides_error_may_not_be_more_than_four_times_the_others():
    truth, noise = [shown(np.ones(1000))], np.random.default_rng(0).standard_normal(1000)
    result = judge(
        "forward",
        [shown(1 + 3e-7 * noise)],
        [shown(1 + 0.5e-7 * noise)],
        PAIRING,
        "float32",
        truth,
        {"forward/line": {"largest": 1e-7}},
    )
    assert result.finding.basis == "errors of both sides alike" and result.finding.measured == pytest.approx(
        6, rel=1e-3
    )


def test_what_is_usual_between_two_backends_is_no_finding_in_float32():
    truth, noise = [shown(np.ones(1000))], np.random.default_rng(0).standard_normal(1000)
    a, b = [shown(1 + 3e-7 * noise)], [shown(1 + 0.5e-7 * noise)]
    recorded = {"forward/line": {"largest": 1e-7, "a": 2e-7, "b": 1e-7}}
    assert judge("forward", a, b, PAIRING, "float32", truth, recorded).status == "holds"
    assert judge("forward", b, a, PAIRING, "float32", truth, recorded).finding.measured == pytest.approx(12, rel=1e-3)


def test_in_float32_without_a_recorded_error_nothing_holds():
    truth = [shown(np.ones(3))]
    assert (
        judge("forward", [shown(np.ones(3) + 1e-7)], truth, PAIRING, "float32", truth, {}).finding.basis
        == "no error was recorded"
    )


def test_nan_never_holds():
    assert judge("evaluation", [shown([math.nan])], [shown([1.0])], PAIRING, "float64").status == "fails"
    assert judge("evaluation", [shown([1.0])], [shown([math.nan])], PAIRING, "float64").status == "fails"


def test_sides_without_a_place_in_common_are_not_judged():
    result = judge("forward", [shown([1.0], "x")], [shown([1.0], "y")], Pairing("a", "b", strict=False), "float64")
    assert (result.status, result.reason) == ("not judged", "a and b have no place in common")


def test_what_only_one_side_shows_is_counted():
    result = judge(
        "forward",
        [shown([1.0], "x")],
        [shown([1.0], "x"), shown([1.0], "y")],
        Pairing("a", "b", strict=False),
        "float64",
    )
    assert result.status == "holds" and result.reason == "1 places in common; left out 1 places of b"
