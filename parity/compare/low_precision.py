"""float32 and bfloat16: errors against the float64 truth, held against those recorded for this project's own code.

In float32 each side's error may be at most 4 times the recorded one, and the two sides' errors at most 4 times each other
(beside the ratio that is usual between two backends, which is recorded too).
In bfloat16 single numbers are held against the recorded error too; all other errors are distributions: several draws
(seeds) of every line, their typical and their largest error, are compared with the recorded draws and with the other side's.
Each comparison is a test that the errors are larger, or that the sides' differ, by more than a factor of 1.25: one more
rounding beside two makes sqrt(3 / 2) = 1.22. Holm's correction (Scandinavian J. Statistics 6 (1979) 65) keeps the false
alarms of a whole report below 1 in 1,000.
"""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity.compare.judge import FACTOR, Names, judge
from parity.compare.observation import Finding, Line, Result, Seen, difference, error
from parity.errors import InputError

RECORDED = "recorded.json"
DRAWS = 8  # of a comparison in bfloat16
MARGIN = 1.25
ALARMS = 1e-3
SMALLEST = 1e-300  # stands for an error of zero, whose logarithm is none


class Size(NamedTuple):
    """Natural logarithms of one draw's errors on a line: root mean square over its places, and the largest element's."""

    typical: float
    largest: float
    single: bool = (
        False  # the error of one number: how it is rounded depends on the order of a sum, and so on the machine
    )


class Test(NamedTuple):
    """One of a report's tests: `ratio` of two sizes of error, `p` that it is beyond the margin only by chance."""

    level: str
    line: str
    what: str
    ratio: float
    p: float


def recorded_file() -> Path:
    """The file with the errors that were recorded for unplanted code."""
    return Path(str(files("parity.compare") / RECORDED))


def recorded_errors(recipe: str, scale: str, precision: str) -> dict[str, Any] | None:
    """Errors by "level/line" for a recipe, scale and precision; None where none were recorded."""
    path = recorded_file()
    return json.loads(path.read_text()).get(f"{recipe}/{scale}/{precision}") if path.exists() else None


def line_errors(level: str, seen: list[Seen], truth: list[Seen]) -> dict[str, list[float]]:
    """The errors of all places by "level/line": what float32 records."""
    exact, found = {x.key: x for x in truth}, {}
    for x in seen:
        if x.bound is not None and x.key in exact:
            found.setdefault(f"{level}/{x.line}", []).append(error(x.value, exact[x.key].value, x.scale))
    return found


def sizes(level: str, seen: list[Seen], truth: list[Seen]) -> dict[str, Size]:
    """Both sizes of error of one draw by "level/line": what bfloat16 records."""
    exact = {x.key: x for x in truth}
    squares: dict[str, list[float]] = {}
    largest: dict[str, float] = {}
    for x in seen:
        if x.bound is not None and x.key in exact:
            key, t = f"{level}/{x.line}", exact[x.key]
            if x.value.shape != t.value.shape:
                raise InputError(f"{x.place}: expected shape {t.value.shape}, found {x.value.shape}: mend the program")
            squares.setdefault(key, []).append(error(x.value, t.value, x.scale) ** 2)
            largest[key] = max(largest.get(key, 0.0), difference(x.value, t.value, x.scale, "float32").found)
    single = {f"{level}/{x.line}" for x in seen if x.single}
    return {
        key: Size(
            *(math.log(max(value, SMALLEST)) for value in (math.sqrt(np.mean(squares[key])), largest[key])),
            key in single,
        )
        for key in squares
    }


def exact_result(level: str, a: list[Seen], b: list[Seen], names: Names) -> Result:
    """The result of what rounding has no part in."""
    facts = [[x for x in seen if x.bound is None] for seen in (a, b)]
    result = judge(level, *facts, names, "bfloat16")
    return result if result.status == "fails" or result.lines else Result(level, "holds")  # the tests are still to come


def tests(
    a: dict[str, list[Size]],
    b: dict[str, list[Size]],
    recorded: dict[str, dict[str, list[list[float]]]],
    names: tuple[str, str],
    backends: tuple[str | None, str | None],
) -> list[Test]:
    """Three tests a line and size: each side against the recorded draws, and the two sides against each other."""
    found = []
    for key in a:
        level, line = key.split("/", 1)
        if key not in b:
            continue
        if key not in recorded:
            found.append(Test(level, line, "no error was recorded", math.inf, 0.0))
            continue
        kept = recorded[key]
        if a[key][0].single:
            found += [
                _single(level, line, name, side[key], kept[backend] if backend else sum(kept.values(), []))
                for name, side, backend in zip(names, (a, b), backends)
            ]
            continue
        for i, size in enumerate(("typical", "largest")):
            draws = [[draw[i] for draw in side[key]] for side in (a, b)]
            own = [
                [draw[i] for draw in kept[backend]] if backend else [draw[i] for x in kept.values() for draw in x]
                for backend in backends
            ]
            for name, mine, theirs in zip(names, draws, own):
                shift, p = beyond(mine, theirs)
                found.append(Test(level, line, f"{size} error of {name} / recorded", math.exp(shift), p))
            # how far the two are apart where nothing is wrong is part of the record
            usual = float(np.mean(own[0]) - np.mean(own[1]))
            both = [beyond(first, second, -sign * usual) for first, second, sign in ((*draws, 1), (*draws[::-1], -1))]
            shift, p = min(both, key=lambda pair: pair[1])
            found.append(Test(level, line, f"{size} error of one side / the other's", math.exp(shift), min(1.0, 2 * p)))
    return found


def _single(level: str, line: str, name: str, draws: list[Size], recorded: list[list[float]]) -> Test:
    """One number's error, in the draw where it is largest, may be 4 times the recorded one: it has no distribution to test."""
    shift = max(draw.typical for draw in draws) - max(draw[0] for draw in recorded)
    return Test(
        level,
        line,
        f"error of {name} / recorded, at most {FACTOR:g}",
        math.exp(min(shift, 700)),
        float(shift <= math.log(FACTOR)),
    )


def beyond(mine: Sequence[float], theirs: Sequence[float], usual: float = 0.0) -> tuple[float, float]:
    """The mean difference (less what is usual), and Welch's one-sided p that it is beyond the margin by chance."""
    from scipy.stats import t as student

    x, y = np.asarray(mine), np.asarray(theirs)
    shift = float(x.mean() - y.mean() + usual)
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if not sum(parts):
        return shift, float(shift <= math.log(MARGIN))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
    return shift, float(student.sf((shift - math.log(MARGIN)) / math.sqrt(sum(parts)), freedom))


def holm(found: list[Test], alarms: float = ALARMS) -> list[tuple[Test, float]]:
    """Every test with the p that it would have to be below: Holm's, alarms / (tests not yet rejected)."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    allowed: dict[int, float] = {}
    for rank, i in enumerate(order):
        allowed[i] = alarms / (len(found) - rank)
        if found[i].p > allowed[i]:
            allowed |= dict.fromkeys(order[rank:], allowed[i])
            break
    return [(test, allowed[i]) for i, test in enumerate(found)]


def add_tests(results: list[Result], found: list[Test]) -> None:
    """Enters the tests into the levels' results: one line each, the first rejected one as the finding."""
    by_level = {result.level: result for result in results}
    for test, allowed in holm(found):
        result = by_level[test.level]
        line = next((x for x in result.lines if x.name == test.line), None)
        if line is None:
            line = Line(test.line, basis="p, at least (Holm)", found=1.0, allowed=allowed)
            result.lines.append(line)
        line.places += 1
        holds = test.p >= allowed
        if not line.worst or test.p < line.found:
            line.worst, line.found, line.allowed = test.what, test.p, allowed
        line.holds &= holds
        result.heat[test.line] = max(result.heat.get(test.line, 0.0), allowed / max(test.p, SMALLEST))
        if not holds and result.finding is None:
            result.status = "fails"
            result.finding = Finding(
                test.level,
                test.line,
                test.what,
                test.ratio,
                MARGIN,
                f"p {test.p:.1e} < {allowed:.1e}",
                f"{test.what}: {test.ratio:.3g}, allowed {MARGIN:g}; p {test.p:.1e}",
            )
