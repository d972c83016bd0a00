"""Is a run's validation curve inside the band that the public seeds of the same record left?

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
from parity.history.records import History, Run, distinct, groups_of, load, own_runs

ALPHA = 0.05
LEAST_SEEDS = 3
RECIPES = {("muon", "small"): "20260610_tuned_baseline_3250"}
"""Which public record trains a recipe at a scale."""


@dataclass(frozen=True)
class BandPoint:
    """One evaluation: the run's val loss and the band, nats per token; `z` is the distance from the seeds' mean in
    standard deviations of a new seed's distance from it."""

    step: int
    loss: float
    low: float
    high: float
    z: float
    inside: bool


@dataclass(frozen=True)
class Band:
    """A run against the public seeds of one record. `inside`: at every evaluation; `worst` the one of the largest
    |z|."""

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


def families(history: History | None = None) -> dict[str, list[Run]]:
    """All sets of public seeds by name: `folder`, or `folder/variant`, and ` @ steps` where that leaves several.
    Without copies."""
    history = history or load()
    named: dict[str, list[list[Run]]] = {}
    by_folder = groupby(sorted(history.runs, key=lambda run: run.folder), key=lambda run: run.folder)
    for folder, runs in by_folder:
        for group in _regardless_of_gpu(groups_of(runs)):
            named.setdefault("/".join(part for part in (folder, group[0].variant) if part), []).append(group)
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
    1 degrees of freedom at 1 - 0.05 / (2k), widened by the rounding of what was printed. Points of one curve correlate,
    so that all k hold together at least as often as 95 times in 100. Raises InputError for curves that cannot be
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
            f"band: {name}: expected at least {LEAST_SEEDS} public seeds, found {len(seeds)}: a band cannot be drawn "
            "from them; choose another record"
        )
    found = against(curve, seeds)
    if not found:
        steps = ", ".join(map(str, _shared(seeds)[1:6]))
        raise InputError(
            f"band: {name}: expected evaluations at steps at which the seeds were evaluated and differ (of {steps} ..."
            f"), found {', '.join(map(str, sorted(curve)[:5]))}: evaluate there"
        )
    return _judged(name, len(seeds), found)


def against(curve: dict[int, float], seeds: Sequence[Run], alpha: float = ALPHA) -> tuple[BandPoint, ...]:
    """The band of `seeds` at the evaluations that they share with a curve {step: loss}; those at which all seeds score
    alike, such as step 0, say nothing of chance and are left out. Empty where none is left."""
    from scipy import stats

    tables = [{p.step: p.val_loss for p in run.points} for run in seeds]
    steps = [s for s in _shared(seeds) if s and s in curve and len({table[s] for table in tables}) > 1]
    if not steps:
        return ()
    losses = np.array([[table[step] for step in steps] for table in tables])
    n, quantile = len(seeds), float(stats.t.isf(alpha / (2 * len(steps)), len(seeds) - 1))
    means, spread = losses.mean(0), losses.std(0, ddof=1) * math.sqrt(1 + 1 / n)
    half = quantile * spread + resolution(losses)
    return tuple(
        BandPoint(
            step,
            curve[step],
            float(mean - h),
            float(mean + h),
            float((curve[step] - mean) / s),
            bool(abs(curve[step] - mean) <= h),
        )
        for step, mean, h, s in zip(steps, means, half, spread, strict=True)
    )


def resolution(losses: np.ndarray) -> float:
    """The unit of the last decimal that losses were printed with (at most 6): half for the seeds' rounding, half for
    the run's."""
    for decimals in range(1, 6):
        if np.allclose(losses, np.round(losses, decimals), rtol=0, atol=1e-9):
            return 10.0**-decimals
    return 1e-6


@dataclass(frozen=True)
class LeaveOneOut:
    """Public seeds against the band of their fellows: how many were tried, and how many were said to be outside; both
    by the number of seeds that the band was drawn from."""

    tried: int
    outside: int
    by_seeds: dict[int, tuple[int, int]]


def leave_one_out(shift: float = 0.0, least: int = 5, history: History | None = None) -> LeaveOneOut:
    """Every public seed of a set of at least `least`, with `shift` nats added to its curve, against the band of the
    others.

    Without a shift `outside` over `tried` is the rate of false alarms; with one, the power against it.
    """
    return _leave_one_out(shift, least, history or load())


@functools.lru_cache(maxsize=16)
def _leave_one_out(shift: float, least: int, history: History) -> LeaveOneOut:
    by_seeds: dict[int, tuple[int, int]] = {}
    for seeds in families(history).values():
        for run in seeds if len(seeds) >= least else ():
            others = [other for other in seeds if other is not run]
            found = against({p.step: p.val_loss + shift for p in run.points}, others)
            tried, outside = by_seeds.get(len(others), (0, 0))
            if found:
                by_seeds[len(others)] = tried + 1, outside + (not all(point.inside for point in found))
    return LeaveOneOut(
        sum(tried for tried, _ in by_seeds.values()),
        sum(outside for _, outside in by_seeds.values()),
        dict(sorted(by_seeds.items())),
    )


def _judged(name: str, seeds: int, found: tuple[BandPoint, ...]) -> Band:
    worst = max(found, key=lambda point: abs(point.z))
    outside = [point for point in found if not point.inside]
    where = f"at all of {len(found)} evaluations" if not outside else f"at {len(outside)} of {len(found)} evaluations"
    verb = "inside" if not outside else "OUTSIDE"
    sentence = (
        f"{verb} the band of {seeds} public seeds of {name} {where}: largest distance at step {worst.step}, "
        f"{worst.loss:.4f} against "
        f"{worst.low:.4f} to {worst.high:.4f} (z {worst.z:+.1f})"
    )
    return Band(name, seeds, found, not outside, worst, sentence)


def _seeds(record: str, steps: int, history: History) -> tuple[str, list[Run]]:
    """The seeds of a record that have as many steps as the run, and their name."""
    known = families(history)
    mine = {
        name: runs for name, runs in known.items() if name == record or name.startswith((f"{record}/", f"{record} @ "))
    }
    if not mine:
        folders = sorted({run.folder for run in history.runs})
        raise InputError(f"band: no public run of a record {record[:60]!r}; {nearest(record[:60], folders)}")
    fitting = {name: runs for name, runs in mine.items() if runs[0].steps == steps}
    if not fitting:
        found = sorted({runs[0].steps for runs in mine.values()})
        raise InputError(
            f"band: {record}: expected a run of {' or '.join(map(str, found))} steps, found one of {steps}: curves of "
            "another length are not comparable; choose --steps or another record"
        )
    if len(fitting) > 1:
        fitting = _own_only(record, fitting, history)
    if len(fitting) > 1:
        raise InputError(
            f"band: {record}: expected one set of seeds of {steps} steps, found {', '.join(fitting)}: name one of them"
        )
    return next(iter(fitting.items()))


def _own_only(record: str, fitting: dict[str, list[Run]], history: History) -> dict[str, list[Run]]:
    """Of several sets, that of the record itself, where it is one of the ladder's."""
    rows = [row for row in history.records if row.folder == record]
    own = {(run.path, run.trial) for row in rows for run in own_runs(row, history.runs)}
    kept = {name: runs for name, runs in fitting.items() if any((run.path, run.trial) in own for run in runs)}
    return kept or fitting


def _regardless_of_gpu(groups: list[list[Run]]) -> list[list[Run]]:
    """Groups that only differ in the GPU, together: the loss is the program's, the time the machine's."""
    merged: dict[tuple[Any, ...], list[Run]] = {}
    for group in groups:
        merged.setdefault((group[0].variant, group[0].baseline, group[0].steps), []).extend(group)
    return [distinct(group) for group in merged.values()]


def _shared(seeds: Sequence[Run]) -> list[int]:
    return sorted(set.intersection(*({point.step for point in run.points} for run in seeds)))
