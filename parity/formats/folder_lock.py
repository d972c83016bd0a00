"""Locks on what is being written: the system's own (flock), or a file of ours where the file system has none.

The system's lock falls with its process, kill -9 included. Beside it a record says who holds it. Where there is no
flock the record itself is the lock: it is made by exclusive creation, and taken over once its process has ended, which
can be told on the same machine only.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.formats.files import TEMPORARY_SUFFIX, cannot_write, open_plain, read_bounded

LOCK, RECORD_SUFFIX = ".lock", ".pid"
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
RECORD_BYTES = 2000
POLL_S = 0.2
RETRIES, RETRY_S = 20, 0.01
GUARD_SUFFIX, GUARD_S = ".stale", 30.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. `start` tells it from later ones of its number; `soft`: its record is the lock."""

    pid: int
    host: str = ""
    start: str = ""
    since: str = ""
    soft: bool = False

    def __str__(self) -> str:
        return f"{self.pid or 'unknown'}{f' on {self.host}, since {self.since}' if self.elsewhere else ''}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is a process of another machine or container."""
        return self.host not in ("", _host())

    @property
    def ended(self) -> bool:
        """Whether it is certain that the process has ended."""
        if self.elsewhere or self.pid < 1:
            return False
        now = _start(self.pid)
        return not now or "?" not in (now, self.start or "?") and now != self.start


def holder(folder: Path) -> str | None:
    """Who holds a folder's lock: the pid, with the host where that is another ("unknown" if not readable); or None.

    Writes nothing. Raises InputError where the lock is a link, pipe or folder.
    """
    path = folder / LOCK
    record = _read(_record(path))
    if record and record.soft and not record.ended:
        return f"{record}{_removal(path, record)}"
    try:
        with open_plain(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS asks for a file open for writing for the other kind
    except BlockingIOError:
        return str(record or Holder(0))
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None  # without flock the record alone counts
        raise _not_a_lock(path) from None
    return None


@contextlib.contextmanager
def locked(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Holds a folder's lock.

    Raises InputError where the folder cannot be written, and where another holds the lock: it calls the holder `what`
    ("a live run") and ends in `remedy`.
    """
    path = folder / LOCK
    release = _take(path)
    if isinstance(release, Holder):
        raise InputError(f"{folder} is locked by {what} (pid {release}{_removal(path, release)}): {remedy}")
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def waited_for(path: Path, what: str, wait_s: float, say: Callable[[str], None]) -> Iterator[bool]:
    """Holds the lock that a file is, and yields whether it had to be waited for; `say` is told for whom.

    Raises InputError where the file cannot be written, and where the lock is not free after `wait_s`: it calls what the
    holder does `what` ("prepares news").
    """
    begin_s, waits = time.monotonic(), False
    while isinstance(release := _take(path, make_folder=True), Holder):
        whom = f"another process (pid {release}{_removal(path, release)})"
        if time.monotonic() - begin_s >= wait_s:
            raise InputError(f"{path}: {whom} still {what} after {wait_s:g} s: stop it, or run the command again later")
        if not waits:
            say(f"{whom} {what}: waiting for it, {wait_s:g} s at most")
            waits = True
        time.sleep(min(POLL_S, wait_s))
    try:
        yield waits
    finally:
        release()


def _take(path: Path, make_folder: bool = False) -> Callable[[], None] | Holder:
    """Takes a lock and returns what releases it, or the process that holds it."""
    try:
        if make_folder:  # one that waits may find it removed by one that has failed
            path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(RETRIES):
            descriptor = _open(path)
            try:
                taken = _take_open(path, descriptor, number + 1 == RETRIES)
            except BaseException:
                os.close(descriptor)
                raise
            if callable(taken):
                return taken
            os.close(descriptor)
            if taken:
                return taken
            time.sleep(RETRY_S)
        return _read(_record(path)) or Holder(0)
    except OSError as error:
        raise cannot_write(path.parent, error) from None


def _take_open(path: Path, descriptor: int, last: bool) -> Callable[[], None] | Holder | None:
    """As `_take`, with the lock's file open; None where another process has been faster: then it is tried again."""
    record_path, has_flock = _record(path), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(record_path) or Holder(0)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        has_flock = False
    if has_flock and not last and not _names(path, descriptor):  # last: some file systems renumber files
        return None
    try:
        return _take_record(path, record_path, descriptor, has_flock)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _take_record(path: Path, record_path: Path, descriptor: int, has_flock: bool) -> Callable[[], None] | Holder | None:
    """As `_take`, once the system's lock is held or found missing."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(record_path).st_mode):
            raise _not_a_lock(record_path)
        record = _read(record_path) or Holder(0, soft=not has_flock)
        if (record.soft or not has_flock) and not record.ended:
            return record
        _remove_stale(record_path, record, not has_flock)
    own = Holder(os.getpid(), _host(), _start(os.getpid()), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", not has_flock)
    if not _create(record_path, json.dumps(asdict(own)).encode()):
        return None

    def release() -> None:
        with contextlib.suppress(OSError):
            if _read(record_path) == own:
                record_path.unlink()
        with contextlib.suppress(OSError):
            if _names(path, descriptor):
                path.unlink()
        os.close(descriptor)

    return release


def _open(path: Path) -> int:
    """The lock's file, made if it is not there. Raises InputError where something else is there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise _not_a_lock(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_lock(path)
    return descriptor


def _names(path: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _record(path: Path) -> Path:
    return path.with_name(path.name + RECORD_SUFFIX)


def _read(path: Path) -> Holder | None:
    """The record beside a lock; None where there is none that can be read."""
    try:
        values: Any = json.loads(read_bounded(path, RECORD_BYTES, plain=True))
        found = Holder(**(values if isinstance(values, dict) else {"pid": values}))  # an older version's: the pid alone
        types = (found.pid, int), (found.soft, bool), *((text, str) for text in (found.host, found.start, found.since))
        return found if all(type(value) is kind for value, kind in types) and 0 < found.pid < 1 << 31 else None
    except (OSError, ValueError, TypeError, RecursionError, InputError):
        return None


def _remove_stale(path: Path, record: Holder, soft: bool) -> None:
    """Removes the record of a process that has ended; one process at a time, so that none removes a newer one."""
    guard = path.with_name(path.name + GUARD_SUFFIX)
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    except FileExistsError:
        with contextlib.suppress(OSError):
            if time.time() - guard.stat().st_mtime > GUARD_S:  # its process was killed
                guard.unlink()
        return
    try:
        if (_read(path) or Holder(0, soft=soft)) == record:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _create(path: Path, data: bytes) -> bool:
    """Makes a file that is whole from its first moment on; False where there is one."""
    aside = _aside(path)
    try:
        with open(aside, "xb") as file:
            file.write(data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(path, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")  # pids of two machines may be equal


def _host() -> str:
    """This machine's name, and which of its sets of process numbers this process sees, as a container has its own."""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        return socket.gethostname() if space == "4026531836" else f"{socket.gethostname()} ({space})"
    return socket.gethostname()


def _start(pid: int) -> str:
    """When a process was started, as the system counts it: "?" where that is not known, "" where none is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:  # another user's
        pass
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read(8)
    except OSError:
        return "?"
    return "" if fields[0] in (b"Z", b"X") else f"{boot}-{fields[19].decode()}"


def _removal(path: Path, held: Holder) -> str:
    """What to do about a lock that no process of this machine can free; "" for another."""
    if not held.soft or (held.pid and not held.elsewhere):
        return ""
    return f"; if no such process is left, remove {_record(path)}"


def _not_a_lock(path: Path) -> InputError:
    return InputError(f"{path}: expected the file of a lock, found a folder, link or another kind: remove it")
