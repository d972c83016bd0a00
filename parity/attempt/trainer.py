"""The trainer as a subprocess: its folder, its environment, and the signals that reach it."""

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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILL_AT = 3  # the trainer stops in order at the first request, at once at the second


class StopRequests:
    """Ctrl-C, SIGTERM and SIGHUP, passed on to the trainer; `number` is the first signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received, self._sent = 0, 0
        self._process: subprocess.Popen | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        self.number = self.number or number
        self._received += 1
        self._pass_on()

    @contextmanager
    def passed_to(self, process: subprocess.Popen) -> Iterator[None]:
        """Passes on requests to a process, those included that came while it was started."""
        self._process = process
        self._pass_on()
        try:
            yield
        finally:
            self._process = None

    def _pass_on(self) -> None:
        while self._process is not None and self._sent < self._received:
            self._sent += 1
            first = signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM
            self._process.send_signal(first if self._sent < KILL_AT else signal.SIGKILL)


@contextmanager
def listening() -> Iterator[StopRequests]:
    """Turns signals into requests until the end of the block; an ignored SIGHUP, as under nohup, stays ignored."""
    requests, previous = StopRequests(), {}
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, requests.receive)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(backend: str, arguments: Sequence[str], folder: Path, output: Path | None, requests: StopRequests) -> int:
    """Runs a trainer in a folder to its end, its output shown or appended to a file; returns its exit code, 128 + n
    where signal n ended it. The folder is not on its import path."""
    with ExitStack() as files:
        stream: Any = None
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            stream = files.enter_context(open(output, "ab"))
        sys.stdout.flush()
        # Its own process group: Ctrl-C would reach it both from the terminal and from here, and stop it at once.
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
    """The environment for another folder: relative paths made absolute, and this package importable from there."""
    root = Path(parity.__file__).resolve().parents[1]
    paths = [os.path.abspath(path) for path in outer.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "-packages" not in root.name and str(root) not in paths:  # a clone
        paths.append(str(root))
    inner = {**outer, "PYTHONPATH": os.pathsep.join(paths)} if paths else {**outer}
    if data := outer.get(DATA_VARIABLE):
        inner[DATA_VARIABLE] = os.path.abspath(os.path.expanduser(data))
    return inner
