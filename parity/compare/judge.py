"""Judges what was seen of two sides: facts and bytes exactly, float64 by derived bounds, float32 by recorded errors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from parity.compare.observation import Difference, Finding, Line, Result, Seen, difference, error, ratio
from parity.program import BACKENDS

FACTOR = 4.0  # how much larger an error may be than the recorded one, and than the other side's
EXACT = "equal to the last bit"


@dataclass(frozen=True)
class Names:
    """How the sides are called; `strict`: each must show all that the other shows (both are backends); `alone`: each must
    also be what is expected of it alone; `b_is_reference`: places come in its order."""

    a: str
    b: str
    strict: bool = True
    alone: bool = True
    b_is_reference: bool = False


@dataclass(frozen=True)
class Check:
    """One comparison at one place."""

    found: float
    allowed: float
    basis: str
    says: str
    difference: Difference | None = None

    @property
    def holds(self) -> bool:
        return self.found <= self.allowed  # false for nan


def judge(
    level: str,
    a: list[Seen],
    b: list[Seen],
    names: Names,
    dtype: str,
    truth: list[Seen] | None = None,
    recorded: dict[str, dict[str, float]] | None = None,
) -> Result:
    """The result of a level: its lines, and the first place that fails.

    In float64 `truth` is None and bounds hold; in float32 `truth` is the float64 twin's, and `recorded` has for every
    "level/line" the `largest` error of a place and the usual error of each backend over the line.
    """
    result, lines = Result(level, "holds"), {}
    exact = {seen.key: seen for seen in truth or []}
    errors: dict[str, list[tuple[float, float]]] = {}
    both: set[tuple[str, str]] = set()
    for seen, other in _paired(a, b, names):
        name = (seen or other).line
        line = lines.setdefault(name, Line(name))
        line.places += 1
        both.add((seen or other).key)
        if seen is None or other is None:
            checks = iter(
                [Check(1.0, 0.0, "both sides have it", f"only {names.b if seen is None else names.a} has it")]
            )
        elif truth is not None and _numeric(seen) and seen.key not in exact:
            continue
        elif truth is not None and _numeric(seen):
            largest = (recorded or {}).get(f"{level}/{seen.line}", {}).get("largest")
            checks = _against_truth(seen, other, exact[seen.key], names, dtype, largest, errors)
        else:
            checks = _checks(seen, other, names, dtype)
        for check in checks:
            _enter(result, line, seen or other, check)
    for name, pairs in errors.items():
        check = _balance(pairs, names, *_usual((recorded or {}).get(f"{level}/{name}", {}), names))
        _enter(result, lines[name], Seen(name, "all places together", None), check)
    result.lines = list(lines.values())
    return _shown(result, a, b, both, names)


def _shown(result: Result, a: list[Seen], b: list[Seen], both: set[tuple[str, str]], names: Names) -> Result:
    """Says what only one of the sides shows; where they have nothing in common nothing was judged."""
    if names.strict or not (a or b):
        return result
    if not both:
        result.status, result.reason = "not judged", f"{names.a} and {names.b} have no place in common"
        return result
    left_out = [
        f"{len(keys)} places of {name}"
        for name, keys in ((n, {x.key for x in side} - both) for n, side in ((names.a, a), (names.b, b)))
        if keys
    ]
    if left_out and result.status == "holds":
        result.reason = f"{len(both)} places in common; left out {' and '.join(left_out)}"
    return result


def _paired(a: list[Seen], b: list[Seen], names: Names) -> Iterator[tuple[Seen | None, Seen | None]]:
    """What both sides show, in a's order or, where b is the reference, in b's; what only one shows if both must."""
    of_a, of_b = {seen.key: seen for seen in a}, {seen.key: seen for seen in b}
    first, second = (of_b, of_a) if names.b_is_reference else (of_a, of_b)
    for key in [*first, *(key for key in second if key not in first)]:
        if names.strict or (key in of_a and key in of_b):
            yield of_a.get(key), of_b.get(key)


def _numeric(seen: Seen) -> bool:
    return seen.bound is not None


def _enter(result: Result, line: Line, seen: Seen, check: Check) -> None:
    used = ratio(check.found, check.allowed)
    if result.level == "gradients" and check.difference:
        result.details[seen.place] = check.difference
    result.heat[seen.place] = max(used, result.heat.get(seen.place, 0.0))
    if not line.worst or used > line.ratio:
        line.worst, line.found, line.allowed, line.basis = seen.place, check.found, check.allowed, check.basis
    line.holds &= check.holds
    if not check.holds and result.finding is None:
        where = ""
        if check.difference and check.difference.index:
            axes = seen.axes or tuple(f"axis {i}" for i in range(len(check.difference.index)))
            where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, check.difference.index))
        result.status = "fails"
        result.finding = Finding(
            result.level,
            seen.line,
            seen.place,
            check.found,
            check.allowed,
            check.basis,
            check.says,
            where,
            check.difference,
            seen.note,
        )


def _checks(seen: Seen, other: Seen, names: Names, dtype: str) -> Iterator[Check]:
    """a against b, and each against what it must be by itself."""
    if isinstance(seen.value, str):
        same = seen.value == other.value
        yield Check(float(not same), 0.0, EXACT, f"{names.a} has {_short(seen.value)}, {names.b} {_short(other.value)}")
        for name, value, expected in ((names.a, seen.value, seen.expected), (names.b, other.value, other.expected)):
            if names.alone and expected is not None:
                yield Check(
                    float(value != expected),
                    0.0,
                    "expected by the recipe",
                    f"{name} has {_short(value)}, expected {_short(expected)}",
                )
        return
    if seen.bound is not None or seen.expected is None:  # else it is a matter of each side alone
        yield _compared(seen.value, other.value, seen, names.a, names.b, dtype)
    for name, x in ((names.a, seen), (names.b, other)):
        if names.alone and x.expected is not None:
            yield _compared(x.value, x.expected, x, name, "expected", dtype)


def _compared(x: np.ndarray, y: np.ndarray, seen: Seen, first: str, second: str, dtype: str) -> Check:
    if x.shape != y.shape or (seen.bound is None and x.dtype != y.dtype):
        return Check(1.0, 0.0, "equal shape and type", f"{first} has {x.dtype} {x.shape}, {second} {y.dtype} {y.shape}")
    if seen.bound is None and x.tobytes() == y.tobytes():
        return Check(0.0, 0.0, EXACT, "")
    apart = difference(x, y, seen.scale, dtype)
    says = f"{first} {apart.values[0]:.10g}, {second} {apart.values[1]:.10g}"
    if seen.bound is None:
        return Check(apart.found or 1.0, 0.0, EXACT, says, apart)
    index = _first(x, y, seen)
    if index is not None and index != apart.index:  # of a series the first place counts, not the worst
        value = float(x[index]), float(y[index])
        apart = Difference(apart.found, apart.ulps, index, value, apart.cosine, apart.norms)
        says = f"{first} {value[0]:.10g}, {second} {value[1]:.10g}"
    return Check(apart.found, seen.bound.allowed, seen.bound.basis, says, apart)


def _first(x: np.ndarray, y: np.ndarray, seen: Seen) -> tuple[int, ...] | None:
    """The first step of a series that is beyond its bound."""
    if seen.axes != ("step",):
        return None
    beyond = np.flatnonzero(np.abs(x - y) > seen.bound.allowed * np.abs(y).max())
    return (int(beyond[0]),) if len(beyond) else None


def _against_truth(
    seen: Seen,
    other: Seen,
    exact: Seen,
    names: Names,
    dtype: str,
    recorded: float | None,
    errors: dict[str, list[tuple[float, float]]],
) -> Iterator[Check]:
    """Each side's error against the float64 twin, by what was recorded for this line."""
    if seen.value.shape != other.value.shape or seen.value.shape != exact.value.shape:
        yield _compared(seen.value, other.value, seen, names.a, names.b, dtype)
        return
    pair = error(seen.value, exact.value, seen.scale), error(other.value, exact.value, other.scale)
    if not seen.single:
        errors.setdefault(seen.line, []).append(pair)
    for name, x, found in ((names.a, seen, pair[0]), (names.b, other, pair[1])):
        allowed = FACTOR * recorded if recorded is not None else 0.0
        apart = difference(x.value, exact.value, x.scale, dtype)
        yield Check(
            found,
            allowed,
            f"{FACTOR:g} x the recorded error" if recorded is not None else "no error was recorded",
            f"{name} {apart.values[0]:.8g}, float64 {apart.values[1]:.8g}",
            apart,
        )


def _balance(pairs: list[tuple[float, float]], names: Names, usual: float, allowed: float) -> Check:
    """The two sides' errors over a line must be alike: within the factor of each other, beside what is usual for two
    backends, whose libraries add in different orders."""
    rms = [together(x) for x in zip(*pairs)]
    shares = rms[0], rms[1] * usual
    larger, smaller = max(shares), min(shares)
    beside = f" beside the usual {usual:.2g}" if usual != 1 else ""
    return Check(
        larger / smaller if smaller else (2 * allowed if larger else 1.0),
        allowed,
        f"errors of both sides alike{beside}",
        f"error of {names.a} {rms[0]:.2e}, of {names.b} {rms[1]:.2e}",
    )


def _usual(recorded: dict[str, float], names: Names) -> tuple[float, float]:
    """The ratio of errors that is usual between two backends, and the factor allowed beside it; for other programs, of
    which nothing is recorded, 1, and a factor that is as much wider as the two backends' errors differ."""
    known = [recorded.get(name) for name in (names.a, names.b)]
    if all(known):
        return known[0] / known[1], FACTOR
    backends = [recorded.get(name) for name in BACKENDS]
    return 1.0, FACTOR * (max(backends) / min(backends) if all(backends) else 1.0)


def together(errors: Iterable[float]) -> float:
    """Root mean square of the errors of a line's places."""
    return float(np.sqrt(np.mean(np.square(list(errors)))))


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:45] + "..."
