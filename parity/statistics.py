"""The statistical tests behind claims, in terms of scipy.stats.

Losses are final val losses in nats per token, one a run. A small p says that the mean is below what it is tested
against.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity.errors import InputError

ALPHA = 0.01
"""Track 1's level."""
SIGMA = 0.0013
"""Standard deviation of a final val loss on the public optimization track, in nats."""
Z_THRESHOLD = 0.004
"""That track's margin times the root of the number of runs, in nats: 3.08 standard deviations, p 0.001."""
ROUNDING = 1e-9  # of figures that are printed with up to 6 decimals
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Test:
    """One test of runs, at a level: statistic, one-sided p, number of runs, their mean (of differences, where two sets
    are compared) and standard deviation, whether the test holds, and a confidence interval of the mean (nan: none)."""

    statistic: float
    p: float
    n: int
    mean: float
    sd: float
    holds: bool
    interval: tuple[float, float] = (math.nan, math.nan)


def t_test(losses: Sequence[float], target: float, alpha: float = ALPHA) -> Test:
    """One-sided one-sample t-test that the mean is below the target (track 1: p < 0.01); the interval is the 95% one.

    Raises InputError for fewer than 2 runs, numbers that are not finite, and runs that are all the same.
    """
    x = _array(losses, 2, "losses")
    if not x.std():
        raise InputError(
            f"losses: expected {len(x)} runs that differ, found {x[0]:g} every time: equal runs are one run, and say "
            "nothing about chance"
        )
    mean, error = float(x.mean()), _sd(x) / math.sqrt(len(x))
    statistic, p, (low, high) = _student(mean - target, error, len(x) - 1)
    return Test(statistic, p, len(x), mean, _sd(x), p < alpha, (low + target, high + target))


def standard_deviation(losses: Sequence[float]) -> float:
    """Of a sample of at least 2 runs."""
    return _sd(_array(losses, 2, "losses"))


def p_spread(losses: Sequence[float], sigma: float) -> float:
    """The probability that runs scatter as little as these, where their true standard deviation is `sigma`.

    The lower tail of chi squared with n - 1 degrees of freedom. Raises InputError for fewer than 2 runs.
    """
    from scipy import stats

    x = _array(losses, 2, "losses")
    return float(stats.chi2.cdf((len(x) - 1) * (_sd(x) / sigma) ** 2, len(x) - 1))


def z_rule(losses: Sequence[float], target: float) -> Test:
    """The optimization track's rule (target - mean) sqrt(n) >= 0.004: a z-test with a known sigma of 0.0013 nats."""
    from scipy import stats

    x = _array(losses, 1, "losses")
    scaled = float((target - x.mean()) * math.sqrt(len(x)))
    p = float(stats.norm.sf(scaled / SIGMA))
    return Test(scaled, p, len(x), float(x.mean()), _sd(x), scaled >= Z_THRESHOLD - ROUNDING)


def track_test(track: str, losses: Sequence[float], target: float) -> Test:
    """The test by which a track counts a mean as below its target."""
    return z_rule(losses, target) if track == "optimizer" else t_test(losses, target)


def p_below(track: str, losses: Sequence[float], target: float) -> float | None:
    """The p of `track_test` alone, fast enough for every evaluation of every entry; None where no test can be made."""
    from scipy import special

    if track == "optimizer":
        return z_rule(losses, target).p if losses else None
    x = np.asarray(losses, np.float64)
    if len(x) < 2 or not (error := _sd(x) / math.sqrt(len(x))):
        return None
    return float(special.stdtr(len(x) - 1, (float(x.mean()) - target) / error))


@functools.cache
def level(track: str) -> float:
    """The p below which a track's test holds."""
    from scipy import stats

    return float(stats.norm.sf(Z_THRESHOLD / SIGMA)) * (1 + 1e-6) if track == "optimizer" else ALPHA


def welch(new: Sequence[float], old: Sequence[float], alpha: float = ALPHA, shift: float = 0.0) -> Test:
    """Welch's one-sided t-test that the mean of `new` is below the mean of `old` + `shift`.

    Mean and 95% interval are those of new - old. Raises InputError for fewer than 2 runs in a set, numbers that are not
    finite, and sets without any spread.
    """
    x, y, difference, error, freedom = _difference(new, old)
    _, _, interval = _student(difference, error, freedom)
    statistic, p, _ = _student(difference - shift, error, freedom)
    return Test(statistic, p, len(x), difference, _sd(x), p < alpha, interval)


def equivalent(new: Sequence[float], old: Sequence[float], margin: float, alpha: float = 0.05) -> Test:
    """Two one-sided Welch tests that the means differ by less than `margin` either way.

    p is the larger of the two. The interval is that of 1 - 2 alpha: it lies within the margin where the test holds
    (Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657). Raises InputError as `welch`, and for a margin not above 0.
    """
    if not margin > 0:
        raise InputError(
            f"margin: expected a positive number of nats, found {margin}: choose the smallest difference that matters"
        )
    x, _, difference, error, freedom = _difference(new, old)
    p = max(_student(side - margin, error, freedom)[1] for side in (difference, -difference))
    statistic, _, interval = _student(difference, error, freedom, 1 - 2 * alpha)
    return Test(statistic, p, len(x), difference, _sd(x), p < alpha, interval)


def ratio(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of new / old over pairs, with its 95% interval by Student's t on the logarithms."""
    x, y = _array(new, 2, "new"), _array(old, 2, "old")
    if len(x) != len(y) or (x <= 0).any() or (y <= 0).any():
        raise InputError(
            f"new and old: expected pairs of positive numbers, found {len(x)} and {len(y)}: run both interleaved"
        )
    logs = np.log(x / y)
    mean, error = float(logs.mean()), _sd(logs) / math.sqrt(len(x))
    low, high = _student(mean, error, len(x) - 1)[2] if error else (mean, mean)
    return math.exp(mean), math.exp(low), math.exp(high)


def paired(new: Sequence[float], old: Sequence[float], alpha: float = ALPHA) -> Test:
    """One-sided paired t-test that `new` is below `old`, run by run; mean and 95% interval are those of new - old."""
    x, y = _array(new, 2, "new"), _array(old, 2, "old")
    if len(x) != len(y):
        raise InputError(f"new and old: expected pairs, found {len(x)} and {len(y)} runs: run the baseline as often")
    return t_test((x - y).tolist(), 0.0, alpha)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[bool]]:
    """p-values adjusted by Holm's method, in the order given, and which of them are below `alpha`.

    Holm, Scandinavian J. Statistics 6 (1979) 65. Raises InputError for what is no list of probabilities.
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist(), (adjusted < alpha).tolist()


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """The level that Holm's method compares each p-value with: alpha / (number of tests not yet rejected).

    From the first p-value above its level on, all larger ones have that same level.
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    levels = alpha / np.arange(len(p), 0, -1)
    if (above := np.flatnonzero(p[order] > levels)).size:
        levels[above[0] :] = levels[above[0]]
    return levels[np.argsort(order)].tolist()


def power(n: int, margin: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that n runs whose true mean is `margin` below the target pass the t-test; by the noncentral t."""
    from scipy import stats

    if n < 2 or not sd > 0 or not math.isfinite(margin):
        raise InputError(
            f"power: expected 2 or more runs, a positive sd and a margin, found n {n}, sd {sd}, margin {margin}: "
            "choose others"
        )
    return float(stats.nct.sf(stats.t.isf(alpha, n - 1), n - 1, margin / sd * math.sqrt(n)))


def runs_needed(margin: float, sd: float, alpha: float = ALPHA, wanted: float = 0.8) -> int:
    """The smallest number of runs that pass the t-test with probability `wanted`. Raises InputError where none does."""
    if not margin > 0 or not 0 < wanted < 1:
        raise InputError(
            f"runs needed: expected a margin above 0 and a power in (0, 1), found {margin} and {wanted}: choose others"
        )
    for n in range(2, MOST_RUNS + 1):
        if power(n, margin, sd, alpha) >= wanted:
            return n
    raise InputError(
        f"runs needed: a margin of {margin:g} at an sd of {sd:g} takes more than {MOST_RUNS:,} runs: it cannot be shown"
    )


def _array(values: Sequence[float], least: int, name: str) -> np.ndarray:
    x = np.asarray(list(values), np.float64)
    if len(x) < least:
        raise InputError(f"{name}: expected at least {least}, found {len(x)}: make more runs")
    if not np.isfinite(x).all():
        raise InputError(
            f"{name}: expected finite numbers, found {x[~np.isfinite(x)][0]}: a run that diverged cannot be averaged "
            "away"
        )
    return x


def _probabilities(p_values: Sequence[float]) -> np.ndarray:
    p = _array(p_values, 0, "p-values")
    if (p < 0).any() or (p > 1).any():
        raise InputError(
            f"p-values: expected numbers from 0 to 1, found {p.min():g} to {p.max():g}: give probabilities"
        )
    return p


def _difference(new: Sequence[float], old: Sequence[float]) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Both sets, the difference of their means, its standard error, and Welch-Satterthwaite's degrees of freedom."""
    x, y = _array(new, 2, "new"), _array(old, 2, "old")
    a, b = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if not a + b:
        raise InputError(
            "new and old: expected runs that differ, found the same figure every time: nothing can be tested"
        )
    freedom = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    return x, y, float(x.mean() - y.mean()), math.sqrt(a + b), float(freedom)


def _student(
    value: float, error: float, freedom: float, confidence: float = 0.95
) -> tuple[float, float, tuple[float, float]]:
    """Student's t of a value with a standard error, its lower tail, and the value's confidence interval."""
    from scipy import stats

    low, high = stats.t.interval(confidence, freedom, value, error)
    return value / error, float(stats.t.cdf(value / error, freedom)), (float(low), float(high))


def _sd(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) if len(x) > 1 else math.nan
