"""The lock on a folder that is being written to; it falls with its process, kill -9 included."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from parity.errors import InputError

LOCK, HOLDER = ".lock", ".lock.pid"


def holder(folder: Path) -> str | None:
    """The pid of the process that holds a folder's lock ("unknown" if not readable), or None. Writes nothing."""
    import fcntl

    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return str(int((folder / HOLDER).read_text()[:20]))
        return "unknown"
    except OSError:
        return None
    return None


@contextlib.contextmanager
def locked(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Holds a folder's lock.

    Raises InputError where the folder cannot be written, and where another holds the lock: it calls the holder `what`
    ("a live run") and ends in `remedy`.
    """
    import filelock

    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
        (folder / HOLDER).write_text(str(os.getpid()))
    except filelock.Timeout:
        raise InputError(f"{folder} is locked by {what} (pid {holder(folder)}): {remedy}") from None
    except OSError as error:
        lock.release()
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): choose a folder that you may write to, or free some space"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()
