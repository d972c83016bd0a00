"""Scores of entries: best-attained loss, frontiers, cost to the target, hypervolume, and the share of seeds that reach it.

All rest on logged evaluations, none on a point between two. Definitions and formulas: docs/frontier.md.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity.errors import InputError
from parity.frontier.entry import AXES, Entry
from parity.track import TRACKS, Track, track_for


@dataclass(frozen=True)
class Mean:
    """Mean of final val losses in nats per token, with its 95% interval by Student's t; sd and interval are None for one run."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Target:
    """Where an attempt's mean passes the target by the track's test: one step for all its runs, with their mean costs there."""

    step: int
    p: float
    costs: dict[str, float | None]


@dataclass(frozen=True)
class FrontierPoint:
    """A result that nothing beats in both cost and loss: mean cost and mean loss of an entry's runs after `step` updates."""

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
    """The final val losses, as the verifier found them."""
    return mean_of(entry.losses())


def bits_per_byte(entry: Entry) -> float | None:
    """Mean over the runs, which compares tracks with other tokenizers; None where the bytes of the text are not known."""
    values = [run.bits_per_byte for run in entry.runs]
    return None if None in values else sum(values) / len(values)


def target_of(entry: Entry) -> tuple[Target | None, str]:
    """The first evaluation, common to all runs, at which their mean passes the target by the track's test; or None and why."""
    track, target = track_for(entry.track), entry.data["target"]
    if target is None:
        return None, f"track {track.name} has no target"
    if len(entry.runs) < 2 and track.name != "optimizer":
        return None, "one run: its seed's luck cannot be told from the rest, and no test can be made"
    if entry.passes is not None:
        costs = {axis: found and found[entry.passes] for axis, found in entry.mean_costs.items()}
        return Target(entry.steps[entry.passes], entry.p_below[entry.passes], costs), ""
    return (
        None,
        f"the mean is {sum(entry.losses()) / len(entry.runs):.4f} at the end, which does not pass {target:g} by the track's test",
    )


def share(entry: Entry) -> float | None:
    """Share of the seeds whose final val loss is at or below the target; None without one."""
    target = entry.data["target"]
    return None if target is None else sum(loss <= target for loss in entry.losses()) / len(entry.runs)


def comparable(a: Entry, b: Entry) -> str:
    """Why two entries' losses cannot be compared; "" where they can."""
    if a.track != b.track:
        return f"{a.id} is on track {a.track}, {b.id} on {b.track}"
    if (a.slice, a.val_tokens) != (b.slice, b.val_tokens):
        return f"{a.id} was scored on {a.val_tokens:,} tokens of {a.slice}, {b.id} on {b.val_tokens:,} of {b.slice}"
    if (
        a.cost("tokens") == b.cost("tokens") and a.slice_digest != b.slice_digest
    ):  # the digest covers the shards that a plan reaches
        return f"{a.id} and {b.id} were made on slices of different digests"
    return ""


def points(entry: Entry, axis: str) -> list[FrontierPoint]:
    """Mean cost and mean loss at every evaluation that all runs share; empty where the cost was not counted."""
    costs = entry.mean_costs[axis]
    if costs is None:
        return []
    return [
        FrontierPoint(cost, loss, entry.id, step)
        for cost, loss, step in zip(costs, entry.mean_losses, entry.steps)
        if cost > 0
    ]


def non_dominated(candidates: Iterable[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no other beats or equals in cost and loss, by rising cost. O(n log n)."""
    found: list[FrontierPoint] = []
    for point in sorted(candidates, key=lambda point: (point.cost, point.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def frontier(entries: Iterable[Entry], axis: str) -> list[FrontierPoint]:
    """The frontier of entries of one track: cost on an axis against loss. Seconds are compared in one hardware class only.

    Raises InputError where the entries are of several tracks, slices or numbers of val tokens, or, for seconds, machines.
    """
    entries = list(entries)
    for other in entries[1:]:
        if reason := comparable(entries[0], other):
            raise InputError(
                f"a frontier of {axis}: expected entries that can be compared, found that {reason}: choose among them"
            )
        if axis == "seconds" and other.hardware != entries[0].hardware:
            raise InputError(
                f"a frontier of seconds: expected one class of hardware, found {entries[0].hardware} and {other.hardware}: "
                "choose one"
            )
    return non_dominated(point for entry in entries for point in points(entry, axis))


def hypervolume(front: Sequence[FrontierPoint], track: Track, axis: str) -> float | None:
    """Area between a frontier and the track's reference point, in nats times decades of cost: the sum over the frontier's points,
    by rising cost, of log10(reference cost / cost) times what the point lowers the loss by. None without a reference."""
    if track.reference is None:
        return None
    worst, area = track.reference.loss, 0.0
    for point in front:
        if point.cost < getattr(track.reference, axis) and point.loss < worst:
            area += math.log10(getattr(track.reference, axis) / point.cost) * (worst - point.loss)
            worst = point.loss
    return area


def frontiers(entries: Iterable[Entry]) -> dict[tuple[str, str, str | None], list[FrontierPoint]]:
    """By (track, axis, hardware class) every frontier that the entries have. The class is None but for seconds."""
    groups: dict[tuple[str, str, str | None], list[Entry]] = {}
    for entry in entries:
        for axis in AXES:
            groups.setdefault((entry.track, axis, entry.hardware if axis == "seconds" else None), []).append(entry)
    order = {name: i for i, name in enumerate(TRACKS)}
    found = {key: frontier(group, key[1]) for key, group in groups.items()}
    return dict(
        sorted(found.items(), key=lambda item: (order.get(item[0][0], 99), AXES.index(item[0][1]), item[0][2] or ""))
    )


def best(entries: Iterable[Entry]) -> Entry | None:
    """The entry with the lowest mean final loss: the best-attained loss."""
    return min(entries, key=lambda entry: final_loss(entry).mean, default=None)


def scored_cost(entry: Entry) -> float | None:
    """Cost at the target on the axis that the entry's track scores; None where it does not pass the target."""
    found, _ = target_of(entry)
    axis = track_for(entry.track).scored
    return None if found is None or axis is None else found.costs[axis]
