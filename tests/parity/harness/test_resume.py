"""A run that is stopped in any way continues from its checkpoint, and ends as if nothing had happened."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from parity.formats import chain_log, run_log
from parity.harness.runlog import read

BACKENDS = ("jaxrun", "torchref")
LONG_IN_JAX = [pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"]
STOPS = [
    pytest.param("jaxrun", signal.SIGINT),
    pytest.param("torchref", signal.SIGTERM),
    pytest.param("jaxrun", signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("torchref", signal.SIGINT, marks=pytest.mark.slow),
]

# The optimizers count their own steps, so that a warm-up, which is undone, does not count.
OWN = {
    "jaxrun": """
import jax, jax.numpy as jnp, optax
from jax.experimental import io_callback
LAST = {last}
def check(count):
    if count == LAST:
        raise ValueError("this optimizer has had enough")
def make(recipe):
    adam = optax.adam(1e-3)
    def update(grads, state, params):
        io_callback(check, None, state[1])
        updates, inner = adam.update(grads, state[0], params)
        scale = {scale}
        return jax.tree.map(lambda u: u * scale, updates), (inner, state[1] + 1)
    return optax.GradientTransformation(lambda params: (adam.init(params), jnp.zeros((), jnp.int32)), update)
""",
    "torchref": """
import torch
class Own(torch.optim.Adam):
    def step(self, closure=None):
        taken = max((int(s["step"]) for s in self.state.values()), default=0)
        if taken == {last}:
            raise ValueError("this optimizer has had enough")
        super().step(closure)
        scale = {scale}
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data *= scale
def make(recipe, parameters):
    return Own(parameters.values(), lr=1e-3)
""",
}


def write_own(folder: Path, backend: str, last: int = -1, scale: str = "1.0") -> Path:
    """Writes mymodule.py with an optimizer of the backend that fails at step `last`; returns its folder."""
    (folder / "mymodule.py").write_text(OWN[backend].format(last=last, scale=scale))
    return folder


def wait_for(path: Path, process: subprocess.Popen, found: Callable[[list[bytes]], bool]) -> None:
    """Returns when the whole lines of a log are what is waited for, or the process has ended."""
    while process.poll() is None:
        if path.exists() and found(path.read_bytes().split(b"\n")[:-1]):
            return
        time.sleep(0.002)


def has_step(step: int) -> Callable[[list[bytes]], bool]:
    return lambda lines: any(b'"event":"step"' in line and json.loads(line)["step"] >= step for line in lines)


def kinds(path: Path) -> list[str]:
    return [event["event"] for event in read(path / "log.jsonl")]


def by_step(path: Path, field: str) -> dict[int, Any]:
    """A field of every step; of a step that ran twice, the last."""
    return {event["step"]: event[field] for event in read(path / "log.jsonl") if event["event"] == "step"}


def assert_same(path: Path, whole: Path) -> None:
    """The run ended with the losses, batches, val losses and weights of an uninterrupted one, bit for bit."""
    assert chain_log.scan(path / "log.jsonl", run_log.FORMAT, run_log.field_problem).lines
    for field in ("loss", "grad_norm", "batch", "tokens"):
        assert by_step(path, field) == by_step(whole, field)
    evaluations = [
        {e["step"]: e["val_loss"] for e in read(p / "log.jsonl") if e["event"] == "eval"} for p in (path, whole)
    ]
    assert evaluations[0] == evaluations[1]
    assert (path / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stopped(commands: Any, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """For each backend and signal: how a run ended that got the signal after some steps, a copy of its directory at
    that moment, and the directory after it was resumed."""
    runs = tmp_path_factory.mktemp("stopped")

    def stop_and_resume(backend: str, number: signal.Signals) -> tuple[Any, Path, Any, Path]:
        path = runs / "tiny" / f"{backend}-{number.name}"
        process = commands.start(*commands.small(backend, runs, path.name))
        wait_for(path / "log.jsonl", process, has_step(4))
        process.send_signal(number)
        done = commands.finish(process)
        then = runs / f"then-{path.name}"
        shutil.copytree(path, then)
        return done, then, commands.resume(path, backend=backend), path

    futures: dict[Any, Future] = {}

    def get(backend: str, number: signal.Signals) -> tuple[Any, Path, Any, Path]:
        for key in [(backend, number)] if futures else [(backend, number), ("torchref", signal.SIGTERM)]:
            futures.setdefault(key, pool.submit(stop_and_resume, *key))
        return futures[backend, number].result()

    return get


@pytest.mark.parametrize(("backend", "number"), STOPS)
def test_a_signal_ends_the_run_with_its_exit_code_a_checkpoint_and_the_command_to_go_on(backend, number, stopped):
    done, then, _, path = stopped(backend, number)
    assert done.code == 128 + number
    assert "stopping after this step" in done.err and "\ninterrupted: " in done.err
    assert f"python -m {backend}.train --resume {path}" in done.err
    events = list(read(then / "log.jsonl"))
    step = events[-1]["step"]
    assert (events[-1]["event"], events[-1]["signal"]) == ("interrupt", number)
    assert 4 < step < 60 and [e["step"] for e in events if e["event"] == "step"] == list(range(step))
    assert (then / "checkpoints" / f"step-{step:06d}" / "checkpoint.json").exists()


@pytest.mark.parametrize(("backend", "number"), STOPS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(backend, number, stopped, finished):
    *_, done, path = stopped(backend, number)
    assert (done.code, done.err) == (0, "")
    assert_same(path, finished(backend).path)


@pytest.mark.parametrize(("backend", "number"), STOPS)
def test_the_log_of_a_resumed_run_only_grows_and_its_training_time_goes_on(backend, number, stopped):
    _, then, _, path = stopped(backend, number)
    assert (path / "log.jsonl").read_bytes().startswith((then / "log.jsonl").read_bytes())
    assert kinds(path)[len(kinds(then))] == "resume"
    steps = [event for event in read(path / "log.jsonl") if event["event"] == "step"]
    times = [event["train_s"] for event in steps]
    assert times == sorted(times)
    assert sum(event["step_s"] for event in steps) == pytest.approx(times[-1], abs=1e-9)


def lines_of(path: Path) -> int:
    return (path / "log.jsonl").read_bytes().count(b"\n") if path.exists() else 0


def is_finished(path: Path) -> bool:
    return b'"event":"finish"' in (path / "log.jsonl").read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]


def killed(commands: Any, backend: str, runs: Path, times: int, seed: int) -> list[Path]:
    """Finished runs, of which one after the other was killed at random moments, so many times in all, and resumed."""
    rng = random.Random(seed)
    paths: list[Path] = []
    while times or not is_finished(paths[-1]):
        if not paths or is_finished(paths[-1]):
            paths.append(runs / "tiny" / f"{backend}-{seed}-{len(paths)}")
        path = paths[-1]
        start = (
            [f"{backend}.train", "--resume", path, "--data-dir", commands.data]
            if lines_of(path)
            else commands.small(backend, runs, path.name)
        )
        process = commands.start(*start)
        if times:
            until = lines_of(path) + rng.randrange(1, 60)  # a log of a whole run has about 110
            wait_for(path / "log.jsonl", process, lambda lines, until=until: len(lines) >= until)
            time.sleep(rng.random() * 0.05)
            process.kill()
            times -= 1
        done = commands.finish(process)
        assert done.code in (0, -signal.SIGKILL), f"kills of seed {seed}: {done.err}"
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("backend", LONG_IN_JAX)
def test_a_run_killed_at_random_moments_equals_the_uninterrupted_one(backend, commands, finished, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    for path in killed(commands, backend, tmp_path, 2, seed):
        assert_same(path, finished(backend).path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_killed_ten_times_equals_the_uninterrupted_one(backend, seed, commands, finished, tmp_path):
    for path in killed(commands, backend, tmp_path, 10, seed):
        assert_same(path, finished(backend).path)


@pytest.fixture
def cut(copied: Callable[..., Any]) -> Callable[[str], Path]:
    """A run as it was after step 35: the log ends there, checkpoints 0, 15 and 30 are there."""

    def make(backend: str) -> Path:
        path = copied(backend).path
        lines = (path / "log.jsonl").read_bytes().splitlines(keepends=True)
        last = next(i for i, line in enumerate(lines) if has_step(35)([line]))
        (path / "log.jsonl").write_bytes(b"".join(lines[: last + 1]))
        for name in ("checkpoints/step-000045", "checkpoints/step-000060"):
            shutil.rmtree(path / name)
        (path / "weights.safetensors").unlink()
        return path

    return make


def test_a_torn_last_line_is_dropped_and_a_half_written_checkpoint_removed(commands, finished, cut):
    path = cut("torchref")
    log = path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    (path / "checkpoints" / ".step-000045.partial").mkdir()
    (path / "checkpoints" / ".step-000045.partial" / "state.pt").write_bytes(b"half")
    done = commands.resume(path, backend="torchref")
    assert done.code == 0
    assert kinds(path).count("torn_line_dropped") == 1
    assert not list(path.glob("checkpoints/.*"))
    assert_same(path, finished("torchref").path)


def test_a_run_killed_before_its_first_checkpoint_makes_all_of_them(commands, finished, cut):
    path = cut("torchref")
    lines = (path / "log.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"event":"eval"' in line)
    (path / "log.jsonl").write_bytes(b"".join(lines[: first + 1]))
    for folder in (path / "checkpoints").iterdir():
        shutil.rmtree(folder)
    assert commands.resume(path, backend="torchref").code == 0
    assert [p.name for p in sorted((path / "checkpoints").iterdir())] == [f"step-{n:06d}" for n in (0, 15, 30, 45, 60)]
    assert_same(path, finished("torchref").path)


@pytest.fixture(scope="module")
def crashed(commands: Any, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """For each backend: a run whose optimizer raises at step 20, resumed unchanged (torchref), then with it fixed."""

    def crash(backend: str) -> tuple[list[Any], Path]:
        folder = write_own(tmp_path_factory.mktemp(backend), backend, last=20)
        path = folder / "tiny" / "crash"
        first = commands.run(*commands.small(backend, folder, "crash", "--optimizer", "mymodule:make"), cwd=folder)
        again = (
            commands.resume(path, backend=backend, cwd=folder) if backend == "torchref" else None
        )  # JAX compiles again
        write_own(folder, backend)
        return [first, again, commands.resume(path, backend=backend, cwd=folder)], path

    futures: dict[str, Future] = {}

    def get(backend: str) -> tuple[list[Any], Path]:
        if backend not in futures:
            futures[backend] = pool.submit(crash, backend)
        return futures[backend].result()

    return get


@pytest.mark.slow
@pytest.mark.parametrize("backend", LONG_IN_JAX)
def test_a_crash_of_user_code_ends_with_exit_code_1_and_can_be_resumed_once_it_is_fixed(backend, crashed):
    (first, again, fixed), path = crashed(backend)
    assert (first.code, again.code if again else 1, fixed.code) == (1, 1, 0)
    assert "this optimizer has had enough" in first.err and first.err.rstrip().splitlines()[-1].startswith("failed: ")
    assert "the last good checkpoint is" in first.err
    failures = [event for event in read(path / "log.jsonl") if event["event"] == "failure"]
    assert len(failures) == (2 if again else 1) and "this optimizer has had enough" in failures[0]["reason"]
    assert sorted(by_step(path, "loss")) == list(range(60))


@pytest.mark.parametrize("backend", LONG_IN_JAX)
def test_an_own_optimizer_trains_and_is_packed_with_the_run(backend, crashed):
    (*_, fixed), path = crashed(backend)
    losses = by_step(path, "loss")
    assert "val loss" in fixed.out and losses[59] < losses[0] - 0.1
    with zipfile.ZipFile(path / "source.zip") as archive:
        assert b"this optimizer has had enough" in archive.read("mymodule.py")


def test_an_infinite_update_ends_the_run_with_the_step_and_the_last_good_checkpoint(commands, tmp_path):
    folder = write_own(tmp_path, "torchref", scale='float("inf") if taken == 20 else 1.0')
    done = commands.run(*commands.small("torchref", folder, "nan", "--optimizer", "mymodule:make"), cwd=folder)
    path = folder / "tiny" / "nan"
    assert done.code == 1
    assert done.err.startswith("failed: the loss is nan at step 21; ")
    assert str(path / "checkpoints" / "step-000015") in done.err and len(done.err.splitlines()) == 1
    last = list(read(path / "log.jsonl"))[-1]
    assert (last["event"], last["step"]) == ("failure", 21)


def test_weights_that_are_not_finite_are_never_saved(commands, tmp_path):
    folder = write_own(tmp_path, "jaxrun", scale="jnp.where(state[1] == 14, jnp.inf, 1.0)")
    done = commands.run(*commands.small("jaxrun", folder, "inf", "--optimizer", "mymodule:make"), cwd=folder)
    assert done.code == 1 and done.err.startswith("failed: the weights are not finite at step 14; ")
    assert [path.name for path in (folder / "tiny" / "inf" / "checkpoints").iterdir()] == ["step-000000"]


@pytest.mark.parametrize("backend", ["jaxrun", pytest.param("torchref", marks=pytest.mark.slow)])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_harms_nothing(backend, commands, finished, tmp_path):
    path = tmp_path / "tiny" / "full"
    process = commands.start(*commands.small(backend, tmp_path, "full"))
    wait_for(path / "log.jsonl", process, lambda lines: any(b'"event":"state"' in line for line in lines))
    # Before anything is compiled, since sixty steps are over at once. By step 15, the first checkpoint that can meet
    # the limit, the log has some 14,000 bytes (and 50,000 at its end); a checkpoint has at least the embedding, 60,000,
    # in one file.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    done = commands.finish(process)
    assert done.code == 2
    reason = r"cannot be written \(File too large\), and nothing of it was kept: raise the limit .*\n"
    sentence = rf"error: {re.escape(str(path))}/checkpoints/step-\d{{6}}: {reason}"
    assert re.fullmatch(sentence, done.err), done.err
    assert commands.resume(path, backend=backend).code == 0
    assert_same(path, finished(backend).path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB in memory."""
    mount = tmp_path / "disk"
    mount.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, check=False)
        if os.geteuid() == 0 and shutil.which("mount")
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user has not got")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_run_on_a_full_disk_keeps_what_it_saved_and_goes_on_when_there_is_room(commands, finished, small_disk):
    path = small_disk / "tiny" / "full"
    done = commands.run(*commands.small("torchref", small_disk, "full"))
    assert done.code == 2
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert commands.resume(path, backend="torchref").code == 0
    assert_same(path, finished("torchref").path)
