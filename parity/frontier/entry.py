"""An entry of the ledger: one attempt, or a single run, with the light part of its evidence, as one small text file.

Losses are nats per token, costs are seconds of training, optimizer steps, tokens trained on and FLOPs as the harness
counted them. An entry follows from its evidence (`submission.py`), and is checked against itself (`integrity.py`).
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parity import statistics
from parity.errors import InputError
from parity.formats import schemas
from parity.formats.files import write_file

SCHEMA = "entry.v1"
MAX_BYTES = 8 << 20
AXES = ("seconds", "steps", "tokens", "flops")
OWN_AXES = ("steps", "tokens")  # kept by the program where the verifier could not see that a step is one update
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
    """One run of an entry. `began_s`, `ended_s`: seconds since the epoch. `train`: [step, training loss], thinned.
    `val_loss` is the verifier's own for the final weights; that in `evals` differs by no more than the verifier allows.
    """

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
    recomputed: tuple[tuple[int, float], ...] = ()
    """Evaluations before the last that the verifier computed again from checkpoints: steps, and its val loss."""

    def verified(self) -> dict[int, float]:
        """The verifier's own val losses, by number of updates. Evaluations without one are reported, and carry
        nothing."""
        return dict(self.recomputed) | {self.evals[-1].steps: self.val_loss}


@dataclass(frozen=True)
class Entry:
    """An entry as it was read; `data` is the whole of its JSON. Fields that a single run lacks are None or empty."""

    id: str
    title: str
    track: str
    val_tokens: int
    author: str
    kind: str
    backend: str
    recipe: str
    date: str
    """The UTC day on which its first run began."""
    slice: str
    slice_digest: str
    techniques: tuple[str, ...]
    hardware: str
    runs: tuple[Run, ...]
    data: dict[str, Any]

    @cached_property
    def order(self) -> list[int]:
        """Indices of the runs in the order of their beginnings."""
        return sorted(range(len(self.runs)), key=lambda i: self.runs[i].began_s)

    @cached_property
    def began_s(self) -> float:
        return self.runs[self.order[0]].began_s

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of updates after which the verifier knows every run's val loss, but for 0; rising."""
        common = set.intersection(*({point.steps for point in run.evals} & run.verified().keys() for run in self.runs))
        return tuple(sorted(common - {0}))

    @cached_property
    def evals(self) -> dict[int, tuple[Point, ...]]:
        """By number of updates, the evaluation of each run."""
        runs = [{point.steps: point for point in run.evals} for run in self.runs]
        return {step: tuple(points[step] for points in runs) for step in self.steps}

    def losses(self, step: int | None = None) -> list[float]:
        """The runs' losses at a step (None: the last one's), by the verifier."""
        return [run.val_loss if step is None else run.verified()[step] for run in self.runs]

    def costs(self, axis: str, step: int) -> list[float] | None:
        """The runs' costs to a step; None where they were not counted."""
        values = [getattr(point, axis) for point in self.evals[step]]
        return None if None in values else [float(value) for value in values]

    def cost(self, axis: str, step: int | None = None) -> float | None:
        """Mean cost of the runs to a step (None: the last); None where it was not counted."""
        means = self.mean_costs[axis]
        return None if means is None else means[-1 if step is None else self.steps.index(step)]

    @cached_property
    def own_count(self) -> bool:
        """Whether its steps and tokens are its program's own count: a step of it may be several updates."""
        rules = [rule for run in self.runs for rule in run.verdict["rules"]]
        return any(name == "replay.single" and status != "holds" for name, status, *_ in rules)

    @cached_property
    def mean_costs(self) -> dict[str, list[float] | None]:
        """By axis, mean costs at `steps`; None where they were not counted, or are the program's own count."""
        means: dict[str, list[float] | None] = {}
        for axis in AXES:
            values = [self.costs(axis, step) for step in self.steps]
            counted = [sum(costs) / len(costs) for costs in values if costs is not None]
            kept = len(counted) == len(values) and not (axis in OWN_AXES and self.own_count)
            means[axis] = counted if kept else None
        return means

    @cached_property
    def mean_losses(self) -> list[float]:
        """Mean losses at `steps`."""
        return [sum(losses) / len(losses) for losses in map(self.losses, self.steps)]

    @cached_property
    def p_below(self) -> list[float]:
        """At `steps`, the one-sided p, by the track's test, that the mean is below the target; nan without a test."""
        target = self.data["target"]
        if target is None:
            return [math.nan] * len(self.steps)
        p_values = [statistics.p_below(self.track, self.losses(step), target) for step in self.steps]
        return [math.nan if p is None else p for p in p_values]

    @cached_property
    def passing(self) -> int | None:
        """Index in `steps` of the first evaluation at which the mean passes the target; None where none does."""
        level = statistics.level(self.track)
        return next((i for i, p in enumerate(self.p_below) if p < level), None)


def read(path: Path) -> Entry:
    """Reads one file of a ledger; InputError where it cannot be read or is no entry."""
    remedy = "restore it, with git for example"
    data = schemas.read(path, SCHEMA, "an entry of a ledger", remedy, max_bytes=MAX_BYTES, max_digits=None)
    return _entry(data, str(path))


def from_data(data: Any, name: str) -> Entry:
    """The entry of JSON values; InputError where they do not follow the schema."""
    if problem := schemas.check_for(SCHEMA)(data):
        raise InputError(f"{name}: {problem}: entries are written by python -m parity.frontier add, and not edited")
    return _entry(data, name)


def _entry(data: dict[str, Any], name: str) -> Entry:
    plain = ("id", "title", "track", "val_tokens", "author", "kind", "backend", "recipe", "date")
    entry = Entry(
        **{field: data[field] for field in plain},
        slice=data["slice"]["name"],
        slice_digest=data["slice"]["digest"],
        techniques=tuple(data["techniques"]),
        hardware=data["hardware"]["class"],
        runs=tuple(_run(run) for run in data["runs"]),
        data=data,
    )
    if not entry.steps:
        raise InputError(
            f"{name}: expected runs that were verified after the same numbers of steps, found none in common: "
            "nothing can be averaged"
        )
    return entry


def _run(data: dict[str, Any]) -> Run:
    evals = tuple(Point(*point) for point in data["evals"])
    recomputed = tuple((steps, loss) for steps, loss in data.get("recomputed", ()))
    return Run(**data | {"evals": evals, "recomputed": recomputed})


def write(entry: Entry, path: Path) -> None:
    """Writes an entry, whole or not at all."""
    write_file(path, text(entry.data).encode())


def text(data: dict[str, Any]) -> str:
    """JSON that can be read and reviewed: objects over several lines, lists of numbers and short strings on one."""
    return _lines(data, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    inner = " " * (depth + 1)
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + " " * depth + "}"
    if isinstance(value, list) and any(
        isinstance(item, dict | list) or (isinstance(item, str) and len(value) > 4) for item in value
    ):
        return "[\n" + ",\n".join(inner + _lines(item, depth + 1) for item in value) + "\n" + " " * depth + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def digest(data: dict[str, Any]) -> str:
    """sha256 over everything in an entry but its own digest, whatever the layout."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def id_of(data: dict[str, Any]) -> str:
    """The id that follows from an entry's content: date, title, backend and a digest of its runs' logs."""
    logs = hashlib.sha256("".join(run["log_sha256"] for run in data["runs"]).encode()).hexdigest()
    return f"{data['date']}-{slug(data['title'])}-{data['backend']}-{logs[:8]}"


def slug(title: str) -> str:
    """A title in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "attempt"
