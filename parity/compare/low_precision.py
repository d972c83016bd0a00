"""bfloat16: errors against float64 over several seeds, tested against recorded ones and against the other side's.

Single numbers are held against the recorded error as in float32; all other errors are distributions: over several
seeds the typical and the largest error of every line are compared with the recorded ones and with the other side's.
Each comparison is a test that the errors are larger, or that the sides' differ, by more than a factor of 1.25: one
more rounding beside two makes sqrt(3 / 2) = 1.22. Holm's correction keeps the false-positive rate of a whole report
below 1 in 1,000.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from parity import statistics
from parity.compare.judge import FACTOR, Pairing, judge, root_mean_square
from parity.compare.observation import Finding, Observation, Result, difference, error
from parity.errors import InputError

SEEDS = 8  # of a comparison
MARGIN = 1.25
FALSE_POSITIVE_RATE = 1e-3
SMALLEST = 1e-300  # stands for an error of zero, which has no logarithm


class LogErrors(NamedTuple):
    """Logarithms of one seed's errors on a line: root mean square over its locations, and the largest element's."""

    typical: float
    largest: float
    single: bool = False  # one number's error: its rounding depends on the order of a sum, and so on the machine


PerSeed = dict[str, list[LogErrors]]
"""By "level/line", one for each seed."""
Sizes = Sequence[Sequence[float]]
"""Typical and largest error, one pair for each seed."""


class RatioTest(NamedTuple):
    """One of a report's tests: `ratio` of two sizes of error, and `p` that it is beyond the margin only by chance."""

    level: str
    line: str
    comparison: str
    ratio: float
    p: float


def line_errors(level: str, observations: list[Observation], truth: list[Observation]) -> dict[str, list[float]]:
    """The errors of all locations by "level/line": what is recorded in float32."""
    errors: dict[str, list[float]] = {}
    for x, exact in _with_truth(observations, truth):
        errors.setdefault(f"{level}/{x.line}", []).append(error(x.value, exact, x.scale))
    return errors


def log_errors(level: str, observations: list[Observation], truth: list[Observation]) -> dict[str, LogErrors]:
    """Both sizes of error of one seed by "level/line": what is recorded in bfloat16."""
    largest: dict[str, float] = {}
    single = {f"{level}/{x.line}" for x in observations if x.single}
    for x, exact in _with_truth(observations, truth):
        if x.value.shape != exact.shape:
            raise InputError(f"{x.location}: expected shape {exact.shape}, found {x.value.shape}: fix the program")
        key = f"{level}/{x.line}"
        largest[key] = max(largest.get(key, 0.0), difference(x.value, exact, x.scale, "float32").relative)
    return {
        key: LogErrors(_log(root_mean_square(errors)), _log(largest[key]), key in single)
        for key, errors in line_errors(level, observations, truth).items()
    }


def _with_truth(observations: list[Observation], truth: list[Observation]) -> Iterator[tuple[Observation, np.ndarray]]:
    exact = {x.key: x.value for x in truth}
    return ((x, exact[x.key]) for x in observations if x.bound is not None and x.key in exact)


def _log(value: float) -> float:
    return math.log(max(value, SMALLEST))


def exact_result(level: str, a: list[Observation], b: list[Observation], pairing: Pairing) -> Result:
    """The result of what does not depend on rounding."""
    facts_a, facts_b = ([x for x in observations if x.bound is None] for observations in (a, b))
    result = judge(level, facts_a, facts_b, pairing, "bfloat16")
    return result if result.status == "fails" or result.lines else Result(level, "holds")  # the tests are still to come


def ratio_tests(
    a: PerSeed,
    b: PerSeed,
    recorded: dict[str, dict[str, list[list[float]]]],
    names: tuple[str, str],
    backends: tuple[str | None, str | None],
) -> list[RatioTest]:
    """Three tests a line and size: each side against the recorded errors, and the two sides against each other."""
    tests = []
    for key in (key for key in a if key in b):
        level, line = key.split("/", 1)
        if key not in recorded:
            tests.append(RatioTest(level, line, "no error was recorded", math.inf, 0.0))
            continue
        pooled = [errors for per_seed in recorded[key].values() for errors in per_seed]
        references = [recorded[key][backend] if backend else pooled for backend in backends]
        compare = _single_number if a[key][0].single else _distributions
        tests += (RatioTest(level, line, *test) for test in compare(names, (a[key], b[key]), references))
    return tests


def _single_number(names: Sequence[str], measured: Sequence[Sizes], references: Sequence[Sizes]) -> Iterator[tuple]:
    """One number's error has no distribution: the largest over the seeds may be 4 times the largest recorded one."""
    for name, per_seed, reference in zip(names, measured, references, strict=True):
        shift = max(errors[0] for errors in per_seed) - max(errors[0] for errors in reference)
        ratio = math.exp(min(shift, 700))
        yield f"error of {name} / recorded, at most {FACTOR:g}", ratio, float(shift <= math.log(FACTOR))


def _distributions(names: Sequence[str], measured: Sequence[Sizes], references: Sequence[Sizes]) -> Iterator[tuple]:
    for i, size in enumerate(("typical", "largest")):
        sides = [[errors[i] for errors in per_seed] for per_seed in measured]
        recorded = [[errors[i] for errors in reference] for reference in references]
        for name, errors, usual in zip(names, sides, recorded, strict=True):
            shift, p = beyond_margin(errors, usual)
            yield f"{size} error of {name} / recorded", math.exp(shift), p
        usual_shift = float(np.mean(recorded[0]) - np.mean(recorded[1]))  # of correct sides
        either = beyond_margin(sides[0], sides[1], usual_shift), beyond_margin(sides[1], sides[0], -usual_shift)
        shift, p = min(either, key=lambda pair: pair[1])
        yield f"{size} error of one side / the other's", math.exp(shift), min(1.0, 2 * p)


def beyond_margin(x: Sequence[float], y: Sequence[float], usual: float = 0.0) -> tuple[float, float]:
    """The mean difference (less the usual one), and Welch's one-sided p that it is beyond the margin by chance."""
    margin, shift = math.log(MARGIN), float(np.mean(x) - np.mean(y)) - usual
    if not np.ptp(x) and not np.ptp(y):
        return shift, float(shift <= margin)
    return shift, statistics.welch(y, x, shift=-usual - margin).p


def enter_tests(results: list[Result], tests: list[RatioTest]) -> None:
    """Enters the tests into the levels' results, a line each; the smallest p, and Holm's level that it must reach."""
    by_level = {result.level: result for result in results}
    levels = statistics.holm_levels([test.p for test in tests], FALSE_POSITIVE_RATE)
    for test, allowed in zip(tests, levels, strict=True):
        result, holds = by_level[test.level], test.p >= allowed
        line = result.line(test.line)
        line.count += 1
        if not line.worst:
            line.basis, line.measured = "p, at least (Holm)", math.inf
        if test.p < line.measured:
            line.worst, line.measured, line.allowed = test.comparison, test.p, allowed
        line.holds &= holds
        result.heat[test.line] = max(result.heat.get(test.line, 0.0), allowed / max(test.p, SMALLEST))
        if not holds and result.finding is None:
            result.status = "fails"
            result.finding = Finding(
                test.level,
                test.line,
                test.comparison,
                test.ratio,
                MARGIN,
                f"p {test.p:.1e} < {allowed:.1e}",
                f"{test.comparison}: {test.ratio:.3g}, allowed {MARGIN:g}; p {test.p:.1e}",
            )
