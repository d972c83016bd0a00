"""Checkpoints between the plan's, what a crash loses, and freeing the disk of runs."""

import os
import re
import shutil

import pytest

from parity.attempt.prune import prune
from parity.errors import InputError
from parity.harness.options import parse, saving_interval
from parity.harness.runlog import read
from parity.verify.run import Settings, verify_run

OPTIMIZER = """import os
import torch


class Own(torch.optim.Adam):
    def step(self, closure=None):
        if os.path.exists(os.path.join(os.path.dirname(__file__), "crash")):
            if max((int(s["step"]) for s in self.state.values()), default=0) == 40:
                raise ValueError("enough")
        super().step()


def make(recipe, weights):
    return Own(weights.values(), lr=1e-3)
"""


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_crash_loses_the_steps_since_the_last_save_and_says_how_many(commands, tmp_path):
    (tmp_path / "own.py").write_text(OPTIMIZER)
    (tmp_path / "crash").touch()
    args = ("--optimizer", "own:make", "--save-every", "7", "--samples", "0")
    done = commands.run(*commands.small("torchref", tmp_path, "r", *args), cwd=tmp_path)
    run = tmp_path / "tiny" / "r"
    assert done.code == 1 and re.search(r"checkpoint is \S+step-000035, 5 steps before", done.err), done.err
    assert names(run) == [f"step-{step:06d}" for step in (0, 15, 30, 35)]  # of those between, the newest
    (tmp_path / "crash").unlink()
    done = commands.resume(run, backend="torchref", cwd=tmp_path)
    assert done.code == 0 and "step-000035: 4 steps logged after it are lost, and are trained again" in done.out, (
        done.err
    )
    assert names(run) == [f"step-{step:06d}" for step in (0, 15, 30, 45, 60)]
    verdict = verify_run(run, Settings("data", commands.data))
    assert verdict.status == "holds", verdict.table()


@pytest.mark.slow
def test_seconds_of_training_are_an_interval_too(commands, tmp_path):
    done = commands.run(*commands.small("torchref", tmp_path, "r", "--save-every", "0.001s", "--samples", "0"))
    assert done.code == 0, done.err
    saved = {event["step"] for event in read(tmp_path / "tiny/r/log.jsonl") if event["event"] == "checkpoint"}
    assert len(saved) > 5 and len(names(tmp_path / "tiny/r")) == 5


@pytest.mark.parametrize(
    "text, expected",
    [("100", (100, None)), ("30s", (None, 30.0)), ("1.5m", (None, 90.0)), ("2h", (None, 7200.0)), (None, (None, None))],
)
def test_intervals_are_steps_or_durations(text, expected):
    assert saving_interval(text) == expected


@pytest.mark.parametrize("text", ["0", "-5", "5 minutes", "1.5", "0s", "m", "", "5d", "nan", "1e3"])
def test_other_intervals_are_refused(text):
    with pytest.raises(InputError, match="expected steps, as in 100, or training time"):
        parse("torchref", ["--track", "tiny", f"--save-every={text}"])


def test_pruning_keeps_what_a_verdict_needs_and_says_what_it_freed(copied, tmp_path, capsys, commands):
    run = copied("torchref").path
    for extra in ("step-000007", "step-000052", ".step-000053.partial"):
        shutil.copytree(run / "checkpoints/step-000015", run / "checkpoints" / extra)
    before = names(run)
    prune([run], dry_run=True)
    assert "would remove 3 checkpoints" in capsys.readouterr().out and names(run) == before
    prune([tmp_path])  # the runs below it
    assert re.search(r"removed 3 checkpoints, \d+ MB; kept 5, \d+ MB, for verifying", capsys.readouterr().out)
    assert verify_run(run, Settings("data", commands.data)).status == "holds"
    prune([run], every=True)
    assert "kept none" in capsys.readouterr().out and names(run) == []
    assert verify_run(run, Settings("log", commands.data)).status == "holds"


def test_an_unfinished_run_keeps_its_newest_checkpoint(copied, capsys):
    run = copied("torchref").path
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(log[:-1]))
    os.rename(run / "checkpoints/step-000060", run / "checkpoints/step-000050")
    os.rename(run / "checkpoints/step-000045", run / "checkpoints/step-000044")
    prune([run])
    assert "removed 1 checkpoints" in capsys.readouterr().out and names(run)[-1] == "step-000050"
    with pytest.raises(InputError, match="expected a finished run for --every"):
        prune([run], every=True)


@pytest.mark.parametrize("where", ["nothing", "empty", "live"])
def test_what_is_no_run_or_is_live_is_refused(copied, tmp_path, where):
    if where == "live":
        from parity.harness.rundir import open_existing

        run = copied("torchref").path
        with open_existing(run, lock=True), pytest.raises(InputError, match="a live run"):
            prune([run])
        return
    folder = tmp_path / where
    if where == "empty":
        folder.mkdir()
    with pytest.raises(InputError, match="is not a run directory"):
        prune([folder])
