"""What an attempt declares and what was run for it: declaration.json, and the chained file attempt.jsonl.

Seeds are declared in attempt.jsonl before the first final run starts, and follow from the digests of program and
declaration, so that nobody chooses them. Like every chained log, it shows accidents and edits, and proves nothing
against someone who writes a new one.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from parity.errors import InputError, nearest, remedy
from parity.formats import chain_log, schemas
from parity.formats.chain_log import TORN_LINE_DROPPED, Chain, Format
from parity.formats.files import fsync, sha256_file, sync
from parity.track import default_recipe, track_for

DECLARATION_SCHEMA = "declaration.v1"
DECLARATION, RECORD = "declaration.json", "attempt.jsonl"
LIMIT_BYTES = 1_000_000  # of a declaration, and of a line
FORMAT = Format(
    schema="attempt.v1",
    title="the record of an attempt",
    missing="make it with python -m parity.attempt run",
    changed="the record was changed, so the attempt must be made again",
    resume="python -m parity.attempt run {folder}",
    max_line_bytes=LIMIT_BYTES,
    max_lines=100_000,
    max_bytes=32 << 20,
)
RESULTS = (0, 1)  # exit codes of a trainer with a result; after any other the run is not over
RESERVED = ("track", "recipe", "seed", "program", "optimizer", "runs", "name", "resume", "data-dir", "help", "h")

_WHOLE = {"type": "integer", "minimum": 0, "maximum": 10**12}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e12}
_LOSS = {"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6}
_FLOPS = {"type": ["number", "null"], "minimum": 0, "maximum": 1e36}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SEED = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_CODE = {"type": "integer", "minimum": 0, "maximum": 255}
_RUN = {"type": "string", "maxLength": 200, "pattern": "^runs/[A-Za-z0-9_-]+/[A-Za-z0-9_-]+$"}
_UTC = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z$"}
_DIGESTS = {"program_sha256": _DIGEST, "declaration_sha256": _DIGEST}
_COST = {"seconds": _SECONDS, "steps_made": _WHOLE}

KINDS: dict[str, dict[str, Any]] = {
    "declared": {
        **_DIGESTS,
        "seeds": {"type": "array", "items": _SEED, "minItems": 1, "maxItems": 1000},
        "runs": {"type": "integer", "minimum": 1, "maximum": 1000},
        "command": {"type": "array", "items": {"type": "string"}},
        "declaration": {"type": "object"},
    },
    "started": {"run": _RUN, "seed": _SEED, "purpose": {"enum": ["tune", "final"]}, **_DIGESTS},
    "resumed": {"run": _RUN, "fresh": {"type": "boolean"}},
    "ended": {
        "run": _RUN,
        "exit_code": _CODE,
        **_COST,
        "steps": _WHOLE | {"type": ["integer", "null"]},
        "val_loss": _LOSS,
        "flops": _FLOPS,
    },
    "interrupted": {"run": _RUN, "exit_code": _CODE | {"type": ["integer", "null"]}, **_COST},
    "stopped": {"reason": {"type": "string", "maxLength": 1000}},
    TORN_LINE_DROPPED: {"bytes": _WHOLE, "sha256": _DIGEST},
}
"""Kinds of events and their fields. `resumed` is fresh where nothing was left to continue; `ended` has the totals of
the run's finish (null without one), and `steps_made` counts repeated steps twice."""


@dataclass(frozen=True)
class Claim:
    """The claimed bounds (None: no claim): the final runs' mean val loss after `at_step` steps (None: the last), and
    the seconds of training until then."""

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
    """declaration.json. `runs` is the number of final runs, `arguments` further options of the trainer."""

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
        """The attempt's code: a whole program, or an optimizer where the track fixes the rest."""
        return "optimizer.py" if track_for(self.track).fixed else "program.py"

    def trainer_arguments(self) -> list[str]:
        """The trainer's options that all runs share, for use in the attempt's folder."""
        code = ["--optimizer", "optimizer:make"] if self.file == "optimizer.py" else ["--program", self.file]
        return ["--track", self.track, "--recipe", self.recipe, *code, *self.arguments]


@dataclass(frozen=True)
class AttemptRun:
    """One run of an attempt, as recorded. `declaration` counts `declared` events, from 1; 0: before the first.

    `exit_code` is None until the run has ended; `seconds` and `steps_made` are its cost so far, of which `lost` belongs
    to work that was lost; `live`: no end is recorded.
    """

    run: str
    seed: int
    purpose: str
    declaration: int
    program_sha256: str
    declaration_sha256: str
    exit_code: int | None = None
    live: bool = True
    seconds: float = 0.0
    steps_made: int = 0
    steps: int | None = None
    val_loss: float | None = None
    flops: float | None = None
    lost: tuple[float, int] = (0.0, 0)

    @property
    def settled(self) -> bool:
        """Whether the run has a result, good or bad."""
        return self.exit_code in RESULTS


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
    """sha256 of an attempt's file, in hex; InputError where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(
            f"{path}: expected a file of the attempt, found none that can be read ({error.strerror}): put "
            "it back, or make a new attempt with python -m parity.attempt new"
        ) from None


def read_declaration(path: Path) -> Declaration:
    """declaration.json, checked against its schema, tracks, recipes and options. Raises InputError, in one sentence."""
    data = schemas.read(
        path,
        DECLARATION_SCHEMA,
        "the declaration of an attempt",
        "fix it, or name a folder that python -m parity.attempt new made",
        max_bytes=LIMIT_BYTES,
        max_digits=None,
    )
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
    budget, claim, runs = Budget(**data["budget"]), Claim(**data["claim"]), int(data["runs"])
    # JSON's 3.0 is a whole number too
    budget = replace(budget, runs=None if budget.runs is None else int(budget.runs))
    claim = replace(claim, at_step=None if claim.at_step is None else int(claim.at_step))
    if budget.runs is not None and budget.runs < runs:
        raise InputError(
            f"{path}: budget.runs: expected at least runs, {runs}, found {budget.runs}: the budget has to cover the "
            "final runs"
        )
    fields: dict[str, Any] = {name: value for name, value in data.items() if name != "schema"}
    fields |= {"claim": claim, "budget": budget, "runs": runs}
    fields |= {name: tuple(data[name]) for name in ("techniques", "arguments")}
    return Declaration(**fields)


def read_record(path: Path) -> list[dict[str, Any]]:
    """The events of attempt.jsonl in order, checked: JSON, numbers, chain, schema, kinds, fields, runs.

    Raises InputError at the first wrong line, with file, line, expected and found.
    """
    return [event for event, _ in _read(Path(path), set())]


def runs_of(events: list[dict[str, Any]]) -> list[AttemptRun]:
    """Every run of a record, in the order in which they were started."""
    runs: dict[str, AttemptRun] = {}
    declarations = 0
    for event in events:
        kind, name = event["event"], event.get("run", "")
        if kind == "declared":
            declarations += 1
        elif kind == "started":
            digests = event["program_sha256"], event["declaration_sha256"]
            runs[name] = AttemptRun(name, int(event["seed"]), event["purpose"], declarations, *digests)
        elif kind == "resumed":
            run = runs[name]
            lost = (run.seconds, run.steps_made) if event["fresh"] else run.lost
            runs[name] = replace(run, live=True, exit_code=None, lost=lost)
        elif kind in ("ended", "interrupted"):
            run = runs[name]
            seconds, steps = run.lost[0] + event["seconds"], run.lost[1] + int(event["steps_made"])
            totals = ("exit_code", "steps", "val_loss", "flops") if kind == "ended" else ()
            totals = {field: event[field] for field in totals}
            runs[name] = replace(run, live=False, seconds=seconds, steps_made=steps, **totals)
    return list(runs.values())


class Record:
    """attempt.jsonl, for appending; the caller holds the attempt's lock. Every event is on the disk before `append`
    returns. A torn last line is dropped, which is an event too.

    `on_event` receives every new event. Raises InputError where the existing record is wrong.
    """

    def __init__(self, path: Path, on_event: Callable[[dict[str, Any]], None] = lambda event: None):
        self.path, self._on_event = Path(path), on_event
        self.events: list[dict[str, Any]] = []
        self._chain, self._started = Chain(), set[str]()
        if not self.path.exists():
            return
        for event, chain in _read(self.path, self._started, tolerate_torn=True):
            self.events.append(event)
            self._chain = chain
        with open(self.path, "rb") as file:
            file.seek(self._chain.size)
            torn = file.read()
        if torn:
            self.append(TORN_LINE_DROPPED, bytes=len(torn), sha256=hashlib.sha256(torn).hexdigest())

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Appends an event and returns it. Raises InputError where the disk does not take it: the file is then as it
        was."""
        event, line = chain_log.encode(self._chain, FORMAT, kind, fields)
        if problem := _problem(chain_log.decode_line(line), self._started):
            raise ValueError(f"an event that cannot be: {problem}")
        self._write(line)
        self._chain = self._chain.after(line)
        _note_started(event, self._started)
        self.events.append(event)
        self._on_event(event)
        return event

    def _write(self, line: bytes) -> None:
        new, size = not self.path.exists(), self._chain.size
        try:
            with open(self.path, "xb" if new else "r+b") as file:
                file.seek(size)
                file.write(line)  # over a torn line: in this order a crash leaves a torn one again
                file.flush()
                file.truncate()
                fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); its {len(self.events)} lines are "
                f"safe: {remedy(error)}, and run again"
            ) from None


def _read(path: Path, started: set[str], tolerate_torn: bool = False) -> Iterator[tuple[dict[str, Any], Chain]]:
    """The events of a record, each with the chain up to it; collects the runs that were started."""
    lines = chain_log.read(path, FORMAT, lambda event: _problem(event, started), tolerate_torn=tolerate_torn)
    for event, chain in lines:
        _note_started(event, started)
        yield event, chain


def _note_started(event: dict[str, Any], started: set[str]) -> None:
    if event["event"] == "started":
        started.add(event["run"])


def _problem(event: dict[str, Any], started: set[str]) -> str:
    """Why this cannot be the next event, apart from its place in the chain; "" if it can."""
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"unknown event {kind!r:.40}; {nearest(str(kind)[:40], KINDS)}"
    if problem := _event_check(kind)(event):
        return f"{kind}: {problem}"
    if "run" in KINDS[kind] and (event["run"] in started) == (kind == "started"):
        expected = "is new" if kind == "started" else "was started"
        return f"{kind}: expected a run that {expected}, found {event['run']}"
    return ""


@cache
def _event_check(kind: str) -> schemas.Check:
    fields = {"utc": _UTC, "time_s": _SECONDS, **KINDS[kind]}
    return schemas.check({"type": "object", "required": list(fields), "properties": fields})
