"""What user code does besides its work while it runs in the harness' process: recorded for the log, not prevented.

Before user code is loaded, the identity of every function, class and constant of the harness, and of the
modules its clock, digests and log rest on, is noted; at every pause they are compared, and what the process holds is
looked at. An audit hook records files that are used outside the places of a run (places.py), files of the slice,
sockets, native code, and programs that are started. Code in the same process can defeat all of this with some effort:
it makes cheating visible or expensive. What proves a run is recomputation and replay.
"""

import builtins
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, ClassVar

from parity.formats.run_log import COMPILING
from parity.harness.places import Places, is_package, is_worker, within
from parity.harness.processes import ProcessGroup

MAX_EVENTS = 100  # of a run: the first are enough to see what happens
STANDARD: tuple[ModuleType, ...] = (builtins, time, hashlib, json, os)
NETWORK = frozenset(("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"))
PROCESS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
)
# Events that change files, and which of their arguments name one.
CHANGES = {"os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,), "os.truncate": (0,), "os.mkdir": (0,)}
# Memory and descriptors that belong to no file that a run needs: shared memory, and files that are deleted already.
SHARED = re.compile(r"/dev/shm/.*|/memfd:.*|/SYSV.*|.* \(deleted\)")
OF_DRIVERS = re.compile(
    r"/dev/shm/(nccl-|cuda\.shm\.).*|/dev/zero \(deleted\)|/memfd:/?\.?(nvidia|cuda).*"
)  # with a GPU
ENVIRONMENT_BYTES = 1 << 17  # a cluster's has half of that; a small model's weights are more
NATIVE_MODULES = frozenset(("_cffi_backend", "_posixshmem", "_posixsubprocess"))


class Guard:
    """Watches from `start` to `stop`, or as a context manager; one at a time in a process.

    `data` is the folder of the slice: the harness has its shards open before, so that nothing has to open them again.
    `places` are those of the run.
    """

    _active: ClassVar["Guard | None"] = None
    _hooked: ClassVar[bool] = False

    def __init__(self, data: Path, places: Places):
        self.phase = "build"
        self.places = places
        self._data = os.path.realpath(data) + os.sep
        self._written: set[str] = set()
        self._events: list[dict[str, str]] = []
        self._collected = 0
        self._before = _identities()
        self._reported: set[str] = set()
        self._removes = {code for code in _codes(shutil) if code.co_name.startswith("_rmtree")}
        self._present = {text for text, _ in _held()}  # before any code of the user's: the harness' own
        self._inherited = {_target(number) for number in range(3, 256)} - {""}
        self._children = set(_children())
        self._writes_bytecode = sys.dont_write_bytecode
        for name, size in large_variables(os.environ) if places.compiled else ():
            self._record("read", f"the environment: {size:,} bytes with {name}")

    def allow(self, path: Path) -> None:
        """Lets the run read and write one more file or folder."""
        self.places.writable += (os.path.realpath(path),)

    def start(self) -> None:
        """Records events from now on; the hook itself stays for the life of the process and costs next to nothing."""
        Guard._active = self
        self._writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # so that none has to be written
        if not Guard._hooked:
            sys.addaudithook(_hook)
            Guard._hooked = True

    def stop(self) -> None:
        """Records nothing any more."""
        if Guard._active is self:
            sys.dont_write_bytecode = self._writes_bytecode
        Guard._active = None

    def __enter__(self) -> "Guard":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def collect(self) -> dict[str, list[Any]]:
        """News since the last call: `changed`, names whose values changed; `events`, each {kind, what, phase}."""
        now = _identities()
        changed = sorted(
            name
            for name, value in self._before.items()
            if name not in self._reported and now.get(name, (None,))[0] != value[0]
        )
        self._reported.update(changed)
        active, Guard._active = Guard._active, None  # what the look itself opens is no event
        try:
            self._look()
        finally:
            Guard._active = active
        events, self._collected = self._events[self._collected :], len(self._events)
        return {"changed": changed, "events": events}

    def _look(self) -> None:
        """Records what the process holds by now, however it came to: memory and native code, files, other programs."""
        held = [entry for entry in _held() if entry[0] not in self._present]
        has_gpu = any("/libcuda.so" in text for text in self._present) or any("/libcuda.so" in text for text, _ in held)
        for text, code in held:
            self._present.add(text)
            path = text.partition(" ")[2]
            if within(path.removesuffix(" (deleted)"), (*self.places.writable, self.places.compiled)) and not code:
                continue
            if SHARED.fullmatch(path) and not within(path, (self.places.compiled,)):
                if not (has_gpu and OF_DRIVERS.fullmatch(path)):
                    self._record("read", f"shared memory {path}")
            elif code and not self.places.may_load(path, own=False):
                self._record("native", path)
        for pid in set(_children()) - self._children:
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
                name = Path(f"/proc/{pid}/comm").read_text().strip()  # all that is left of one that has ended
                ended_worker = words == [""] and name.startswith(("python", "pt_"))
                if not is_worker(words) and not ended_worker:
                    self._record("process", f"a child: {' '.join(words) or name}")

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Handles an audit event of the process."""
        if event == "open":
            self._note_open(*args[:3])
        elif event in NETWORK:
            self._record("network", f"{event} {args[1:] if event != 'socket.getaddrinfo' else args[:2]}")
        elif event in PROCESS:
            self._note_process(event, args)
        elif event in CHANGES:
            for number in CHANGES[event]:
                self._note_change(event, args[number])
        elif event == "mmap.__new__" and args[0] != -1:
            self._note_open(args[0], "r", os.O_RDONLY)
        elif event.startswith("ctypes.") or event == "import":
            self._note_native(event, args)
        elif event in ("compile", "code.__new__"):
            self._note_code(event, args[0], args[1])
        elif event == "socket.__new__" and self._asker()[1]:
            self._record("network", f"{event} {args[1:]}")

    def _note_open(self, path: Any, mode: str | None, flags: int) -> None:
        if isinstance(path, int):
            path = _target(path)
            if SHARED.fullmatch(path) or (path in self._inherited and self._asker()[1]):
                self._record("read", f"a descriptor of {path}")
            return  # what another descriptor belongs to was opened before
        if not isinstance(path, str | bytes | os.PathLike):
            return
        full = os.path.realpath(os.fsdecode(path))
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR) or (mode and set(mode) & set("wax+")))
        if full.startswith(self._data):
            self._record("data", full)
        elif full.endswith("__path_hook__") or full in self._written:
            return
        elif writes:
            self._note_write(full, "")
        elif os.path.lexists(full) and not self.places.may_read(full, self._asker()[0]):
            if self._asks(self._removes) and not os.path.isabs(os.fsdecode(path)):
                return  # named within the folder that is removed
            self._record("read", full)

    def _note_write(self, full: str, what: str) -> None:
        if not self.places.may_write(full, self._asker()[1]):
            self._written.add(full)
            self._record("write", f"{what} {full}".strip())

    def _note_change(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike) and not self._asks(self._removes):
            given = os.fsdecode(path)
            full = os.path.join(os.path.realpath(os.path.dirname(given) or "."), os.path.basename(given))
            if event == "os.mkdir" and (os.path.isdir(full) or self.places.may_make_folder(full, self._asker()[1])):
                return
            self._note_write(full, event)

    def _note_process(self, event: str, args: tuple[Any, ...]) -> None:
        named = args[1] if event == "subprocess.Popen" else args[0] if args else ""
        words = named if isinstance(named, list | tuple) else [named]
        text = " ".join(str(os.fsdecode(word) if isinstance(word, bytes) else word) for word in words)
        if event == "subprocess.Popen" and self.phase in COMPILING and not self._asker()[1]:
            with suppress(TypeError, ValueError, LookupError):
                if compiler := self.places.compiler(*args[:4]):
                    self._record("compiler", compiler)
                    return
        self._record("process", f"{event} {text}")

    def _note_native(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "import":
            name, path = args[0], args[1]
            if path and not self.places.may_load(os.path.realpath(os.fsdecode(path)), own=False):
                self._record("native", os.path.realpath(os.fsdecode(path)))
            elif name in NATIVE_MODULES and self._asker()[1]:
                self._record("native", f"import {name}")
            return
        file, own = self._asker()
        path = args[0] if event == "ctypes.dlopen" else None
        if own:
            self._record("native", f"{event} {path if path is not None else ''} by {file}")
        elif path and os.sep in os.fsdecode(path):
            full = os.path.realpath(os.fsdecode(path))
            if not self.places.may_load(full, own=False):
                self._record("native", full)

    def _note_code(self, event: str, source: Any, file: Any) -> None:
        """Records code that is made under the name of a package's file, which has other code in it."""
        if not (isinstance(file, str) and os.path.isabs(file)) or is_package(file) is False or not self._asker()[1]:
            return
        with suppress(OSError):
            text = source.encode() if isinstance(source, str) else source
            if event == "compile" and Path(file).read_bytes() == text:  # as an import does
                return
        self._record("native", f"code under the name of {file}")

    def _asker(self) -> tuple[str, bool]:
        """The file of the code that asks, and whether it is the run's own."""
        return self.places.asker(_caller())

    @staticmethod
    def _asks(codes: set[CodeType]) -> bool:
        frame = _caller()
        while frame is not None:
            if frame.f_code in codes:
                return True
            frame = frame.f_back
        return False

    def _record(self, kind: str, what: str) -> None:
        text = what.encode(errors="backslashreplace").decode()[:300]  # a file's name may be no Unicode
        event = {"kind": kind, "what": text, "phase": self.phase}
        if len(self._events) < MAX_EVENTS and event not in self._events:
            self._events.append(event)


def guard_events(guard: Guard, processes: ProcessGroup) -> dict[str, Any]:
    """What the guards of all processes have recorded since the last call, each event once; and the kernel's seconds."""
    merged: dict[str, Any] = {}
    for collected in processes.gather(guard.collect()):
        for kind, events in collected.items():
            known = merged.setdefault(kind, [])
            known += [event for event in events if event not in known]
    return merged | kernel_clock()


def kernel_clock() -> dict[str, float]:
    """`kernel_s`: seconds since the machine started, as the kernel's own text has them. No clock function that native
    code in this process could have slowed is asked. Empty where the system has no such file."""
    with suppress(OSError, ValueError):
        descriptor = os.open("/proc/uptime", os.O_RDONLY)
        try:
            return {"kernel_s": float(os.read(descriptor, 64).split()[0])}
        finally:
            os.close(descriptor)
    return {}


def large_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The variable of an environment with which it is larger than ENVIRONMENT_BYTES, and its size until then."""
    total = 0
    for name, value in environment.items():
        total += len(name) + len(value)
        if total > ENVIRONMENT_BYTES:
            yield name, total
            return


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if Guard._active is not None:
        Guard._active.note(event, args)


def _caller() -> FrameType | None:
    """The frame of the code whose event the hook handles."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _hook.__code__:
        frame = frame.f_back
    return frame.f_back if frame is not None else None


def _held() -> Iterator[tuple[str, bool]]:
    """What the process has mapped or open, as "maps PATH" or "fd PATH", and whether it is native code; Linux only."""
    with suppress(OSError), open("/proc/self/maps") as file:
        seen: dict[str, bool] = {}
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and fields[5].startswith("/"):
                seen[fields[5]] = seen.get(fields[5], False) or "x" in fields[1]
        yield from ((f"maps {path}", code) for path, code in seen.items())
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            path = _target(int(name))
            if path.startswith("/"):
                yield f"fd {path}", False


def _target(descriptor: int) -> str:
    """What a descriptor is open on; "" where that cannot be told."""
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def _children() -> list[int]:
    """The processes that this one has started and that still run."""
    pids: list[int] = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return pids


def _codes(module: ModuleType) -> Iterator[CodeType]:
    return (value.__code__ for value in vars(module).values() if isinstance(value, type(_codes)))


def _identities() -> dict[str, tuple[Any, Any]]:
    """The value of every name of the harness and of the modules below it, with a reference so that no id is reused."""
    identities: dict[str, tuple[Any, Any]] = {}
    modules = {module.__name__: module for module in STANDARD}
    modules |= {name: module for name, module in list(sys.modules.items()) if name.split(".")[0] == "parity"}
    for name, module in modules.items():
        for key, value in list(vars(module).items()):
            _add_identity(identities, f"{name}.{key}", value)
            if isinstance(value, type) and value.__module__ == name:
                for method, inner in list(vars(value).items()):
                    _add_identity(identities, f"{name}.{key}.{method}", inner)
    return identities


def _add_identity(identities: dict[str, tuple[Any, Any]], name: str, value: Any) -> None:
    last = name.rpartition(".")[2]
    if isinstance(value, int | float | str | tuple | bytes):
        if not last.startswith("_"):
            identities[name] = repr(value), value
    elif callable(value) or isinstance(value, property | staticmethod | classmethod):
        inner = getattr(value, "__func__", value)
        identities[name] = (
            (id(value), id(getattr(inner, "__code__", None)), id(getattr(inner, "__defaults__", None))),
            (value, inner),
        )
