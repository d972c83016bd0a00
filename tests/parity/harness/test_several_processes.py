"""Runs of several processes: the numbers of one process, and what a death in any phase leaves."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_processes import free_port

from parity import weights as canonical
from parity.harness.runlog import read

BACKENDS = ("jaxrun", "torchref")
# Sums in another order: float32 rounding, 6e-8, through 60 steps of training; what was seen is below 1e-7.
LOSS = 1e-5
DYING = """
import os, signal, sys
from parity.harness import checkpoints, loop
from parity.harness.train import main

calls = {"evaluate": (loop, "evaluate", 2), "save": (checkpoints, "save", 3), "log_step": (loop, "log_step", 40)}
target, name, call = calls[sys.argv.pop(1)]
original, count = getattr(target, name), 0

def dying(*args, **options):
    global count
    count += 1
    if count == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)

setattr(target, name, dying)
sys.exit(main(sys.argv.pop(1)))
"""


class Several:
    """Starts trainers of one run as processes of their own."""

    def __init__(self, commands, folder: Path):
        self.commands, self.folder = commands, folder

    def start(
        self,
        backend: str,
        count: int,
        *args,
        dying: tuple[int, str] | None = None,
        devices: int = 1,
        torchrun: bool = False,
    ):
        env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if torchrun:
            return [
                self.commands.start(
                    "torch.distributed.run",
                    "--nproc-per-node",
                    count,
                    "--master-port",
                    free_port(),
                    "-m",
                    f"{backend}.train",
                    *args,
                    env=env,
                )
            ]
        port, processes = free_port(), []
        for rank in range(count):
            options = ["--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process", rank]
            if dying and dying[0] == rank:
                command = [sys.executable, "-c", DYING, dying[1], backend, *map(str, [*args, *options])]
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.commands.home,
                        text=True,
                        env=self.commands.env | env,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        stdin=subprocess.DEVNULL,
                    )
                )
            else:
                processes.append(self.commands.start(f"{backend}.train", *args, *options, env=env))
        return processes

    def run(self, *args, **options):
        return [self.commands.finish(process) for process in self.start(*args, **options)]

    def new(self, backend: str, count: int, name: str, *args, **options):
        small = self.commands.small(backend, self.folder, name, "--device", "cpu", *args)[1:]
        return self.folder / "tiny" / name, self.run(backend, count, *small, **options)

    def resume(self, backend: str, count: int, path: Path, *args, **options):
        return self.run(
            backend, count, "--resume", path, "--data-dir", self.commands.data, "--device", "cpu", *args, **options
        )


@pytest.fixture
def several(commands, tmp_path):
    return Several(commands, tmp_path)


def losses(path: Path) -> list[float]:
    """By step; one that ran again after a resume counts once."""
    by_step = {event["step"]: event["loss"] for event in read(path / "log.jsonl") if event["event"] == "step"}
    return [by_step[step] for step in sorted(by_step)]


def same(path: Path, other: Path) -> None:
    np.testing.assert_allclose(losses(path), losses(other), rtol=LOSS)
    ours, theirs = (canonical.load(run / "weights.safetensors") for run in (path, other))
    assert max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours) < 1e-3


@pytest.mark.parametrize(
    "backend", [pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"]
)  # jaxrun compiles again for two
def test_two_processes_make_the_run_of_one(backend, several, finished):
    path, ends = several.new(backend, 2, "two")
    assert [done.code for done in ends] == [0, 0], ends
    assert "val loss" in ends[0].out and not ends[1].out
    same(path, finished(backend).path)
    batches = [
        [e["batch"] for e in read(run / "log.jsonl") if e["event"] == "step"] for run in (path, finished(backend).path)
    ]
    assert batches[0] == batches[1]


@pytest.mark.slow
def test_torchrun_starts_the_processes(several, finished):
    path, (done,) = several.new("torchref", 2, "torchrun", torchrun=True)
    assert done.code == 0, done
    same(path, finished("torchref").path)


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """An undisturbed run of four processes, once a backend."""
    runs = {}

    def get(backend: str) -> Path:
        if backend not in runs:
            runs[backend], ends = Several(commands, tmp_path_factory.mktemp("whole")).new(backend, 4, backend)
            assert [done.code for done in ends] == [0] * 4, ends
        return runs[backend]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank, where", [(3, "log_step"), (3, "evaluate"), (3, "save"), (0, "log_step")])
def test_a_process_killed_in_any_phase_ends_the_others_and_the_run_resumes_to_the_same_numbers(
    backend, where, rank, several, whole
):
    path, ends = several.new(backend, 4, "killed", dying=(rank, where))
    others = [done for i, done in enumerate(ends) if i != rank]
    assert ends[rank].code == -9 and [done.code for done in others] == [2, 2, 2], ends
    for done in others:
        assert f"process {rank} of 4 died" in done.err and "--resume" in done.err
    assert [done.code for done in several.resume(backend, 4, path)] == [0, 0, 0, 0]
    assert losses(path)[-1] == losses(whole(backend))[-1]
    assert (path / "weights.safetensors").read_bytes() == (whole(backend) / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def saved(commands, tmp_path_factory):
    """A run of four processes that was cut off, once a backend."""
    runs = {}

    def get(backend: str) -> Path:
        if backend not in runs:
            runs[backend], ends = Several(commands, tmp_path_factory.mktemp("saved")).new(
                backend, 4, backend, dying=(1, "log_step")
            )
            assert [done.code for done in ends] == [2, -9, 2, 2], ends
        return runs[backend]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_four_saved_any_number_goes_on_with(backend, count, several, saved, finished, tmp_path):
    path = shutil.copytree(saved(backend), tmp_path / "tiny" / "copy")
    ends = (
        several.resume(backend, 1, path, devices=8)
        if backend == "jaxrun" and count == 8
        else several.resume(backend, count, path)
    )
    assert [done.code for done in ends] == [0] * len(ends), ends
    same(path, finished(backend).path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_with_another_recipe_is_found_before_the_first_step(backend, several):
    port, small = free_port(), several.commands.small(backend, several.folder, "other", "--device", "cpu")
    options = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process"]
    processes = [
        several.commands.start(*small, *options, 0),
        several.commands.start(*small, "--muon-rate", "0.5", *options, 1),
    ]
    for done in map(several.commands.finish, processes):
        assert (
            done.code == 2
            and "process 1 of 2 has another muon_rate (recipe) than process 0: expected 0.025, found 0.5" in done.err
        )
    assert not (several.folder / "tiny").exists()
