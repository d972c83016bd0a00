"""Attempts with real trainers: templates are the recipes, a killed `run` has declared, an interrupted one continues."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity.attempt.command import main
from parity.declaration.record import read_record, runs_of
from parity.program_source import program_source

TEMPLATES = Path(__file__).parents[3] / "parity" / "attempt" / "templates"
CASES = [
    pytest.param("jaxrun", "muon", marks=pytest.mark.slow),
    ("torchref", "muon"),
    pytest.param("jaxrun", "nanogpt", marks=pytest.mark.slow),
    pytest.param("torchref", "nanogpt", marks=pytest.mark.slow),
]


@pytest.fixture
def small(commands, tmp_path):
    """Makes the folder of an attempt whose runs are the small runs of the other tests."""

    def make(backend="torchref", recipe="muon", *more, runs=1):
        folder = tmp_path / "attempt"
        assert (
            main(["new", str(folder), "--backend", backend, "--from", recipe, "--track", "tiny", "--runs", str(runs)])
            == 0
        )
        if (folder / "program.py").exists():  # compiled, it would take a minute to start
            (folder / "program.py").write_text(program_source(backend, recipe))
        small_run = commands.small(backend, tmp_path, "x")
        path = folder / "declaration.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text()) | {"arguments": [*small_run[3 : small_run.index("--data-dir")], *more]}
            )
        )
        return folder

    return make


@pytest.mark.parametrize(("backend", "recipe"), CASES)
def test_a_new_attempt_passes_its_test_and_is_the_recipe(small, commands, pool, finished, backend, recipe):
    folder = small(backend, recipe)
    tested = pool.submit(commands.run, "pytest", "-q", "-p", "no:cacheprovider", folder)
    result = commands.run("parity.attempt", "run", folder, "--tune", "--data-dir", commands.data)
    assert result.code == 0, result.err
    assert (
        "mine on tiny" in result.out
        and "tune-1-0 " in result.out
        and "parity.attempt run" in result.out.splitlines()[-1]
    )
    weights, expected = (
        path / "weights.safetensors" for path in (folder / "runs/tiny/tune-1-0", finished(backend, recipe).path)
    )
    assert weights.read_bytes() == expected.read_bytes()
    assert "2 passed" in tested.result().out


@pytest.mark.slow
def test_an_interrupted_attempt_goes_on_where_it_was_stopped(small, commands):
    folder = small()
    process = commands.start(
        "parity.attempt", "run", folder, "--json", "--data-dir", commands.data, start_new_session=True
    )
    while process.poll() is None and b'"event":"phase"' not in b"".join(
        p.read_bytes() for p in folder.glob("runs/*/*/log.jsonl")
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    result = commands.finish(process)
    assert result.code == 130 and "was stopped, and that is recorded; continue with\n" in result.err
    assert json.loads(result.out.splitlines()[-1])["runs"][0]["state"] == "interrupted"
    log = next(folder.glob("runs/tiny/*/log.jsonl"))
    assert b'"event":"interrupt"' in log.read_bytes()  # it was asked once, and stopped in order
    result = commands.run(
        "parity.attempt", "run", folder, "--json", "--data-dir", os.path.relpath(commands.data, commands.home)
    )
    assert result.code == 0, result.err
    assert [event["event"] for event in read_record(folder / "attempt.jsonl")] == [
        "declared",
        "started",
        "interrupted",
        "resumed",
        "ended",
    ]
    (attempt,) = runs_of(read_record(folder / "attempt.jsonl"))
    assert attempt.val_loss < 6 and attempt.steps == 60 and attempt.flops > 1e8 and attempt.exit_code == 0
    assert "mine on tiny" in Path(f"{folder / attempt.run}.txt").read_text()


KILLED = """
import os, signal, sys
from parity.attempt import trainer
from parity.attempt.command import main
trainer.subprocess.Popen = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_a_run_that_is_killed_has_declared_its_seeds(attempt, trainer):
    process = subprocess.run(
        [sys.executable, "-c", KILLED, "run", str(attempt.folder)], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert attempt.kinds == ["declared", "started"]
    assert attempt.run() == 0  # the lock has fallen
    assert attempt.kinds == ["declared", "started", "interrupted", "resumed", "ended", "started", "ended"]
    assert attempt.events[3]["fresh"] and trainer.calls[0][-1] == Path(attempt.events[1]["run"]).name


def test_what_the_trainer_refuses_is_told(small, commands):
    folder = small()
    (folder / "program.py").write_text("build = 1 +\n")
    result = commands.run("parity.attempt", "run", folder, "--json", "--data-dir", commands.data)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "the trainer cannot make this run: error: program.py, line 1: its import raised SyntaxError" in result.err
    assert [event["event"] for event in read_record(folder / "attempt.jsonl")] == ["declared", "started", "ended"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_the_optimizer_templates_are_the_recipes(commands, finished, tmp_path, backend):
    folder = tmp_path / "attempt"
    assert main(["new", str(folder), "--backend", backend, "--track", "pocket-optimizer"]) == 0
    assert "1 passed" in commands.run("pytest", "-q", "-p", "no:cacheprovider", folder).out
    shutil.copy(TEMPLATES / f"{backend}_optimizer.py", tmp_path / "optimizer.py")
    result = commands.run(*commands.small(backend, tmp_path, "own", "--optimizer", "optimizer:make"), cwd=tmp_path)
    assert result.code == 0, result.err
    expected = finished(backend).path / "weights.safetensors"
    assert (tmp_path / "tiny/own/weights.safetensors").read_bytes() == expected.read_bytes()
