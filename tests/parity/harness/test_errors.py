"""Bad input, one mistake a test, in real processes: exit code 2, one line on stderr, and nothing left behind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity.harness.rundir import open_existing


def assert_refused(done: Any, *parts: str) -> None:
    """The process ended with exit code 2 and one line that begins with `error:` and has these parts."""
    assert done.code == 2, done.err
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("backend", "args", "parts"),
    [
        ("jaxrun", ["--track", "tinny"], ["unknown track 'tinny'", "did you mean tiny?"]),
        ("torchref", ["--recipe", "nanogtp"], ["unknown recipe 'nanogtp'", "did you mean nanogpt?"]),
        ("jaxrun", ["--stesp", "3"], ["unknown option --stesp", "did you mean --steps?"]),
        ("torchref", ["--steps", "3.5"], ["--steps"]),
        ("jaxrun", ["--track", "medium"], ["track medium has a public history but no recipe yet"]),
        (
            "jaxrun",
            ["--track", "pocket-optimizer", "--dim", "64"],
            ["track pocket-optimizer fixes --dim at 128, found 64"],
        ),
        ("torchref", ["--batch-tokens", "100"], ["--batch-tokens must be a multiple of context 32", "found 100"]),
        ("jaxrun", ["--steps", "4000"], ["slice synthetic", "4,000 steps", "2,048,000 tokens", "plan fewer steps"]),
        ("torchref", ["--tokenizer-size", "500"], ["slice synthetic has a vocabulary of 512", "--tokenizer-size 500"]),
        (
            "jaxrun",
            ["--context", "24", "--batch-tokens", "48"],
            ["--context 24 does not divide the track's 8,192 val tokens"],
        ),
        ("jaxrun", ["--device", "gpu"], ["--device gpu", "--device cpu"]),
        ("torchref", ["--device", "gpu"], ["--device gpu", "--device cpu"]),
        ("jaxrun", ["--devices", "99"], ["--devices 99: expected 1 to 1"]),
        ("torchref", ["--devices", "99"], ["--devices 99: expected 1"]),
        ("jaxrun", ["--optimizer", "mymodule"], ["--optimizer mymodule: expected module:function"]),
        ("torchref", ["--optimizer", "nosuchmodule:make"], ["no module nosuchmodule on the import path"]),
        ("jaxrun", ["--optimizer", "json:laods"], ["has no function 'laods'", "did you mean loads?"]),
        (
            "jaxrun",
            ["--optimizer", "parity.recipes:to_fields"],
            ["expected an optax.GradientTransformation, or that", "found dict"],
        ),
        ("torchref", ["--optimizer", "operator:is_not"], ["expected a torch.optim.Optimizer", "found bool"]),
        ("torchref", ["--name", "../out"], ["a run cannot be named '../out'"]),
    ],
)
def test_a_mistake_is_answered_before_a_run_directory_is_made(backend, args, parts, commands, tmp_path):
    assert_refused(commands.run(*commands.small(backend, tmp_path / "runs", "refused", *args)), *parts)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_batch_must_divide_over_the_devices(commands, tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = commands.run(*commands.small("jaxrun", tmp_path / "runs", "refused", "--batch-tokens", "64"), env=env)
    assert_refused(done, "--batch-tokens 64 is 2 rows of 32, which 4 devices do not divide")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_four_devices_train_as_one_does(commands, finished, tmp_path):
    """The same sums in another order: float32 rounding, grown over few steps."""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = commands.run(*commands.small("jaxrun", tmp_path, "four"), env=env)
    assert done.code == 0, done.err
    whole = [event["loss"] for event in finished("jaxrun").events("step")]
    losses = [event["loss"] for event in type(finished("jaxrun"))(tmp_path / "tiny" / "four", done).events("step")]
    assert losses[:10] == pytest.approx(whole[:10], abs=1e-4)


def test_tensorboard_must_be_installed_before_the_run_starts(commands, tmp_path):
    """A finder in front of the others hides the package, as if it were not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'tensorboard' else find(name, package)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{commands.env['PYTHONPATH']}"}
    done = commands.run(*commands.small("torchref", tmp_path / "runs", "refused", "--tensorboard"), env=env)
    assert_refused(done, "--tensorboard needs the package tensorboard: pip install 'jaxrun[tensorboard]'")
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_said_so(commands, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert_refused(commands.run(*commands.small("torchref", tmp_path / "runs", "x")), "cannot be made", "--runs")


def test_a_run_is_never_overwritten(commands, finished):
    path = finished("torchref").path
    before = (path / "log.jsonl").read_bytes()
    assert_refused(commands.run(*commands.small("torchref", path.parents[1], path.name)), f"{path} exists", "--resume")
    assert (path / "log.jsonl").read_bytes() == before


@pytest.fixture
def cut(copied: Callable[..., Any]) -> Callable[[str], Path]:
    """A run that was not finished: its last checkpoint is that of step 30."""

    def make(backend: str) -> Path:
        path = copied(backend).path
        lines = (path / "log.jsonl").read_bytes().splitlines(keepends=True)
        last = next(i for i, line in enumerate(lines) if b'"event":"checkpoint"' in line and b'"step":30' in line)
        (path / "log.jsonl").write_bytes(b"".join(lines[: last + 1]))
        for name in ("checkpoints/step-000045", "checkpoints/step-000060"):
            shutil.rmtree(path / name)
        (path / "weights.safetensors").unlink()
        return path

    return make


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits a JSON file."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_a_finished_run_is_not_resumed(commands, copied):
    path = copied("torchref").path
    assert_refused(commands.resume(path, backend="torchref"), f"{path} is finished")


def test_a_run_is_resumed_by_its_own_backend(commands, cut):
    path = cut("torchref")
    assert_refused(commands.resume(path, backend="jaxrun"), f"python -m torchref.train --resume {path}")


def test_a_live_run_is_not_resumed(commands, cut):
    path = cut("torchref")
    with open_existing(path, lock=True):
        assert_refused(commands.resume(path, backend="torchref"), f"{path} is locked by a live run", "wait for it")


def test_options_of_the_run_cannot_be_changed_by_a_resume(commands, cut):
    assert_refused(
        commands.resume(cut("torchref"), "--steps", "80", backend="torchref"), "--steps cannot be given with --resume"
    )


def test_no_run_is_resumed_where_there_is_none(commands, tmp_path):
    assert_refused(commands.resume(tmp_path / "nothing", backend="jaxrun"), "is not a run directory", "found nothing")


def test_a_checkpoint_of_another_recipe_is_refused(commands, cut):
    path = cut("torchref")
    change(path / "run.json", lambda run: run["recipe"]["fields"].update(muon_rate=0.5))
    assert_refused(commands.resume(path, backend="torchref"), "step-000030: this checkpoint is of another recipe")


def test_a_checkpoint_of_another_version_is_refused(commands, cut):
    path = cut("torchref")
    change(path / "checkpoints" / "step-000030" / "checkpoint.json", lambda facts: facts.update(schema="checkpoint.v9"))
    assert_refused(commands.resume(path, backend="torchref"), "expected schema checkpoint.v1", "checkpoint.v9")


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_resumes(backend, commands, cut, finished):
    path = cut(backend)
    newest = path / "checkpoints" / "step-000030"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    assert_refused(commands.resume(path, backend=backend), str(largest), "expected sha256", "remove its folder")
    shutil.rmtree(newest)
    assert commands.resume(path, backend=backend).code == 0
    assert (path / "weights.safetensors").read_bytes() == (finished(backend).path / "weights.safetensors").read_bytes()


def test_an_edited_log_is_not_continued(commands, cut):
    path = cut("torchref")
    log = path / "log.jsonl"
    log.write_text(re.sub(r'"loss":6', '"loss":5', log.read_text(), count=1))
    assert_refused(commands.resume(path, backend="torchref"), f"{log} line ", "expected prev")


def test_a_sample_needs_a_finished_run(commands, cut):
    done = commands.run("jaxrun.sample", cut("torchref"), "--data-dir", commands.data)
    assert_refused(done, "weights.safetensors: no weights here", "--resume")
