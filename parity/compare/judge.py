"""Judges two sides' observations: facts and bytes exactly, float64 by bounds, float32 by recorded errors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parity.compare.observation import Difference, Finding, Line, Observation, Result, difference, error, ratio
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
    result = Result(level, "holds")
    exact = {x.key: x for x in truth or []}
    errors: dict[str, list[tuple[float, float]]] = {}
    pairs = list(_pairs(a, b, pairing))
    for x, y, only in pairs:
        line = result.line(x.line)
        line.count += 1
        if only:
            checks = iter([Check(1.0, 0.0, "both sides have it", f"only {only} has it")])
        elif truth is None or x.bound is None:
            checks = _checks(x, y, pairing, dtype)
        elif x.key in exact:
            largest = (recorded or {}).get(f"{level}/{x.line}", {}).get("largest")
            checks = _against_truth(x, y, exact[x.key].value, pairing, dtype, largest, errors)
        else:
            continue
        for check in checks:
            _enter(result, line, x, check)
    for name, line_errors in errors.items():
        usual, allowed = _usual((recorded or {}).get(f"{level}/{name}", {}), pairing)
        check = _balance(line_errors, pairing, usual, allowed)
        _enter(result, result.line(name), Observation(name, "all places together", None), check)
    if not pairing.strict and (a or b):
        _report_left_out(result, {x.key for x, _, _ in pairs}, {pairing.a: a, pairing.b: b})
    return result


def _report_left_out(result: Result, common: set[tuple[str, str]], shown: dict[str, list[Observation]]) -> None:
    """Counts what only one of the sides shows; where they have nothing in common nothing was judged."""
    if not common:
        result.status, result.reason = "not judged", f"{' and '.join(shown)} have no place in common"
        return
    counts = {name: len({x.key for x in observations} - common) for name, observations in shown.items()}
    left_out = " and ".join(f"{count} places of {name}" for name, count in counts.items() if count)
    if left_out and result.status == "holds":
        result.reason = f"{len(common)} places in common; left out {left_out}"


def _pairs(
    a: list[Observation], b: list[Observation], pairing: Pairing
) -> Iterator[tuple[Observation, Observation, str | None]]:
    """Observations of both sides, in the reference's order; if both must show everything, also those of one side
    alone, twice and with its name."""
    of_a, of_b = {x.key: x for x in a}, {x.key: x for x in b}
    either = of_b | of_a if pairing.b_is_reference else of_a | of_b
    for key, x in either.items():
        if key in of_a and key in of_b:
            yield of_a[key], of_b[key], None
        elif pairing.strict:
            yield x, x, pairing.a if key in of_a else pairing.b


def _enter(result: Result, line: Line, observation: Observation, check: Check) -> None:
    used, location = ratio(check.measured, check.allowed), observation.location
    if result.level == "gradients" and check.difference:
        result.details[location] = check.difference
    result.heat[location] = max(used, result.heat.get(location, 0.0))
    if not line.worst or used > line.ratio:
        line.worst, line.measured, line.allowed, line.basis = location, check.measured, check.allowed, check.basis
    line.holds &= check.holds
    if not check.holds and result.finding is None:
        result.status = "fails"
        result.finding = Finding(
            result.level,
            observation.line,
            location,
            check.measured,
            check.allowed,
            check.basis,
            check.message,
            _element(check.difference.index, observation.axes) if check.difference else "",
            check.difference,
            observation.note,
        )


def _element(index: tuple[int, ...], axes: tuple[str, ...]) -> str:
    axes = axes or (("row", "column") if len(index) <= 2 else tuple(f"axis {i}" for i in range(len(index))))
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=False))


def _checks(x: Observation, y: Observation, pairing: Pairing, dtype: str) -> Iterator[Check]:
    """a against b, and each against what is expected of it alone."""
    if isinstance(x.value, str) or x.bound is not None or x.expected is None:  # else only each side alone counts
        yield _compared(x.value, y.value, x, pairing.a, pairing.b, dtype)
    for name, shown in ((pairing.a, x), (pairing.b, y)):
        if pairing.check_expected and shown.expected is not None:
            yield _compared(shown.value, shown.expected, shown, name, "expected", dtype)


def _compared(
    x: np.ndarray | str, y: np.ndarray | str, observation: Observation, first: str, second: str, dtype: str
) -> Check:
    if isinstance(x, str) or isinstance(y, str):
        basis = "expected by the recipe" if second == "expected" else EXACT
        return Check(float(x != y), 0.0, basis, f"{first} has {cut(str(x), 48)}, {second} {cut(str(y), 48)}")
    bound = observation.bound
    if x.shape != y.shape or (bound is None and x.dtype != y.dtype):
        return Check(1.0, 0.0, "equal shape and type", f"{first} has {x.dtype} {x.shape}, {second} {y.dtype} {y.shape}")
    if bound is None and x.tobytes() == y.tobytes():
        return Check(0.0, 0.0, EXACT, "")
    apart = difference(x, y, observation.scale, dtype)
    index, values = apart.index, apart.values
    if bound and observation.axes == ("step",):  # of a series the first step beyond the bound is named, not the worst
        beyond = np.flatnonzero(np.abs(x - y) > bound.allowed * np.abs(y).max())
        if len(beyond):
            index = (int(beyond[0]),)
            values = float(x[index]), float(y[index])
            apart = Difference(apart.relative, apart.ulps, index, values, apart.cosine, apart.norms)
    message = f"{first} {values[0]:.10g}, {second} {values[1]:.10g}"
    if bound is None:
        return Check(apart.relative or 1.0, 0.0, EXACT, message, apart)
    return Check(apart.relative, bound.allowed, bound.basis, message, apart)


def _against_truth(
    x: Observation,
    y: Observation,
    truth: np.ndarray,
    pairing: Pairing,
    dtype: str,
    recorded: float | None,
    errors: dict[str, list[tuple[float, float]]],
) -> Iterator[Check]:
    """Each side's error against float64, by the error that was recorded for this line; adds both to `errors`."""
    if x.value.shape != y.value.shape or x.value.shape != truth.shape:
        yield _compared(x.value, y.value, x, pairing.a, pairing.b, dtype)
        return
    pair = error(x.value, truth, x.scale), error(y.value, truth, y.scale)
    if not x.single:
        errors.setdefault(x.line, []).append(pair)
    allowed = 0.0 if recorded is None else FACTOR * recorded
    basis = "no error was recorded" if recorded is None else f"{FACTOR:g} x the recorded error"
    for name, shown, measured in ((pairing.a, x, pair[0]), (pairing.b, y, pair[1])):
        apart = difference(shown.value, truth, shown.scale, dtype)
        message = f"{name} {apart.values[0]:.8g}, float64 {apart.values[1]:.8g}"
        yield Check(measured, allowed, basis, message, apart)


def _balance(pairs: list[tuple[float, float]], pairing: Pairing, usual: float, allowed: float) -> Check:
    """The two sides' errors over a line must be alike, but for the ratio that is usual between two backends, whose
    libraries add in different orders."""
    rms_a, rms_b = (root_mean_square(errors) for errors in zip(*pairs, strict=True))
    larger, smaller = max(rms_a, rms_b * usual), min(rms_a, rms_b * usual)
    ratio_of_backends = f" (usual ratio {usual:.2g})" if usual != 1 else ""
    return Check(
        larger / smaller if smaller else (2 * allowed if larger else 1.0),
        allowed,
        f"errors of both sides alike{ratio_of_backends}",
        f"error of {pairing.a} {rms_a:.2e}, of {pairing.b} {rms_b:.2e}",
    )


def _usual(recorded: dict[str, float], pairing: Pairing) -> tuple[float, float]:
    """The usual ratio of two backends' errors, and the factor that is allowed beside it. Nothing is recorded for
    other programs: for them 1, and a factor that is wider by as much as the two backends' errors differ."""
    known = [recorded[name] for name in (pairing.a, pairing.b) if recorded.get(name)]
    if len(known) == 2:
        return known[0] / known[1], FACTOR
    backends = [recorded[name] for name in BACKENDS if recorded.get(name)]
    return 1.0, FACTOR * (max(backends) / min(backends) if len(backends) == 2 else 1.0)


def root_mean_square(errors: Iterable[float]) -> float:
    """One error for all locations of a line."""
    return float(np.sqrt(np.mean(np.square(list(errors)))))
