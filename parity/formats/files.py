"""Files and folders that are either whole or absent, on the disk itself, with a sentence where it takes none."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from parity.errors import REMEDIES, InputError, remedy

CHUNK_BYTES = 1 << 20
TEMPORARY_SUFFIX = ".tmp"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What fsync answers where the file system has no such call.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def cannot_write(path: Path, error: OSError) -> InputError:
    """The sentence for a file that could not be written: the disk is full, no permission, or the system's reason."""
    what = "the disk is full" if error.errno in DISK_FULL else "cannot be written"
    return InputError(
        f"{path}: {what} ({error.strerror or error}), and nothing of it was kept: {remedy(error)}, or choose another "
        "place (of slices: --data-dir), then run the command again"
    )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path`, whole and on the disk, when the block ends well, and is removed if not.

    Raises InputError where the disk is full or the folder cannot be written; an old file is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # never through a link that somebody has put there
            yield file
            file.flush()
            fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # still there only if something failed


def write_file(path: Path, data: bytes) -> None:
    """Writes a file as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, which becomes `path` when the block ends well and is removed when it fails.

    Its files are on the disk itself before the rename. One writer at a time: what a killed one left is removed.

    Raises InputError where `path` exists or its files cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    if path.exists():
        raise InputError(f"{path} exists and is never overwritten: remove it, or choose another place")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for inner in sorted(temporary.rglob("*"), reverse=True):
            sync(inner)
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise cannot_write(path, error) from error
        raise


def fsync(descriptor: int) -> None:
    """Waits until the disk itself has an open file's bytes, where its file system has such a call."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sync(path: Path) -> None:
    """Puts a file, or a folder's entries, on the disk itself, so that they outlive a power cut.

    Of a folder only a failing disk is an error: the entries are there, and Samba, FUSE and others cannot sync it.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno in (*DISK_FULL, errno.EIO):
            raise


def remove_temporary(folder: Path) -> None:
    """Removes what a killed writer left half-written; call it only while holding the folder's lock."""
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write at `path`, or at the nearest folder above it that exists.

    More than any disk has, where the file system does not say.
    """
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else sys.maxsize


def open_plain(path: Path, *, follow: bool = False) -> BufferedReader:
    """Opens a plain file to read; `follow`: where a link leads to one too. Never waits, whatever the path is.

    Raises InputError for a link, pipe, socket or device, which an untrusted folder may hold; OSError for no file.
    """
    mode = path.stat().st_mode if follow else path.lstat().st_mode
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise _not_plain(path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # changed in between
        os.close(descriptor)
        raise _not_plain(path)
    return open(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int, *, plain: bool = False) -> bytes:
    """The bytes of a file; `plain`: not through a link. InputError for more than `max_bytes`, and as `open_plain`."""
    with open_plain(path, follow=not plain) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(
            f"{path}: expected at most {max_bytes:,} bytes, found more: it is not what this project writes"
        )
    return data


def _not_plain(path: Path) -> InputError:
    return InputError(
        f"{path}: expected a plain file, found a link or another kind: it is not what this project writes"
    )


def plain_files(folder: Path, max_files: int, max_bytes: int) -> dict[str, int]:
    """The files below a folder by their path in it, with their sizes in bytes; nothing is followed.

    Raises InputError for a folder that is a link, for links, pipes, sockets and devices in it, for more than
    `max_files` files and folders, and for more than `max_bytes` of all files; OSError where it cannot be read.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise InputError(f"{folder}: expected a folder, found a link or another kind: put back what was saved")
    found, total, count, folders = {}, 0, 0, [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                facts = entry.stat(follow_symlinks=False)
                name = Path(entry.path).relative_to(folder).as_posix()
                if stat.S_ISDIR(facts.st_mode):
                    folders.append(Path(entry.path))
                elif stat.S_ISREG(facts.st_mode):
                    found[name] = facts.st_size
                    total += facts.st_size
                else:
                    raise _not_plain(Path(entry.path))
                if count > max_files or total > max_bytes:
                    raise InputError(
                        f"{folder}: expected at most {max_files:,} files of {max_bytes:,} bytes in all, found more: it "
                        "is not what this project writes"
                    )
    return found


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises InputError for what is no file; OSError where it cannot be read."""
    with open_plain(Path(path), follow=True) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
