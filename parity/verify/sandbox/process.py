"""A running sandboxed process, as its parent sees it: pipes that end with it, and a thread that enforces its limits.

The thread kills a process that takes too much time, memory or disk. No call here waits for ever, whatever the process
does.
"""

import fcntl
import io
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from parity.errors import InputError

LINUX = sys.platform == "linux"
KILL_S = 10.0  # for a killed process to be gone
TICK_S = 0.05  # between two measurements of the memory
SLOW_TICK_S = 1.0  # between two measurements of the folder, and of what other threads of the process started
TAIL_BYTES = 64 << 10
PIPE_BYTES = 1 << 20  # rows of probabilities are many megabytes
SCRATCH_FILES = 10_000
PROCESS_CPU_CLOCK = 2  # clock_getcpuclockid(3): of all threads of a process


@dataclass(frozen=True)
class Limits:
    """What a process may use: bytes of memory, seconds until its next deadline, bytes of all files in its folder."""

    memory_bytes: int
    time_s: float
    file_bytes: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"limits: {name} expected a positive number, found {value}: choose one")


class _Pipe(io.RawIOBase):
    """One end of a pipe to a process: reads and writes end when it does, whoever else may hold the other end."""

    def __init__(self, stream: Any, ended: threading.Event):
        self._descriptor, self._ended = os.dup(stream.fileno()), ended
        stream.close()
        os.set_blocking(self._descriptor, False)

    def readable(self) -> bool:
        return True

    writable = readable

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        while True:
            ended = self._ended.is_set()
            if is_ready(self._descriptor, select.POLLIN, 0 if ended else TICK_S):
                count = os.readv(self._descriptor, [buffer])
                if not count:
                    self._ended.wait(KILL_S)  # so that whoever reads the end finds its reason
                return count
            if ended:
                return 0

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest and not self._ended.is_set():
            if is_ready(self._descriptor, select.POLLOUT, TICK_S):
                rest = rest[os.write(self._descriptor, rest) :]
        if rest:
            raise BrokenPipeError("the child ended")
        return memoryview(data).nbytes

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class SandboxedProcess:
    """Started by parent.start. Bytes go to the process through `stdin`, which is unbuffered, and come from `stdout`.

    When the process ends or is killed, `stdout` ends and `stdin` raises BrokenPipeError. `reason` says why it was
    killed, in words that follow "it", and is None where it was not.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], scratch: Path, limits: Limits):
        self.reason: str | None = None
        self._scratch, self._limits = scratch, limits
        self._tail, self._stop, self._ended = bytearray(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._last_slow_tick = 0.0
        self.set_deadline(limits.time_s)
        started = threading.Event()
        # The thread starts the process itself: a child dies with the thread that started it, and this one outlives it.
        self._thread = threading.Thread(target=self._watch, args=(command, environment, started), daemon=True)
        self._thread.start()
        started.wait()
        if self._failure:
            raise InputError(f"{command[0]} cannot be started ({self._failure}): check its installation")
        self.stdin = _Pipe(self._process.stdin, self._ended)
        answers = _Pipe(self._process.stdout, self._ended)
        with suppress(OSError, AttributeError):  # Linux only, and not where a user's pipes are too large already
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.stdout = io.BufferedReader(answers)

    @property
    def returncode(self) -> int | None:
        """As of subprocess.Popen: None while the process runs."""
        return self._process.returncode

    def cpu_s(self) -> float | None:
        """The processor time that the process and its descendants have had; None where the system does not say."""
        total = 0.0
        try:
            for pid in descendants(self._process.pid):
                total += time.clock_gettime(~pid << 3 | PROCESS_CPU_CLOCK)
        except (OSError, AttributeError):
            return None
        return total

    def stderr_tail(self) -> str:
        """The end of what the process printed, at most TAIL_BYTES, without characters that steer a terminal."""
        text = bytes(self._tail).decode(errors="replace")
        return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)

    def set_deadline(self, seconds: float) -> None:
        """The process is killed unless it ends, or a new deadline is set, within this many seconds from now."""
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def wait(self, seconds: float) -> int | None:
        """Waits at most this long for the end; the return code, None where the process still runs."""
        self._ended.wait(seconds)
        return self.returncode

    def close(self, grace_s: float = 1.0) -> None:
        """Ends the process: closes its stdin, gives it this many seconds to end by itself, then kills it."""
        self.stdin.close()
        self._ended.wait(grace_s)
        self._stop.set()
        self._thread.join()
        self.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(grace_s=0.0 if error[0] else 1.0)

    def _watch(self, command: list[str], environment: Mapping[str, str], started: threading.Event) -> None:
        pipe = subprocess.PIPE
        try:
            self._process: Any = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=dict(environment),
                cwd=self._scratch,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._failure = error
            return
        finally:
            started.set()
        os.set_blocking(self._process.stderr.fileno(), False)
        try:
            self._enforce_limits()
        finally:
            self._kill()
            for _ in range(4):  # more than a pipe holds, and not for ever
                self._read_stderr(0.0)
            self._process.stderr.close()
            self._ended.set()

    def _enforce_limits(self) -> None:
        """Until the process ends or must end: keeps what it prints, and measures what it takes."""
        measured_s = 0.0
        while self._runs() and not self._stop.is_set() and not self.reason:
            self._read_stderr(TICK_S)
            if time.monotonic() - measured_s >= TICK_S:
                measured_s = time.monotonic()
                self.reason = self._exceeded_limit()

    def _runs(self) -> bool:
        if not hasattr(os, "waitid"):
            return self._process.poll() is None
        try:  # the id stays taken, so that no other process is killed instead
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _read_stderr(self, seconds: float) -> None:
        stream = self._process.stderr
        if stream.closed:
            time.sleep(seconds)
        elif is_ready(stream.fileno(), select.POLLIN, seconds):
            data = os.read(stream.fileno(), TAIL_BYTES)
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            if not data:
                stream.close()

    def _exceeded_limit(self) -> str | None:
        now_s, limits = time.monotonic(), self._limits
        if now_s > self._deadline:
            return f"took longer than {self._seconds:g} s"
        slow_tick = now_s - self._last_slow_tick >= SLOW_TICK_S
        if LINUX and sum(map(_memory_bytes, descendants(self._process.pid, slow_tick))) > limits.memory_bytes:
            return f"used more than {_size(limits.memory_bytes)}"
        if slow_tick:
            self._last_slow_tick = now_s
            if _disk_bytes(self._scratch) > limits.file_bytes:
                return f"wrote more than {_size(limits.file_bytes)}, or {SCRATCH_FILES:,} files"
        return None

    def _kill(self) -> None:
        for pid in descendants(self._process.pid) if LINUX else ():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # where a driver hangs not even a killed process ends
            self._process.wait(KILL_S)


def is_ready(descriptor: int, event: int, seconds: float) -> bool:
    """Whether a descriptor can be read (select.POLLIN) or written (select.POLLOUT) within this many seconds."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))


def descendants(pid: int, all_threads: bool = True) -> list[int]:
    """A process and its descendants, without orphans; with `all_threads` also what its other threads started."""
    pids = [pid]
    for parent in pids:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task") if all_threads else [parent]:
                pids += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return pids


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _memory_bytes(pid: int) -> int:
    """What a process holds that no file backs: its own memory, shared memory, and what is swapped."""
    status = ""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * sum(map(int, re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", status, re.MULTILINE)))


def _disk_bytes(folder: Path) -> float:
    """What a folder's files take on disk; infinite for more than SCRATCH_FILES, or where it cannot be measured."""
    total, count, folders = 0, 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if count > SCRATCH_FILES:
                        return math.inf
        except FileNotFoundError:
            continue
        except OSError:
            return math.inf
    return total
