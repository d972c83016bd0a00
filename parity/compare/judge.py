"""Judges two sides' observations: facts and bytes exactly, float64 by bounds, float32 by recorded errors."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.compare.observation import Difference, Finding, Observation, Result, difference, error, ratio
from parity.program import BACKENDS
from parity.tables import cut

FACTOR = 4.0  # how much larger an error may be than the recorded one, and than the other side's
EXACT = "equal to the last bit"
Recorded = dict[str, dict[str, float]]
"""By "level/line": the `largest` error of a location, and the usual error of each backend over the line."""


@dataclass(frozen=True)
class Pairing:
    """How two sides are judged: their names. `strict`: each must show all that the other shows, as backends must;
    `check_expected`: each must also show what is expected of it alone; `b_is_reference`: locations are judged in b's
    order."""

    a: str
    b: str
    strict: bool = True
    check_expected: bool = True
    b_is_reference: bool = False


@dataclass(frozen=True)
class Check:
    """One comparison at one location."""

    measured: float
    allowed: float
    basis: str
    message: str
    difference: Difference | None = None

    @property
    def holds(self) -> bool:
        return self.measured <= self.allowed  # false for nan


def judge(
    level: str,
    a: list[Observation],
    b: list[Observation],
    pairing: Pairing,
    dtype: str,
    truth: list[Observation] | None = None,
    recorded: Recorded | None = None,
) -> Result:
    """The result of a level: its lines, and the first location that fails.

    In float64 `truth` is None and bounds hold; in float32 `truth` is what the same program shows in float64.
    """
    judge = _Judge(level, pairing, dtype, truth, recorded or {})
    of_a, of_b = {x.key: x for x in a}, {x.key: x for x in b}
    common = of_a.keys() & of_b.keys()
    for key, x in (of_b | of_a if pairing.b_is_reference else of_a | of_b).items():
        if key in common:
            judge.enter(x, judge.checks(of_a[key], of_b[key]))
        elif pairing.strict:
            only = pairing.a if key in of_a else pairing.b
            judge.enter(x, [Check(1.0, 0.0, "both sides have it", f"only {only} has it")])
    judge.balance()
    if not pairing.strict and (a or b):
        _report_left_out(judge.result, len(common), {pairing.a: len(of_a), pairing.b: len(of_b)})
    return judge.result


def _report_left_out(result: Result, common: int, shown: dict[str, int]) -> None:
    """Counts what only one of the sides shows; where they have nothing in common nothing was judged."""
    if not common:
        result.status, result.reason = "not judged", f"{' and '.join(shown)} have no place in common"
        return
    left_out = [f"{count - common} places of {name}" for name, count in shown.items() if count > common]
    if left_out and result.status == "holds":
        result.reason = f"{common} places in common; left out {' and '.join(left_out)}"


class _Judge:
    """Compares pairs of observations, and enters the comparisons into a level's result."""

    def __init__(self, level: str, pairing: Pairing, dtype: str, truth: list[Observation] | None, recorded: Recorded):
        self.result, self.pairing, self.dtype = Result(level, "holds"), pairing, dtype
        self.truth = None if truth is None else {x.key: x.value for x in truth}
        self.recorded = recorded
        self.errors: dict[str, list[tuple[float, float]]] = {}  # of both sides by line

    def enter(self, x: Observation, checks: Iterable[Check], count: int = 1) -> None:
        """Counts a location in its line, and enters its checks."""
        result, line = self.result, self.result.line(x.line)
        line.count += count
        for check in checks:
            used = ratio(check.measured, check.allowed)
            if result.level == "gradients" and check.difference:
                result.details[x.location] = check.difference
            result.heat[x.location] = max(used, result.heat.get(x.location, 0.0))
            if not line.worst or used > line.ratio:
                line.worst, line.measured = x.location, check.measured
                line.allowed, line.basis = check.allowed, check.basis
            line.holds &= check.holds
            if not check.holds and result.finding is None:
                result.status = "fails"
                result.finding = _finding(result.level, x, check)

    def checks(self, x: Observation, y: Observation) -> Iterator[Check]:
        """Of numbers in low precision each side against float64; of others a against b, and each against what is
        expected of it alone."""
        a, b = self.pairing.a, self.pairing.b
        if self.truth is not None and x.bound is not None:
            if x.key in self.truth:
                yield from self._against_truth(x, y, self.truth[x.key])
            return
        if isinstance(x.value, str) or x.bound is not None or x.expected is None:  # else only each side alone counts
            yield self._compared(x.value, y.value, x, a, b)
        for name, shown in ((a, x), (b, y)):
            if self.pairing.check_expected and shown.expected is not None:
                yield self._compared(shown.value, shown.expected, shown, name, "expected")

    def _compared(self, x: Any, y: Any, observation: Observation, first: str, second: str) -> Check:
        if isinstance(x, str):
            basis = "expected by the recipe" if second == "expected" else EXACT
            return Check(float(x != y), 0.0, basis, f"{first} has {cut(x, 48)}, {second} {cut(str(y), 48)}")
        bound = observation.bound
        if x.shape != y.shape or (bound is None and x.dtype != y.dtype):
            message = f"{first} has {x.dtype} {x.shape}, {second} {y.dtype} {y.shape}"
            return Check(1.0, 0.0, "equal shape and type", message)
        if bound is None and x.tobytes() == y.tobytes():
            return Check(0.0, 0.0, EXACT, "")
        apart = difference(x, y, observation.scale, self.dtype)
        if bound and observation.axes == ("step",):  # of a series the first step beyond the bound, not the worst
            beyond = np.flatnonzero(np.abs(x - y) > bound.allowed * np.abs(y).max())
            if len(beyond):
                step = int(beyond[0])
                apart = dataclasses.replace(apart, index=(step,), values=(float(x[step]), float(y[step])))
        message = f"{first} {apart.values[0]:.10g}, {second} {apart.values[1]:.10g}"
        if bound is None:
            return Check(apart.relative or 1.0, 0.0, EXACT, message, apart)
        return Check(apart.relative, bound.allowed, bound.basis, message, apart)

    def _against_truth(self, x: Observation, y: Observation, truth: np.ndarray) -> Iterator[Check]:
        """Each side's error against float64, by the error that was recorded for this line."""
        a, b = self.pairing.a, self.pairing.b
        if x.value.shape != y.value.shape or x.value.shape != truth.shape:
            yield self._compared(x.value, y.value, x, a, b)
            return
        pair = error(x.value, truth, x.scale), error(y.value, truth, y.scale)
        if not x.single:
            self.errors.setdefault(x.line, []).append(pair)
        recorded = self.recorded.get(f"{self.result.level}/{x.line}", {}).get("largest")
        allowed = 0.0 if recorded is None else FACTOR * recorded
        basis = "no error was recorded" if recorded is None else f"{FACTOR:g} x the recorded error"
        for name, shown, measured in ((a, x, pair[0]), (b, y, pair[1])):
            apart = difference(shown.value, truth, shown.scale, self.dtype)
            message = f"{name} {apart.values[0]:.8g}, float64 {apart.values[1]:.8g}"
            yield Check(measured, allowed, basis, message, apart)

    def balance(self) -> None:
        """The two sides' errors over a line must be alike, but for the ratio that is usual between two backends, whose
        libraries add in different orders."""
        for name, pairs in self.errors.items():
            usual, allowed = self._usual(self.recorded.get(f"{self.result.level}/{name}", {}))
            a, b = (root_mean_square(errors) for errors in zip(*pairs, strict=True))
            larger, smaller = max(a, b * usual), min(a, b * usual)
            measured = larger / smaller if smaller else (2 * allowed if larger else 1.0)
            basis = "errors of both sides alike" + (f" (usual ratio {usual:.2g})" if usual != 1 else "")
            message = f"error of {self.pairing.a} {a:.2e}, of {self.pairing.b} {b:.2e}"
            line = Observation(name, "all places together", None)
            self.enter(line, [Check(measured, allowed, basis, message)], count=0)

    def _usual(self, recorded: dict[str, float]) -> tuple[float, float]:
        """The usual ratio of two backends' errors, and the factor that is allowed beside it. Nothing is recorded for
        other programs: for them 1, and a factor that is wider by as much as the two backends' errors differ."""
        known = [recorded[name] for name in (self.pairing.a, self.pairing.b) if recorded.get(name)]
        if len(known) == 2:
            return known[0] / known[1], FACTOR
        backends = [recorded[name] for name in BACKENDS if recorded.get(name)]
        return 1.0, FACTOR * (max(backends) / min(backends) if len(backends) == 2 else 1.0)


def _finding(level: str, x: Observation, check: Check) -> Finding:
    index = check.difference.index if check.difference else ()
    axes = x.axes or (("row", "column") if len(index) <= 2 else tuple(f"axis {i}" for i in range(len(index))))
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=False))
    measured = check.measured, check.allowed, check.basis, check.message
    return Finding(level, x.line, x.location, *measured, where, check.difference, x.note)


def root_mean_square(errors: Iterable[float]) -> float:
    """One error for all locations of a line."""
    return float(np.sqrt(np.mean(np.square(list(errors)))))
