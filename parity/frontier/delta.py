"""The scientific delta: what an attempt added to the frontier as it stood before it, by how much, and how surely.

Two questions on each axis of cost. At equal cost: is the final loss lower than the best that was there? At the target: does
it take less? A baseline gets the benefit of the evaluations' spacing: it is read at its first evaluation that costs at least as
much, or at its last. Seconds are compared with runs made in turns on one machine, and with no others.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parity import statistics
from parity.errors import InputError
from parity.frontier.entry import AXES, UNITS, Entry
from parity.frontier.scores import Target, comparable, target_of
from parity.statistics import ALPHA
from parity.track import track_for

CONFIDENCE = 0.975  # of each of two crossings, so that both hold with 95% (Bonferroni)


@dataclass(frozen=True)
class LossChange:
    """Change in final loss at equal cost on an axis: nats per token, 95% interval, and the one-sided p of no improvement. The
    interval and p are None for a single run on either side."""

    axis: str
    change: float
    low: float | None
    high: float | None
    p: float | None
    against: str
    step: int


@dataclass(frozen=True)
class CostChange:
    """Change in cost at the target on an axis, in its unit and in percent, with its 95% interval and the one-sided p of none."""

    axis: str
    change: float
    percent: float
    low: float
    high: float
    p: float
    against: str


@dataclass(frozen=True)
class Delta:
    """`verdict`: first, improves, inside the noise, worse, or not judged. `p` is Holm's, over the two questions on the axis that the
    track scores. `skipped`: why earlier entries took no part."""

    verdict: str
    sentence: str
    p: float | None
    losses: tuple[LossChange, ...]
    costs: tuple[CostChange, ...]
    skipped: tuple[str, ...]


def pairs(a: Entry, b: Entry) -> tuple[list[tuple[int, int]], str]:
    """Numbers of the runs of two entries that were made in turns on one machine, first with first and so on; or none, and why."""
    if a.hardware != b.hardware or a.data["hardware"]["host"] != b.data["hardware"]["host"]:
        return [], f"{b.id} ran on other hardware ({b.hardware})"
    n = min(len(a.runs), len(b.runs))
    if n < 2:
        return [], f"{a.id if len(a.runs) < 2 else b.id} has one run, and a pair says nothing about chance"
    x, y = a.order, b.order
    drifts = f"its runs and those of {b.id} were not made in turns, and a machine drifts by several percent"
    if (
        a.began_s > b.runs[y[-1]].began_s or b.began_s > a.runs[x[-1]].began_s
    ):  # most entries are hours apart, and seen at once to be
        return [], drifts
    for i in range(n):
        one, other = a.runs[x[i]], b.runs[y[i]]
        following = [runs.runs[order[i + 1]].began_s for runs, order in ((a, x), (b, y)) if i + 1 < len(order)]
        if max(one.began_s, other.began_s) > min(following, default=float("inf")):
            return [], drifts
        if one.began_s < other.ended_s and other.began_s < one.ended_s:
            return [], f"its runs and those of {b.id} were made at the same time, in each other's way"
    return list(zip(x[:n], y[:n])), ""


def delta(entry: Entry, before: Sequence[Entry]) -> Delta:
    """What an entry added to those before it (of any track; others are left out)."""
    track = track_for(entry.track)
    same = [other for other in before if other.track == entry.track]
    reasons = {other.id: comparable(entry, other) for other in same}
    there = [other for other in same if not reasons[other.id]]
    skipped = [reason for reason in reasons.values() if reason]
    if not there:
        said = f"the first entry of track {track.name}" + (", beside others that cannot be compared" if skipped else "")
        return Delta("first", f"{said}: there is nothing to compare it with yet", None, (), (), tuple(skipped))
    losses, costs, why = [], [], {}
    for axis in AXES:
        rivals, excuses = _rivals(entry, there, axis)
        if not rivals:
            why[axis] = excuses[0]
            continue
        losses.append(_at_equal_cost(entry, rivals, axis))
        if (change := _at_target(entry, rivals, axis)) is not None:
            costs.append(change)
    return _concluded(entry, track.scored or "tokens", losses, costs, why, skipped)


def _rivals(entry: Entry, there: Sequence[Entry], axis: str) -> tuple[list[Entry], list[str]]:
    """Earlier entries that a cost can be compared with, and why the others cannot."""
    if entry.cost(axis) is None:
        return [], [f"{axis} were not counted for it"]
    if axis != "seconds":
        found = [other for other in there if other.cost(axis) is not None]
        return found, [f"{axis} were not counted for any earlier entry"]
    found, excuses = [], []
    for other in there:
        paired, reason = pairs(entry, other)
        (found if paired else excuses).append(other if paired else reason)
    return found, excuses


def _reading(other: Entry, axis: str, cost: float) -> int:
    """The step at which a baseline is read for a cost: its first evaluation that costs at least as much, or its last."""
    return other.steps[_place(other, axis, cost)]


def _place(other: Entry, axis: str, cost: float) -> int:
    return min(bisect_left(other.mean_costs[axis] or [], cost * (1 - 1e-9)), len(other.steps) - 1)


def _at_equal_cost(entry: Entry, rivals: Sequence[Entry], axis: str) -> LossChange:
    cost = entry.cost(axis) or 0.0
    rival = min(rivals, key=lambda other: other.mean_losses[_place(other, axis, cost)])
    step = _reading(rival, axis, cost)
    mine, theirs = entry.losses(entry.steps[-1]), rival.losses(step)
    try:
        test = statistics.welch(mine, theirs)
    except InputError:  # one run, or runs that are all the same
        return LossChange(axis, sum(mine) / len(mine) - sum(theirs) / len(theirs), None, None, None, rival.id, step)
    return LossChange(axis, test.mean, *test.interval, test.p, rival.id, step)


def _at_target(entry: Entry, rivals: Sequence[Entry], axis: str) -> CostChange | None:
    """None where the entry or all of its rivals do not pass the target."""
    mine, _ = target_of(entry)
    reached = [(found, other) for other in rivals if (found := target_of(other)[0]) is not None]
    if mine is None or not reached:
        return None
    theirs, rival = min(reached, key=lambda pair: pair[0].costs[axis])
    change = mine.costs[axis] - theirs.costs[axis]
    if axis == "seconds":
        low, high, p = _in_pairs(entry, mine, rival, theirs)
    else:
        (low, high), p = _crossings(entry, rival, axis), 0.0 if change < 0 else 1.0
    if entry.steps == rival.steps and entry.data["plan"] == rival.data["plan"] and mine.step >= theirs.step:
        luck = mine.p  # what it gains lies in the cost of a step; only its passing at all can be luck
    else:
        luck = _p_of_loss(entry, mine, rival, axis)
    return CostChange(axis, change, 100 * change / theirs.costs[axis], low, high, max(p, luck), rival.id)


def _in_pairs(entry: Entry, mine: Target, rival: Entry, theirs: Target) -> tuple[float, float, float]:
    """Interval of the change in seconds over pairs of runs, and the one-sided p of none."""
    both, _ = pairs(entry, rival)
    x, y = entry.costs("seconds", mine.step) or [], rival.costs("seconds", theirs.step) or []
    try:
        test = statistics.paired([x[i] for i, _ in both], [y[j] for _, j in both])
    except InputError:  # differences that are all the same
        return x[0] - y[0], x[0] - y[0], 0.0 if x[0] < y[0] else 1.0
    return *test.interval, test.p


def _p_of_loss(entry: Entry, mine: Target, rival: Entry, axis: str) -> float:
    """The p of a loss at the target that the rival, read at that cost, has too: what was gained by an earlier evaluation."""
    try:
        return statistics.welch(entry.losses(mine.step), rival.losses(_reading(rival, axis, mine.costs[axis]))).p
    except InputError:
        return 1.0


def _crossings(entry: Entry, rival: Entry, axis: str) -> tuple[float, float]:
    """Interval of the difference of two costs at the target, each known to the evaluations between which its mean may cross."""
    (low, high), (their_low, their_high) = (_crossing(one, axis) for one in (entry, rival))
    return low - their_high, high - their_low


def _crossing(entry: Entry, axis: str) -> tuple[float, float]:
    """Costs between which the mean crosses the target with CONFIDENCE: after the last evaluation that is surely above it, and not
    after the first that is surely below."""
    alpha, costs = (1 - CONFIDENCE) / 2, entry.mean_costs[axis] or []
    below = next((i for i, p in enumerate(entry.p_below) if p is not None and p < alpha), len(costs) - 1)
    above = max((i for i, p in enumerate(entry.p_below[:below]) if p is not None and 1 - p < alpha), default=-1)
    return costs[above] if above >= 0 else 0.0, costs[below]


def _concluded(
    entry: Entry, axis: str, losses: list[LossChange], costs: list[CostChange], why: dict[str, str], skipped: list[str]
) -> Delta:
    """The verdict, on the axis that the track scores, and the sentence that says it."""
    loss = next((change for change in losses if change.axis == axis), None)
    cost = next((change for change in costs if change.axis == axis), None)
    notes = (*skipped, *dict.fromkeys(why.values()))
    if loss is None:
        seen = next((change for change in losses if change.axis == "flops"), losses[0] if losses else None)
        rest = f"; at equal {seen.axis}: {_of_loss(seen)}" if seen else ""
        return Delta("not judged", f"not judged in {axis}: {why[axis]}{rest}", None, tuple(losses), tuple(costs), notes)
    said = "; ".join([f"at equal {axis}: {_of_loss(loss)}", *([f"at the target: {_of_cost(cost)}"] if cost else [])])
    if loss.p is None:
        return Delta(
            "not judged",
            f"one run has no interval, so chance cannot be ruled out; {said}",
            None,
            tuple(losses),
            tuple(costs),
            notes,
        )
    adjusted, hold = statistics.holm([change.p for change in (loss, cost) if change is not None], ALPHA)
    if any(hold):
        verdict, head = "improves", f"improves on the frontier (p {min(adjusted):.2g})"
    elif (
        max(change.low for change in (loss, cost) if change) > 0
        and min(change.high for change in (loss, cost) if change) >= 0
    ):
        verdict, head = "worse", "falls behind the frontier"
    else:
        verdict, head = "inside the noise", f"inside the noise (p of no improvement {min(adjusted):.2g})"
    return Delta(verdict, f"{head}; {said}", min(adjusted), tuple(losses), tuple(costs), notes)


def _of_loss(change: LossChange) -> str:
    interval = f" [{change.low:+.4f}, {change.high:+.4f}]" if change.low is not None else ""
    return f"{change.change:+.4f} nats{interval} against {change.against}"


def _of_cost(change: CostChange) -> str:
    def number(value: float) -> str:
        return f"{value:+.1f}" if abs(value) < 1e5 else f"{value:+.3g}"

    return (
        f"{number(change.change)} {UNITS[change.axis]} ({change.percent:+.1f}%) [{number(change.low)}, {number(change.high)}] "
        f"against {change.against}"
    )


def records(entries: Sequence[Entry]) -> dict[str, str]:
    """By id, of entries in the order of time, which took a track's record when they came, and why: the first to pass the target,
    or surely cheaper at it than the holder. Seconds have a record in each class of hardware, and are compared with the holder's runs or
    those of the same program that were made in turns with the new ones."""
    held: dict[tuple[str, str | None], Entry] = {}
    found: dict[str, str] = {}
    programs: dict[Any, list[Entry]] = {}
    for entry in entries:
        programs.setdefault(_program(entry), []).append(entry)
    for entry in entries:
        axis = track_for(entry.track).scored
        reached, _ = target_of(entry)
        if axis is None or reached is None or reached.costs[axis] is None:
            continue
        key = entry.track, entry.hardware if axis == "seconds" else None
        if key not in held:
            found[entry.id] = "the first to pass the target"
        elif (change := _beaten(entry, held[key], axis, programs[_program(held[key])])) is not None:
            found[entry.id] = f"{change.percent:+.1f}% {UNITS[axis]}"
        else:
            continue
        held[key] = entry
    return found


def _beaten(entry: Entry, holder: Entry, axis: str, again: Sequence[Entry]) -> CostChange | None:
    """The change by which an entry surely costs less at the target than the holder of a record; None where it does not. `again`: the
    entries of the holder's program, the holder among them."""
    for rival in [holder, *(other for other in again if other is not holder)] if axis == "seconds" else [holder]:
        if rival is not entry and not comparable(entry, rival) and _rivals(entry, [rival], axis)[0]:
            change = _at_target(entry, [rival], axis)
            if change is not None and change.p < ALPHA:
                return change
    return None


def _program(entry: Entry) -> tuple[Any, ...]:
    """What makes two entries runs of one program."""
    data = entry.data
    fields = json.dumps(data["fields"], sort_keys=True)
    return entry.track, entry.backend, data["precision"], fields, data["source"] and data["source"]["sha256"]
