"""Scores of entries: best loss, frontiers, cost to the target, hypervolume, and the fraction of seeds that reach it.

All rest on evaluations that the verifier computed again, none on reported ones or on a point between two. Definitions
and formulas: docs/frontier.md.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity.errors import InputError
from parity.frontier.entry import AXES, Entry
from parity.track import TRACKS, Track, track_for


@dataclass(frozen=True)
class Mean:
    """Mean of final val losses in nats per token, with its 95% interval by Student's t; sd and interval are None for
    one run."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Target:
    """The step at which the mean of an attempt's runs passes the target by the track's test, and their mean costs."""

    step: int
    p: float
    costs: dict[str, float | None]


@dataclass(frozen=True)
class FrontierPoint:
    """Mean cost and mean loss of an entry's runs after `step` updates, which nothing beats in both."""

    cost: float
    loss: float
    entry: str
    step: int


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, standard deviation and 95% interval of some runs' figures."""
    from scipy import special

    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Mean(mean, None, None, None, n)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(special.stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Mean(mean, sd, mean - half, mean + half, n)


def final_loss(entry: Entry) -> Mean:
    """The mean of the final val losses, which are the verifier's."""
    return mean_of(entry.losses())


def bits_per_byte(entry: Entry) -> float | None:
    """Mean over the runs, which compares tokenizers too; None where the bytes of the text are not known."""
    return mean_if_known([run.bits_per_byte for run in entry.runs])


def mean_if_known(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def target_of(entry: Entry) -> tuple[Target | None, str]:
    """The first evaluation, common to all runs, at which their mean passes the target by the track's test; or None and
    why."""
    track, target = track_for(entry.track), entry.data["target"]
    if target is None:
        return None, f"track {track.name} has no target"
    if len(entry.runs) < 2 and track.name != "optimizer":
        return None, "one run: its seed's luck cannot be told from the rest, and no test can be made"
    if entry.passing is None:
        mean = sum(entry.losses()) / len(entry.runs)
        return None, f"the mean is {mean:.4f} at the end, which does not pass {target:g} by the track's test"
    step = entry.steps[entry.passing]
    return Target(step, entry.p_below[entry.passing], {axis: entry.cost(axis, step) for axis in AXES}), ""


def fraction_at_target(entry: Entry) -> float | None:
    """Fraction of the seeds whose final val loss is at or below the target; None without one."""
    target = entry.data["target"]
    return None if target is None else sum(loss <= target for loss in entry.losses()) / len(entry.runs)


def comparable(a: Entry, b: Entry) -> str:
    """Why two entries' losses cannot be compared; "" where they can."""
    if a.track != b.track:
        return f"{a.id} is on track {a.track}, {b.id} on {b.track}"
    if (a.slice, a.val_tokens) != (b.slice, b.val_tokens):
        return f"{a.id} was scored on {a.val_tokens:,} tokens of {a.slice}, {b.id} on {b.val_tokens:,} of {b.slice}"
    # The digest covers the shards that a plan reaches.
    if a.cost("tokens") == b.cost("tokens") and a.slice_digest != b.slice_digest:
        return f"{a.id} and {b.id} were made on slices of different digests"
    return ""


def points(entry: Entry, axis: str) -> list[FrontierPoint]:
    """Mean cost and loss at every verified evaluation that all runs share; empty where the cost was not counted."""
    costs = entry.mean_costs[axis]
    if costs is None:
        return []
    return [
        FrontierPoint(cost, loss, entry.id, step)
        for cost, loss, step in zip(costs, entry.mean_losses, entry.steps, strict=True)
        if cost > 0
    ]


def non_dominated(candidates: Iterable[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no other beats or equals in cost and loss, by rising cost. O(n log n)."""
    front: list[FrontierPoint] = []
    for point in sorted(candidates, key=lambda point: (point.cost, point.loss)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def frontier(entries: Iterable[Entry], axis: str) -> list[FrontierPoint]:
    """The frontier of entries of one track: cost on an axis against loss.

    Raises InputError where the entries are of several tracks, slices or numbers of val tokens, or, for seconds, classes
    of hardware.
    """
    entries = list(entries)
    for other in entries[1:]:
        if reason := comparable(entries[0], other):
            raise InputError(
                f"a frontier of {axis}: expected entries that can be compared, found that {reason}: choose among them"
            )
        if axis == "seconds" and other.hardware != entries[0].hardware:
            raise InputError(
                f"a frontier of seconds: expected one class of hardware, found {entries[0].hardware} and "
                f"{other.hardware}: choose one"
            )
    return non_dominated(point for entry in entries for point in points(entry, axis))


def hypervolume(front: Sequence[FrontierPoint], track: Track, axis: str) -> float | None:
    """Area between a frontier and the track's reference point, in nats times decades of cost: the sum over the
    frontier's points, by rising cost, of log10(reference cost / cost) times the drop in loss to the point. None without
    a reference."""
    if track.reference is None:
        return None
    reference_cost, loss, area = getattr(track.reference, axis), track.reference.loss, 0.0
    for point in front:
        if point.cost < reference_cost and point.loss < loss:
            area += math.log10(reference_cost / point.cost) * (loss - point.loss)
            loss = point.loss
    return area


def frontiers(entries: Iterable[Entry]) -> dict[tuple[str, str, str | None], list[FrontierPoint]]:
    """By (track, axis, hardware class) every frontier that the entries have. The class is None but for seconds."""
    groups: dict[tuple[str, str, str | None], list[Entry]] = {}
    for entry in entries:
        for axis in AXES:
            groups.setdefault((entry.track, axis, entry.hardware if axis == "seconds" else None), []).append(entry)
    tracks = {name: i for i, name in enumerate(TRACKS)}
    order = sorted(groups, key=lambda key: (tracks.get(key[0], len(tracks)), AXES.index(key[1]), key[2] or ""))
    return {key: frontier(groups[key], key[1]) for key in order}


def scored_cost(entry: Entry) -> float | None:
    """Cost at the target on the axis that the entry's track scores; None where it does not pass the target."""
    target, _ = target_of(entry)
    axis = track_for(entry.track).scored
    return None if target is None or axis is None else target.costs[axis]
