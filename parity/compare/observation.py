"""What is seen of one side at one place: an array or a fact, with all that is needed to judge it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.compare.bounds import Bound


@dataclass(frozen=True)
class Seen:
    """One value: `line` is the row of the report that it belongs to, `place` where it is (a canonical name, a step).

    `value` is an array, or a fact as text. An array without `bound` must be equal to the last bit, and a fact always.
    `expected`: what either side's value must be by itself. `scale`: what differences are relative to, by default the
    largest absolute value of the array. `axes` name the array's axes. `single`: the error is that of one number, which can be zero by luck.
    """

    line: str
    place: str
    value: Any
    bound: Bound | None = None
    expected: Any = None
    scale: float | None = None
    axes: tuple[str, ...] = ()
    note: str = ""
    single: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.line, self.place


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart: `found` is relative to the scale, `ulps` in units of the type compared in."""

    found: float
    ulps: float
    index: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)
    cosine: float | None = None
    norms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Finding:
    """The first place at which a level fails."""

    level: str
    line: str
    place: str
    found: float
    allowed: float
    basis: str
    says: str
    where: str = ""
    difference: Difference | None = None
    note: str = ""
    reasons: tuple[str, ...] = ()


@dataclass
class Line:
    """One row of the report: the worst of its places."""

    name: str
    places: int = 0
    worst: str = ""
    found: float = 0.0
    allowed: float = 0.0
    basis: str = ""
    holds: bool = True

    @property
    def ratio(self) -> float:
        """How much of the allowance is used."""
        return ratio(self.found, self.allowed)


@dataclass
class Result:
    """A level's outcome: "holds", "fails" or "not judged"; `heat` maps places to the part of the allowance they use,
    `curves` has a trajectory's differences by step, `details` the errors, cosines and norms of gradients by name."""

    level: str
    status: str
    reason: str = ""
    lines: list[Line] = field(default_factory=list)
    finding: Finding | None = None
    heat: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Difference] = field(default_factory=dict)
    seconds: float = 0.0


def ratio(found: float, allowed: float) -> float:
    """found / allowed, infinite where nothing is allowed and something is found."""
    if allowed:
        return found / allowed
    return math.inf if found else 0.0


def difference(a: np.ndarray, b: np.ndarray, scale: float | None, dtype: str) -> Difference:
    """The largest absolute difference of two arrays of one shape, relative to `scale` (default: the largest |b|)."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.size == 0:
        return Difference(0.0, 0.0)
    apart = np.abs(x - y)
    index = np.unravel_index(int(np.argmax(apart)), apart.shape)
    scale = float(np.abs(y).max()) if scale is None else scale
    largest = float(apart[index])
    values = float(x[index]), float(y[index])
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    cosine = float(np.sum(x * y) / (norms[0] * norms[1])) if all(norms) else None
    return Difference(
        largest / scale if scale else largest,
        largest / ulp(max(map(abs, values)), dtype),
        tuple(int(i) for i in index),
        values,
        cosine,
        norms,
    )


def ulp(value: float, dtype: str) -> float:
    """The distance from |value| to the next number of a type."""
    if dtype == "bfloat16":  # 7 fraction bits
        return 2.0 ** (math.floor(math.log2(value)) - 7) if value else 2.0**-133
    return float(np.spacing(np.dtype(dtype).type(value)))


def error(value: np.ndarray, truth: np.ndarray, scale: float | None) -> float:
    """Root mean square of value - truth, relative to that of the truth (or to `scale`)."""
    apart = np.asarray(value, np.float64) - np.asarray(truth, np.float64)
    size = math.sqrt(float(np.mean(np.square(truth, dtype=np.float64)))) if scale is None else scale
    rms = math.sqrt(float(np.mean(apart * apart))) if apart.size else 0.0
    return rms / size if size else rms
