"""The tests that claims rest on, as the tracks state them; all distributions are scipy's.

Losses are final val losses in nats per token, one a run. A small p says that the mean is below the target.
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
LOSS_PER_STEP = 0.0045 / 100
"""What a step less is worth there, in nats."""
ROUNDING = 1e-9  # of figures that are printed with up to 6 decimals
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Test:
    """One test: its statistic, one-sided p, numbers of runs, mean (of differences, where two sets are compared) and standard
    deviation, a 95% interval of the mean where there is one, whether it holds at its level, and a sentence."""

    name: str
    statistic: float
    p: float
    n: int
    mean: float
    sd: float
    holds: bool
    sentence: str
    interval: tuple[float, float] | None = None


def t_test(losses: Sequence[float], target: float, alpha: float = ALPHA) -> Test:
    """One-sided one-sample t-test that the mean is below the target (track 1: p < 0.01).

    Raises InputError for fewer than 2 runs, figures that are not finite, and runs that are all the same.
    """
    x = _figures(losses, 2, "losses")
    if not x.std():
        raise InputError(
            f"losses: expected {len(x)} runs that differ, found {x[0]:g} every time: equal runs are one run, and say "
            "nothing about chance"
        )
    mean, error = float(x.mean()), _sd(x) / math.sqrt(len(x))
    statistic, p, (low, high) = _student(mean - target, error, len(x) - 1)
    holds = p < alpha
    return Test(
        "t-test",
        statistic,
        p,
        len(x),
        mean,
        _sd(x),
        holds,
        f"mean {mean:.4f} of {len(x)} runs is {'' if holds else 'not '}below {target:g} (p {p:.2g})",
        (low + target, high + target),
    )


def z_rule(losses: Sequence[float], target: float) -> Test:
    """The optimization track's rule (target - mean) sqrt(n) >= 0.004: a z-test with a known sigma of 0.0013 nats."""
    from scipy import stats

    x = _figures(losses, 1, "losses")
    scaled = float((target - x.mean()) * math.sqrt(len(x)))
    holds = scaled >= Z_THRESHOLD - ROUNDING
    return Test(
        "z rule",
        scaled,
        float(stats.norm.sf(scaled / SIGMA)),
        len(x),
        float(x.mean()),
        _sd(x),
        holds,
        f"({target:g} - {x.mean():.5f}) x sqrt({len(x)}) = {scaled:.5f}, {'at least' if holds else 'below'} {Z_THRESHOLD:g}",
    )


def track_test(track: str, losses: Sequence[float], target: float) -> Test:
    """The test by which a track counts a mean as below its target."""
    return z_rule(losses, target) if track == "optimizer" else t_test(losses, target)


def p_below(track: str, losses: Sequence[float], target: float) -> float | None:
    """That test's p alone; None where the losses are too few or all the same."""
    if track == "optimizer":
        return z_rule(losses, target).p if losses else None
    x = np.asarray(losses, np.float64)
    if len(x) < 2 or not (error := _sd(x) / math.sqrt(len(x))):
        return None
    return _student(float(x.mean()) - target, error, len(x) - 1)[1]


@functools.cache
def level(track: str) -> float:
    """The p below which a track's test holds."""
    from scipy import special

    return float(special.ndtr(-Z_THRESHOLD / SIGMA)) * (1 + 1e-6) if track == "optimizer" else ALPHA


def pairwise(old: Sequence[float], old_steps: int, new: Sequence[float], new_steps: int) -> Test:
    """The optimization track's rule against an older result:
    (old mean - new mean + 0.0045 (old steps - new steps) / 100) / sqrt(1/n_old + 1/n_new) >= 0.004."""
    from scipy import stats

    x, y = _figures(old, 1, "old losses"), _figures(new, 1, "new losses")
    gain = float(x.mean() - y.mean() + LOSS_PER_STEP * (old_steps - new_steps))
    scaled = gain / math.sqrt(1 / len(x) + 1 / len(y))
    holds = scaled >= Z_THRESHOLD - ROUNDING
    return Test(
        "pairwise rule",
        scaled,
        float(stats.norm.sf(scaled / SIGMA)),
        len(y),
        gain,
        _sd(y),
        holds,
        f"a gain of {gain:.5f} nats, scaled {scaled:.5f}, {'at least' if holds else 'below'} {Z_THRESHOLD:g}",
    )


def welch(new: Sequence[float], old: Sequence[float], alpha: float = ALPHA) -> Test:
    """Welch's one-sided t-test that the mean of `new` is below that of `old`; `mean` and interval are of new - old."""
    x, y = _figures(new, 2, "new"), _figures(old, 2, "old")
    if not x.std() and not y.std():
        raise InputError(
            "new and old: expected runs that differ, found the same figure every time: nothing can be tested"
        )
    apart, error, freedom = _welch(x, y)
    statistic, p, interval = _student(apart, error, freedom)
    return Test(
        "Welch's t-test",
        statistic,
        p,
        len(x),
        apart,
        _sd(x),
        p < alpha,
        f"{apart:+.4g} from the old mean, p {p:.2g}",
        interval,
    )


def equivalent(new: Sequence[float], old: Sequence[float], margin: float, alpha: float = 0.05) -> Test:
    """Two one-sided Welch tests that the means differ by less than `margin` either way; p is the larger of the two, the interval
    that of 1 - 2 alpha, which lies within the margin where the test holds (Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657)."""
    x, y = _figures(new, 2, "new"), _figures(old, 2, "old")
    if not margin > 0:
        raise InputError(
            f"margin: expected a positive number of nats, found {margin}: choose the smallest difference that matters"
        )
    apart, error, freedom = _welch(x, y)
    if not error:
        raise InputError(
            "new and old: expected runs that differ, found the same figure every time: nothing can be tested"
        )
    p = max(_student(apart - margin, error, freedom)[1], _student(-apart - margin, error, freedom)[1])
    _, _, interval = _student(apart, error, freedom, 1 - 2 * alpha)
    said = f"{apart:+.4g} apart, {'within' if p < alpha else 'not shown to be within'} {margin:g} (p {p:.2g})"
    return Test(
        "equivalence by two one-sided t-tests", apart / error, p, len(x), apart, _sd(x), p < alpha, said, interval
    )


def ratio(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of new / old over pairs, with its 95% interval by Student's t on the logarithms."""
    x, y = _figures(new, 2, "new"), _figures(old, 2, "old")
    if len(x) != len(y) or (x <= 0).any() or (y <= 0).any():
        raise InputError(
            f"new and old: expected pairs of positive numbers, found {len(x)} and {len(y)}: run both in turns"
        )
    logs = np.log(x / y)
    mean, error = float(logs.mean()), _sd(logs) / math.sqrt(len(x))
    _, _, (low, high) = _student(mean, error, len(x) - 1) if error else (0, 0, (mean, mean))
    return math.exp(mean), math.exp(low), math.exp(high)


def paired(new: Sequence[float], old: Sequence[float], alpha: float = ALPHA) -> Test:
    """One-sided paired t-test that `new` is below `old`, run by run; `mean` and interval are of new - old."""
    x, y = _figures(new, 2, "new"), _figures(old, 2, "old")
    if len(x) != len(y):
        raise InputError(f"new and old: expected pairs, found {len(x)} and {len(y)} runs: run the baseline as often")
    found = t_test(x - y, 0.0, alpha)
    return Test(
        "paired t-test",
        found.statistic,
        found.p,
        found.n,
        found.mean,
        found.sd,
        found.holds,
        f"{found.mean:+.4g} on average of {found.n} pairs, p {found.p:.2g}",
        found.interval,
    )


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[bool]]:
    """Adjusted p-values in the order given, and which hold at `alpha` (Holm, Scandinavian J. Statistics 6 (1979) 65)."""
    p = _figures(p_values, 1, "p-values")
    if (p < 0).any() or (p > 1).any():
        raise InputError(
            f"p-values: expected numbers from 0 to 1, found {p.min():g} to {p.max():g}: give probabilities"
        )
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist(), (adjusted < alpha).tolist()


def power(n: int, margin: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that n runs whose true mean is `margin` below the target pass the t-test; by the noncentral t."""
    from scipy import stats

    if n < 2 or not sd > 0 or not math.isfinite(margin):
        raise InputError(
            f"power: expected 2 or more runs, a positive sd and a margin, found n {n}, sd {sd}, margin {margin}: choose others"
        )
    critical = stats.t.isf(alpha, n - 1)
    return float(stats.nct.sf(critical, n - 1, margin / sd * math.sqrt(n)))


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


def resolvable(n: int, sd: float, alpha: float = ALPHA, wanted: float = 0.8) -> float:
    """The smallest margin, in the unit of `sd`, that n runs show with probability `wanted`."""
    from scipy import optimize

    high = sd
    while power(n, high, sd, alpha) < wanted:
        high *= 2
    return float(optimize.brentq(lambda margin: power(n, margin, sd, alpha) - wanted, 0.0, high))


def _figures(values: Sequence[float], least: int, what: str) -> np.ndarray:
    x = np.asarray(list(values), np.float64)
    if len(x) < least:
        raise InputError(f"{what}: expected at least {least}, found {len(x)}: make more runs")
    if not np.isfinite(x).all():
        raise InputError(
            f"{what}: expected finite numbers, found {x[~np.isfinite(x)][0]}: a run that diverged cannot be averaged away"
        )
    return x


def _welch(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Difference of means, its standard error, and the Welch-Satterthwaite degrees of freedom."""
    a, b = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    freedom = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1)) if a + b else 1.0
    return float(x.mean() - y.mean()), math.sqrt(a + b), float(freedom)


def _student(
    value: float, error: float, freedom: float, level: float = 0.95
) -> tuple[float, float, tuple[float, float]]:
    """Student's t of a value, its lower tail, and the interval of a level. scipy's special functions are what its tests call, and take
    a hundredth of their time, which counts over thousands of entries."""
    from scipy import special

    statistic = value / error
    half = float(special.stdtrit(freedom, 0.5 + level / 2)) * error
    return statistic, float(special.stdtr(freedom, statistic)), (value - half, value + half)


def _sd(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) if len(x) > 1 else math.nan
