"""An entry of the ledger: one attempt, or a single run, with the light part of its evidence, as one small text file.

Losses are nats per token, costs are seconds of training, optimizer steps, tokens trained on and FLOPs as the harness
counted them. What an entry says follows from its evidence (`adding.py`), and is checked against itself (`checking.py`).
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parity import statistics
from parity.errors import InputError
from parity.formats.files import atomic_file
from parity.formats.strict_json import fault

SCHEMA = "entry.v1"
LIMIT_BYTES = 8 << 20
AXES = ("seconds", "steps", "tokens", "flops")
UNITS = {"seconds": "s of training", "steps": "steps", "tokens": "tokens", "flops": "FLOPs"}


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation of one run. `flops` is None where the harness could not count them."""

    steps: int
    tokens: int
    flops: float | None
    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an entry. `began_s`, `ended_s`: seconds since the epoch. `train`: [step, training loss], thinned. `val_loss` is the
    verifier's own figure for the final weights, which differs from the logged one in `evals` by no more than the verifier allows."""

    name: str
    seed: int
    began_s: float
    ended_s: float
    log_sha256: str
    weights: str
    evals: tuple[Point, ...]
    train: list[list[float]]
    val_loss: float
    confirm_loss: float | None
    bits_per_byte: float | None
    verdict: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An entry as it was read; `data` is the whole of its JSON. Fields that a single run lacks are None or empty."""

    id: str
    title: str
    track: str
    slice: str
    slice_digest: str
    val_tokens: int
    author: str
    kind: str
    backend: str
    recipe: str
    techniques: tuple[str, ...]
    hardware: str
    runs: tuple[Run, ...]
    data: dict[str, Any]

    @property
    def date(self) -> str:
        """The UTC day on which its first run began."""
        return self.data["date"]

    @cached_property
    def order(self) -> list[int]:
        """Numbers of the runs in the order of their beginnings."""
        return sorted(range(len(self.runs)), key=lambda i: self.runs[i].began_s)

    @cached_property
    def began_s(self) -> float:
        return self.runs[self.order[0]].began_s

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of updates after which every run was evaluated, but for 0; rising."""
        common = set.intersection(*({point.steps for point in run.evals} for run in self.runs))
        return tuple(sorted(common - {0}))

    @cached_property
    def at(self) -> dict[int, tuple[Point, ...]]:
        """By number of updates, the evaluation of each run there."""
        found = [{point.steps: point for point in run.evals} for run in self.runs]
        return {step: tuple(points[step] for points in found) for step in self.steps}

    def losses(self, step: int | None = None) -> list[float]:
        """The runs' losses at a step; None: the final ones, by the verifier."""
        return [run.val_loss for run in self.runs] if step is None else [point.loss for point in self.at[step]]

    def costs(self, axis: str, step: int) -> list[float] | None:
        """The runs' costs to a step; None where they were not counted."""
        values = [getattr(point, axis) for point in self.at[step]]
        return None if None in values else [float(value) for value in values]

    def cost(self, axis: str, step: int | None = None) -> float | None:
        """Mean cost of the runs to a step (None: the last); None where it was not counted."""
        found = self.mean_costs[axis]
        return None if found is None else found[-1 if step is None else self.steps.index(step)]

    @cached_property
    def mean_costs(self) -> dict[str, list[float] | None]:
        """By axis, mean costs at `steps`; None where they were not counted."""
        found = {axis: [self.costs(axis, step) for step in self.steps] for axis in AXES}
        return {
            axis: None if None in values else [sum(value) / len(value) for value in values]
            for axis, values in found.items()
        }

    @cached_property
    def mean_losses(self) -> list[float]:
        """Mean losses at `steps`."""
        return [sum(losses) / len(losses) for losses in map(self.losses, self.steps)]

    @cached_property
    def p_below(self) -> list[float | None]:
        """At `steps`, the one-sided p, by the track's test, that the mean is below the target; None where none can be made."""
        target = self.data["target"]
        if target is None:
            return [None] * len(self.steps)
        return [statistics.p_below(self.track, self.losses(step), target) for step in self.steps]

    @cached_property
    def passes(self) -> int | None:
        """Place in `steps` of the first evaluation at which the mean passes the target by the track's test; None where none does."""
        level = statistics.level(self.track)
        return next((i for i, p in enumerate(self.p_below) if p is not None and p < level), None)


def from_data(data: Any, name: str) -> Entry:
    """The entry of a decoded file; InputError where it is of another form."""
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise InputError(
            f"{name}: expected schema {SCHEMA}, found {str(version)[:40]!r}: read it with the version that wrote it"
        )
    if problem := _check()(_without_plain_rows(data)):
        raise InputError(f"{name}: {problem}: entries are made by python -m parity.frontier add, and not edited")
    runs = tuple(
        Run(
            run["name"],
            run["seed"],
            run["began_s"],
            run["ended_s"],
            run["log_sha256"],
            run["weights"],
            tuple(Point(*point) for point in run["evals"]),
            run["train"],
            run["val_loss"],
            run["confirm_loss"],
            run["bits_per_byte"],
            run["verdict"],
        )
        for run in data["runs"]
    )
    entry = Entry(
        data["id"],
        data["title"],
        data["track"],
        data["slice"]["name"],
        data["slice"]["digest"],
        data["val_tokens"],
        data["author"],
        data["kind"],
        data["backend"],
        data["recipe"],
        tuple(data["techniques"]),
        data["hardware"]["class"],
        runs,
        data,
    )
    if not entry.steps:
        raise InputError(
            f"{name}: expected runs that were evaluated after the same numbers of steps, found none in common: "
            "nothing can be averaged"
        )
    return entry


def read(path: Path) -> Entry:
    """Reads one file of a ledger; InputError where it cannot be read or is no entry."""
    try:
        with open(path, "rb") as file:
            raw = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from None
    if len(raw) > LIMIT_BYTES:
        raise InputError(f"{path}: expected at most {LIMIT_BYTES:,} bytes, found more: it is no entry of a ledger")
    try:
        data = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected one JSON object, found something else ({fault(error)[:80]}): restore it, with git for "
            "example"
        ) from None
    return from_data(data, str(path))


def write(entry: Entry, path: Path) -> None:
    """Writes an entry, whole or not at all."""
    with atomic_file(path) as file:
        file.write(text(entry.data).encode())


def text(data: dict[str, Any]) -> str:
    """JSON that can be read and reviewed: objects over several lines, lists of plain values on one."""
    return _lines(data, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    inner = " " * (depth + 1)
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + "\n" + " " * depth + "}"
    if isinstance(value, list) and any(
        isinstance(item, dict | list) or (isinstance(item, str) and len(value) > 4) for item in value
    ):
        return "[\n" + ",\n".join(inner + _lines(item, depth + 1) for item in value) + "\n" + " " * depth + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def digest(data: dict[str, Any]) -> str:
    """sha256 over everything in an entry but its own digest, in a form that does not depend on layout."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def id_of(data: dict[str, Any]) -> str:
    """The name that follows from what an entry holds: date, title, backend and a digest of its runs' logs."""
    logs = hashlib.sha256("".join(run["log_sha256"] for run in data["runs"]).encode()).hexdigest()
    return f"{data['date']}-{slug(data['title'])}-{data['backend']}-{logs[:8]}"


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "attempt"


def _without_plain_rows(data: dict[str, Any]) -> dict[str, Any]:
    """The data without those lists of rules and training losses whose rows are plainly of the right form: nine tenths of an entry, over
    which a schema takes five times as long."""

    def light(run: Any) -> Any:
        if not isinstance(run, dict):
            return run
        verdict, train = run.get("verdict"), run.get("train")
        if (
            isinstance(verdict, dict)
            and isinstance(verdict.get("rules"), list)
            and all(map(_plain_rule, verdict["rules"]))
        ):
            run = run | {"verdict": verdict | {"rules": []}}
        return run | {"train": []} if isinstance(train, list) and all(map(_plain_loss, train)) else run

    return data | {"runs": [light(run) for run in data["runs"]]} if isinstance(data.get("runs"), list) else data


def _plain_rule(row: Any) -> bool:
    return type(row) is list and list(map(type, row)) == [str, str, bool, str] and row[1] in ("holds", "not judged")


def _plain_loss(row: Any) -> bool:
    return type(row) is list and list(map(type, row)) == [int, float] and row[0] >= 0


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


@functools.cache
def _check() -> Callable[[Any], str]:
    from parity.formats import schemas

    return schemas.check_for("entry.v1")
