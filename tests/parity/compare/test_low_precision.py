"""Tests of errors in bfloat16, on synthetic errors."""

import math

import numpy as np
import pytest

from parity import statistics
from parity.compare import low_precision
from parity.compare.observation import Result


def test_errors_within_the_margin_are_no_finding_and_larger_ones_are():
    rng = np.random.default_rng(1)
    recorded = rng.normal(0.0, 0.05, 16)
    assert low_precision.beyond_margin(rng.normal(math.log(1.1), 0.05, 8), recorded)[1] > 0.01
    assert low_precision.beyond_margin(rng.normal(math.log(1.6), 0.05, 8), recorded)[1] < 1e-4


def test_equal_errors_without_spread_are_no_finding():
    assert low_precision.beyond_margin([1.0] * 8, [1.0] * 16)[1] == 1.0
    assert low_precision.beyond_margin([3.0] * 8, [1.0] * 16)[1] == 0.0


@pytest.mark.slow
def test_false_positives_of_a_whole_report_stay_below_one_in_a_hundred_where_the_rate_is_that():
    """300 reports of 60 tests on errors from one distribution; at 1 in 1,000 too few could be counted."""
    rng, false_positives = np.random.default_rng(2), 0
    for _ in range(300):
        errors = [(rng.normal(0.223, 0.3, 8), rng.normal(0, 0.3, 16)) for _ in range(60)]
        p_values = [low_precision.beyond_margin(measured, recorded)[1] for measured, recorded in errors]
        levels = statistics.holm_levels(p_values, 1e-2)
        false_positives += any(p < level for p, level in zip(p_values, levels, strict=True))
    assert false_positives <= 12  # binomial(300, 0.01): P(more than 12) < 1e-4


def test_a_line_shows_its_smallest_p_and_holms_level():
    result = Result("forward", "holds")
    p_values = {"typical error": 1e-6, "largest error": 0.5}
    tests = [low_precision.RatioTest("forward", "attn", name, 2.0, p) for name, p in p_values.items()]
    low_precision.enter_tests([result], tests)
    (line,) = result.lines
    assert (line.count, line.worst, line.measured, line.allowed) == (2, "typical error", 1e-6, 5e-4)


def test_tests_are_entered_at_their_level_with_the_first_rejected_as_the_finding():
    result = Result("forward", "holds")
    low_precision.enter_tests(
        [result], [low_precision.RatioTest("forward", "attn", "typical error of a / recorded", 3.0, 1e-9)]
    )
    assert result.status == "fails" and result.finding.line == "attn" and not result.lines[0].holds


def test_a_line_without_recorded_errors_fails():
    per_seed = {"forward/x": [low_precision.LogErrors(0.0, 0.0)] * 2}
    (test,) = low_precision.ratio_tests(per_seed, per_seed, {}, ("a", "b"), (None, None))
    assert test.p == 0.0 and test.comparison == "no error was recorded"
