"""The run directory: what a run leaves behind as evidence, written so that no crash leaves half a file."""

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.harness.runlog import schema_check

SCHEMA = "run.v1"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass
class RunDir:
    """The places in one run directory, and its lock; a context manager that gives the lock back."""

    path: Path
    _lock: Any = field(default=None, repr=False, compare=False)

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def source(self) -> Path:
        return self.path / "source.zip"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def verdict(self) -> Path:
        return self.path / "verdict.json"

    def lock(self) -> None:
        """Marks the run as live until `release` or the end of the process, kill -9 included.

        Raises:
            InputError: another process holds the lock (its pid is in the message), or the directory is not writable.
        """
        import filelock

        lock = filelock.FileLock(self.path / ".lock", timeout=0, thread_local=False)
        holder = self.path / ".lock.pid"
        try:
            lock.acquire()
            holder.write_text(str(os.getpid()))
        except filelock.Timeout:
            raise InputError(
                f"{self.path} is locked by a live run (pid {_pid(holder)}): wait for it to end, stop it, "
                "or choose another --name"
            ) from None
        except OSError as error:
            lock.release()
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): choose a --runs directory that you "
                "may write to, or free some space"
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        if self._lock:
            with suppress(OSError):
                (self.path / ".lock.pid").unlink()
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def write_run_json(self, run: dict[str, Any]) -> None:
        """Writes run.json whole or not at all.

        Raises:
            ValueError: it is not what `parity/schemas/run.v1.json` describes.
            InputError: it cannot be written, as on a full disk; what was there before is still there.
        """
        problem = schema_check(SCHEMA)(run)
        if problem:
            raise ValueError(f"run.json: {problem}")
        write_atomically(self.run_json, (json.dumps(run, indent=2, allow_nan=False) + "\n").encode())

    def read_run_json(self) -> dict[str, Any]:
        """What run.json says, checked against its schema.

        Raises:
            InputError: not a run directory, torn, of an unknown version, or a field is not what the schema asks for.
        """
        try:
            run = json.loads(self.run_json.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{self.path} is not a run directory: expected run.json in it, found none: name a "
                "directory that a training command made"
            ) from None
        except OSError as error:
            raise InputError(f"{self.run_json} cannot be read ({error.strerror}): check its permissions") from None
        except ValueError as error:
            raise InputError(
                f"{self.run_json} is torn or was changed: expected one JSON object, found {error}: the "
                "run must be made again"
            ) from None
        version = run.get("schema") if isinstance(run, dict) else None
        if version != SCHEMA:
            raise InputError(
                f"{self.run_json}: expected schema {SCHEMA}, found {version!r}: read it with the version "
                "of this program that wrote it"
            )
        problem = schema_check(SCHEMA)(run)
        if problem:
            raise InputError(f"{self.run_json}: {problem}: the file was changed, so the run must be made again")
        return run


def _pid(holder: Path) -> str:
    try:
        return holder.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def default_name(recipe: str, backend: str, seed: int) -> str:
    """A run's name when none is given: `<recipe>-<backend>-s<seed>-<UTC yyyymmdd-hhmmss>`."""
    return f"{recipe}-{backend}-s{seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def create(root: str | os.PathLike[str], track: str, name: str | None, *, default: str = "run") -> RunDir:
    """Makes and locks `root/<track>/<name>`; without a name, `default`, and `-2`, `-3` ... after it where it is taken.

    Raises:
        InputError: the directory exists, the name is no plain file name, or the place is not writable.
    """
    stem = default if name is None else name
    for part in (track, stem):
        if not part or part.startswith(".") or part != Path(part).name:
            raise InputError(
                f"a run cannot be named {part!r}: expected a plain directory name with no slash and no "
                "leading dot: choose another --name"
            )
    attempt = 1
    while True:
        path = Path(root) / track / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            attempt += 1
            if name is None and path.is_dir():
                continue
            raise InputError(f"{path} exists: go on with it with --resume {path}, or choose another --name") from None
        except OSError as error:
            raise InputError(
                f"{path} cannot be made ({error.strerror}): choose a --runs directory that you may write to"
            ) from None
        run = RunDir(path)
        run.lock()
        run.checkpoints.mkdir()
        return run


def open_existing(path: str | os.PathLike[str], *, lock: bool = False) -> RunDir:
    """An existing run directory, its run.json checked; `lock=True` to write to it, as a resume does.

    Raises:
        InputError: it is missing, no run directory, or, with lock, held by a live run or not writable.
    """
    run = RunDir(Path(path))
    if not run.path.is_dir():
        raise InputError(
            f"{run.path} is not a run directory: expected a directory with run.json in it, found "
            f"{'a file' if run.path.exists() else 'nothing'}: check the path"
        )
    run.read_run_json()
    if lock:
        run.lock()
    return run


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, on the disk itself before it returns. Raises InputError if it cannot."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _fsync_path(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(
            f"{path} cannot be written ({error.strerror}); what was there is unchanged: free some space "
            "or check its permissions"
        ) from None


def _fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty directory beside `path`, which becomes `path` when the block ends well and is gone when it fails.

    Its files are on the disk itself before the rename. One writer at a time: what a killed one left is removed.

    Raises:
        InputError: `path` exists, or its files cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    if path.exists():
        raise InputError(f"{path} exists and is never overwritten: remove it, or choose another place")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for found in sorted(partial.rglob("*"), reverse=True):
            _fsync_path(found)
        _fsync_path(partial)
        os.rename(partial, path)
        _fsync_path(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); nothing of it was kept: free some space or "
                "check its permissions"
            ) from error
        raise


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that this user may still write at `path`, or at the nearest directory above it that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def pack_source(out_zip: Path, roots: Iterable[Path], extra_files: Iterable[Path]) -> str:
    """Packs the *.py files of some packages, and extra files, into a zip that is the same bytes every time.

    Members are `<package>/<path in it>` and the extra files' own names. Returns `source_digest` of the zip, in hex.

    Raises:
        InputError: a file is missing, two would have one name, or the zip cannot be written.
    """
    members = _source_members([Path(root).resolve() for root in roots], [Path(file) for file in extra_files])
    partial = out_zip.with_name(f".{out_zip.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in sorted(members.items()):
                info = zipfile.ZipInfo(name, _ZIP_DATE)
                info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                archive.writestr(info, content)
        _fsync_path(partial)
        os.replace(partial, out_zip)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"{out_zip} cannot be written ({error.strerror}): free some space") from None
    return _digest(members)


def _source_members(roots: list[Path], extra_files: list[Path]) -> dict[str, bytes]:
    """Member names and contents of the packed source."""
    files = [(file.name, file) for file in extra_files]
    for root in roots:
        found = [(f"{root.name}/{file.relative_to(root).as_posix()}", file) for file in root.rglob("*.py")]
        if not found:
            raise InputError(f"{root} has no Python files to pack: expected a package's directory")
        files += found
    members: dict[str, bytes] = {}
    for name, file in files:
        if name in members:
            raise InputError(f"{file} cannot be packed: another source file is named {name}: rename one")
        try:
            members[name] = file.read_bytes()
        except OSError as error:
            raise InputError(f"the source file {file} cannot be packed ({error.strerror}): check the path") from None
    return members


def source_digest(packed: Path) -> str:
    """sha256, in hex, over the names and contents of a zip's members in name order, as `pack_source` returned it.

    Raises:
        InputError: the file is missing or no whole zip.
    """
    try:
        with zipfile.ZipFile(packed) as archive:
            return _digest({name: archive.read(name) for name in archive.namelist()})
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{packed} cannot be read as a zip ({error}): the run must be made again") from None


def _digest(members: dict[str, bytes]) -> str:
    """Names and contents each follow their length, so that no two sets of files share a digest."""
    total = hashlib.sha256()
    for name, content in sorted(members.items()):
        for part in (name.encode(), content):
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
    return total.hexdigest()
