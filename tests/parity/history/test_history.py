"""The public history: loaded strictly, reproduced as far as its runs allow, its gains with how sure they are, and its
bands."""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats

from parity.errors import InputError
from parity.history import band as bands
from parity.history import gains as gaining
from parity.history import records as histories
from parity.history import reproduction as reproducing
from parity.history.records import History, Point, Record, Run, load, record_of
from parity.history.reported import brought_up_to_date, documented, reported, table, to_json
from parity.recipes import recipe_for
from parity.statistics import holm, welch

DOCUMENT = Path(__file__).parents[3] / "docs" / "history.md"
BASELINE = "20260610_tuned_baseline_3250"


def run_of(
    losses,
    name="run",
    folder="2030-01-01_Thing",
    variant="",
    seconds=100.0,
    baseline=False,
    gpu="GPU",
    every=10,
    total=None,
):
    """A run that was evaluated after every `every` steps."""
    last = total or every * len(losses)
    points = tuple(
        Point(every * (i + 1), last, loss, 1000 * seconds * (i + 1) / len(losses)) for i, loss in enumerate(losses)
    )
    return Run(name, 0, histories.LADDER_TRACK, folder, variant, baseline, gpu, "2.9", points)


def record_with(losses, **changes):
    """A record whose given figures are of these losses, rounded as the given ones are."""
    given = Record(
        1,
        "1",
        "2030-01-01",
        "2030-01-01_Thing",
        "Thing",
        100.0,
        len(losses),
        (10,),
        round(fmean(losses), 5),
        min(losses),
        max(losses),
        round(stdev(losses), 5),
        None,
        100.0,
        100.0,
    )
    return replace(given, **changes)


def row(label):
    history = load()
    at = [record.label for record in history.records].index(label)
    return history.records[at], reproducing.reproductions(history)[at], gaining.gains(history)[at]


def own(label):
    return histories.own_runs(record_of(label, load().records), load().runs)


# what is loaded


def test_the_ladder_has_89_records_in_91_rows():
    records = load().records
    assert len(records) == 91 and {r.n for r in records} == set(range(1, 90))
    assert [r.label for r in records if r.n == 21] == ["21 (2025-01-26)", "21 (2025-02-01)", "21 (2025-05-24)"]
    assert [r.retiming for r in records if r.n == 21] == [False, True, True]


def test_the_data_names_its_source():
    assert "github.com/KellerJordan/modded-nanogpt as of 2026-08-01" in load().source


def test_the_first_load_takes_less_than_a_second_of_the_processor_and_the_next_none():
    began = time.process_time()
    first = load.__wrapped__()
    assert time.process_time() - began < 1
    assert len(first.runs) == len(load().runs) and load() is load()


def test_a_log_of_several_trials_is_several_runs():
    runs = [run for run in load().runs if run.path.endswith("51ece938-03c5-4343-8dcc-3f3336b07008.txt")]
    assert [run.trial for run in runs] == list(range(20))
    assert all([p.step for p in run.points] == [*range(0, 3376, 125)] for run in runs)


def test_what_repeats_the_end_of_the_trial_before_is_no_trial():
    # 7 trials, after each of which the evaluations of steps 3000, 3020 and 3040 are printed again
    runs = [run for run in load().runs if run.path.endswith("batch_combined_stdout.txt")]
    assert len(runs) == 7 and all(run.points[0].step == 125 and run.steps == 3040 for run in runs)


@pytest.mark.parametrize(
    ("folder", "title"),
    [
        ("2024-11-19_FlexAttention", "Flex Attention"),
        ("2024-06-06_AdamW", "AdamW"),
        ("2025-12-19_RetieLMHead", "Retie LM Head"),
        ("2024-12-08_UNetValueEmbedsTweaks", "UNet Value Embeds Tweaks"),
        ("2026-01-31-BigramHashH2D", "Bigram Hash H2D"),
        ("20260610_tuned_baseline_3250", "Tuned Baseline 3250"),
    ],
)
def test_a_folder_becomes_a_title(folder, title):
    assert histories.title_of(folder) == title


def test_an_unknown_record_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 12"):
        record_of("112", load().records)


def spoiled(folder, name, change):
    """The data in a new folder, one file of it changed."""
    for file in ("track1.json", "runs.json"):
        shutil.copy(histories.DATA / file, folder)
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "track1.json",
            lambda v: v["records"][3].pop("claimed_seconds"),
            "records.3.: expected the field claimed_seconds",
        ),
        ("track1.json", lambda v: v["records"][3].update(seconds=1), "unknown field 'seconds'"),
        ("track1.json", lambda v: v["records"][3].update(claimed_seconds=-1), "claimed_seconds"),
        ("track1.json", lambda v: v["records"][3].update(date="13/41/24"), "month/day/year, found 13/41/24"),
        ("runs.json", lambda v: v["runs"][0]["points"].append([1, 2, "3"]), "points"),
        ("runs.json", lambda v: v["runs"][0]["points"][0].__setitem__(2, math.nan), "no finite number"),
        ("runs.json", lambda v: v["runs"][0].update(points=[]), "points"),
    ],
)
def test_data_that_is_not_as_its_schema_says_is_refused(tmp_path, name, change, said):
    with pytest.raises(InputError, match=said):
        load.__wrapped__(spoiled(tmp_path, name, change))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="track1.json: expected a file that can be read"):
        load.__wrapped__(tmp_path)


# which runs are whose


def test_baselines_are_not_a_records_own_runs():
    assert {run.path.rsplit("/")[-1][:8] for run in own("80")} == {"split_qk"}


def test_of_several_versions_the_fastest_is_the_records_own():
    assert {run.variant for run in own("81")} == {"this_pr_v3"} and {run.steps for run in own("63")} == {1575}


def test_runs_on_fewer_gpus_are_not_the_records_own():
    assert {run.variant for run in own("88")} == {"prefix-1375-8x"} and all(run.seconds < 110 for run in own("59"))


def test_a_record_in_two_folders_has_the_runs_of_both():
    assert len(own("30")) == 10 and len({run.folder for run in own("30")}) == 2


def test_the_older_program_beside_a_record_has_its_own_number_of_steps():
    history = load()
    beside = histories.baseline_runs(record_of("82", history.records), history.runs)
    assert {run.variant for run in beside} == {"baseline-s1440"}  # not the control cut to the record's steps


def test_a_copy_of_a_run_counts_once():
    run = run_of([4.0, 3.3])
    final_only = replace(run, path="final", points=run.points[-1:])
    assert len(histories.distinct([final_only, run, replace(run, path="copy"), run_of([4.0, 3.31], "other")])) == 2


def test_a_run_that_ended_early_is_no_run_of_the_record():
    whole, early = run_of([4.0, 3.3]), run_of([4.0, 3.4], "early", total=30)
    record = record_with([3.3, 3.31])
    assert histories.runs_of(record, [whole, early]) == [whole]


def test_runs_are_only_set_side_by_side_on_the_same_hardware():
    some = [run_of([3.3], seconds=80)]
    assert histories.same_hardware(some, [run_of([3.3], seconds=90)])
    assert not histories.same_hardware(some, [run_of([3.3], seconds=600)])  # as many GPUs, or not
    assert not histories.same_hardware(some, [run_of([3.3], gpu="other")])
    assert not histories.same_hardware([run_of([3.3], gpu=None)], [run_of([3.3], gpu=None)])


def test_the_mean_curve_is_over_the_evaluations_that_all_share():
    runs = [run_of([4.0, 3.4], seconds=100), run_of([3.5], every=20, seconds=102)]
    assert histories.mean_curve(runs) == [(20, 101.0, pytest.approx(3.45))]


# whether the given figures come out again


def test_the_figures_of_a_set_by_hand():
    found = reproducing.figures([run_of([3.276], seconds=99), run_of([3.28]), run_of([3.278])])
    assert (found.runs, found.loss_min, found.loss_max, found.time_min, found.steps) == (3, 3.276, 3.28, 99, (10,))
    assert found.loss_mean == pytest.approx(3.278) and found.loss_std == pytest.approx(0.002)
    # t = -0.002 / (0.002 / sqrt 3) = -sqrt 3 with 2 degrees of freedom: P = 1/2 - sqrt 3 / (2 sqrt(2 + 3)) = 0.1127
    assert found.p == pytest.approx(0.5 - math.sqrt(3) / (2 * math.sqrt(5)))


def test_a_figure_agrees_within_half_a_unit_of_its_last_digit():
    assert reproducing.agree("loss_mean", 3.27761, 3.277606) and not reproducing.agree("loss_mean", 3.27761, 3.277604)
    assert reproducing.agree("time_mean", 264.63, 264.6349) and not reproducing.agree("time_mean", 264.63, 264.636)
    assert reproducing.agree("p", 0.000426, 0.00042649) and not reproducing.agree("p", 0.000426, 0.00042651)
    assert not reproducing.agree("runs", 7, 4) and not reproducing.agree("loss_std", 0.001, None)


def test_every_row_is_accounted_for():
    found = [result.status for result in reproducing.reproductions()]
    assert {status: found.count(status) for status in set(found)} == {
        "agrees": 18,
        "partly": 65,
        "no runs": 3,
        "no logs": 5,
    }


def test_a_record_whose_runs_are_all_kept_comes_out_in_every_field():
    for label in ("57", "30"):
        record, result, _ = row(label)
        assert result.status == "agrees" and result.missing == 0
        assert all(
            reproducing.agree(field, getattr(record, field), getattr(result.found, field))
            for field in reproducing.FIELDS
        )


def test_every_disagreement_is_listed_with_what_was_given_and_found_and_why():
    rows = reproducing.disagreements()
    assert {r.record for r in rows} == {
        r.record for r in reproducing.reproductions() if r.status in ("partly", "no runs")
    }
    assert all(r.given != r.found and r.explanation and "unexplained" not in r.explanation for r in rows)
    steps = [(r.given, r.found) for r in rows if r.field == "steps" and r.found]
    assert steps == [((2160, 2225), (2160,))]


def test_every_given_p_follows_from_the_given_runs_mean_and_deviation():
    given = [record for record in load().records if record.p is not None]
    ranges = [reproducing.p_range(record) for record in given]
    assert len(given) == 67
    # the p itself is rounded, to 3 digits: by at most 0.5%
    assert all(low * 0.995 <= record.p <= high * 1.005 for record, (low, high) in zip(given, ranges, strict=True))


def test_a_run_whose_loss_was_changed_is_found_out_and_listed():
    history = load()
    path = own("57")[0].path
    changed = [
        replace(run, points=(*run.points[:-1], run.points[-1]._replace(val_loss=run.loss + 0.0002)))
        if run.path == path
        else run
        for run in history.runs
    ]
    spoilt = replace(history, runs=tuple(changed))
    at = [record.label for record in history.records].index("57")
    assert reproducing.reproductions(spoilt)[at].status == "unexplained"
    rows = {r.field: r.explanation for r in reproducing.disagreements(spoilt) if r.record == "57"}
    assert "loss_mean" in rows and all(text.startswith("unexplained") for text in rows.values())


def test_a_given_mean_that_is_off_by_a_thousandth_is_found_out_in_four_of_five():
    history = load()
    partly = [
        record
        for record, result in zip(history.records, reproducing.reproductions(history), strict=True)
        if result.status == "partly"
    ]
    moved = [replace(record, loss_mean=record.loss_mean + shift) for record in partly for shift in (-0.001, 0.001)]
    ladder = replace(history, records=tuple(moved))
    found = sum(result.status == "unexplained" for result in reproducing.reproductions(ladder))
    assert (found, len(moved)) == (104, 130)  # as docs/history.md says


def test_one_missing_run_follows_from_the_mean_and_is_tested_by_the_deviation():
    record = record_with([3.276, 3.28, 3.2785])
    assert reproducing.obstacle([3.276, 3.28], record) == ""
    assert "loss_std" in reproducing.obstacle([3.276, 3.28], replace(record, loss_std=0.0025))


def test_missing_runs_outside_the_given_extremes_account_for_nothing():
    record = record_with([3.276, 3.277, 3.278, 3.279, 3.28])
    assert reproducing.obstacle([3.276, 3.28], record) == ""
    assert "outside" in reproducing.obstacle([3.276, 3.28], replace(record, loss_mean=3.2795))
    assert "deviation" in reproducing.obstacle([3.276, 3.28], replace(record, loss_std=0.0001))
    assert "leave the given" in reproducing.obstacle([3.275], record)


def test_an_extreme_that_was_not_found_must_be_among_the_missing():
    # the missing two are then 3.276 and 3.28, which make the mean 3.278; without that demand 3.277 twice would do, too
    record = record_with([3.276, 3.278, 3.278, 3.28])
    assert reproducing.obstacle([3.278, 3.278], record) == ""
    assert reproducing.obstacle([3.278, 3.278], replace(record, loss_mean=3.2775)) != ""


def test_more_runs_than_given_are_not_a_part_of_them():
    assert "more than the 2 given" in reproducing.obstacle([3.276, 3.278, 3.28], record_with([3.276, 3.28]))


def test_runs_of_a_number_of_steps_that_was_not_given_are_not_a_part():
    record = record_with([3.276, 3.28])
    kept = [run_of([3.276]), run_of([3.28], "b", every=11)]
    assert "11 steps" in reproducing._obstacle(reproducing.figures(kept), [3.276, 3.28], record)


def test_figures_that_mix_programs_or_hardware_are_told():
    mixed = {record.label for record in load().records if reproducing.mixed(record)}
    assert mixed == {"9", "30", "46", "59", "63", "80", "85", "88"}
    assert "ended early" in row("64")[1].note and "2024-11-03_UntieEmbed" in row("9")[1].note


# what each record gave


def test_seconds_percent_and_share_by_hand():
    _, _, gain = row("12")
    assert gain.seconds == pytest.approx(432 - 301.8) and gain.percent == pytest.approx(100 * (432 - 301.8) / 432)
    assert gain.share == pytest.approx(math.log(432 / 301.8) / math.log(2700 / 73.8))


def test_shares_add_up_to_the_whole_gain_and_what_the_re_timings_took_back():
    shares = [gain.share for gain in gaining.gains() if gain.share is not None]
    assert len(shares) == 88
    assert sum(shares) == pytest.approx(1 + math.log(180.8 / 176) / math.log(2700 / 73.8))


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
    by_figures = gaining._loss_test(*(gaining._Loss(len(x), fmean(x), stdev(x)) for x in (new, old)))
    assert by_figures == (pytest.approx(welch(new, old).p), pytest.approx(1 - welch(new, old).p))


def test_where_the_given_figures_mix_the_records_own_runs_are_tested():
    assert row("85")[2].loss_runs[0] == 4 and row("85")[0].runs == 50
    assert row("15")[2].loss_runs == (75, 38)


def test_with_one_run_of_each_nobody_can_say():
    gain = row("12")[2]
    assert gain.p_lower is gain.p_time is None and "loss: one run against one run, so nobody can say" in gain.sure


def test_the_older_program_beside_the_new_one_is_preferred_to_the_logs_of_another_day():
    gain = row("83")[2]
    beside = histories.baseline_runs(record_of("83", load().records), load().runs)
    assert gain.beside and gain.time_runs == (11, 4)
    assert row("84")[2].time_runs == (5, 6) and len(own("83")) == 11  # of which the last are on the same GPUs, too
    assert gain.p_time == pytest.approx(welch([r.seconds for r in own("83")], [r.seconds for r in beside]).p)
    assert not row("58")[2].beside and "on another day: drift is 5 to 8%" in row("58")[2].sure


def test_a_gain_below_the_drift_of_machines_is_said_to_be_untold():
    assert "0.4% cannot be told from the drift of machines (5 to 8%)" in row("23")[2].sure
    assert "32% is more than machines drift" in row("5")[2].sure


def test_each_row_says_in_one_line_how_sure_it_is():
    for gain in gaining.gains():
        assert gain.sure and "\n" not in gain.sure and len(gain.short) <= 9
    assert "NVIDIA H200" in row("82")[2].sure and "9.9% more than was claimed" in row("80")[2].sure
    assert "3.283, is not below 3.28" in row("21 (2025-05-24)")[2].sure


def test_the_loss_at_equal_time_is_interpolated_by_hand():
    curve = [(10, 20.0, 4.0), (20, 40.0, 3.5)]
    assert gaining.loss_at(curve, 25.0) == pytest.approx(3.875)
    assert gaining.loss_at(curve, 41.0) is None and gaining.loss_at([(10, None, 4.0), (20, None, 3.0)], 5.0) is None


def test_the_loss_at_equal_time_is_that_of_the_older_curve_less_the_new_end():
    older, new = histories.mean_curve(own("14")), own("15")
    expected = gaining.loss_at(older, fmean(run.seconds for run in new)) - fmean(run.loss for run in new)
    assert row("15")[2].nats_at_equal_time == pytest.approx(expected) and expected > 0


def test_logs_of_machines_that_drifted_apart_have_no_equal_time():
    assert abs(row("80")[2].drift_percent - row("81")[2].drift_percent) > 2
    assert row("81")[2].nats_at_equal_time is None and row("82")[2].nats_at_equal_time is None  # 82: another GPU


def test_how_many_are_significant_is_counted_under_holms_correction():
    rows, found = gaining.gains(), gaining.summary()
    lower = [g.p_lower for g in rows if g.p_lower is not None]
    timed = [g.p_time for g in rows if g.p_time is not None]
    assert (found.records, found.loss_tests, found.time_tests) == (89, len(lower), len(timed)) == (89, 58, 49)
    assert found.loss_lower == sum(holm(lower)[1]) == 0 and found.loss_lower_single == sum(p < 0.01 for p in lower) == 1
    assert found.time_faster == sum(holm(timed)[1]) == found.time_beside[1] + found.time_logs[1] == 37
    assert (found.target_tests, found.target_single, found.target_holm) == (67, 57, 10)


# bands


def seeds_of(*curves):
    return [run_of(curve, f"seed {i}") for i, curve in enumerate(curves)]


def in_history(runs):
    return History("made up", load().records, tuple(runs))


def test_a_band_by_hand():
    # seeds 3.30, 3.31, 3.32: mean 3.31, sd 0.01; t of 2 degrees of freedom at 1 - 0.05 / 2 is 4.30265; sqrt(1 + 1/3); 2
    # decimals printed
    found = bands.band([(10, 3.34)], "2030-01-01_Thing", in_history(seeds_of([3.30], [3.31], [3.32])))
    half = 4.30265 * 0.01 * math.sqrt(4 / 3) + 0.01
    (point,) = found.points
    assert (point.low, point.high) == (pytest.approx(3.31 - half, abs=1e-6), pytest.approx(3.31 + half, abs=1e-6))
    assert found.inside and found.seeds == 3 and point.z == pytest.approx(0.03 / (0.01 * math.sqrt(4 / 3)))
    assert not bands.band(
        [(10, 3.31 + half + 1e-4)], "2030-01-01_Thing", in_history(seeds_of([3.30], [3.31], [3.32]))
    ).inside


def test_a_band_of_more_evaluations_is_wider():
    curves = ([4.0, 3.30], [4.01, 3.31], [4.02, 3.32])
    one = bands.against({20: 3.31}, seeds_of(*curves))[0]
    two = bands.against({10: 4.01, 20: 3.31}, seeds_of(*curves))[1]
    assert (two.high - 3.31 - 0.01) / (one.high - 3.31 - 0.01) == pytest.approx(
        stats.t.isf(0.0125, 2) / stats.t.isf(0.025, 2)
    )


def test_one_evaluation_outside_is_outside_and_named():
    history = in_history(seeds_of([4.0, 3.30], [4.01, 3.31], [4.02, 3.32]))
    found = bands.band([(10, 5.0), (20, 3.31)], "2030-01-01_Thing", history)
    assert not found.inside and found.worst.step == 10 and [p.inside for p in found.points] == [False, True]
    assert "OUTSIDE the band of 3 public seeds" in found.sentence and "at 1 of 2 evaluations" in found.sentence
    json.dumps(found.to_json(), allow_nan=False)


def test_evaluations_at_which_all_seeds_score_alike_are_left_out():
    seeds = seeds_of([4.0, 3.30], [4.0, 3.31], [4.0, 3.32])
    assert [p.step for p in bands.against({10: 4.5, 20: 3.3}, seeds)] == [20]
    assert bands.against({10: 4.0}, seeds) == ()


def test_public_seeds_against_their_fellows_raise_few_false_alarms():
    found = bands.leave_one_out()
    # nominal 5%; above it by the binomial's 99th percentile only where the band is too narrow
    assert found.tried > 500
    assert found.outside <= stats.binom.ppf(0.99, found.tried, 0.05)
    assert found.outside / found.tried <= 0.05


def test_a_curve_that_is_shifted_by_two_hundredths_is_caught():
    found = bands.leave_one_out(0.02)
    assert found.outside / found.tried >= 0.99  # 563 of 564 when this was written
    assert all(outside >= tried - 1 for tried, outside in found.by_seeds.values())


def test_a_shift_moves_the_rate_from_false_alarms_to_power():
    rates = [(found := bands.leave_one_out(shift)).outside / found.tried for shift in (0.0, 0.005, 0.01)]
    assert rates[0] < 0.05 and 0.4 < rates[1] < 0.8 < rates[2]


def test_the_recipe_muon_trains_as_the_public_baseline():
    recipe = recipe_for("muon", "small")
    name = bands.record_for("muon", "small")
    seeds = bands.families()[name]
    assert name == BASELINE and {run.steps for run in seeds} == {recipe.steps} and len(seeds) == 4
    curve = [(p.step, p.val_loss) for p in seeds[0].points]
    assert {step for step, _ in curve} >= set(recipe.eval_steps()) - {0}
    found = bands.band([(step, loss) for step, loss in curve if step in recipe.eval_steps()], name)
    assert found.inside and len(found.points) == len(recipe.eval_steps()) - 1


def test_a_shifted_baseline_is_outside():
    curve = [(p.step, p.val_loss + 0.02) for p in bands.families()[BASELINE][0].points]
    assert not bands.band(curve, BASELINE).inside


def test_a_recipe_that_no_public_record_trains_is_refused():
    with pytest.raises(InputError, match="recipe nanogpt at scale small: no public record with curves trains it"):
        bands.record_for("nanogpt", "small")


def test_a_record_of_several_programs_is_its_own_runs():
    curve = [(p.step, p.val_loss) for p in own("78")[0].points]
    assert bands.band(curve, "2026-03-22_VarlenMaxDocs").record == "2026-03-22_VarlenMaxDocs/combined"


def test_a_record_of_several_sets_that_none_is_its_own_must_be_named():
    folder = "20260508_klsoap_h_clean_tuple_sweep"
    with pytest.raises(InputError, match="expected one set of seeds of 3125 steps, found .*b1090_sh090"):
        bands.band([(3125, 3.28)], folder)
    assert bands.band([(3125, 3.28)], f"{folder}/b1090_sh090").seeds == 3


@pytest.mark.parametrize(
    ("points", "record", "said"),
    [
        ([(125, 4.5), (3000, 3.3)], BASELINE, "expected a run of 3250 steps, found one of 3000"),
        ([(3250, 3.28)], "20260610_tuned_baseline_325", "did you mean 20260610_tuned_baseline_3250"),
        ([(3250, math.nan)], BASELINE, "finite losses"),
        ([(3250, 3.28), (3250, 3.29)], BASELINE, "each step once"),
        ([], BASELINE, "found 0 points"),
        ([(1770, 3.28)], "2025-02-01_RuleTweak", "expected at least 3 public seeds, found 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(points, record, said):
    with pytest.raises(InputError, match=said):
        bands.band(points, record)


def test_a_run_that_shares_no_evaluation_at_which_the_seeds_differ_is_refused():
    history = in_history(seeds_of([4.0, 3.5, 3.3], [4.1, 3.6, 3.3], [4.2, 3.4, 3.3]))  # they differ at 10 and 20
    with pytest.raises(InputError, match="expected evaluations at steps at which the seeds were evaluated and differ"):
        bands.band([(15, 3.5), (30, 3.3)], "2030-01-01_Thing", history)


# what others see


def test_the_table_has_every_row_and_at_most_100_columns():
    lines = table().splitlines()
    assert len(lines) == 3 + 91 and max(map(len, lines)) <= 100
    assert lines[1] == "reported by others, not verified here"
    assert lines[3 + 11].split()[:2] == ["12", "2024-11-19"]


def test_the_table_of_some_records_has_only_those():
    assert len(table([record_of("12", load().records)]).splitlines()) == 4


def test_the_boards_object_is_marked_and_compact():
    found = reported()
    assert set(found) == {"source", "note", "records"} and found["note"] == "reported by others, not verified here"
    keys = {
        "n",
        "label",
        "date",
        "title",
        "hardware",
        "seconds",
        "runs",
        "loss_mean",
        "loss_sd",
        "p",
        "gain_seconds",
        "gain_percent",
        "gain_nats",
        "share",
        "sure",
        "points",
    }
    assert len(found["records"]) == 91 and all(set(row) == keys for row in found["records"])
    assert all(len(row["points"]) <= 12 for row in found["records"])
    assert all(
        step > 0 and loss < 10 for row in found["records"] for step, _, loss in row["points"]
    )  # step 0 scales no plot
    assert len(json.dumps(found, allow_nan=False)) < 100_000


def test_a_thinned_curve_keeps_its_end():
    rows = {row["label"]: row for row in reported()["records"]}
    record, _, _ = row("57")
    steps, seconds, loss = rows["57"]["points"][-1]
    assert (steps, seconds, loss) == (1840, record.time_mean, round(record.loss_mean, 4))
    assert rows["1"]["points"] == [] and len(rows["4"]["points"]) == 12 and rows["4"]["points"][-1][0] == 6200


def test_everything_that_was_found_is_json():
    found = json.loads(json.dumps(to_json(), allow_nan=False))
    assert len(found["records"]) == len(found["reproduction"]) == 91 and found["note"].startswith("reported by others")
    assert len(found["disagreements"]) == len(reproducing.disagreements())


def test_the_document_is_in_step_with_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    if brought_up_to_date(text, documented()) != text:
        pytest.fail("docs/history.md differs: python -m parity.history.reported docs/history.md")


def test_a_document_without_its_markers_is_refused():
    with pytest.raises(InputError, match="history"):
        brought_up_to_date("<!-- history -->", {"history": "x"})
