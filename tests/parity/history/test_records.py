"""The public history is read strictly, and every run belongs to its record."""

import json
import math
import shutil
import time
from dataclasses import replace

import pytest
from archive import own, record_of, record_with, run_of

from parity.errors import InputError
from parity.history.records import (
    DATA,
    baseline_runs,
    distinct,
    load,
    mean_curve,
    runs_of,
    same_hardware,
    title_of,
)


def test_the_ladder_has_92_records_in_94_rows():
    records = load().records
    assert len(records) == 94 and {r.n for r in records} == set(range(1, 93))
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
    assert title_of(folder) == title


def spoiled(folder, name, change):
    """The data in a new folder, one file of it changed."""
    for file in ("track1.json", "runs.json"):
        shutil.copy(DATA / file, folder)
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
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
def test_data_that_is_not_as_its_schema_says_is_refused(tmp_path, name, change, message):
    with pytest.raises(InputError, match=message):
        load.__wrapped__(spoiled(tmp_path, name, change))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="track1.json: expected a file that can be read"):
        load.__wrapped__(tmp_path)


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
    beside = baseline_runs(record_of("82"), history.runs)
    assert {run.variant for run in beside} == {"baseline-s1440"}  # not the control cut to the record's steps


def test_a_copy_of_a_run_counts_once():
    run = run_of([4.0, 3.3])
    final_only = replace(run, path="final", points=run.points[-1:])
    assert len(distinct([final_only, run, replace(run, path="copy"), run_of([4.0, 3.31], "other")])) == 2


def test_a_run_that_ended_early_is_no_run_of_the_record():
    whole, early = run_of([4.0, 3.3]), run_of([4.0, 3.4], "early", total=30)
    record = record_with([3.3, 3.31])
    assert runs_of(record, [whole, early]) == [whole]


def test_runs_are_only_set_side_by_side_on_the_same_hardware():
    some = [run_of([3.3], seconds=80)]
    assert same_hardware(some, [run_of([3.3], seconds=90)])
    assert not same_hardware(some, [run_of([3.3], seconds=600)])  # as many GPUs, or not
    assert not same_hardware(some, [run_of([3.3], gpu="other")])
    assert not same_hardware([run_of([3.3], gpu=None)], [run_of([3.3], gpu=None)])


def test_the_mean_curve_is_over_the_evaluations_that_all_share():
    runs = [run_of([4.0, 3.4], seconds=100), run_of([3.5], every=20, seconds=102)]
    assert mean_curve(runs) == [(20, 101.0, pytest.approx(3.45))]
