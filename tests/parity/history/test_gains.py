"""What each record gained, and how sure that is."""

import math
from statistics import fmean, stdev

import pytest
from archive import own, record_of, row

from parity.history.gains import _Loss, _loss_test, gains, loss_at, summary
from parity.history.records import baseline_runs, load, mean_curve
from parity.statistics import holm, welch


def test_seconds_percent_and_share_by_hand():
    _, _, gain = row("12")
    assert gain.seconds == pytest.approx(432 - 301.8) and gain.percent == pytest.approx(100 * (432 - 301.8) / 432)
    assert gain.share == pytest.approx(math.log(432 / 301.8) / math.log(2700 / 39.9))


def test_shares_add_up_to_the_whole_gain_and_what_the_re_timings_took_back():
    shares = [gain.share for gain in gains() if gain.share is not None]
    assert len(shares) == 91
    assert sum(shares) == pytest.approx(1 + math.log(180.8 / 176) / math.log(2700 / 39.9))


def test_a_re_timing_gains_nothing_and_the_next_record_is_set_against_the_last():
    for label in ("21 (2025-02-01)", "21 (2025-05-24)"):
        gain = row(label)[2]
        assert gain.seconds is gain.nats is gain.p_time is None and "timed again" in gain.sure
    assert row("22")[2].seconds == pytest.approx(180.8 - 179.4)
    assert (
        "its three times span 2.7%" in row("21 (2025-02-01)")[2].sure and pytest.approx(1.027, abs=5e-4) == 180.8 / 176
    )


def test_the_loss_test_from_figures_is_welchs_from_the_runs():
    new, old = [run.loss for run in own("57")], [run.loss for run in own("56")]
    by_figures = _loss_test(*(_Loss(len(x), fmean(x), stdev(x)) for x in (new, old)))
    assert by_figures == (pytest.approx(welch(new, old).p), pytest.approx(1 - welch(new, old).p))


def test_where_the_reported_figures_mix_the_records_own_runs_are_tested():
    assert row("85")[2].loss_runs[0] == 4 and row("85")[0].runs == 50
    assert row("15")[2].loss_runs == (75, 38)


def test_with_one_run_of_each_nothing_can_be_tested():
    gain = row("12")[2]
    assert gain.p_lower is gain.p_time is None and "loss: one run against one run, so it cannot be tested" in gain.sure


def test_the_older_program_beside_the_new_one_is_preferred_to_the_logs_of_another_day():
    gain = row("83")[2]
    beside = baseline_runs(record_of("83"), load().runs)
    assert gain.beside and gain.time_runs == (11, 4)
    assert row("84")[2].time_runs == (5, 6) and len(own("83")) == 11  # of which the last are on the same GPUs, too
    assert gain.p_time == pytest.approx(welch([r.seconds for r in own("83")], [r.seconds for r in beside]).p)
    assert not row("58")[2].beside and "on another day: drift is 5 to 8%" in row("58")[2].sure


def test_a_gain_below_the_drift_of_machines_is_called_drift():
    assert "0.4% cannot be told from machine drift (5 to 8%)" in row("23")[2].sure
    assert "32% is more than machines drift" in row("5")[2].sure


def test_each_row_says_in_one_line_how_sure_it_is():
    for gain in gains():
        assert gain.sure and "\n" not in gain.sure and len(gain.short) <= 9
    assert "NVIDIA H200" in row("82")[2].sure and "9.9% more than was claimed" in row("80")[2].sure
    assert "3.283, is not below 3.28" in row("21 (2025-05-24)")[2].sure


def test_the_loss_at_equal_time_is_interpolated_by_hand():
    curve = [(10, 20.0, 4.0), (20, 40.0, 3.5)]
    assert loss_at(curve, 25.0) == pytest.approx(3.875)
    assert loss_at(curve, 41.0) is None and loss_at([(10, None, 4.0), (20, None, 3.0)], 5.0) is None


def test_the_loss_at_equal_time_is_that_of_the_older_curve_less_the_new_end():
    older, new = mean_curve(own("14")), own("15")
    expected = loss_at(older, fmean(run.seconds for run in new)) - fmean(run.loss for run in new)
    assert row("15")[2].nats_at_equal_time == pytest.approx(expected) and expected > 0


def test_logs_of_machines_that_drifted_apart_have_no_equal_time():
    assert abs(row("80")[2].drift_percent - row("81")[2].drift_percent) > 2
    assert row("81")[2].nats_at_equal_time is None and row("82")[2].nats_at_equal_time is None  # 82: another GPU


def test_how_many_are_significant_is_counted_under_holms_correction():
    rows, counts = gains(), summary()
    lower = [g.p_lower for g in rows if g.p_lower is not None]
    timed = [g.p_time for g in rows if g.p_time is not None]
    assert (
        (counts["records"], counts["loss_tests"], counts["time_tests"]) == (92, len(lower), len(timed)) == (92, 58, 49)
    )
    assert (
        counts["loss_lower"] == sum(holm(lower)[1]) == 0
        and counts["loss_lower_single"] == sum(p < 0.01 for p in lower) == 1
    )
    assert counts["time_faster"] == sum(holm(timed)[1]) == counts["time_beside"][1] + counts["time_logs"][1] == 37
    assert (counts["target_tests"], counts["target_single"], counts["target_holm"]) == (68, 58, 10)


def test_logs_of_a_proposal_are_not_set_against_those_of_the_program_that_was_merged():
    merged, proposed = row("89")[2], row("90")[2]
    assert merged.p_time is merged.p_lower is None and "on an older program and are not compared" in merged.sure
    assert len(own("89")) == row("89")[0].runs == 5 and {run.steps for run in own("89")} == {1285}
    assert (
        proposed.beside and "its logs are of the proposal" in proposed.sure and {r.steps for r in own("90")} == {1315}
    )
    assert row("92")[0].title == "ANVIL2" and row("92")[0].seconds == 39.9
