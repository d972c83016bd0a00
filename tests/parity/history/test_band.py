"""Runs against the bands of public seeds."""

import json
import math

import pytest
from archive import own, run_of
from scipy import stats

from parity.errors import InputError
from parity.history.band import against, band, families, leave_one_out, record_for
from parity.history.records import History, load
from parity.recipes import recipe_for

BASELINE = "20260610_tuned_baseline_3250"


def seeds_of(*curves):
    return [run_of(curve, f"seed {i}") for i, curve in enumerate(curves)]


def in_history(runs):
    return History("invented", load().records, tuple(runs))


def test_a_band_by_hand():
    # seeds 3.30, 3.31, 3.32: mean 3.31, sd 0.01; t of 2 degrees of freedom at 1 - 0.05 / 2 is 4.30265; sqrt(1 + 1/3); 2
    # decimals printed
    result = band([(10, 3.34)], "2030-01-01_Thing", in_history(seeds_of([3.30], [3.31], [3.32])))
    half = 4.30265 * 0.01 * math.sqrt(4 / 3) + 0.01
    (point,) = result.points
    assert (point.low, point.high) == (pytest.approx(3.31 - half, abs=1e-6), pytest.approx(3.31 + half, abs=1e-6))
    assert result.inside and result.seeds == 3 and point.z == pytest.approx(0.03 / (0.01 * math.sqrt(4 / 3)))
    assert not band([(10, 3.31 + half + 1e-4)], "2030-01-01_Thing", in_history(seeds_of([3.30], [3.31], [3.32]))).inside


def test_a_band_of_more_evaluations_is_wider():
    curves = ([4.0, 3.30], [4.01, 3.31], [4.02, 3.32])
    one = against({20: 3.31}, seeds_of(*curves))[0]
    two = against({10: 4.01, 20: 3.31}, seeds_of(*curves))[1]
    assert (two.high - 3.31 - 0.01) / (one.high - 3.31 - 0.01) == pytest.approx(
        stats.t.isf(0.0125, 2) / stats.t.isf(0.025, 2)
    )


def test_one_evaluation_outside_is_outside_and_named():
    history = in_history(seeds_of([4.0, 3.30], [4.01, 3.31], [4.02, 3.32]))
    result = band([(10, 5.0), (20, 3.31)], "2030-01-01_Thing", history)
    assert not result.inside and result.worst.step == 10 and [p.inside for p in result.points] == [False, True]
    assert "OUTSIDE the band of 3 public seeds" in result.sentence and "at 1 of 2 evaluations" in result.sentence
    json.dumps(result.to_json(), allow_nan=False)


def test_evaluations_at_which_all_seeds_score_alike_are_left_out():
    seeds = seeds_of([4.0, 3.30], [4.0, 3.31], [4.0, 3.32])
    assert [p.step for p in against({10: 4.5, 20: 3.3}, seeds)] == [20]
    assert against({10: 4.0}, seeds) == ()


def test_public_seeds_are_rarely_outside_the_band_of_the_others():
    result = leave_one_out()
    # nominal 5%; above it by the binomial's 99th percentile only where the band is too narrow
    assert result.tried > 500
    assert result.outside <= stats.binom.ppf(0.99, result.tried, 0.05)
    assert result.outside / result.tried <= 0.05


def test_a_curve_that_is_shifted_by_two_hundredths_is_caught():
    result = leave_one_out(0.02)
    assert result.outside / result.tried >= 0.99  # 563 of 564 when this was written
    assert all(outside >= tried - 1 for tried, outside in result.by_seeds.values())


def test_a_shift_moves_the_rate_from_false_positives_to_power():
    rates = [(result := leave_one_out(shift)).outside / result.tried for shift in (0.0, 0.005, 0.01)]
    assert rates[0] < 0.05 and 0.4 < rates[1] < 0.8 < rates[2]


def test_the_recipe_muon_trains_as_the_public_baseline():
    recipe = recipe_for("muon", "small")
    name = record_for("muon", "small")
    seeds = families()[name]
    assert name == BASELINE and {run.steps for run in seeds} == {recipe.steps} and len(seeds) == 4
    curve = [(p.step, p.val_loss) for p in seeds[0].points]
    assert {step for step, _ in curve} >= set(recipe.eval_steps()) - {0}
    result = band([(step, loss) for step, loss in curve if step in recipe.eval_steps()], name)
    assert result.inside and len(result.points) == len(recipe.eval_steps()) - 1


def test_a_shifted_baseline_is_outside():
    curve = [(p.step, p.val_loss + 0.02) for p in families()[BASELINE][0].points]
    assert not band(curve, BASELINE).inside


def test_a_recipe_that_no_public_record_trains_is_refused():
    with pytest.raises(InputError, match="recipe nanogpt at scale small: no public record with curves trains it"):
        record_for("nanogpt", "small")


def test_a_record_of_several_programs_is_its_own_runs():
    curve = [(p.step, p.val_loss) for p in own("78")[0].points]
    assert band(curve, "2026-03-22_VarlenMaxDocs").record == "2026-03-22_VarlenMaxDocs/combined"


def test_a_record_of_several_sets_that_none_is_its_own_must_be_named():
    folder = "20260508_klsoap_h_clean_tuple_sweep"
    with pytest.raises(InputError, match="expected one set of seeds of 3125 steps, found .*b1090_sh090"):
        band([(3125, 3.28)], folder)
    assert band([(3125, 3.28)], f"{folder}/b1090_sh090").seeds == 3


@pytest.mark.parametrize(
    ("points", "record", "message"),
    [
        ([(125, 4.5), (3000, 3.3)], BASELINE, "expected a run of 3250 steps, found one of 3000"),
        ([(3250, 3.28)], "20260610_tuned_baseline_325", "did you mean 20260610_tuned_baseline_3250"),
        ([(3250, math.nan)], BASELINE, "finite losses"),
        ([(3250, 3.28), (3250, 3.29)], BASELINE, "each step once"),
        ([], BASELINE, "found 0 points"),
        ([(1770, 3.28)], "2025-02-01_RuleTweak", "expected at least 3 public seeds, found 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(points, record, message):
    with pytest.raises(InputError, match=message):
        band(points, record)


def test_a_run_that_shares_no_evaluation_at_which_the_seeds_differ_is_refused():
    history = in_history(seeds_of([4.0, 3.5, 3.3], [4.1, 3.6, 3.3], [4.2, 3.4, 3.3]))  # they differ at 10 and 20
    with pytest.raises(InputError, match="expected evaluations at steps at which the seeds were evaluated and differ"):
        band([(15, 3.5), (30, 3.3)], "2030-01-01_Thing", history)
