"""The trainer as a process of its own: where it runs, and how requests to stop reach it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import parity
from parity.data.slices import DATA_VARIABLE


class Requests:
    """From `install` to `remove`, Ctrl-C, SIGTERM and SIGHUP are passed on to the trainer; `number` is the first."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    KILL_AT = 3  # the trainer stops in order at the first request, at once at the second

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked, self._sent = 0, 0
        self._process: subprocess.Popen | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """From now on signals are requests; one that is ignored, as under nohup, stays so."""
        for number in self.SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)

    def remove(self) -> None:
        """Signals are again what they were."""
        while self._before:
            signal.signal(*self._before.popitem())

    @contextmanager
    def passed_to(self, process: subprocess.Popen) -> Iterator[None]:
        """What is asked meanwhile, or was while the process was started, reaches it."""
        self._process = process
        self._pass_on()
        try:
            yield
        finally:
            self._process = None

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        self._asked += 1
        self._pass_on()

    def _pass_on(self) -> None:
        while self._process is not None and self._sent < self._asked:
            self._sent += 1
            first = signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM
            self._process.send_signal(first if self._sent < self.KILL_AT else signal.SIGKILL)


@contextmanager
def listening() -> Iterator[Requests]:
    """Requests to stop, from here to the end of the block."""
    requests = Requests()
    requests.install()
    try:
        yield requests
    finally:
        requests.remove()


def train(backend: str, arguments: Sequence[str], folder: Path, output: Path | None, requests: Requests) -> int:
    """Runs a trainer in a folder to its end, its output shown or added to a file; returns its exit code, 128 + n where
    signal n ended it. The folder is not on its import path."""
    with ExitStack() as files:
        stream = None
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            stream = files.enter_context(open(output, "ab"))
        sys.stdout.flush()
        # In a group of its own: Ctrl-C would reach it both from the terminal and from here, and stop it at once.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{backend}.train", *arguments],
            cwd=folder,
            env=environment(os.environ),
            process_group=0,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        with requests.passed_to(process):
            code = process.wait()
    return 128 - code if code < 0 else code


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The environment in another folder: relative paths made absolute, and this very package found there too."""
    root = Path(parity.__file__).resolve().parents[1]
    paths = [os.path.abspath(path) for path in outer.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "-packages" not in root.name and str(root) not in paths:  # a clone
        paths.append(str(root))
    found = {**outer, "PYTHONPATH": os.pathsep.join(paths)} if paths else {**outer}
    if data := outer.get(DATA_VARIABLE):
        found[DATA_VARIABLE] = os.path.abspath(os.path.expanduser(data))
    return found
