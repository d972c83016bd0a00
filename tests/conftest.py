"""For all tests: a data folder, the commands as real processes, and small runs that are trained once a session."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from parity.data.slices import Slice, open_slice, prepare
from parity.harness.runlog import read

ROOT = Path(__file__).parents[1]
# 60 steps of 512 tokens cross the end of the first shard of `synthetic`, which has 30,000.
SMALL = (
    "--layers",
    "1",
    "--dim",
    "32",
    "--head-dim",
    "16",
    "--context",
    "32",
    "--batch-tokens",
    "512",
    "--steps",
    "60",
    "--val-every",
    "30",
    "--final-val-every",
    "30",
)
TIMEOUT_S = 300


class Done(NamedTuple):
    """How a process ended, and its output."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Finished:
    """A run directory, and how its process ended."""

    path: Path
    done: Done

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The log's events of a kind, or all of them."""
        return [event for event in read(self.path / "log.jsonl") if kind in (None, event["event"])]

    def state_digest(self, name: str) -> str:
        """The digest that the log gives for a named state."""
        return next(event["digest"] for event in self.events("state") if event["name"] == name)


@dataclass(frozen=True)
class Commands:
    """Starts the project's commands as processes of their own, without a GPU, on the session's data folder."""

    home: Path
    data: Path
    env: dict[str, str]

    def start(
        self, *args: Any, cwd: Path | None = None, env: dict[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen:
        """Starts `python -m args...`; its output is piped unless `popen` says otherwise."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, args)],
            cwd=cwd or self.home,
            text=True,
            env=self.env | (env or {}),
            **(streams | popen),
        )

    def run(self, *args: Any, **start: Any) -> Done:
        """Runs `python -m args...` to its end."""
        return self.finish(self.start(*args, **start))

    def finish(self, process: subprocess.Popen) -> Done:
        """Waits for a process and reads its output."""
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
        # Tests run two processes at a time, and one may wait for the other to have checked the slice.
        lines = [line for line in (err or "").splitlines(keepends=True) if not line.startswith("another process (")]
        return Done(process.returncode, out, "".join(lines))

    def small(self, backend: str, runs: Path, name: str, *args: Any) -> list[Any]:
        """Arguments of a run of seconds on track tiny, whose directory will be `runs`/tiny/`name`."""
        return [
            f"{backend}.train",
            "--track",
            "tiny",
            *SMALL,
            "--data-dir",
            self.data,
            "--runs",
            runs,
            "--name",
            name,
            *args,
        ]

    def resume(self, path: Path, *args: Any, backend: str, **start: Any) -> Done:
        """Continues a run to its end."""
        return self.run(f"{backend}.train", "--resume", path, "--data-dir", self.data, *args, **start)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    home = tmp_path_factory.mktemp("commands")
    prepare("synthetic", home / "data")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX", "COLUMNS"))}
    env |= {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",  # several processes share the cores, and OpenMP's threads wait by spinning
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
    }
    return Commands(home, home / "data", env)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """The environment of a process whose file system is as a cluster's: shim(FLOCK=errno.ENOSYS, BELOW=folder), ..."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to make the file system's shim with")
    library = tmp_path_factory.mktemp("shim") / "file_system.so"
    source = ROOT / "tests/shims/file_system.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)

    def environment(**variables: Any) -> dict[str, str]:
        return {"LD_PRELOAD": str(library)} | {f"SHIM_{name}": str(value) for name, value in variables.items()}

    return environment


@pytest.fixture(scope="session")
def synthetic(commands: Commands) -> Slice:
    return open_slice("synthetic", commands.data)


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two processes at a time: what a small machine has cores for."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def finished(commands: Commands, pool: ThreadPoolExecutor) -> Callable[[str, str], Finished]:
    """A finished small run of a backend and a recipe, not to be changed; all four are trained at the first use."""
    futures: dict[tuple[str, str], Future[Done]] = {}
    runs = commands.home / "runs"

    def get(backend: str, recipe: str = "muon") -> Finished:
        for key in () if futures else [(b, r) for r in ("muon", "nanogpt") for b in ("jaxrun", "torchref")]:
            futures[key] = pool.submit(commands.run, *commands.small(key[0], runs, "-".join(key), "--recipe", key[1]))
        return Finished(runs / "tiny" / f"{backend}-{recipe}", futures[backend, recipe].result())

    return get


@pytest.fixture
def copied(finished: Callable[[str, str], Finished], tmp_path: Path) -> Callable[..., Finished]:
    """A copy of a finished run that a test may change."""

    def copy(backend: str, recipe: str = "muon") -> Finished:
        original = finished(backend, recipe)
        shutil.copytree(original.path, tmp_path / "copy")
        return Finished(tmp_path / "copy", original.done)

    return copy
