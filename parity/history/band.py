"""Is a run's validation curve inside the band of the public seeds of the same record?

The band is a prediction interval for one new seed at every evaluation that the run and the seeds share, made
simultaneous by Bonferroni. It ties a run on the public hardware to the public programs; the public runs are reported by
others, not verified.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from parity.errors import InputError, nearest
from parity.history.records import History, Run, groups_of, load, own_runs

ALPHA = 0.05
LEAST_SEEDS = 3
RECIPES = {("muon", "small"): "20260610_tuned_baseline_3250"}
"""The public record that trains a recipe at a scale."""


@dataclass(frozen=True)
class BandPoint:
    """One evaluation: the run's val loss and the band, nats per token; `z` is its distance from the seeds' mean, in
    standard deviations of that distance for a new seed."""

    step: int
    loss: float
    low: float
    high: float
    z: float
    inside: bool


@dataclass(frozen=True)
class Band:
    """A run against the public seeds of one record. `inside`: at every evaluation; `worst`: that of the largest |z|."""

    record: str
    seeds: int
    points: tuple[BandPoint, ...]
    inside: bool
    worst: BandPoint
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record,
            "seeds": self.seeds,
            "inside": self.inside,
            "worst_step": self.worst.step,
            "worst_z": self.worst.z,
            "sentence": self.sentence,
            "points": [[p.step, p.loss, p.low, p.high, p.inside] for p in self.points],
        }


@dataclass(frozen=True)
class LeaveOneOut:
    """Public seeds, each against the band of the others: how many were tried, how many were outside, and both numbers
    by how many seeds made the band."""

    tried: int
    outside: int
    by_seeds: dict[int, tuple[int, int]]


def families(history: History | None = None) -> dict[str, list[Run]]:
    """All sets of public seeds by name, without copies: `folder` or `folder/variant`, with ` @ steps` where several
    sets share that name."""
    history = history or load()
    named: dict[str, list[list[Run]]] = {}
    for folder, runs in groupby(sorted(history.runs, key=lambda run: run.folder), key=lambda run: run.folder):
        for group in groups_of(runs, by_gpu=False):  # the loss is the program's; only the time is the machine's
            variant = group[0].variant
            named.setdefault(f"{folder}/{variant}" if variant else folder, []).append(group)
    return {
        name if len(groups) == 1 else f"{name} @ {group[0].steps}": group
        for name, groups in named.items()
        for group in groups
    }


def record_for(recipe: str, scale: str) -> str:
    """The public record that trains the recipe at the scale. Raises InputError where there is none."""
    if (recipe, scale) in RECIPES:
        return RECIPES[recipe, scale]
    raise InputError(
        f"band: recipe {recipe} at scale {scale}: no public record with curves trains it (known: "
        + ", ".join(f"{r} at {s}" for r, s in RECIPES)
        + "): name a record that does"
    )


def band(points: Sequence[tuple[int, float]], record: str, history: History | None = None) -> Band:
    """A run's (step, val loss) against the public seeds of `record`: a folder's name, or a name of `families`.

    At each of the k shared evaluations after step 0 the band is mean +- t sd sqrt(1 + 1/n), with the quantile t of n -
    1 degrees of freedom at 1 - 0.05 / (2k), widened by the rounding of the printed losses. Points of one curve
    correlate, so that all k hold together at least 95 times in 100. Raises InputError for curves that cannot be
    compared: another number of steps, no shared evaluation, fewer than 3 seeds, losses that are not finite.
    """
    curve = dict(points)
    if not curve or len(curve) < len(points) or not all(math.isfinite(loss) for loss in curve.values()):
        raise InputError(
            f"band: expected a curve of finite losses, each step once, found {len(points)} points: check the run's log"
        )
    name, seeds = _seeds(record, max(curve), history or load())
    if len(seeds) < LEAST_SEEDS:
        raise InputError(
            f"band: {name}: expected at least {LEAST_SEEDS} public seeds, found {len(seeds)}: too few for a band; "
            "choose another record"
        )
    band_points = against(curve, seeds)
    if not band_points:
        steps = ", ".join(map(str, _shared_steps(seeds)[1:6]))
        raise InputError(
            f"band: {name}: expected evaluations at steps at which the seeds were evaluated and differ (of {steps} ..."
            f"), found {', '.join(map(str, sorted(curve)[:5]))}: evaluate there"
        )
    worst = max(band_points, key=lambda point: abs(point.z))
    outside = sum(not point.inside for point in band_points)
    where = f"at {outside or 'all'} of {len(band_points)} evaluations"
    sentence = (
        f"{'OUTSIDE' if outside else 'inside'} the band of {len(seeds)} public seeds of {name} {where}: "
        f"largest distance at step {worst.step}, {worst.loss:.4f} against {worst.low:.4f} to {worst.high:.4f} "
        f"(z {worst.z:+.1f})"
    )
    return Band(name, len(seeds), band_points, not outside, worst, sentence)


def against(curve: dict[int, float], seeds: Sequence[Run], alpha: float = ALPHA) -> tuple[BandPoint, ...]:
    """The band of `seeds` at the evaluations that they share with a curve {step: loss}.

    Evaluations at which all seeds have the same loss, such as step 0, say nothing about chance and are left out. Empty
    where none remain.
    """
    from scipy import stats

    tables = [{p.step: p.val_loss for p in run.points} for run in seeds]
    steps = [s for s in _shared_steps(seeds) if s and s in curve and len({table[s] for table in tables}) > 1]
    if not steps:
        return ()
    losses = np.array([[table[step] for step in steps] for table in tables])
    n, quantile = len(seeds), float(stats.t.isf(alpha / (2 * len(steps)), len(seeds) - 1))
    means, spread = losses.mean(0), losses.std(0, ddof=1) * math.sqrt(1 + 1 / n)
    half = quantile * spread + resolution(losses)
    points = []
    for step, mean, h, sd in zip(steps, means.tolist(), half.tolist(), spread.tolist(), strict=True):
        distance = curve[step] - mean
        points.append(BandPoint(step, curve[step], mean - h, mean + h, distance / sd, abs(distance) <= h))
    return tuple(points)


def resolution(losses: np.ndarray) -> float:
    """The unit of the last decimal that losses were printed with (at most 6): half for the seeds' rounding, half for
    the run's."""
    for decimals in range(1, 6):
        if np.allclose(losses, np.round(losses, decimals), rtol=0, atol=1e-9):
            return 10.0**-decimals
    return 1e-6


@functools.lru_cache(maxsize=16)
def leave_one_out(shift: float = 0.0, least: int = 5, history: History | None = None) -> LeaveOneOut:
    """Every public seed of a set of at least `least`, with `shift` nats added to its curve, against the band of the
    others.

    Without a shift `outside` over `tried` is the false-positive rate; with one, the power against it.
    """
    by_seeds: dict[int, tuple[int, int]] = {}
    for seeds in families(history).values():
        for run in seeds if len(seeds) >= least else ():
            others = [other for other in seeds if other is not run]
            points = against({p.step: p.val_loss + shift for p in run.points}, others)
            tried, outside = by_seeds.get(len(others), (0, 0))
            if points:
                by_seeds[len(others)] = tried + 1, outside + (not all(point.inside for point in points))
    totals = by_seeds.values()
    return LeaveOneOut(
        sum(tried for tried, _ in totals), sum(outside for _, outside in totals), dict(sorted(by_seeds.items()))
    )


def _seeds(record: str, steps: int, history: History) -> tuple[str, list[Run]]:
    """The seeds of a record that have as many steps as the run, and their name."""
    sets = {
        name: runs
        for name, runs in families(history).items()
        if name == record or name.startswith((f"{record}/", f"{record} @ "))
    }
    if not sets:
        folders = sorted({run.folder for run in history.runs})
        raise InputError(f"band: no public run of a record {record[:60]!r}; {nearest(record[:60], folders)}")
    fitting = {name: runs for name, runs in sets.items() if runs[0].steps == steps}
    if not fitting:
        lengths = sorted({runs[0].steps for runs in sets.values()})
        raise InputError(
            f"band: {record}: expected a run of {' or '.join(map(str, lengths))} steps, found one of {steps}: curves "
            "of another length are not comparable; choose --steps or another record"
        )
    if len(fitting) > 1:  # the set of the record itself, where it is one of the ladder's
        rows = [row for row in history.records if row.folder == record]
        own = {(run.path, run.trial) for row in rows for run in own_runs(row, history.runs)}
        fitting = {n: runs for n, runs in fitting.items() if any((r.path, r.trial) in own for r in runs)} or fitting
    if len(fitting) > 1:
        raise InputError(
            f"band: {record}: expected one set of seeds of {steps} steps, found {', '.join(fitting)}: name one of them"
        )
    return next(iter(fitting.items()))


def _shared_steps(seeds: Sequence[Run]) -> list[int]:
    return sorted(set.intersection(*({point.step for point in run.points} for run in seeds)))
