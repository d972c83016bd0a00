"""The lock on a folder that is being written to; it falls with its process, kill -9 included."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from parity.errors import InputError
from parity.formats.files import open_plain, read_bounded

LOCK, HOLDER = ".lock", ".lock.pid"


def holder(folder: Path) -> str | None:
    """The pid of the process that holds a folder's lock ("unknown" if not readable), or None. Writes nothing.

    Raises InputError where the lock is a link, pipe or folder.
    """
    import fcntl

    try:
        with open_plain(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError, InputError):
            return str(int(read_bounded(folder / HOLDER, 20, plain=True)))
        return "unknown"
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        raise InputError(
            f"{folder / LOCK}: expected the file of a lock, found another kind ({error.strerror}): remove it"
        ) from None
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
        (folder / HOLDER).unlink(missing_ok=True)
        with open(folder / HOLDER, "x") as file:  # nothing that lies there is written to
            file.write(str(os.getpid()))
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
