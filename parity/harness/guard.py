"""What own code does beside its work while it runs in the harness' process: recorded for the log, not prevented.

Before a program's own code is loaded, the identity of every function, class and constant of the harness, and of the
modules its clock, digests and log rest on, is noted; at every pause they are compared. An audit hook records files that
are opened outside the places that a run needs, files of the slice, sockets, and programs that are started. Code in the
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
from typing import Any

import platformdirs

LIMIT = 100  # events kept of a run: the first are enough to see what goes on
STANDARD: tuple[ModuleType, ...] = (builtins, time, hashlib, json, os)
SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/opt", "/nix", "/System", "/Library")
NETWORK = frozenset(("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"))
PROCESS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
)

_watching: "Guard | None" = None
_hooked = False


class Guard:
    """Watches from `start` to `stop`; `found` gives what is new since it was last asked. One at a time in a process.

    `data` is the folder of the slice: the harness has its shards open before, so that nothing has to open them again.
    `allowed` are folders and files that the run may read and write.
    """

    def __init__(self, data: Path, allowed: Iterable[Path]):
        self.phase = "build"
        self._data = os.path.realpath(data) + os.sep
        self._allowed = tuple(os.path.realpath(path) for path in (*allowed, *_places()))
        self._written: set[str] = set()
        self._events: list[dict[str, str]] = []
        self._given = 0
        self._before = _identities()
        self._reported: set[str] = set()

    def allow(self, path: Path) -> None:
        """One more place that the run may read and write."""
        self._allowed += (os.path.realpath(path),)

    def start(self) -> None:
        """From now on events are recorded; the hook itself stays for the life of the process and costs next to nothing."""
        global _watching, _hooked
        _watching = self
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked = True

    def stop(self) -> None:
        """Nothing is recorded any more."""
        global _watching
        _watching = None

    def found(self) -> dict[str, list[Any]]:
        """`changed`: names that are no longer what they were; `events`: {kind, what, phase}; both since the last call."""
        now = _identities()
        changed = sorted(
            name
            for name, value in self._before.items()
            if name not in self._reported and now.get(name, (None,))[0] != value[0]
        )
        self._reported.update(changed)
        events, self._given = self._events[self._given :], len(self._events)
        return {"changed": changed, "events": events}

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Called for every audit event of the process."""
        if event == "open":
            self._opened(*args[:3])
        elif event in NETWORK:
            self._keep("network", f"{event} {args[1:] if event != 'socket.getaddrinfo' else args[:2]}")
        elif event in PROCESS:
            self._keep("process", f"{event} {args[0] if args else ''}")

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: what it belongs to was opened before
        full = os.path.realpath(os.fsdecode(path))
        if full.startswith(self._data):
            self._keep("data", full)
        elif (
            not full.endswith("__path_hook__")
            and not any(full == place or full.startswith(place + os.sep) for place in self._allowed)
            and full not in self._written
        ):
            if flags & (os.O_WRONLY | os.O_RDWR) or (mode and set(mode) & set("wax+")):
                self._written.add(full)
                self._keep("write", full)
            else:
                self._keep("read", full)

    def _keep(self, kind: str, what: str) -> None:
        event = {"kind": kind, "what": what[:300], "phase": self.phase}
        if len(self._events) < LIMIT and event not in self._events:
            self._events.append(event)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    guard = _watching
    if guard is not None:
        guard.note(event, args)


def _places() -> list[str]:
    """Where Python, its packages, the compilers and their caches are."""
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
    """What every name of the harness and of the modules under it stands for, with a reference so that no id comes back."""
    found: dict[str, tuple[Any, Any]] = {}
    modules = {module.__name__: module for module in STANDARD}
    modules |= {name: module for name, module in list(sys.modules.items()) if name.split(".")[0] == "parity"}
    for name, module in modules.items():
        for key, value in list(vars(module).items()):
            _note(found, f"{name}.{key}", value)
            if isinstance(value, type) and value.__module__ == name:
                for method, inner in list(vars(value).items()):
                    _note(found, f"{name}.{key}.{method}", inner)
    return found


def _note(found: dict[str, tuple[Any, Any]], name: str, value: Any) -> None:
    last = name.rpartition(".")[2]
    if isinstance(value, int | float | str | tuple | bytes):
        if not last.startswith("_"):
            found[name] = repr(value), value
    elif callable(value) or isinstance(value, property | staticmethod | classmethod):
        inner = getattr(value, "__func__", value)
        found[name] = (
            (id(value), id(getattr(inner, "__code__", None)), id(getattr(inner, "__defaults__", None))),
            (value, inner),
        )
