"""Files that are either whole or absent: temporary names, digests, and what to say when the disk is full."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from parity.errors import InputError

CHUNK_BYTES = 1 << 20
TEMPORARY_SUFFIX = ".tmp"


def cannot_write(path: Path, error: OSError) -> InputError:
    """The sentence for a file that could not be written: the disk full, no permission, or what the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(
            f"{path}: the disk is full or a size limit was reached while writing it (expected room for the whole file, "
            f"found: {error.strerror}); free some space or choose another place with --data-dir, then run the command "
            "again: what was finished is kept"
        )
    return InputError(
        f"{path}: cannot be written (expected a folder one may write to, found: {error.strerror or error}); "
        "choose another place with --data-dir"
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a binary file that becomes `path`, whole and on the disk, when the block ends well, and is removed if not.

    Raises InputError where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # Still there only if something failed.
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Removes what a killed builder left half-written; call it only while holding the folder's lock."""
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
