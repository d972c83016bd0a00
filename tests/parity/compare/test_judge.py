"""The rules of judging, on arrays made for them."""

import dataclasses
import math

import numpy as np
import pytest

from parity.compare import bounds, low_precision
from parity.compare.judge import Names, judge
from parity.compare.observation import Result, Seen, difference, ulp
from parity.recipes import recipe_for

NAMES = Names("a", "b")
BOUND = bounds.rounding(100)


def seen(value, place="x", line="line", **more):
    return Seen(line, place, np.asarray(value, float), BOUND, **more)


def test_a_difference_says_where_how_far_and_how_many_ulps():
    b = np.array([[1.0, 2.0], [4.0, 8.0]])
    a = b.copy()
    a[1, 0] += 2**-50  # one ulp of 4 is 2^-50
    found = difference(a, b, None, "float64")
    assert (found.index, found.ulps, found.found) == ((1, 0), 1.0, 2**-50 / 8)


@pytest.mark.parametrize(("dtype", "of_one"), [("float64", 2.0**-52), ("float32", 2.0**-23), ("bfloat16", 2.0**-7)])
def test_an_ulp_is_the_step_to_the_next_number_of_the_type(dtype, of_one):
    assert ulp(1.0, dtype) == of_one
    assert ulp(3.0, dtype) == 2 * of_one


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


def test_the_first_place_in_order_is_the_finding_and_not_the_worst():
    a = [seen([1.0], "first"), seen([1.0 + 1e-9], "second"), seen([5.0], "third")]
    b = [seen([1.0], "first"), seen([1.0], "second"), seen([1.0], "third")]
    result = judge("forward", a, b, NAMES, "float64")
    assert result.status == "fails" and result.finding.place == "second" and result.lines[0].worst == "third"


def test_what_one_side_lacks_is_a_finding_between_backends_and_left_out_for_others():
    a, b = [seen([1.0], "x"), seen([1.0], "y")], [seen([1.0], "x")]
    assert judge("forward", a, b, NAMES, "float64").finding.place == "y"
    other = judge("forward", a, b, dataclasses.replace(NAMES, strict=False), "float64")
    assert other.status == "holds" and other.lines[0].places == 1


def test_bytes_are_compared_to_the_last_bit():
    b = Seen("line", "x", np.array([0.0, 1.0]))
    for other in ([-0.0, 1.0], [0.0, np.nextafter(1.0, 2)]):
        assert judge("init", [Seen("line", "x", np.array(other))], [b], NAMES, "float64").status == "fails"
    assert judge("init", [Seen("line", "x", np.float32([0, 1]))], [b], NAMES, "float64").status == "fails"


def test_each_side_must_be_what_is_expected_of_it_by_itself():
    wrong = Seen("groups", "w", "decay", expected="no_decay")
    result = judge("update", [wrong], [wrong], NAMES, "float64")
    assert result.status == "fails" and result.finding.says == "a has decay, expected no_decay"


def test_of_a_series_the_first_step_beyond_the_bound_is_named():
    b = seen(np.ones(5), axes=("step",))
    a = seen([1, 1, 1 + 1e-6, 1 + 1e-3, 1], axes=("step",))
    assert judge("trajectory", [a], [b], NAMES, "float64").finding.where == "step 2"


def test_in_float32_an_error_may_be_four_times_the_recorded_one_and_no_more():
    truth = [seen(np.ones(1000))]
    noise = np.random.default_rng(0).standard_normal(1000)
    sides = [[seen(1 + size * noise)] for size in (1e-7, 3e-7, 5e-7)]
    rms = float(np.sqrt(np.mean(noise**2)))
    recorded = {"forward/line": {"largest": 1e-7 * rms}}
    assert judge("forward", sides[1], sides[0], NAMES, "float32", truth, recorded).status == "holds"
    assert judge("forward", sides[2], sides[1], NAMES, "float32", truth, recorded).finding.says.startswith("a ")


def test_in_float32_one_sides_error_may_not_be_more_than_four_times_the_others():
    truth, noise = [seen(np.ones(1000))], np.random.default_rng(0).standard_normal(1000)
    result = judge(
        "forward",
        [seen(1 + 3e-7 * noise)],
        [seen(1 + 0.5e-7 * noise)],
        NAMES,
        "float32",
        truth,
        {"forward/line": {"largest": 1e-7}},
    )
    assert result.finding.basis == "errors of both sides alike" and result.finding.found == pytest.approx(6, rel=1e-3)


def test_what_is_usual_between_two_backends_is_no_finding_in_float32():
    truth, noise = [seen(np.ones(1000))], np.random.default_rng(0).standard_normal(1000)
    a, b = [seen(1 + 3e-7 * noise)], [seen(1 + 0.5e-7 * noise)]
    recorded = {"forward/line": {"largest": 1e-7, "a": 2e-7, "b": 1e-7}}
    assert judge("forward", a, b, NAMES, "float32", truth, recorded).status == "holds"
    assert judge("forward", b, a, NAMES, "float32", truth, recorded).finding.found == pytest.approx(12, rel=1e-3)


def test_in_float32_without_a_recorded_error_nothing_holds():
    truth = [seen(np.ones(3))]
    assert (
        judge("forward", [seen(np.ones(3) + 1e-7)], truth, NAMES, "float32", truth, {}).finding.basis
        == "no error was recorded"
    )


def test_holm_rejects_in_order_and_stops_at_the_first_that_is_not():
    tests = [low_precision.Test("forward", f"l{i}", "x", 2.0, p) for i, p in enumerate((0.5, 1e-6, 4e-4, 6e-4))]
    allowed = [x for _, x in low_precision.holm(tests, 1e-3)]
    assert allowed == pytest.approx([1e-3 / 3, 1e-3 / 4, 1e-3 / 3, 1e-3 / 3])  # 4e-4 > 1e-3 / 3: no more is rejected


def test_errors_within_the_margin_are_no_finding_and_larger_ones_are():
    rng = np.random.default_rng(1)
    recorded = rng.normal(0.0, 0.05, 16)
    assert low_precision.beyond(rng.normal(math.log(1.1), 0.05, 8), recorded)[1] > 0.01
    assert low_precision.beyond(rng.normal(math.log(1.6), 0.05, 8), recorded)[1] < 1e-4


def test_equal_draws_without_spread_are_no_finding():
    assert low_precision.beyond([1.0] * 8, [1.0] * 16)[1] == 1.0
    assert low_precision.beyond([3.0] * 8, [1.0] * 16)[1] == 0.0


def test_false_alarms_of_a_whole_report_stay_below_one_in_a_hundred_where_the_level_is_that():
    """300 reports of 60 tests on draws from one distribution; at 1 in 1,000 too few could be counted."""
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(300):
        tests = [
            low_precision.Test(
                "forward", str(i), "x", 1.0, low_precision.beyond(rng.normal(0.223, 0.3, 8), rng.normal(0, 0.3, 16))[1]
            )
            for i in range(60)
        ]
        alarms += any(test.p < allowed for test, allowed in low_precision.holm(tests, 1e-2))
    assert alarms <= 12  # binomial(300, 0.01): P(more than 12) < 1e-4


def test_tests_are_entered_at_their_level_with_the_first_rejected_as_the_finding():
    result = Result("forward", "holds")
    low_precision.add_tests(
        [result], [low_precision.Test("forward", "attn", "typical error of a / recorded", 3.0, 1e-9)]
    )
    assert result.status == "fails" and result.finding.line == "attn" and not result.lines[0].holds


def test_a_number_that_is_none_never_holds():
    assert judge("evaluation", [seen([math.nan])], [seen([1.0])], NAMES, "float64").status == "fails"
    assert judge("evaluation", [seen([1.0])], [seen([math.nan])], NAMES, "float64").status == "fails"


def test_sides_without_a_place_in_common_are_not_judged():
    result = judge("forward", [seen([1.0], "x")], [seen([1.0], "y")], Names("a", "b", strict=False), "float64")
    assert (result.status, result.reason) == ("not judged", "a and b have no place in common")


def test_what_only_one_side_shows_is_counted():
    result = judge(
        "forward", [seen([1.0], "x")], [seen([1.0], "x"), seen([1.0], "y")], Names("a", "b", strict=False), "float64"
    )
    assert result.status == "holds" and result.reason == "1 places in common; left out 1 places of b"


def test_a_line_in_bfloat16_without_a_record_fails():
    draws = {"forward/x": [low_precision.Size(0.0, 0.0)] * 2}
    (test,) = low_precision.tests(draws, draws, {}, ("a", "b"), (None, None))
    assert test.p == 0.0 and test.what == "no error was recorded"


@pytest.mark.parametrize("lengths", [[30_000, 5_000], [2_049, 2_050, 2_051], [1_024, 9_000], [1_025, 1_026]])
def test_plain_spans_are_the_streams(lengths):
    from parity.compare.levels.data import plain_spans
    from parity.data.stream import Segment, spans_there

    plan = [Segment(3, 1024, 64), Segment(50, 512, 64)]
    assert list(plain_spans(lengths, plan)) == list(spans_there(lengths, plan))


def test_a_muon_weight_is_allowed_what_the_orthogonalisation_is_by_as_much_as_it_moves_it():
    recipe = recipe_for("muon", "tiny")
    allowed = [
        bounds.updated(recipe, 1, "matrix", shape, largest).allowed
        for shape, largest in (((64, 64), 0.5), ((64, 64), 1.0), ((256, 64), 1.0))
    ]
    turned = bounds.orthogonalization(recipe, 12).allowed
    assert allowed == pytest.approx([turned * 0.025 / 0.5, turned * 0.025, turned * 0.025 * 2], rel=1e-3)
    assert bounds.updated(recipe, 1, "head", (512, 64), 1.0) == bounds.update(recipe)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [(["fails", "holds"], "holds"), (["fails", "fails", "holds"], "holds"), (["fails"] * 3, "fails")],
)
def test_a_trajectory_in_float32_that_fails_is_judged_with_two_other_seeds(case, clean, monkeypatch, outcomes, status):
    from parity.compare import runner
    from parity.compare.observation import Finding

    seeds = []

    def judged(level, a, b, *rest):
        found = outcomes[len(seeds) - 1]
        finding = Finding(level, "losses", "of 20 steps", 1.0, 0.1, "", "") if found == "fails" else None
        return Result(level, found, finding=finding)

    def observe(side, level, one, memo):
        if side is clean["jaxrun"]:
            seeds.append(one.seed)
        return []

    monkeypatch.setattr(runner, "judge", judged)
    monkeypatch.setattr(type(clean["jaxrun"]), "observe", observe)
    comparison = runner.Comparison(
        clean["jaxrun"],
        clean["torchref"],
        case("nanogpt", "float32"),
        runner.chosen_levels("trajectory"),
        diagnose=False,
        truth=clean["torchref"],
    )
    (result,) = comparison.run()
    assert result.status == status and seeds == [0, 10_000, 20_000][: len(outcomes)]
    assert ("parted from float64 by chance" in result.reason) == (status == "holds")


def test_a_process_of_a_layout_that_fails_ends_the_others_and_is_quoted(tmp_path):
    import subprocess
    import sys
    import time

    from parity.compare.levels.layout import _finish

    processes = []
    for i, code in enumerate(("import time; time.sleep(600)", "raise SystemExit('no memory')")):
        said = open(tmp_path / str(i), "w+")  # noqa: SIM115
        processes.append((subprocess.Popen([sys.executable, "-c", code], stderr=said), said))
    begin_s = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with 1:\nno memory"):
        _finish(processes)
    assert time.monotonic() - begin_s < 60 and all(process.returncode is not None for process, _ in processes)
