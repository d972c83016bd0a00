"""What an attempt declares and what became of it: declaration.json, and the chained file attempt.jsonl.

Every line of attempt.jsonl carries the sha256 of the line before. Seeds are declared there before the first final run
starts, and follow from the digests of program and declaration, so that nobody chooses them. The chain has no key: it
shows accidents and edits, and proves nothing against someone who writes a new one.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from parity.errors import InputError, nearest
from parity.formats import schemas
from parity.formats.files import sync
from parity.formats.strict_json import decode, fault
from parity.track import default_recipe, track_for

SCHEMA = "attempt.v1"
DECLARATION_SCHEMA = "declaration.v1"
DECLARATION, RECORD = "declaration.json", "attempt.jsonl"
FIRST_PREV = "0" * 64
LIMIT_BYTES = 1_000_000  # of a declaration, and of a line
LIMIT_LINES = 100_000
SETTLED = (0, 1)  # exit codes of a trainer that are a result; with any other a run is not over
RESERVED = ("track", "recipe", "seed", "program", "optimizer", "runs", "name", "resume", "data-dir", "help", "h")

_WHOLE = {"type": "integer", "minimum": 0, "maximum": 10**12}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e12}
_LOSS = {"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6}
_FLOPS = {"type": ["number", "null"], "minimum": 0, "maximum": 1e36}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SEED = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_CODE = {"type": "integer", "minimum": 0, "maximum": 255}
_RUN = {"type": "string", "maxLength": 200, "pattern": "^runs/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+$"}
_COMMAND = {"type": "array", "items": {"type": "string"}}
_RUNS = {"type": "integer", "minimum": 1, "maximum": 1000}
_SEEDS = {"type": "array", "items": _SEED, "minItems": 1, "maxItems": 1000}

KINDS: dict[str, dict[str, Any]] = {
    "declared": {
        "program_sha256": _DIGEST,
        "declaration_sha256": _DIGEST,
        "seeds": _SEEDS,
        "runs": _RUNS,
        "command": _COMMAND,
        "declaration": {"type": "object"},
    },
    "started": {
        "run": _RUN,
        "seed": _SEED,
        "purpose": {"enum": ["tune", "final"]},
        "program_sha256": _DIGEST,
        "declaration_sha256": _DIGEST,
    },
    "resumed": {"run": _RUN, "fresh": {"type": "boolean"}},
    "ended": {
        "run": _RUN,
        "exit_code": _CODE,
        "seconds": _SECONDS,
        "steps_made": _WHOLE,
        "steps": _WHOLE | {"type": ["integer", "null"]},
        "val_loss": _LOSS,
        "flops": _FLOPS,
    },
    "interrupted": {
        "run": _RUN,
        "exit_code": _CODE | {"type": ["integer", "null"]},
        "seconds": _SECONDS,
        "steps_made": _WHOLE,
    },
    "stopped": {"reason": {"type": "string", "maxLength": 1000}},
    "torn_line_dropped": {"bytes": _WHOLE, "sha256": _DIGEST},
}
"""Kinds of events and their fields. `resumed` is fresh where nothing was there to go on from; `ended` has the totals of
the run's finish (null where it did not come to that), and `steps_made` counts steps that were made twice twice."""


@dataclass(frozen=True)
class Claim:
    """The mean val loss over the final runs is below `val_loss_below` after `at_step` steps (None: the last), reached
    within so many `seconds` of training. What is None is not claimed."""

    val_loss_below: float | None
    at_step: int | None
    seconds: float | None


@dataclass(frozen=True)
class Budget:
    """Limits over everything that is ever started for an attempt: runs, seconds of training, FLOPs. None: no limit."""

    runs: int | None
    seconds: float | None
    flops: float | None


@dataclass(frozen=True)
class Declaration:
    """declaration.json: who claims what, made how. `runs` is the number of final runs, `arguments` further options of
    the trainer."""

    author: str
    kind: Literal["person", "model", "agent"]
    track: str
    backend: Literal["jaxrun", "torchref"]
    recipe: str
    claim: Claim
    runs: int
    budget: Budget
    techniques: tuple[str, ...]
    note: str
    arguments: tuple[str, ...]

    @property
    def file(self) -> str:
        """The attempt's own code: a whole program, or, where the track fixes the rest, an optimizer."""
        return "optimizer.py" if track_for(self.track).fixed else "program.py"

    def trainer_arguments(self) -> list[str]:
        """The trainer's options, but for what differs from run to run; to be used in the attempt's folder."""
        own = ["--optimizer", "optimizer:make"] if self.file == "optimizer.py" else ["--program", self.file]
        return ["--track", self.track, "--recipe", self.recipe, *own, *self.arguments]


@dataclass(frozen=True)
class MadeRun:
    """One run of an attempt, as its record has it. `declaration` counts `declared` events, from 1; 0: before the first.

    `exit_code` is None while the run was not ended; `seconds` and `steps_made` are its cost so far.
    """

    run: str
    seed: int
    purpose: str
    declaration: int
    program_sha256: str
    declaration_sha256: str
    exit_code: int | None = None
    live: bool = True  # as far as the record knows
    seconds: float = 0.0
    steps_made: int = 0
    steps: int | None = None
    val_loss: float | None = None
    flops: float | None = None
    before: tuple[float, int] = (0.0, 0)  # seconds and steps of what was made and lost

    @property
    def settled(self) -> bool:
        """Whether the run is over, well or not."""
        return self.exit_code in SETTLED


def seeds_for(program_sha256: str, declaration_sha256: str, count: int) -> list[int]:
    """The seeds of the final runs, in order: the first `count` different numbers below 2**31 that the digests give."""
    seeds: dict[int, None] = {}
    number = 0
    while len(seeds) < count:
        digest = hashlib.sha256(f"{program_sha256}:{declaration_sha256}:{number}".encode()).digest()
        seeds[int.from_bytes(digest[:4], "big") >> 1] = None
        number += 1
    return list(seeds)


def digest_of(path: Path) -> str:
    """sha256 of a file, in hex; InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: expected a file of the attempt, found none that can be read ({error.strerror}): put "
            "it back, or make a new attempt with python -m parity.attempt new"
        ) from None


def read_declaration(path: Path) -> Declaration:
    """What declaration.json says, checked against its schema, tracks, recipes and options.

    Raises InputError, in one sentence, for whatever is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: expected the declaration of an attempt, found none that can be read "
            f"({error.strerror}): name a folder that python -m parity.attempt new made"
        ) from None
    if len(text) > LIMIT_BYTES:
        raise InputError(f"{path}: expected at most {LIMIT_BYTES:,} bytes, found more: shorten it")
    try:
        data = decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected one JSON object, found {fault(error)}: mend it") from None
    if problem := _declaration_check()(data):
        raise InputError(f"{path}: {problem}: mend it")
    return _declaration(path, data)


def _declaration(path: Path, data: dict[str, Any]) -> Declaration:
    """The declaration of checked JSON; InputError where its values do not go together."""
    try:
        default_recipe(track_for(data["track"]), data["recipe"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for argument in data["arguments"]:
        option = argument.split("=")[0]
        if argument.startswith("-") and option.lstrip("-").replace("_", "-") in RESERVED:
            raise InputError(
                f"{path}: arguments: expected no {option}, which the attempt itself sets, found it: leave it out"
            )
        if "\0" in argument:
            raise InputError(f"{path}: arguments: expected text, found NUL in {argument!r:.80}: take it out")
    claim, budget = data["claim"], data["budget"]
    whole = {"at_step": claim["at_step"], "runs": budget["runs"]}  # JSON's 3.0 is a whole number too
    whole = {name: None if value is None else int(value) for name, value in whole.items()}
    runs = int(data["runs"])
    if whole["runs"] is not None and whole["runs"] < runs:
        raise InputError(
            f"{path}: budget.runs: expected at least runs, {runs}, found {whole['runs']}: the budget has "
            "to cover the final runs"
        )
    return Declaration(
        data["author"],
        data["kind"],
        data["track"],
        data["backend"],
        data["recipe"],
        Claim(claim["val_loss_below"], whole["at_step"], claim["seconds"]),
        runs,
        Budget(whole["runs"], budget["seconds"], budget["flops"]),
        tuple(data["techniques"]),
        data["note"],
        tuple(data["arguments"]),
    )


def read_record(path: Path) -> list[dict[str, Any]]:
    """The events of attempt.jsonl in order, checked: JSON, numbers, chain, schema, kinds, fields, runs that were begun.

    Raises InputError at the first line that is wrong; names file, line, expected and found.
    """
    lines = _Lines(Path(path))
    events = list(lines)
    if lines.torn:
        raise InputError(
            f"{path} line {len(events) + 1}: expected one JSON object that ends in a newline, found "
            f"{lines.torn[:40]!r}: its writing was cut off, and python -m parity.attempt run "
            f"{Path(path).parent} drops it and goes on"
        )
    return events


def runs_of(events: list[dict[str, Any]]) -> list[MadeRun]:
    """Every run that a record has, in the order in which they were started."""
    runs: dict[str, MadeRun] = {}
    declarations = 0
    for event in events:
        kind, run = event["event"], event.get("run")
        if kind == "declared":
            declarations += 1
        elif kind == "started":
            runs[run] = MadeRun(
                run,
                int(event["seed"]),
                event["purpose"],
                declarations,
                event["program_sha256"],
                event["declaration_sha256"],
            )
        elif kind == "resumed":
            made = runs[run]
            lost = (made.seconds, made.steps_made) if event["fresh"] else made.before
            runs[run] = replace(made, live=True, exit_code=None, before=lost)
        elif kind in ("ended", "interrupted"):
            made = runs[run]
            made = replace(
                made,
                live=False,
                seconds=made.before[0] + event["seconds"],
                steps_made=made.before[1] + int(event["steps_made"]),
            )
            reached = ("exit_code", "steps", "val_loss", "flops") if kind == "ended" else ()
            runs[run] = replace(made, **{name: event[name] for name in reached})
    return list(runs.values())


class Record:
    """attempt.jsonl, to be added to: whoever opens it holds the attempt's lock. Every event is on the disk before
    `append` returns. A last line that was cut off is dropped, which is an event too.

    Raises InputError where what is there already is wrong.
    """

    def __init__(self, path: Path, told: Callable[[dict[str, Any]], None] = lambda event: None):
        self.path, self._told = Path(path), told
        self._lines = _Lines(self.path)
        self.events = list(self._lines) if self.path.exists() else []
        if torn := self._lines.torn:
            self.append("torn_line_dropped", bytes=len(torn), sha256=hashlib.sha256(torn).hexdigest())

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Adds an event and returns it; InputError where the disk does not take it, and the file is as it was."""
        time_s = time.time()
        utc = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
        when = {"utc": utc, "time_s": time_s}
        schema = {} if self.events else {"schema": SCHEMA}
        event = {"n": len(self.events) + 1, "event": kind, **schema, **when, **fields, "prev": self._lines.prev}
        line = (json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n").encode()
        if problem := self._lines.problem(event):
            raise ValueError(f"an event that cannot be: {problem}")
        self._write(line)
        self._lines.count(event, line)
        self.events.append(event)
        self._told(event)
        return event

    def _write(self, line: bytes) -> None:
        new, size = not self.path.exists(), self._lines.size
        try:
            with open(self.path, "xb" if new else "r+b") as file:
                file.seek(size)
                file.write(line)  # over a torn line: in this order a crash leaves a torn one again
                file.flush()
                file.truncate()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); its {len(self.events)} lines are "
                "safe: free some space or check its permissions, and run again"
            ) from None


class _Lines:
    """The lines of a record, checked one by one; afterwards `size` and `prev` are those of its whole lines, and `torn`
    is what follows the last newline."""

    def __init__(self, path: Path):
        self.path, self.size, self.prev, self.torn = path, 0, FIRST_PREV, b""
        self.number, self.runs = 0, set[str]()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                while line := file.readline(LIMIT_BYTES + 1):
                    if len(line) > LIMIT_BYTES or self.number == LIMIT_LINES:
                        self._refuse(f"expected at most {LIMIT_LINES:,} lines of {LIMIT_BYTES:,} bytes, found more")
                    if not line.endswith(b"\n"):
                        self.torn = line
                        return
                    yield self._event(line)
        except OSError as error:
            raise InputError(
                f"{self.path}: expected the record of an attempt, found none that can be read "
                f"({error.strerror}): make it with python -m parity.attempt run"
            ) from None

    def _event(self, line: bytes) -> dict[str, Any]:
        try:
            event = decode(line)
        except (ValueError, RecursionError) as error:
            self._refuse(f"expected one JSON object, found {fault(error)}")
        if problem := self.problem(event):
            self._refuse(problem)
        self.count(event, line)
        return event

    def _refuse(self, problem: str) -> NoReturn:
        raise InputError(
            f"{self.path} line {self.number + 1}: {problem}: the record was changed, and the attempt must be made again"
        )

    def problem(self, event: Any) -> str:
        """What is wrong with this as the next event; "" where nothing is."""
        number = self.number + 1
        if not isinstance(event, dict):
            return f"expected one JSON object, found {type(event).__name__}"
        if type(event.get("n")) is not int or event["n"] != number:
            return f"expected line number {number}, found {event.get('n')!r:.40}, as lines were cut, added or reordered"
        if event.get("prev") != self.prev:
            return f"expected prev {self.prev[:12]}, the digest of the line before, found {event.get('prev')!r:.40}"
        if event.get("schema") != (SCHEMA if number == 1 else None):
            return f"expected schema {SCHEMA} on line 1 and nowhere else, found {event.get('schema')!r:.40}"
        kind = event.get("event")
        if not isinstance(kind, str) or kind not in KINDS:
            return f"unknown event {kind!r:.40}; {nearest(str(kind)[:40], KINDS)}"
        if problem := _event_check(kind)(event):
            return f"{kind}: {problem}"
        if "run" in KINDS[kind] and (event["run"] in self.runs) == (kind == "started"):
            expected = "is new" if kind == "started" else "was started"
            return f"{kind}: expected a run that {expected}, found {event['run']}"
        return ""

    def count(self, event: dict[str, Any], line: bytes) -> None:
        """Takes a checked event as the last."""
        self.number, self.size = self.number + 1, self.size + len(line)
        self.prev = hashlib.sha256(line[:-1]).hexdigest()
        if event["event"] == "started":
            self.runs.add(event["run"])


@cache
def _event_check(kind: str) -> Callable[[Any], str]:
    utc = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z$"}
    fields = {"utc": utc, "time_s": _SECONDS, **KINDS[kind]}
    return schemas.check({"type": "object", "required": list(fields), "properties": fields})


@cache
def _declaration_check() -> Callable[[Any], str]:
    return schemas.check_for(DECLARATION_SCHEMA)
