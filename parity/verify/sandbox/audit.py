"""Records what the code in this process tried, from Python's audit events.

Untrusted code could undo the recording with some effort: it is evidence, and no limit. The limits are in child.py.
"""

import os
import shutil
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_EVENTS = 100  # the first are enough to see what the code does

# Audit events (docs.python.org/3/library/audit_events.html) that are recorded whatever their arguments are.
STARTS = "subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty pty.spawn"
REACHES = """
    socket.connect socket.bind socket.sendto socket.getaddrinfo socket.gethostbyname socket.gethostbyaddr os.kill
    os.killpg
"""
# Audit events that name files, recorded where one is outside the allowed paths.
CHANGES = """
    os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.utime os.setxattr
    os.removexattr
"""


class _Recorder:
    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        self.code: tuple[str, ...] = ()
        self.readable: tuple[str, ...] = ()
        self.writable: tuple[str, ...] = ()
        self.programs: tuple[str, ...] = ()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """For sys.addaudithook. An exception raised here would be raised by the audited call."""
        try:
            text = self.describe(event, args)
        except (TypeError, ValueError, LookupError, AttributeError, OSError, RuntimeError) as error:  # odd arguments
            text = f"{event} ({type(error).__name__})"
        if text and text[:300] not in self.events and len(self.events) < MOST_EVENTS:
            self.events.append(text[:300])

    def describe(self, event: str, args: tuple[Any, ...]) -> str | None:
        """The text to record; None for an event that is allowed."""
        if event == "open":
            writes = args[2] & (os.O_WRONLY | os.O_RDWR) or set(args[1] or "") & set("wax+")
            return self.outside("write" if writes else "read", args[:1], self.writable if writes else self.readable)
        if event in ("os.listdir", "os.scandir"):
            return self.outside("read", args, self.readable)
        if event in CHANGES.split():
            return self.outside(event, args[:2], self.writable)
        if event == "ctypes.dlopen" or (event == "import" and args[1]):
            path = args[0] if event == "ctypes.dlopen" else args[1]
            return self.outside("native code", [path], self.code) if os.sep in os.fsdecode(path or "") else None
        if event in STARTS.split():
            if event in ("subprocess.Popen", "os.posix_spawn") and self.may_start(event, args):
                return None
            return f"{event} {args[1] if event == 'subprocess.Popen' else args[0] if args else ''}".strip()
        if event in REACHES.split() or (event == "socket.__new__" and args[1] not in (-1, socket.AF_UNIX)):
            return f"{event} {tuple(arg for arg in args if not isinstance(arg, socket.socket))}"
        return None

    def may_start(self, event: str, args: tuple[Any, ...]) -> bool:
        """Whether the program that is started is one of those that may be."""
        words, environment = (args[1], args[3]) if event == "subprocess.Popen" else (args[1], args[2])
        named = os.fsdecode(args[0] or (words if isinstance(words, str | bytes) else words[0]))
        found = named if os.sep in named else shutil.which(named, path=(environment or os.environ).get("PATH"))
        return found is not None and any(Path(os.path.realpath(found)).is_relative_to(each) for each in self.programs)

    def outside(self, action: str, paths: Iterable[Any], allowed: tuple[str, ...]) -> str | None:
        named = [os.path.realpath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)]
        beyond = [path for path in named if not any(f"{path}/".startswith(f"{folder}/") for folder in allowed)]
        return f"{action} {' '.join(beyond)}" if beyond else None


_recorder = _Recorder()


def allow(code: Iterable[str], readable: Iterable[str], writable: Iterable[str], programs: Iterable[str] = ()) -> None:
    """Sets the paths whose use is not recorded: native code may be loaded from `code`, files read from all, and
    `programs` started."""
    _recorder.code, _recorder.writable, _recorder.programs = _real(code), _real(writable), _real(programs)
    _recorder.readable = _recorder.code + _real(readable) + _recorder.writable + _recorder.programs


def watch() -> None:
    """Starts recording: files outside the allowed paths, sockets, programs, native code, signals."""
    if not _recorder.on:
        _recorder.on = True
        sys.addaudithook(_recorder.hook)


def recorded() -> list[str]:
    """The attempts since `watch`, refused or not: each once, in order, at most MOST_EVENTS."""
    return list(_recorder.events)


def _real(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(os.path.realpath(path) for path in paths)
