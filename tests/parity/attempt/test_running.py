"""Declaring seeds and making runs: what is recorded, refused, and gone on with. The trainer is a fake."""

import hashlib
import json

import filelock
import pytest

from parity.attempt.command import main
from parity.attempt.record import digest_of, read_record, runs_of, seeds_for


def test_seeds_are_on_the_disk_before_the_first_run_starts(made, trainer):
    seen = []
    trainer.before.append(lambda: seen.append(read_record(made.folder / "attempt.jsonl")))
    assert made.run() == 0
    assert [event["event"] for event in seen[0]] == ["declared", "started"]
    assert made.kinds == ["declared", "started", "ended", "started", "ended"]
    declared = made.events[0]
    digests = digest_of(made.folder / "program.py"), digest_of(made.folder / "declaration.json")
    assert (declared["program_sha256"], declared["declaration_sha256"]) == digests
    assert (
        declared["seeds"]
        == seeds_for(*digests, 2)
        == [event["seed"] for event in made.events if event["event"] == "started"]
    )
    assert declared["command"][:3] == ["python", "-m", "torchref.train"]
    assert trainer.calls[0][:6] == ["--track", "tiny", "--recipe", "muon", "--program", "program.py"]
    assert (
        made.last("ended").items()
        >= {"seconds": 10.0, "steps": 10, "steps_made": 10, "val_loss": 4.5, "flops": 1e9}.items()
    )


def test_every_line_carries_the_digest_of_the_line_before(made, trainer):
    made.run()
    lines = (made.folder / "attempt.jsonl").read_bytes().splitlines()
    digests = ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines)]
    assert [json.loads(line)["prev"] for line in lines] == digests[:-1]


def test_several_attempts_take_turns(made, trainer, capsys):
    other = made.folder.with_name("other")
    assert main(["new", str(other), "--backend", "jax", "--track", "tiny", "--runs", "3"]) == 0
    assert made.run(other) == 0
    events = [event for folder in (made.folder, other) for event in read_record(folder / "attempt.jsonl")]
    started = sorted((event["time_s"], event["program_sha256"]) for event in events if event["event"] == "started")
    mine, theirs = digest_of(made.folder / "program.py"), digest_of(other / "program.py")
    assert [program for _, program in started] == [mine, theirs, mine, theirs, theirs]
    assert capsys.readouterr().out.count("next: ") == 2
    assert made.run(made.folder) == 2 and "named twice" in capsys.readouterr().err


def test_what_is_made_is_not_made_again(made, trainer):
    assert made.run() == made.run() == 0
    assert len(trainer.calls) == 2 and made.kinds.count("declared") == 1


def test_an_interrupted_run_is_gone_on_with_and_then_the_rest_is_made(made, trainer, capsys):
    made.change(arguments=["--device", "cpu", "--steps", "10"])
    trainer.codes = [0, 130]
    assert made.run() == 130
    assert "go on with\n  " in capsys.readouterr().err
    assert made.last("interrupted").items() >= {"exit_code": 130, "seconds": 5.0, "steps_made": 5}.items()
    assert made.run() == 0
    assert made.kinds == ["declared", "started", "ended", "started", "interrupted", "resumed", "ended"]
    assert trainer.calls[2] == ["--resume", made.events[3]["run"], "--device", "cpu"]  # nothing else may be given again
    assert [run.seconds for run in runs_of(made.events)] == [10.0, 10.0]


def test_a_failed_run_is_a_result_and_the_next_seed_follows(made, trainer, capsys):
    trainer.codes = [1, 0]
    assert made.run() == 1
    told = f"1 of 2 final runs failed, which is their result: {made.folder}/runs/tiny/final-1-"
    assert told in capsys.readouterr().err
    assert made.run() == 1 and len(trainer.calls) == 2
    first, second = runs_of(made.events)
    assert (first.settled, first.val_loss, first.exit_code, second.val_loss) == (True, None, 1, 4.5)


@pytest.mark.parametrize(
    ("code", "told"), [(2, "cannot make this run"), (3, "ended with a fault"), (137, "signal 9"), (139, "signal 11")]
)
def test_a_run_without_a_result_is_not_over(made, trainer, capsys, code, told):
    trainer.codes = [code]
    assert made.run() == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert made.run() == 0 and made.kinds.count("started") == 2
    assert made.last("resumed")["fresh"] == (code == 2)


def test_what_was_lost_of_a_run_still_counts(made, trainer):
    import shutil

    trainer.codes = [130]
    made.run()
    shutil.rmtree(made.folder / made.last("started")["run"])
    made.run()
    assert [(run.seconds, run.steps_made) for run in runs_of(made.events)] == [(15.0, 15), (10.0, 10)]


def test_a_run_whose_end_nobody_recorded_is_recorded_by_the_next(made, trainer, monkeypatch):
    from parity.attempt import runner

    monkeypatch.setattr(runner, "ended", lambda *_: 1 / 0)  # killed between the trainer's end and its record
    assert made.run() == 3
    monkeypatch.undo()
    monkeypatch.setattr(runner, "train", trainer)
    assert made.kinds == ["declared", "started"]
    assert made.run() == 0
    assert made.kinds == ["declared", "started", "ended", "started", "ended"] and len(trainer.calls) == 2


def test_a_trainer_that_is_still_at_work_is_waited_for(made, trainer, capsys):
    trainer.codes = [130]
    made.run()
    path = made.folder / made.last("started")["run"]
    capsys.readouterr()
    with filelock.FileLock(path / ".lock"):
        (path / ".lock.pid").write_text("4711")
        assert made.run() == 2
    assert "still at work (pid 4711)" in capsys.readouterr().err


def test_one_run_at_a_time(made, trainer, capsys):
    with filelock.FileLock(made.folder / ".lock"):
        assert made.run() == 2
    assert "another run of this attempt is at work" in capsys.readouterr().err
    assert made.run() == 0


# What was changed since the seeds were declared


@pytest.mark.parametrize("file", ["program.py", "declaration.json"])
def test_a_change_is_refused_until_it_is_declared_anew(made, trainer, capsys, file):
    made.run()
    before = made.events[0]["seeds"]
    with open(made.folder / file, "a") as changed:
        changed.write(" \n")
    assert made.run() == 2
    said = capsys.readouterr().err
    assert (
        f"{file}: expected the file that the seeds were declared for" in said
        and "--again" in said
        and said.count("\n") == 1
    )
    assert made.run("--again") == 0
    assert made.kinds.count("declared") == 2 and len(trainer.calls) == 4
    assert not set(made.last("declared")["seeds"]) & set(before)
    assert [run.declaration for run in runs_of(made.events)] == [1, 1, 2, 2]


def test_nothing_is_declared_anew_where_nothing_has_changed(made, trainer, capsys):
    made.run()
    assert made.run("--again") == 2
    assert "nothing has changed" in capsys.readouterr().err


def test_a_change_while_runs_are_made_stops_them(made, trainer, capsys):
    trainer.before.append(lambda: (made.folder / "program.py").write_text("other = 1\n"))
    assert made.run() == 2
    assert "found them changed since" in capsys.readouterr().err and len(trainer.calls) == 1


def test_going_back_to_what_was_declared_first_makes_new_runs(made, trainer):
    text = (made.folder / "program.py").read_text()
    made.run()
    (made.folder / "program.py").write_text(text + "\n")
    made.run("--again")
    (made.folder / "program.py").write_text(text)
    assert made.run("--again") == 0
    runs = runs_of(made.events)
    assert len({run.run for run in runs}) == 6 and runs[0].seed == runs[4].seed and runs[4].run == runs[0].run + "-2"


# Tuning and the budget


def test_tuning_runs_are_counted_and_are_no_evidence(made, trainer):
    assert made.run("--tune") == made.run("--tune", "--seed", "7") == 0
    assert made.kinds == ["started", "ended"] * 2
    assert [(run.run, run.seed, run.purpose) for run in runs_of(made.events)] == [
        ("runs/tiny/tune-1-0", 0, "tune"),
        ("runs/tiny/tune-2-7", 7, "tune"),
    ]
    made.budget(runs=3)
    assert made.run() == 1
    assert made.last("stopped")["reason"] == "the budget is 3 runs, 2 were started, and 2 more are needed"


def test_an_interrupted_tuning_run_is_gone_on_with(made, trainer):
    trainer.codes = [143]
    assert made.run("--tune") == 143
    assert made.run("--tune") == 0 and made.run("--tune") == 0
    assert made.kinds == ["started", "interrupted", "resumed", "ended", "started", "ended"]


@pytest.mark.parametrize(
    ("limit", "said"),
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
def test_the_next_run_is_not_started_where_it_would_pass_the_budget(made, trainer, capsys, limit, said):
    made.budget(**limit)
    assert made.run() == 1
    assert said in capsys.readouterr().err and made.last("stopped")["reason"] == said
    assert len(trainer.calls) == 1 and made.kinds[-1] == "stopped"
    assert made.run() == 1 and len(trainer.calls) == 1


def test_a_run_that_is_gone_on_with_needs_only_the_rest_of_its_cost(made, trainer):
    made.budget(seconds=20)
    trainer.codes = [0, 130]
    assert made.run() == 130
    assert made.run() == 0


def test_steps_that_did_not_come_to_a_result_cost_what_those_of_others_do(made, trainer, capsys):
    trainer.codes = [0, 1]
    made.run()
    capsys.readouterr()
    assert main(["show", str(made.folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [run["flops"] for run in shown["runs"]] == [1e9, 0.5e9]
    assert shown["used"] == {"runs": 2, "seconds": 15.0, "steps": 15, "flops": 1.5e9}
