"""The tests behind claims: against figures worked out by hand, against simulation, and at their limits."""

import math

import numpy as np
import pytest

from parity.errors import InputError
from parity.statistics import (
    equivalent,
    holm,
    holm_levels,
    level,
    p_below,
    paired,
    power,
    ratio,
    runs_needed,
    t_test,
    track_test,
    welch,
    z_rule,
)


def test_the_t_test_by_hand():
    # mean 3.277, sd 0.001, n 4: t = (3.277 - 3.28) / (0.001 / 2) = -6; P(T_3 < -6) = 0.00464
    test = t_test([3.276, 3.278, 3.276, 3.278], 3.28)
    assert test.statistic == pytest.approx(-0.003 / (math.sqrt(4e-6 / 3) / 2))
    assert test.p == pytest.approx(0.0069, abs=2e-4) and test.holds
    assert not t_test([3.279, 3.281, 3.28, 3.2795], 3.28).holds


def test_of_a_true_mean_at_the_target_one_claim_in_a_hundred_passes():
    rng = np.random.default_rng(1)
    trials = 4000
    passed = sum(t_test(rng.normal(3.28, 0.0013, 5), 3.28).holds for _ in range(trials))
    sd = math.sqrt(trials * 0.01 * 0.99)  # binomial: 4 standard deviations fail once in 16,000
    assert abs(passed - 0.01 * trials) < 4 * sd


def test_student_and_welch_are_scipys():
    from scipy import stats

    rng = np.random.default_rng(5)
    for n, m, spread in ((2, 2, 1), (3, 5, 4), (10, 4, 0.1)):
        x, y = rng.normal(3, 1, n), rng.normal(3.2, spread, m)
        expected, test = stats.ttest_ind(x, y, equal_var=False, alternative="less"), welch(x, y)
        interval = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (test.statistic, test.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
        assert test.interval == pytest.approx((interval.low, interval.high), rel=1e-9)
        expected, test = stats.ttest_1samp(x, 3.1, alternative="less"), t_test(x, 3.1)
        interval = stats.ttest_1samp(x, 3.1).confidence_interval(0.95)
        assert (test.statistic, test.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
        assert test.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_equivalence_needs_the_interval_within_the_margin():
    x, y = [3.280, 3.281, 3.279, 3.280], [3.2801, 3.2811, 3.2789, 3.2803]
    assert equivalent(x, y, 0.004).holds and not equivalent(x, y, 0.0005).holds
    test = equivalent(x, y, 0.002)
    assert test.holds == (max(map(abs, test.interval)) < 0.002)
    assert not equivalent([3.27, 3.271, 3.269], y, 0.004).holds  # surely different


def test_of_means_a_margin_apart_one_in_twenty_is_called_equivalent():
    rng, trials = np.random.default_rng(6), 2000
    passed = sum(
        equivalent(rng.normal(3.284, 0.0013, 5), rng.normal(3.28, 0.0013, 5), 0.004).holds for _ in range(trials)
    )
    assert passed <= trials * 0.05 + 3 * math.sqrt(trials * 0.05 * 0.95)


def test_ratios_are_geometric_and_paired():
    mean, low, high = ratio([2.0, 8.0], [1.0, 2.0])
    assert mean == pytest.approx(math.sqrt(8)) and low < mean < high
    assert ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx((0.5, 0.5, 0.5))


def test_the_z_rule_is_the_tracks_own():
    assert z_rule([3.276], 3.28).holds and not z_rule([3.2761], 3.28).holds
    assert z_rule([3.278] * 4, 3.28).holds and not z_rule([3.2781] * 4, 3.28).holds
    assert z_rule([3.278] * 4, 3.28).p == pytest.approx(0.00104, abs=2e-5)  # 0.004 / 0.0013 = 3.08


def test_holm_on_a_textbook_case():
    adjusted, holds = holm([0.01, 0.04, 0.03, 0.005], 0.05)
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02]) and holds == [True, False, False, True]
    assert holm([0.009], 0.01)[1] == [True] and holm([0.009, 0.5], 0.01)[1] == [False, False]


def test_a_small_p_is_held_against_a_level_that_grows_with_every_rejection():
    assert holm_levels([0.01, 0.04, 0.03, 0.005], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    for p in ([0.01, 0.04, 0.03, 0.005], [0.2, 0.0001, 0.9], [0.001] * 3, []):
        assert [a < b for a, b in zip(p, holm_levels(p, 0.05), strict=True)] == holm(p, 0.05)[1]


def test_a_shifted_mean_is_tested_as_if_the_old_runs_were_shifted():
    new, old = [10.0, 10.2, 9.8], [12.0, 12.4, 11.6]
    assert welch(new, old, shift=-1.5).p == pytest.approx(welch(new, [x - 1.5 for x in old]).p)
    assert welch(new, old, shift=-1.5).mean == welch(new, old).mean


def test_the_p_alone_is_that_of_the_tracks_test():
    losses = [3.276, 3.278, 3.277, 3.278]
    for track in ("small", "optimizer"):
        assert p_below(track, losses, 3.28) == pytest.approx(track_test(track, losses, 3.28).p, rel=1e-12)
    assert p_below("small", [3.27], 3.28) is p_below("small", [3.27, 3.27], 3.28) is None
    assert (z_rule([3.276], 3.28).p < level("optimizer")) and level("small") == 0.01


def test_welch_and_pairs_see_a_difference_and_its_interval():
    test = welch([10.0, 10.2, 9.8], [12.0, 12.4, 11.6])
    assert test.mean == pytest.approx(-2) and test.p < 0.01 and test.interval[0] < -2 < test.interval[1] < 0
    test = paired([9.0, 19.1, 30.9], [10.0, 20.0, 32.0])
    assert test.mean == pytest.approx(-1) and test.holds
    assert not welch([12.0, 12.4, 11.6], [10.0, 10.2, 9.8]).holds


def test_as_many_runs_as_are_needed_pass_as_often_as_was_asked():
    n = runs_needed(0.002, 0.0013)
    assert power(n, 0.002, 0.0013) >= 0.8 > power(n - 1, 0.002, 0.0013)
    rng, trials = np.random.default_rng(2), 2000
    passed = sum(t_test(rng.normal(3.278, 0.0013, n), 3.28).holds for _ in range(trials)) / trials
    assert abs(passed - power(n, 0.002, 0.0013)) < 4 * math.sqrt(0.8 * 0.2 / trials)


@pytest.mark.parametrize(
    "call",
    [
        lambda: t_test([3.2], 3.28),
        lambda: t_test([3.2, 3.2], 3.28),
        lambda: t_test([3.2, math.nan], 3.28),
        lambda: z_rule([], 3.28),
        lambda: paired([1, 2], [1, 2, 3]),
        lambda: holm([1.2]),
        lambda: welch([1, 1], [1, 1]),
        lambda: equivalent([1, 2], [1, 2], 0),
        lambda: ratio([1, 2], [0, 1]),
        lambda: runs_needed(0, 1),
        lambda: power(1, 1, 1),
    ],
)
def test_what_cannot_be_tested_is_refused_in_a_sentence(call):
    with pytest.raises(InputError, match=": "):
        call()
