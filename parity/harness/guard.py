"""What user code does besides its work while it runs in the harness' process: recorded for the log, not prevented.

Before user code is loaded, the identity of every function, class and constant of the harness, and of the
modules its clock, digests and log rest on, is noted; at every pause they are compared. An audit hook records files that
are opened outside the folders that a run needs, files of the slice, sockets, and programs that are started. Code in the
same process can defeat all of this with some effort: it makes cheating visible or expensive. What proves a run is
recomputation and replay.
"""

import builtins
import hashlib
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import platformdirs

from parity.harness.processes import ProcessGroup

MAX_EVENTS = 100  # of a run: the first are enough to see what happens
STANDARD: tuple[ModuleType, ...] = (builtins, time, hashlib, json, os)
SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/opt", "/nix", "/System", "/Library")
NETWORK = frozenset(("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"))
PROCESS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
)


class Guard:
    """Watches from `start` to `stop`, or as a context manager; one at a time in a process.

    `data` is the folder of the slice: the harness has its shards open before, so that nothing has to open them again.
    `allowed` are folders and files that the run may read and write.
    """

    _active: ClassVar["Guard | None"] = None
    _hooked: ClassVar[bool] = False

    def __init__(self, data: Path, allowed: Iterable[Path]):
        self.phase = "build"
        self._data = os.path.realpath(data) + os.sep
        self._allowed = tuple(os.path.realpath(path) for path in (*allowed, *_system_folders()))
        self._written: set[str] = set()
        self._events: list[dict[str, str]] = []
        self._collected = 0
        self._before = _identities()
        self._reported: set[str] = set()

    def allow(self, path: Path) -> None:
        """Lets the run read and write one more file or folder."""
        self._allowed += (os.path.realpath(path),)

    def start(self) -> None:
        """Records events from now on; the hook itself stays for the life of the process and costs next to nothing."""
        Guard._active = self
        if not Guard._hooked:
            sys.addaudithook(_hook)
            Guard._hooked = True

    def stop(self) -> None:
        """Records nothing any more."""
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
        events, self._collected = self._events[self._collected :], len(self._events)
        return {"changed": changed, "events": events}

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Handles an audit event of the process."""
        if event == "open":
            self._note_open(*args[:3])
        elif event in NETWORK:
            self._record("network", f"{event} {args[1:] if event != 'socket.getaddrinfo' else args[:2]}")
        elif event in PROCESS:
            self._record("process", f"{event} {args[0] if args else ''}")

    def _note_open(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: what it belongs to was opened before
        full = os.path.realpath(os.fsdecode(path))
        if full.startswith(self._data):
            self._record("data", full)
        elif (
            not full.endswith("__path_hook__")
            and not any(full == path or full.startswith(path + os.sep) for path in self._allowed)
            and full not in self._written
        ):
            if flags & (os.O_WRONLY | os.O_RDWR) or (mode and set(mode) & set("wax+")):
                self._written.add(full)
                self._record("write", full)
            else:
                self._record("read", full)

    def _record(self, kind: str, what: str) -> None:
        text = what.encode(errors="backslashreplace").decode()[:300]  # a file's name may be no Unicode
        event = {"kind": kind, "what": text, "phase": self.phase}
        if len(self._events) < MAX_EVENTS and event not in self._events:
            self._events.append(event)


def guard_events(guard: Guard, processes: ProcessGroup) -> dict[str, list[Any]]:
    """What the guards of all processes have recorded since the last call, each event once."""
    merged: dict[str, list[Any]] = {}
    for collected in processes.gather(guard.collect()):
        for kind, events in collected.items():
            known = merged.setdefault(kind, [])
            known += [event for event in events if event not in known]
    return merged


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if Guard._active is not None:
        Guard._active.note(event, args)


def _system_folders() -> list[str]:
    """The folders of Python, its packages, the compilers and their caches."""
    code = [
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        *sysconfig.get_paths().values(),
        str(Path(__file__).parents[2]),
    ]
    paths = [path for path in sys.path if path and os.path.isdir(path) and "site-packages" in path]
    caches = [
        os.environ.get(name) for name in ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    ]
    caches += [platformdirs.user_cache_dir("jaxrun"), os.path.expanduser("~/.triton"), os.path.expanduser("~/.nv")]
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "root"
    inductor = os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")
    return [*SYSTEM, *code, *paths, *filter(None, caches), inductor]


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
