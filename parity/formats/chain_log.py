"""Append-only JSON lines, each carrying the SHA-256 of the line before it.

The chain shows accidents and edits of every line but the last, which no line follows. It has no key, so it proves
nothing against someone who writes a new chain.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError, remedy
from parity.formats.files import fsync, open_plain, sync
from parity.formats.strict_json import decode, fault

FIRST_PREV = "0" * 64
MAX_DIGITS = 19
TORN_LINE_DROPPED = "torn_line_dropped"
RESERVED = frozenset(("n", "event", "utc", "clock_s", "time_s", "prev"))

# Taken at import, before user code is loaded, so that patching `time` later does not reach a log.
_perf, _time, _from_timestamp, _sha256 = time.perf_counter, time.time, datetime.fromtimestamp, hashlib.sha256


class Chain(NamedTuple):
    """The lines so far: their number, the digest of the last (which the next line carries), and their bytes."""

    lines: int = 0
    digest: str = FIRST_PREV
    size: int = 0

    def after(self, line: bytes) -> "Chain":
        """The chain with one more line, newline included."""
        return Chain(self.lines + 1, _sha256(line[:-1]).hexdigest(), self.size + len(line))

    def problem(self, event: dict[str, Any]) -> str:
        """Why an event cannot be the next line; "" if it can."""
        number, prev = event.get("n"), event.get("prev")
        if type(number) is not int or number != self.lines + 1:
            return f"expected line number {self.lines + 1}, found {number!r:.40}, as lines were cut, added or reordered"
        if prev != self.digest:
            return (
                f"expected prev {self.digest[:12]}, the digest of the line before, found {str(prev)[:12]}, as "
                f"{f'line {self.lines} was edited or ' if self.lines else ''}another log's lines begin here"
            )
        return ""


@dataclass(frozen=True)
class Format:
    """A kind of chained file: the version of its schema, its limits, and the words of its messages."""

    schema: str
    title: str
    """What the file is: "the run log"."""
    missing: str
    """What to do where there is no file."""
    changed: str
    """What an edit means: "so the run must be made again"."""
    resume: str
    """What continues after a failed write and drops a torn line, with {folder}: "--resume {folder}"."""
    first: str | None = None
    """The kind of the first event and of no other."""
    monotonic: bool = False
    """Whether lines carry the reading of the monotonic clock, clock_s, too."""
    max_line_bytes: int = 4 << 20
    max_lines: int = 20_000_000
    max_bytes: int = 16 << 30


def decode_line(line: bytes) -> dict[str, Any]:
    """The event of one line, newline included. Raises ValueError, which says what was expected and found."""
    if not line.endswith(b"\n"):
        raise ValueError(f"expected one JSON object that ends in a newline, found {line[:40]!r}")
    try:
        event = decode(line, MAX_DIGITS)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON object, found {fault(error)}") from None
    if not isinstance(event, dict):
        raise ValueError(f"expected one JSON object, found {type(event).__name__}")
    return event


def read(
    path: Path, form: Format, problem: Callable[[dict[str, Any]], str], *, tolerate_torn: bool = False
) -> Iterator[tuple[dict[str, Any], Chain]]:
    """The events of a file in order, each with the chain up to its line; checked as they are read.

    `problem` says what is wrong with an event besides its place in the chain. `tolerate_torn` leaves out a last line
    that was cut off while it was written; without it that line is an error. Raises InputError with file and line.
    """
    chain = Chain()
    with _open(path, form) as file:
        while line := file.readline(form.max_line_bytes + 1):
            where = f"{path} line {chain.lines + 1}"
            too_long = len(line) > form.max_line_bytes or chain.size + len(line) > form.max_bytes
            if too_long or chain.lines == form.max_lines:
                raise InputError(
                    f"{where}: expected at most {form.max_lines:,} lines of {form.max_line_bytes:,} bytes, and "
                    f"{form.max_bytes:,} bytes in all, found more: {form.changed}"
                )
            try:
                event = decode_line(line)
            except ValueError as error:
                last = not file.peek(1)
                if last and tolerate_torn:
                    return
                cut_off = f"its writing was cut off, and {_resume(path, form)} drops it and continues"
                raise InputError(f"{where}: {error}: {cut_off if last else form.changed}") from None
            if reason := chain.problem(event) or _first_problem(event, form) or problem(event):
                raise InputError(f"{where}: {reason}: {form.changed}")
            chain = chain.after(line)
            yield event, chain


def scan(path: Path, form: Format, problem: Callable[[dict[str, Any]], str], *, tolerate_torn: bool = False) -> Chain:
    """The chain of a whole file, checked as `read` does."""
    chain = Chain()
    for _, chain in read(path, form, problem, tolerate_torn=tolerate_torn):  # noqa: B007 - the last one
        pass
    return chain


def _first_problem(event: dict[str, Any], form: Format) -> str:
    """Whether the version of the schema and the first kind are on line 1 and nowhere else."""
    is_first = event["n"] == 1
    if form.first and (event.get("event") == form.first) != is_first:
        return f"expected `{form.first}` on line 1 and nowhere else, found {event.get('event')!r:.40}"
    if event.get("schema") != (form.schema if is_first else None):
        return (
            f"expected schema {form.schema} on line 1 and nowhere else, found {event.get('schema')!r:.40}; read "
            "another version with the program that wrote it"
        )
    return ""


def _open(path: Path, form: Format) -> BufferedReader:
    try:
        return open_plain(path)
    except OSError as error:
        raise InputError(f"{form.title} {path} cannot be read ({error.strerror}): {form.missing}") from None


def _resume(path: Path, form: Format) -> str:
    return form.resume.format(folder=path.parent)


class ChainLog:
    """A chained file that only grows; every event reaches the operating system before `append` returns, and the disk
    itself at `sync` and `close`.

    `ChainLog(path, form)` makes a new file, with a `chain` it continues one of exactly these lines; `resume` is for one
    whose last line may be torn. One process writes at a time (hold a lock); its threads may share it, its signal
    handlers may not.

    Raises InputError where the file exists already (or, with `chain`, is missing), or cannot be written.
    """

    def __init__(self, path: Path, form: Format, chain: Chain | None = None):
        self.path, self.form, self.chain = Path(path), form, chain or Chain()
        self._lock = threading.Lock()
        self._pending: Chain | None = None
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (0 if chain else os.O_CREAT | os.O_EXCL)
        try:
            self._fd = os.open(self.path, flags, 0o644)
            if chain is None:
                sync(self.path.parent)
        except FileExistsError:
            raise InputError(
                f"{self.path} exists and {form.title} is never overwritten: choose another name, or continue with "
                f"{_resume(self.path, form)}"
            ) from None
        except OSError as error:
            raise InputError(
                f"{form.title} {self.path} cannot be opened for writing ({error.strerror}): {remedy(error)}, or choose "
                "a folder that you may write to"
            ) from None

    def append(
        self, kind: str, fields: dict[str, Any], problem: Callable[[dict[str, Any]], str] | None = None
    ) -> dict[str, Any]:
        """Appends an event and returns it. Fields are JSON values, numpy scalars or paths; nan and inf become words.

        Raises InputError where the line cannot be written, as on a full disk: the file is then as it was before.
        ValueError for a reserved field, a kind out of place, or a line that `problem` refuses.
        """
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"the log itself writes these fields: {', '.join(sorted(RESERVED & fields.keys()))}")
        with self._lock:
            if self._fd < 0:
                raise ValueError(f"{self.form.title} {self.path} is closed")
            try:
                self._settle()
                if self.form.first and (kind == self.form.first) != (self.chain.lines == 0):
                    raise ValueError(f"the first event of {self.form.title}, and no other, is `{self.form.first}`")
                event, line = encode(self.chain, self.form, kind, fields)
                if problem and (reason := problem(decode_line(line))):
                    raise ValueError(f"an event that cannot be: {reason}")
                # Set before the write: Ctrl-C may strike right after it, and the chain must hold.
                self._pending = self.chain.after(line)
                _write_all(self._fd, line)
                self.chain, self._pending = self._pending, None
                return event
            except OSError as error:
                raise self._unwritten(error) from None

    def _settle(self) -> None:
        """After an interrupted write: counts the line if it is whole in the file, else removes what is there of it."""
        if self._pending is None:
            return
        if os.fstat(self._fd).st_size == self._pending.size:
            self.chain = self._pending
        else:
            os.ftruncate(self._fd, self.chain.size)
        self._pending = None

    def _unwritten(self, error: OSError) -> InputError:
        with suppress(OSError):  # a torn line that stays is removed by the next event, or by a resume
            self._settle()
        return InputError(
            f"{self.form.title} {self.path} cannot be written ({error.strerror}); its {self.chain.lines} lines are "
            f"safe: {remedy(error)}, and continue with {_resume(self.path, self.form)}"
        )

    def sync(self) -> None:
        """Waits until the disk itself has every line, so that a power cut loses none. Raises InputError if it fails."""
        try:
            fsync(self._fd)
        except OSError as error:
            raise self._unwritten(error) from None

    def close(self) -> None:
        """Syncs and closes the file; closing twice is harmless."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                self._settle()
                self.sync()
            except OSError as error:
                raise self._unwritten(error) from None
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def drop_torn_line(path: Path, form: Format, chain: Chain) -> Chain:
    """Replaces what follows the whole lines of a file by an event that says so; returns the chain with it.

    The event is written over the torn bytes before the rest of them is cut: a crash at any moment leaves a torn last
    line again, and never a drop without its event. Raises InputError where the file cannot be written.
    """
    if path.stat().st_size == chain.size:
        return chain
    try:
        with open(path, "r+b") as file:
            file.seek(chain.size)
            torn = file.read()
            fields = {"bytes": len(torn), "sha256": _sha256(torn).hexdigest()}
            _, line = encode(chain, form, TORN_LINE_DROPPED, fields)
            file.seek(chain.size)
            file.write(line)
            file.flush()
            file.truncate(chain.size + len(line))
            fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"{form.title} {path} cannot be repaired ({error.strerror}): {remedy(error)}, then continue with "
            f"{_resume(path, form)}"
        ) from None
    return chain.after(line)


def encode(chain: Chain, form: Format, kind: str, fields: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The next event of a chain, and its line."""
    time_s, clock_s = _time(), _perf()
    utc = _from_timestamp(time_s, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
    clocks = {"utc": utc, "clock_s": clock_s, "time_s": time_s} if form.monotonic else {"utc": utc, "time_s": time_s}
    schema = {} if chain.lines else {"schema": form.schema}
    event = {"n": chain.lines + 1, "event": kind, **clocks, **schema, **fields, "prev": chain.digest}
    try:
        line = _encode(event)
    except ValueError:
        line = _encode(_finite(event))
    return event, line.encode() + b"\n"


def _plain(value: Any) -> Any:
    """What JSON has no type for, as something it has: paths as text, numpy scalars and 0-d arrays as numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a log field of type {type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> Any:
    """The same value with every nan, inf and -inf in it as those words, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain).encode


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
