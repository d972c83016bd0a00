"""Declaring seeds and doing runs: what is recorded, refused, and continued. The trainer is a fake."""

import hashlib
import json

import filelock
import pytest

from parity.attempt.command import main
from parity.declaration.record import digest_of, read_record, runs_of, seeds_for


def test_seeds_are_on_the_disk_before_the_first_run_starts(attempt, trainer):
    records = []
    trainer.before.append(lambda: records.append(read_record(attempt.folder / "attempt.jsonl")))
    assert attempt.run() == 0
    assert [event["event"] for event in records[0]] == ["declared", "started"]
    assert attempt.kinds == ["declared", "started", "ended", "started", "ended"]
    declared = attempt.events[0]
    digests = digest_of(attempt.folder / "program.py"), digest_of(attempt.folder / "declaration.json")
    assert (declared["program_sha256"], declared["declaration_sha256"]) == digests
    assert (
        declared["seeds"]
        == seeds_for(*digests, 2)
        == [event["seed"] for event in attempt.events if event["event"] == "started"]
    )
    assert declared["command"][:3] == ["python", "-m", "torchref.train"]
    assert trainer.calls[0][:6] == ["--track", "tiny", "--recipe", "muon", "--program", "program.py"]
    assert (
        attempt.last("ended").items()
        >= {"seconds": 10.0, "steps": 10, "steps_made": 10, "val_loss": 4.5, "flops": 1e9}.items()
    )


def test_every_line_carries_the_digest_of_the_line_before(attempt, trainer):
    attempt.run()
    lines = (attempt.folder / "attempt.jsonl").read_bytes().splitlines()
    digests = ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines)]
    assert [json.loads(line)["prev"] for line in lines] == digests[:-1]


def test_several_attempts_are_interleaved(attempt, trainer, capsys):
    other = attempt.folder.with_name("other")
    assert main(["new", str(other), "--backend", "jax", "--track", "tiny", "--runs", "3"]) == 0
    assert attempt.run(other) == 0
    events = [event for folder in (attempt.folder, other) for event in read_record(folder / "attempt.jsonl")]
    started = sorted((event["time_s"], event["program_sha256"]) for event in events if event["event"] == "started")
    mine, theirs = digest_of(attempt.folder / "program.py"), digest_of(other / "program.py")
    assert [program for _, program in started] == [mine, theirs, mine, theirs, theirs]
    assert capsys.readouterr().out.count("next: ") == 2
    assert attempt.run(attempt.folder) == 2 and "named twice" in capsys.readouterr().err


def test_a_run_with_a_result_is_not_repeated(attempt, trainer):
    assert attempt.run() == attempt.run() == 0
    assert len(trainer.calls) == 2 and attempt.kinds.count("declared") == 1


def test_an_interrupted_run_is_continued_before_the_others(attempt, trainer, capsys):
    attempt.change(arguments=["--device", "cpu", "--steps", "10"])
    trainer.codes = [0, 130]
    assert attempt.run() == 130
    assert "continue with\n  " in capsys.readouterr().err
    assert attempt.last("interrupted").items() >= {"exit_code": 130, "seconds": 5.0, "steps_made": 5}.items()
    assert attempt.run() == 0
    assert attempt.kinds == ["declared", "started", "ended", "started", "interrupted", "resumed", "ended"]
    assert trainer.calls[2] == [
        "--resume",
        attempt.events[3]["run"],
        "--device",
        "cpu",
    ]  # nothing else may be given again
    assert [run.seconds for run in runs_of(attempt.events)] == [10.0, 10.0]


def test_a_failed_run_is_a_result_and_the_next_seed_follows(attempt, trainer, capsys):
    trainer.codes = [1, 0]
    assert attempt.run() == 1
    message = f"1 of 2 final runs failed, which is their result: {attempt.folder}/runs/tiny/final-1-"
    assert message in capsys.readouterr().err
    assert attempt.run() == 1 and len(trainer.calls) == 2
    first, second = runs_of(attempt.events)
    assert (first.settled, first.val_loss, first.exit_code, second.val_loss) == (True, None, 1, 4.5)


@pytest.mark.parametrize(
    ("code", "message"), [(2, "cannot make this run"), (3, "ended with a fault"), (137, "signal 9"), (139, "signal 11")]
)
def test_a_run_without_a_result_is_not_over(attempt, trainer, capsys, code, message):
    trainer.codes = [code]
    assert attempt.run() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert attempt.run() == 0 and attempt.kinds.count("started") == 2
    assert attempt.last("resumed")["fresh"] == (code == 2)


def test_what_was_lost_of_a_run_still_counts(attempt, trainer):
    import shutil

    trainer.codes = [130]
    attempt.run()
    shutil.rmtree(attempt.folder / attempt.last("started")["run"])
    attempt.run()
    assert [(run.seconds, run.steps_made) for run in runs_of(attempt.events)] == [(15.0, 15), (10.0, 10)]


def test_a_run_whose_end_nobody_recorded_is_recorded_by_the_next(attempt, trainer, monkeypatch):
    from parity.attempt import runner

    monkeypatch.setattr(runner, "record_end", lambda *_: 1 / 0)  # killed between the trainer's end and its record
    assert attempt.run() == 3
    monkeypatch.undo()
    monkeypatch.setattr(runner, "train", trainer)
    assert attempt.kinds == ["declared", "started"]
    assert attempt.run() == 0
    assert attempt.kinds == ["declared", "started", "ended", "started", "ended"] and len(trainer.calls) == 2


def test_a_trainer_that_is_still_at_work_is_waited_for(attempt, trainer, capsys):
    trainer.codes = [130]
    attempt.run()
    path = attempt.folder / attempt.last("started")["run"]
    capsys.readouterr()
    with filelock.FileLock(path / ".lock"):
        (path / ".lock.pid").write_text("4711")
        assert attempt.run() == 2
    assert "still at work (pid 4711)" in capsys.readouterr().err


def test_one_run_at_a_time(attempt, trainer, capsys):
    with filelock.FileLock(attempt.folder / ".lock"):
        assert attempt.run() == 2
    assert "locked by another run of this attempt" in capsys.readouterr().err
    assert attempt.run() == 0


# What was changed since the seeds were declared


@pytest.mark.parametrize("file", ["program.py", "declaration.json"])
def test_a_change_is_refused_until_it_is_declared_again(attempt, trainer, capsys, file):
    attempt.run()
    before = attempt.events[0]["seeds"]
    with open(attempt.folder / file, "a") as changed:
        changed.write(" \n")
    assert attempt.run() == 2
    error = capsys.readouterr().err
    assert (
        f"{file}: expected the file that the seeds were declared for" in error
        and "--again" in error
        and error.count("\n") == 1
    )
    assert attempt.run("--again") == 0
    assert attempt.kinds.count("declared") == 2 and len(trainer.calls) == 4
    assert not set(attempt.last("declared")["seeds"]) & set(before)
    assert [run.declaration for run in runs_of(attempt.events)] == [1, 1, 2, 2]


def test_nothing_is_declared_again_where_nothing_has_changed(attempt, trainer, capsys):
    attempt.run()
    assert attempt.run("--again") == 2
    assert "nothing has changed" in capsys.readouterr().err


def test_a_change_while_runs_are_made_stops_them(attempt, trainer, capsys):
    trainer.before.append(lambda: (attempt.folder / "program.py").write_text("other = 1\n"))
    assert attempt.run() == 2
    assert "found them changed since" in capsys.readouterr().err and len(trainer.calls) == 1


def test_going_back_to_what_was_declared_first_makes_new_runs(attempt, trainer):
    text = (attempt.folder / "program.py").read_text()
    attempt.run()
    (attempt.folder / "program.py").write_text(text + "\n")
    attempt.run("--again")
    (attempt.folder / "program.py").write_text(text)
    assert attempt.run("--again") == 0
    runs = runs_of(attempt.events)
    assert len({run.run for run in runs}) == 6 and runs[0].seed == runs[4].seed and runs[4].run == runs[0].run + "-2"


# Tuning and the budget


def test_tuning_runs_are_counted_and_are_no_evidence(attempt, trainer):
    assert attempt.run("--tune") == attempt.run("--tune", "--seed", "7") == 0
    assert attempt.kinds == ["started", "ended"] * 2
    assert [(run.run, run.seed, run.purpose) for run in runs_of(attempt.events)] == [
        ("runs/tiny/tune-1-0", 0, "tune"),
        ("runs/tiny/tune-2-7", 7, "tune"),
    ]
    attempt.budget(runs=3)
    assert attempt.run() == 1
    assert attempt.last("stopped")["reason"] == "the budget is 3 runs, 2 were started, and 2 more are needed"


def test_an_interrupted_tuning_run_is_continued(attempt, trainer):
    trainer.codes = [143]
    assert attempt.run("--tune") == 143
    assert attempt.run("--tune") == 0 and attempt.run("--tune") == 0
    assert attempt.kinds == ["started", "interrupted", "resumed", "ended", "started", "ended"]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (
            {"seconds": 15},
            "the budget is 15 s of training, 10 are used, and a run has taken 10 on average: the next would pass it",
        ),
        (
            {"flops": 1.5e9},
            "the budget is 1.5e+09 FLOPs, 1e+09 are used, and a run has taken 1e+09 on average: the next would pass it",
        ),
    ],
)
def test_the_next_run_is_not_started_where_it_would_pass_the_budget(attempt, trainer, capsys, limit, reason):
    attempt.budget(**limit)
    assert attempt.run() == 1
    assert reason in capsys.readouterr().err and attempt.last("stopped")["reason"] == reason
    assert len(trainer.calls) == 1 and attempt.kinds[-1] == "stopped"
    assert attempt.run() == 1 and len(trainer.calls) == 1


def test_a_run_that_is_continued_needs_only_the_rest_of_its_cost(attempt, trainer):
    attempt.budget(seconds=20)
    trainer.codes = [0, 130]
    assert attempt.run() == 130
    assert attempt.run() == 0


def test_steps_that_did_not_come_to_a_result_cost_what_those_of_others_do(attempt, trainer, capsys):
    trainer.codes = [0, 1]
    attempt.run()
    capsys.readouterr()
    assert main(["show", str(attempt.folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [run["flops"] for run in shown["runs"]] == [1e9, 0.5e9]
    assert shown["used"] == {"runs": 2, "seconds": 15.0, "steps": 15, "flops": 1.5e9}
