"""The run directory: what a run leaves behind as evidence."""

import json
import re
import stat
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.errors import InputError, remedy
from parity.formats import schemas
from parity.formats.files import cannot_write, write_file
from parity.formats.folder_lock import holder, locked

SCHEMA = "run.v1"
# What a directory holds before its run begins: with the first whole line of the log.
BEFORE_START = re.compile(r"run\.json|source\.zip|log\.jsonl|checkpoints|\.lock(\.pid(\.\w+(\.tmp)?)?)?|\..+\.\d+\.tmp")
FIRST_LINE_BYTES = 1 << 20


class RunDir:
    """The files of one run directory, and its lock; a context manager that releases the lock."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.run_json = self.path / "run.json"
        self.log = self.path / "log.jsonl"
        self.weights = self.path / "weights.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.source = self.path / "source.zip"
        self.curve = self.path / "curve.png"
        self.verdict = self.path / "verdict.json"
        self._lock = ExitStack()
        self._made: list[Path] = []

    def lock(self) -> None:
        """Marks the run as live until `release` or the end of the process.

        Raises InputError where another process holds the lock, or the directory is not writable.
        """
        remedy = "wait for it to end, stop it, or choose another --name"
        self._lock.enter_context(locked(self.path, "a live run", remedy))

    def release(self) -> None:
        """Releases the lock; harmless when it is not held."""
        self._lock.close()

    def make(self) -> None:
        """Makes the directory, with those above it, and locks it; of one that is there already only what an earlier
        process left before its run began may be in it, and goes.

        Raises FileExistsError where anything else is there, InputError where it is locked or cannot be written.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True)
            self._made = missing
        except FileExistsError:
            if not self.is_unused() or holder(self.path):
                raise
        try:
            self.lock()
        except BaseException:
            self._remove_folders()
            raise
        try:
            self._remove_unused()
            self.checkpoints.mkdir()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise cannot_write(self.path, error) from error
            raise

    def discard(self, *, begun: bool = False) -> None:
        """Removes what this process made: files, and folders that were not there before. Of a run whose log has begun
        only with `begun`."""
        with suppress(OSError):
            if begun:
                self.log.unlink()
            self._remove_unused()
        self.release()
        self._remove_folders()

    def is_unused(self) -> bool:
        """Whether there is nothing but what a process leaves whose run never began, as after kill -9."""
        try:
            kinds = {path.name: path.lstat().st_mode for path in self.path.iterdir()}
            folders = {name for name, mode in kinds.items() if stat.S_ISDIR(mode)}
            if not all(BEFORE_START.fullmatch(name) for name in kinds) or not folders <= {"checkpoints"}:
                return False
            if not all(stat.S_ISREG(mode) for name, mode in kinds.items() if name not in folders):
                return False
            if "log.jsonl" in kinds:
                with open(self.log, "rb") as file:
                    if b"\n" in file.read(FIRST_LINE_BYTES):
                        return False
            return "checkpoints" not in kinds or not any(self.checkpoints.iterdir())
        except OSError:
            return False

    def _remove_unused(self) -> None:
        for path in self.path.iterdir() if self.is_unused() else ():
            if path == self.checkpoints:
                path.rmdir()
            elif not path.name.startswith(".lock"):
                path.unlink()

    def _remove_folders(self) -> None:
        """Removes the folders that this process made, unless another has put something there."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def write_run_json(self, run: dict[str, Any]) -> None:
        """Writes run.json whole or not at all. Raises ValueError for a wrong field, InputError on a full disk."""
        if problem := schemas.check_for(SCHEMA)(run):
            raise ValueError(f"run.json: {problem}")
        write_file(self.run_json, (json.dumps(run, indent=2, allow_nan=False) + "\n").encode())

    def read_run_json(self) -> dict[str, Any]:
        """The values of run.json, checked. Raises InputError where it is missing, damaged, or of an unknown version."""
        if not self.run_json.exists() and self.is_unused() and any(self.path.iterdir()):
            raise InputError(
                f"{self.path} is not a run directory: expected one in which a run has begun, found only what a process "
                "made before: start the run with its --name again, without --resume, or remove it"
            )
        if not self.run_json.exists():
            raise InputError(
                f"{self.path} is not a run directory: expected run.json in it, found none: name a directory that a "
                "training command made"
            )
        remedy = "it is torn or was changed, so the run must be made again"
        return schemas.read(self.run_json, SCHEMA, "the run.json of a run", remedy)


def default_name(recipe: str, backend: str, seed: int) -> str:
    """A run's name when none is given: `<recipe>-<backend>-s<seed>-<UTC yyyymmdd-hhmmss>`."""
    return f"{recipe}-{backend}-s{seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def create(root: Path, track: str, name: str | None, *, default: str = "run") -> RunDir:
    """Makes and locks `root/<track>/<name>`; without a name, `default`, or `default-2`, `-3` ... where that exists.

    Raises InputError where the directory exists, the name is no plain file name, or the folder is not writable.
    """
    stem = default if name is None else name
    for folder in (track, stem):
        if not folder or folder.startswith(".") or folder != Path(folder).name:
            raise InputError(
                f"a run cannot be named {folder!r}: expected a plain directory name with no slash and no "
                "leading dot: choose another --name"
            )
    number = 1
    while True:
        path = Path(root) / track / (stem if number == 1 else f"{stem}-{number}")
        run = RunDir(path)
        try:
            if name is None and path.is_dir():
                raise FileExistsError
            run.make()
            return run
        except FileExistsError:
            number += 1
            if name is None and path.is_dir():
                continue
            if not run.run_json.exists() and not holder(path):
                raise InputError(
                    f"{path} exists and is no run directory: expected a new folder, found one without run.json: remove "
                    "it, or choose another --name"
                ) from None
            raise InputError(f"{path} exists: continue it with --resume {path}, or choose another --name") from None
        except OSError as error:
            raise InputError(
                f"{path} cannot be made ({error.strerror}): choose a --runs directory that you may write to, or "
                f"{remedy(error)}"
            ) from None


def open_existing(path: Path, *, lock: bool = False) -> RunDir:
    """An existing run directory, its run.json checked; `lock=True` to write to it, as a resume does.

    Raises InputError where it is missing, no run directory, or, with lock, held by a live run or not writable.
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
