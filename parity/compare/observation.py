"""What a side shows at one location, how two arrays differ, and what judging a level gives."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.compare.bounds import Bound


@dataclass(frozen=True)
class Observation:
    """A value of one side: an array, or a fact as text. Facts, and arrays without `bound`, must be equal to the last
    bit.

    `line` is the report's row that it counts in, `location` a canonical name, a module's path or a step. `expected`:
    the value that either side must have by itself. `scale`: what differences are relative to, by default the array's
    largest absolute value. `axes` name the array's axes. `single`: one number's rounding decides the error, which can
    be zero by luck.
    """

    line: str
    location: str
    value: Any
    bound: Bound | None = None
    expected: Any = None
    scale: float | None = None
    axes: tuple[str, ...] = ()
    note: str = ""
    single: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.line, self.location


@dataclass(frozen=True)
class Difference:
    """The largest difference of two arrays: `relative` to the scale, and in `ulps` of the type compared in."""

    relative: float
    ulps: float
    index: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)
    cosine: float | None = None
    norms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Finding:
    """The first location at which a level fails; `message` quotes both values, `where` is the element of the array."""

    level: str
    line: str
    location: str
    measured: float
    allowed: float
    basis: str
    message: str
    where: str = ""
    difference: Difference | None = None
    note: str = ""
    reasons: tuple[str, ...] = ()


@dataclass
class Line:
    """One row of the report: how many locations it counts, and the worst of them."""

    name: str
    count: int = 0
    worst: str = ""
    measured: float = 0.0
    allowed: float = 0.0
    basis: str = ""
    holds: bool = True

    @property
    def ratio(self) -> float:
        """The used part of the allowance."""
        return ratio(self.measured, self.allowed)


@dataclass
class Result:
    """A level's outcome: "holds", "fails" or "not judged". `heat`: the used part of the allowance by location;
    `curves`: a trajectory's differences by step; `details`: differences of gradients by name."""

    level: str
    status: str
    reason: str = ""
    lines: list[Line] = field(default_factory=list)
    finding: Finding | None = None
    heat: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Difference] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self, name: str) -> Line:
        """The line of this name, added if it is new."""
        line = next((line for line in self.lines if line.name == name), None)
        if line is None:
            self.lines.append(line := Line(name))
        return line


def ratio(measured: float, allowed: float) -> float:
    """measured / allowed; infinite where nothing is allowed and something is measured."""
    if allowed:
        return measured / allowed
    return math.inf if measured else 0.0


def difference(a: np.ndarray, b: np.ndarray, scale: float | None, dtype: str) -> Difference:
    """The largest absolute difference of two arrays of one shape, relative to `scale` (default: the largest |b|)."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.size == 0:
        return Difference(0.0, 0.0)
    absolute = np.abs(x - y)
    index = np.unravel_index(int(np.argmax(absolute)), absolute.shape)
    largest, values = float(absolute[index]), (float(x[index]), float(y[index]))
    scale = float(np.abs(y).max()) if scale is None else scale
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    return Difference(
        relative=largest / scale if scale else largest,
        ulps=largest / ulp(max(map(abs, values)), dtype),
        index=tuple(map(int, index)),
        values=values,
        cosine=float(np.sum(x * y) / (norms[0] * norms[1])) if all(norms) else None,
        norms=norms,
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
