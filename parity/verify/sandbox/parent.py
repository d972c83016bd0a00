"""The parent's half of isolation: a child process for code that nobody has read, its limits, and what holds it.

`available` says what this machine offers, `start` starts a module of the verifier in such a child (see confine.py) and
returns a `Confined` to talk with. A thread for each child kills it where it takes too long, too much memory or too much
disk; no call here waits for ever, whatever the child does.
"""

import functools
import importlib.util
import io
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from parity.errors import InputError
from parity.verify.sandbox.child import LINUX, PACKAGES, READY, ROOT, Spec

PARTS = ("bubblewrap", "landlock", "seccomp")
PROBE_S = 20.0
KILL_S = 10.0  # for a killed child to be gone
TICK_S = 0.05  # between two looks at the child's memory
SLOW_TICK_S = 1.0  # between two looks at its folder, and at what its threads started
TAIL_BYTES = 64 << 10
SCRATCH_FILES = 10_000

# Readable for every child, where they exist: libraries, and what they ask about the machine.
LIBRARIES = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
)
MACHINE = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/sys/kernel/mm",
)
GPU_MACHINE = ("/proc/driver", "/proc/devices", "/proc/modules", "/sys")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")

BOOT = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from parity.verify.sandbox.child import main; del sys.path[0]; main()"


@dataclass(frozen=True)
class Limits:
    """What a child may use: bytes of memory, seconds until a deadline is set anew, bytes of all files in its folder."""

    memory_bytes: int
    time_s: float
    file_bytes: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"limits: {name} expected a positive number, found {value}: give one")


@dataclass(frozen=True)
class Isolation:
    """What holds a child: its kind (parts joined by +, or none), and for a verdict what is in force and what is not."""

    kind: str
    holds: tuple[str, ...]
    gaps: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the kind, of PARTS."""
        return tuple(part for part in self.kind.split("+") if part != "none")


def describe(parts: Sequence[str], gpu: bool = False) -> Isolation:
    """The isolation of these parts, whether this machine has them or not; InputError for an unknown part."""
    if unknown := set(parts) - set(PARTS):
        raise InputError(f"isolation: unknown part {min(unknown)}: known: {', '.join(PARTS)}")
    bwrap, landlock, seccomp = (part in parts for part in PARTS)
    files = bwrap or landlock
    limit = "it is killed where it takes more time, memory or disk than it is given"
    holds = {
        "it reads nothing but Python, its packages, the system's libraries and the folders that it was given": files,
        "it writes nothing but its own folder": files,
        "it sees no file, process or network of the machine but its own": bwrap,
        "it makes no connection": bwrap or seccomp,
        "it starts no process and no program": seccomp and not gpu,
        "it can neither signal nor trace another process, nor read its memory": bwrap or seccomp,
        "it has none of root's powers and gains none": LINUX,
        f"{limit}, and when the verifier ends" if LINUX else limit: True,
    }
    gaps = {
        "it reads and writes every file that you can": not files,
        "names, sizes and times of other files can be looked up, though not their contents": landlock and not bwrap,
        "it can use the network": not (bwrap or seccomp),
        "it can signal other processes of yours": not (bwrap or seccomp),
        "it can start programs, under the same limits": not seccomp or gpu,
        "what it starts may outlive it": not bwrap and (gpu or not seccomp),
        "every system call of the kernel is open to it": not seccomp,
        "its memory is not watched": not LINUX,
        "memory is looked at 20 times a second, so for a moment it can take more": LINUX,
        "memory of the GPU is not limited, and the GPU's driver is open to it": gpu,
    }
    kind = "+".join(part for part in PARTS if part in parts) or "none"
    return Isolation(kind, *(tuple(text for text, so in which.items() if so) for which in (holds, gaps)))


def available(gpu: bool = False) -> Isolation:
    """The best isolation that works on this machine, tried out once in a process; `gpu`: for a child that uses one."""
    return describe(_probe(), gpu)


@functools.cache
def _probe() -> tuple[str, ...]:
    """The parts that work here together: each is really set up, in a child that runs nothing."""
    present = tuple(part for part in PARTS if _present(part))
    return present if _works(present) else tuple(part for part in present if _works((part,)))


def _present(part: str) -> bool:
    if part == "bubblewrap":  # its child is a grandchild, whose memory is found through `children`
        return LINUX and shutil.which("bwrap") is not None and os.path.exists("/proc/thread-self/children")
    return LINUX and importlib.util.find_spec({"landlock": "landlockpy", "seccomp": "pyseccomp"}[part]) is not None


def _works(parts: tuple[str, ...]) -> bool:
    with tempfile.TemporaryDirectory(prefix="isolation-") as scratch:
        limits = Limits(memory_bytes=1 << 30, time_s=PROBE_S, file_bytes=1 << 20)
        try:
            with _start("", [], (), Path(scratch), limits, describe(parts), {}, False) as child:
                return child.wait(PROBE_S) == 0
        except InputError:
            return False


def start(
    module: str,
    args: Sequence[str],
    *,
    readable: Sequence[Path],
    scratch: Path,
    limits: Limits,
    isolation: Isolation | None = None,
    environment: Mapping[str, str] | None = None,
    gpu: bool = False,
) -> "Confined":
    """Starts `module.main(args)` in a child; returns once its limits are in force, before the child loads the module.

    The child reads `readable` beside Python and its packages (links are followed: give no path that a stranger made).
    It writes `scratch` alone (made where it is missing; with seccomp it can put no links and no pipes there). It has a
    minimal environment and `environment`, of which PYTHONPATH counts once it is confined. `isolation` is
    `available(gpu)` by default. Raises InputError for paths that cannot be used, and where confining fails.
    """
    if not all(name.isidentifier() for name in module.split(".")):
        raise InputError(f"isolation: expected the name of a module, found {module!r}: name one that can be imported")
    return _start(module, args, readable, scratch, limits, isolation or available(gpu), environment or {}, gpu)


def _start(
    module: str,
    args: Sequence[str],
    readable: Sequence[Path],
    scratch: Path,
    limits: Limits,
    isolation: Isolation,
    environment: Mapping[str, str],
    gpu: bool,
) -> "Confined":
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec = _spec(module, readable, scratch := scratch.resolve(), limits, isolation, environment, gpu)
    command = [sys.executable, "-P", "-s", "-B", "-c", BOOT, json.dumps(asdict(spec)), *args]
    if "bubblewrap" in isolation.parts:
        command = bubblewrap(spec) + command
    base = {"PATH": os.defpath, "LANG": "C.UTF-8", "USER": "confined", "LOGNAME": "confined"}
    base |= {name: str(scratch) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    base |= ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}) | dict(environment)
    base["PYTHONPATH"] = os.pathsep.join(_package_folders())  # what was asked for comes after the limits
    child = Confined(command, base, scratch, limits)
    if child.stdout.read(len(READY)) == READY:
        return child
    child.close()
    said = (child.stderr_tail().strip().splitlines() or [f"it ended with code {child.returncode}"])[-1]
    raise InputError(f"isolation {isolation.kind}: the child cannot be confined: {child.reason or said}: try another")


def _spec(
    module: str,
    readable: Sequence[Path],
    scratch: Path,
    limits: Limits,
    isolation: Isolation,
    environment: Mapping[str, str],
    gpu: bool,
) -> Spec:
    if missing := [path for path in readable if not path.exists()]:
        raise InputError(f"isolation: expected {missing[0]} to be readable, found nothing there: check the path")
    folders = [sys.prefix, sys.base_prefix, *_package_folders(), *(str(ROOT / name) for name in PACKAGES), *LIBRARIES]
    folders += environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    libraries, allowed = _names(folders), _names(map(str, readable))
    for path in (*libraries, *allowed):
        if Path(path).is_relative_to(scratch):
            raise InputError(f"isolation: the scratch folder {scratch} holds {path}, which is read-only: use another")
    libraries += [path for path in (*MACHINE, *(GPU_MACHINE if gpu else ())) if os.path.exists(path)]
    devices = [path for path in DEVICES if os.path.exists(path)]
    devices += map(str, Path("/dev").glob("nvidia*")) if gpu else []
    spare = (1 << 30) + (64 << 20) * (os.cpu_count() or 1)  # what is reserved and not used, such as threads' stacks
    path = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    parent = None if "bubblewrap" in isolation.parts else os.getpid()
    return Spec(
        module=module,
        path=path,
        parts=list(isolation.parts),
        parent=parent,
        libraries=libraries,
        readable=allowed,
        scratch=str(scratch),
        devices=devices,
        programs=_compilers() if gpu else [],
        gpu=gpu,
        file_bytes=limits.file_bytes,
        data_bytes=None if gpu else limits.memory_bytes + spare,
    )


def _names(paths: Any) -> list[str]:
    """Those that exist, each as it is named and as it is without symbolic links, so that both names can be used."""
    given = [path for path in paths if path and os.path.exists(path)]
    return sorted({name(path) for path in given for name in (os.path.abspath, os.path.realpath)})


@functools.cache
def _package_folders() -> tuple[str, ...]:
    """Where the packages that programs use are installed, as far as that is outside of Python's own folders."""
    found = [importlib.util.find_spec(name) for name in ("jax", "torch", "numpy", "landlockpy", "pyseccomp")]
    files = [Path(spec.origin) for spec in found if spec and spec.origin]
    folders = [file.parents[1] if file.name == "__init__.py" else file.parent for file in files]
    own = (sys.prefix, sys.base_prefix)
    return tuple(sorted({str(folder) for folder in folders if not any(folder.is_relative_to(place) for place in own)}))


def _compilers() -> list[str]:
    """The folders of CUDA's compilers, which XLA and Triton start as programs, and the loader that programs need."""
    places = [Path(folder) for folder in (*_package_folders(), *sys.path) if "site-packages" in folder]
    found = [path for place in places for path in (*place.glob("nvidia/*/bin"), place / "triton/backends/nvidia/bin")]
    found += Path("/usr/local").glob("cuda*/bin")
    names = _names(map(str, found))
    return names + [path for path in LOADERS if os.path.exists(path)] if names else []


def bubblewrap(spec: Spec) -> list[str]:
    """The command line of bwrap(1) that a child's own is appended to: new namespaces, and of the files what it needs.

    Nothing but the scratch folder can be written, not even memory that looks like a folder.
    """
    mounts = [(path, "--ro-bind") for path in (*spec.libraries, *spec.readable) if not path.startswith("/proc/")]
    mounts += [(path, "--dev-bind") for path in spec.devices] + [(spec.scratch, "--bind")]
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--proc",
        "/proc",
    ]
    for path, option in sorted(mounts, key=lambda mount: mount[0].count(os.sep)):
        command += [option, path, path]
    return [*command, "--remount-ro", "/", "--chdir", spec.scratch, "--"]


class _Pipe(io.RawIOBase):
    """One end of a pipe to a child: reads and writes end when the child does, whoever else may hold the other end."""

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
            if _ready(self._descriptor, select.POLLIN, 0 if ended else TICK_S):
                count = os.readv(self._descriptor, [buffer])
                if not count:
                    self._ended.wait(KILL_S)  # so that whoever saw the end finds its reason
                return count
            if ended:
                return 0

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest and not self._ended.is_set():
            if _ready(self._descriptor, select.POLLOUT, TICK_S):
                rest = rest[os.write(self._descriptor, rest) :]
        if rest:
            raise BrokenPipeError("the child ended")
        return memoryview(data).nbytes

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Confined:
    """A running child; made by `start`. Bytes go to it through `stdin`, which keeps none back, and come from `stdout`.

    When the child ends or is killed, `stdout` ends and `stdin` raises BrokenPipeError. `reason` says why it was killed,
    in words that follow "it", and is None where it was not.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], scratch: Path, limits: Limits):
        self.reason: str | None = None
        self._scratch, self._limits = scratch, limits
        self._tail, self._stop, self._ended = bytearray(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._looked = 0.0
        self.set_deadline(limits.time_s)
        begun = threading.Event()
        # The thread starts the child itself: a child dies with the thread that started it, and this one lives as long.
        self._thread = threading.Thread(target=self._watch, args=(command, environment, begun), daemon=True)
        self._thread.start()
        begun.wait()
        if self._failure:
            raise InputError(f"{command[0]} cannot be started ({self._failure}): check its installation")
        self.stdin = _Pipe(self._process.stdin, self._ended)
        self.stdout = io.BufferedReader(_Pipe(self._process.stdout, self._ended))

    @property
    def returncode(self) -> int | None:
        """As of subprocess.Popen: None while the child runs."""
        return self._process.returncode

    def stderr_tail(self) -> str:
        """The end of what the child printed, at most TAIL_BYTES, without characters that steer a terminal."""
        text = bytes(self._tail).decode(errors="replace")
        return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)

    def set_deadline(self, seconds: float) -> None:
        """The child is killed unless it ends, or a new deadline is set, within so many seconds from now."""
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def wait(self, seconds: float) -> int | None:
        """Waits for the child's end, at most so long; its return code, None where it still runs."""
        self._ended.wait(seconds)
        return self.returncode

    def close(self, grace_s: float = 1.0) -> None:
        """Ends the child: closes its stdin, gives it so many seconds to end by itself, then kills it."""
        self.stdin.close()
        self._ended.wait(grace_s)
        self._stop.set()
        self._thread.join()
        self.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(grace_s=0.0 if error[0] else 1.0)

    def _watch(self, command: list[str], environment: Mapping[str, str], begun: threading.Event) -> None:
        try:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self._process = subprocess.Popen(
                command, env=dict(environment), cwd=self._scratch, bufsize=0, start_new_session=True, **pipes
            )
        except (OSError, ValueError) as error:
            self._failure = error
            return
        finally:
            begun.set()
        os.set_blocking(self._process.stderr.fileno(), False)
        try:
            self._guard()
        finally:
            self._kill()
            for _ in range(4):  # more than a pipe holds, and not for ever
                self._listen(0.0)
            self._process.stderr.close()
            self._ended.set()

    def _guard(self) -> None:
        """Until the child ends or is to end: keeps what it prints, and looks at what it takes."""
        measured = 0.0
        while self._runs() and not self._stop.is_set() and not self.reason:
            self._listen(TICK_S)
            if time.monotonic() - measured >= TICK_S:
                measured = time.monotonic()
                self.reason = self._excess()

    def _runs(self) -> bool:
        if not hasattr(os, "waitid"):
            return self._process.poll() is None
        try:  # its id stays taken, so that nobody else is killed for it
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _listen(self, seconds: float) -> None:
        stream = self._process.stderr
        if stream.closed:
            time.sleep(seconds)
        elif _ready(stream.fileno(), select.POLLIN, seconds):
            data = os.read(stream.fileno(), TAIL_BYTES)
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            if not data:
                stream.close()

    def _excess(self) -> str | None:
        if time.monotonic() > self._deadline:
            return f"took longer than {self._seconds:g} s"
        thorough = time.monotonic() - self._looked >= SLOW_TICK_S
        if LINUX and sum(map(_memory, _tree(self._process.pid, thorough))) > self._limits.memory_bytes:
            return f"used more than {_size(self._limits.memory_bytes)}"
        if thorough:
            self._looked = time.monotonic()
            if _disk(self._scratch) > self._limits.file_bytes:
                return f"wrote more than {_size(self._limits.file_bytes)}, or {SCRATCH_FILES:,} files"
        return None

    def _kill(self) -> None:
        for pid in _tree(self._process.pid) if LINUX else ():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # where a driver hangs not even a killed process ends
            self._process.wait(KILL_S)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))


def _tree(pid: int, threads: bool = True) -> list[int]:
    """A process and what descends from it, but for orphans; with `threads` also what its other threads started."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task") if threads else [one]:
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def _memory(pid: int) -> int:
    """Bytes that a process holds and that no file has: its own memory, shared memory, and what is swapped."""
    status = ""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * sum(map(int, re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", status, re.MULTILINE)))


def _disk(folder: Path) -> float:
    """Bytes that a folder's files take on disk; infinite for more than SCRATCH_FILES, or where one cannot look."""
    total, seen, folders = 0, 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if seen > SCRATCH_FILES:
                        return math.inf
        except FileNotFoundError:
            continue
        except OSError:
            return math.inf
    return total
