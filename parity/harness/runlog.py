"""The run log: append-only JSON lines, each carrying the digest of the line before it.

The chain shows accidents and edits of every line but the last, which no line follows. It has no key, so it proves
nothing against someone who writes a new chain: recomputation and replay do that.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from parity.errors import InputError, nearest

SCHEMA = "log.v1"
KINDS = (
    "start",
    "phase",
    "step",
    "norms",
    "eval",
    "checkpoint",
    "resume",
    "state",
    "memory",
    "sample",
    "interrupt",
    "failure",
    "torn_line_dropped",
    "guard",
    "finish",
)
FIRST_PREV = "0" * 64
RESERVED = frozenset(("n", "event", "utc", "clock_s", "time_s", "prev"))

# Taken at import, before any program's code is loaded, so that patching `time` later does not reach the log.
_perf, _time, _from_timestamp, _sha256 = time.perf_counter, time.time, datetime.fromtimestamp, hashlib.sha256


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


def _not_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain).encode
_decode = json.JSONDecoder(parse_constant=_not_json).decode


def _line(number: int, kind: str, prev: str, fields: dict[str, Any]) -> bytes:
    """One event as the bytes of its line, without the newline."""
    now_s, clock_s = _time(), _perf()
    utc = _from_timestamp(now_s, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
    event = {"n": number, "event": kind, "utc": utc, "clock_s": clock_s, "time_s": now_s, **fields, "prev": prev}
    try:
        return _encode(event).encode()
    except ValueError:
        return _encode(_finite(event)).encode()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class RunLog:
    """A log that only grows; every event reaches the operating system before `event` returns.

    `RunLog(path)` makes a new file, `RunLog(path, append=True)` goes on with a whole one, `RunLog.resume(path)` with
    one whose last line may be torn. One process writes at a time (hold the run directory's lock); its threads may share
    it, its signal handlers may not.

    Raises:
        InputError: the file exists (or, with append, is missing or not a valid log), or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._lines, self._prev, self._size = _scan(self.path, tolerate_torn=False) if append else (0, FIRST_PREV, 0)
        self._pending: tuple[int, str, int] | None = None
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (0 if append else os.O_CREAT | os.O_EXCL)
        try:
            self._fd = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise InputError(
                f"{self.path} exists and a log is never overwritten: choose another --name, or go on with "
                f"--resume {self.path.parent}"
            ) from None
        except OSError as error:
            raise InputError(
                f"the run log {self.path} cannot be opened for writing ({error.strerror}): choose a "
                "directory that you may write to"
            ) from None

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> "RunLog":
        """Opens the log of a run that was cut off: verifies the chain and drops a torn last line, which is logged.

        Raises:
            InputError: anything else is wrong with the log, or it has no whole line.
        """
        path = Path(path)
        lines, prev, size = _scan(path, tolerate_torn=True)
        if lines == 0:
            raise InputError(f"{path} holds no whole line, so there is nothing to go on from: start a new run")
        torn = path.stat().st_size - size
        if torn:
            _replace_torn_line(path, lines, prev, size)
        return cls(path, append=True)

    @property
    def lines(self) -> int:
        """How many lines the log has."""
        return self._lines

    @property
    def digest(self) -> str:
        """sha256 of the last line, in hex: what the next line will carry (64 zeros while the log is empty)."""
        return self._prev

    def event(self, kind: str, /, **fields: Any) -> None:
        """Appends one event; fields are JSON values, numpy scalars or paths; nan and inf become "nan", "inf", "-inf".

        The first event is `start`, and gets `schema`. Schema: `parity/schemas/log.v1.json`.

        Raises:
            InputError: the line cannot be written, as on a full disk; the log is then as it was before the call.
            ValueError: the kind is unknown, out of place, or a field has a name that the log itself gives.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of log event {kind!r}; {nearest(kind, KINDS)}")
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"the log itself gives these fields: {', '.join(sorted(RESERVED & fields.keys()))}")
        with self._lock:
            if self._fd < 0:
                raise ValueError(f"the run log {self.path} is closed")
            try:
                self._append(kind, fields)
            except OSError as error:
                raise self._unwritten(error) from None

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        self._settle()
        if (kind == "start") != (self._lines == 0):
            raise ValueError("the first event of a log, and no other, is `start`")
        if kind == "start":
            fields = {"schema": SCHEMA, **fields}
        line = _line(self._lines + 1, kind, self._prev, fields)
        # Set before the write: Ctrl-C may strike between the write and the lines after it, and the chain must hold.
        self._pending = (self._lines + 1, _sha256(line).hexdigest(), self._size + len(line) + 1)
        _write_all(self._fd, line + b"\n")
        self._lines, self._prev, self._size = self._pending
        self._pending = None

    def _settle(self) -> None:
        """After a write that was cut short: counts the line if it is whole in the file, else takes its part out."""
        if self._pending is None:
            return
        if os.fstat(self._fd).st_size == self._pending[2]:
            self._lines, self._prev, self._size = self._pending
        else:
            os.ftruncate(self._fd, self._size)
        self._pending = None

    def _unwritten(self, error: OSError) -> InputError:
        with suppress(OSError):  # a torn part that stays is taken out by the next event, or by a resume
            self._settle()
        return InputError(
            f"the run log {self.path} cannot be written ({error.strerror}); its {self._lines} lines are "
            f"safe: free some space and go on with --resume {self.path.parent}"
        )

    def sync(self) -> None:
        """Waits until the disk itself has every line, so that a power cut loses none. Raises InputError if it fails."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise InputError(
                f"the disk did not take the run log {self.path} ({error.strerror}): check the disk, then "
                f"go on with --resume {self.path.parent}"
            ) from None

    def close(self) -> None:
        """Syncs and closes the log; closing twice is harmless."""
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

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class NoLog:
    """The log of a process that keeps none: of several, the first alone does."""

    lines, digest = 0, FIRST_PREV

    def event(self, kind: str, /, **fields: Any) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _replace_torn_line(path: Path, lines: int, prev: str, size: int) -> None:
    """Writes the event of the drop over the torn bytes, then cuts what is left of them.

    In this order a crash at any moment leaves a torn last line again, and never a drop without its event.
    """
    try:
        with open(path, "r+b") as file:
            file.seek(size)
            torn = file.read()
            fields = {"bytes": len(torn), "sha256": _sha256(torn).hexdigest()}
            drop = _line(lines + 1, "torn_line_dropped", prev, fields)
            file.seek(size)
            file.write(drop + b"\n")
            file.flush()
            file.truncate(size + len(drop) + 1)
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"the run log {path} cannot be mended ({error.strerror}): free some space or check its "
            "permissions, then resume again"
        ) from None


def read(path: str | os.PathLike[str], *, tolerate_torn: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a log, in order, checked as they are read: JSON, line numbers, chain, schema version, kinds.

    `tolerate_torn` leaves out a last line that was cut off while it was written; without it that line is an error.

    Raises:
        InputError: at the first line that is wrong; names file, line, expected and found.
    """
    for event, _ in _walk(Path(path), tolerate_torn):
        yield event


def validate(path: str | os.PathLike[str], *, tolerate_torn: bool = False) -> int:
    """Checks what `read` checks and every event's fields against `log.v1.json`; returns the number of lines.

    Raises:
        InputError: at the first line that is wrong; names file, line, field, expected and found.
    """
    check = schema_check(SCHEMA)
    number = 0
    for number, event in enumerate(read(path, tolerate_torn=tolerate_torn), 1):
        problem = check(event)
        if problem:
            raise InputError(f"{path} line {number} ({event['event']}): {problem}; the run must be made again")
    return number


@cache
def schema_check(name: str) -> Callable[[Any], str]:
    """A function that returns what is wrong with a value under `parity/schemas/<name>.json`, or "" when nothing is."""
    import fastjsonschema

    text = (Path(__file__).parents[1] / "formats" / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    check = fastjsonschema.compile(json.loads(text))

    def problem(value: Any) -> str:
        try:
            check(value)
        except fastjsonschema.JsonSchemaValueException as error:
            found = json.dumps(error.value)
            found = found if len(found) <= 80 else found[:77] + "..."
            return f"{error.message.removeprefix('data.').replace('data ', 'it ')}, found {found}"
        return ""

    return problem


def _scan(path: Path, tolerate_torn: bool) -> tuple[int, str, int]:
    """Number of whole lines, digest of the last of them, and their size in bytes; checks all of them."""
    lines, size, raw = 0, 0, b""
    for _, raw in _walk(path, tolerate_torn):
        lines += 1
        size += len(raw)
    return lines, _sha256(raw[:-1]).hexdigest() if lines else FIRST_PREV, size


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(
            f"the run log {path} cannot be read ({error.strerror}): name a run directory that has a log.jsonl"
        ) from None


def _walk(path: Path, tolerate_torn: bool) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each event with the bytes of its line, newline included, after every check that `read` promises."""
    prev = FIRST_PREV
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                event = _decode(raw.decode()) if raw.endswith(b"\n") else None
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                last = not file.peek(1)
                if last and tolerate_torn:
                    return
                raise InputError(
                    f"{path} line {number}: expected one JSON object that ends in a newline, found "
                    f"{raw[:40]!r}: {_mend_torn(path) if last else 'the line was changed'}"
                )
            _check(path, number, event, prev)
            yield event, raw
            prev = _sha256(raw[:-1]).hexdigest()


def _mend_torn(path: Path) -> str:
    return f"its writing was cut off, and --resume {path.parent} drops it and goes on"


def _check(path: Path, number: int, event: dict[str, Any], prev: str) -> None:
    """Raises InputError unless this is an event that belongs on this line."""
    if event.get("n") != number:
        raise InputError(
            f"{path} line {number}: expected line number {number}, found {event.get('n')}: lines were "
            "cut, added or reordered, so the run must be made again"
        )
    if event.get("prev") != prev:
        before = f"line {number - 1} was edited, or " if number > 1 else ""
        raise InputError(
            f"{path} line {number}: expected prev {prev[:12]}, the digest of the line before, found "
            f"{str(event.get('prev'))[:12]}: {before}the lines from {number} on are another log's; the "
            "run must be made again"
        )
    kind = event.get("event")
    if (kind == "start") != (number == 1):
        raise InputError(
            f"{path} line {number}: expected `start` on line 1 and nowhere else, found {kind!r}: this is "
            "not the log of one run"
        )
    if number == 1 and event.get("schema") != SCHEMA:
        raise InputError(
            f"{path} line 1: expected schema {SCHEMA}, found {event.get('schema')!r}: read it with the "
            "version of this program that wrote it"
        )
    if kind not in KINDS:
        raise InputError(
            f"{path} line {number}: unknown event {kind!r}; {nearest(str(kind), KINDS)}: read it with the "
            "version of this program that wrote it"
        )
    for clock in ("clock_s", "time_s"):
        if type(event.get(clock)) not in (float, int):
            raise InputError(
                f"{path} line {number}: expected {clock} in seconds, found {event.get(clock)!r}: the line was changed"
            )
