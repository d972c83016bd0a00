"""The scientific delta: what an attempt added to the frontier as it stood before it, by how much, and how surely.

Two questions on each axis of cost. At equal cost: is the final loss lower than the best before it? At the target: does
it take less? A baseline gets the benefit of the evaluations' spacing: it is read at its first evaluation that costs at
least as much, or at its last. Seconds are compared with interleaved runs on one machine, and with no others.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parity import statistics
from parity.errors import InputError
from parity.frontier.entry import AXES, OWN_AXES, UNITS, Entry
from parity.frontier.scores import Target, comparable, target_of
from parity.statistics import ALPHA
from parity.track import track_for

CONFIDENCE = 0.975  # of each of two crossings, so that both hold with 95% (Bonferroni)


@dataclass(frozen=True)
class LossChange:
    """Change in final loss at equal cost on an axis: nats per token, 95% interval, and the one-sided p of no
    improvement. The interval and p are None for a single run on either side."""

    axis: str
    change: float
    low: float | None
    high: float | None
    p: float | None
    against: str
    step: int


@dataclass(frozen=True)
class CostChange:
    """Change in cost at the target on an axis, in its unit and in percent, with its 95% interval and the one-sided p of
    no improvement."""

    axis: str
    change: float
    percent: float
    low: float
    high: float
    p: float
    against: str


@dataclass(frozen=True)
class Delta:
    """`verdict`: first, improves, inside the noise, worse, or not judged. `p` is Holm's, over the two questions on the
    axis that the track scores. `skipped`: why earlier entries were left out."""

    verdict: str
    sentence: str
    p: float | None = None
    losses: tuple[LossChange, ...] = ()
    costs: tuple[CostChange, ...] = ()
    skipped: tuple[str, ...] = ()


def pairs(a: Entry, b: Entry) -> tuple[list[tuple[int, int]], str]:
    """Indices of the runs of two entries that were interleaved on one machine, first with first and so on; or none, and
    why."""
    if a.hardware != b.hardware or a.data["hardware"]["host"] != b.data["hardware"]["host"]:
        return [], f"{b.id} ran on other hardware ({b.hardware})"
    n = min(len(a.runs), len(b.runs))
    if n < 2:
        return [], f"{a.id if len(a.runs) < 2 else b.id} has one run, and a pair says nothing about chance"
    not_interleaved = f"its runs and those of {b.id} were not interleaved, and a machine drifts by several percent"
    last_a, last_b = a.runs[a.order[-1]], b.runs[b.order[-1]]
    if a.began_s > last_b.began_s or b.began_s > last_a.began_s:  # fast, and true of most entries
        return [], not_interleaved
    for i in range(n):
        run_a, run_b = a.runs[a.order[i]], b.runs[b.order[i]]
        following = [entry.runs[entry.order[i + 1]].began_s for entry in (a, b) if i + 1 < len(entry.order)]
        if max(run_a.began_s, run_b.began_s) > min(following, default=float("inf")):
            return [], not_interleaved
        if run_a.began_s < run_b.ended_s and run_b.began_s < run_a.ended_s:
            return [], f"its runs and those of {b.id} ran at the same time, and slowed each other down"
    return list(zip(a.order[:n], b.order[:n], strict=True)), ""


def paired_seconds(a: Entry, b: Entry, a_step: int, b_step: int) -> tuple[list[float], list[float], str]:
    """Seconds to a step of the interleaved runs of two entries, pair by pair; or none, and why."""
    indices, reason = pairs(a, b)
    a_seconds, b_seconds = a.costs("seconds", a_step) or [], b.costs("seconds", b_step) or []
    return [a_seconds[i] for i, _ in indices], [b_seconds[j] for _, j in indices], reason


def delta(entry: Entry, before: Sequence[Entry]) -> Delta:
    """What an entry added to those before it; entries of other tracks are ignored."""
    track = track_for(entry.track)
    reasons = {other.id: comparable(entry, other) for other in before if other.track == entry.track}
    earlier = [other for other in before if reasons.get(other.id) == ""]
    skipped = tuple(reason for reason in reasons.values() if reason)
    if not earlier:
        others = ", apart from others that cannot be compared" if skipped else ""
        sentence = f"the first entry of track {track.name}{others}: there is nothing to compare it with yet"
        return Delta("first", sentence, skipped=skipped)
    losses, costs, missing = [], [], {}
    for axis in AXES:
        rivals, reason = _rivals(entry, earlier, axis)
        if not rivals:
            missing[axis] = reason
            continue
        losses.append(_at_equal_cost(entry, rivals, axis))
        if (change := _at_target(entry, rivals, axis)) is not None:
            costs.append(change)
    verdict, sentence, p = _conclusion(track.scored or "tokens", losses, costs, missing)
    return Delta(verdict, sentence, p, tuple(losses), tuple(costs), (*skipped, *dict.fromkeys(missing.values())))


def _rivals(entry: Entry, earlier: Sequence[Entry], axis: str) -> tuple[list[Entry], str]:
    """Earlier entries that a cost can be compared with, and where there are none, why."""
    if entry.cost(axis) is None:
        own = axis in OWN_AXES and entry.own_count
        return [], f"{axis} are its program's own count" if own else f"{axis} were not counted for it"
    if axis != "seconds":
        return [
            other for other in earlier if other.cost(axis) is not None
        ], f"{axis} were not counted for any earlier entry"
    paired = {other.id: pairs(entry, other) for other in earlier}
    reasons = [reason for _, reason in paired.values() if reason]
    return [other for other in earlier if paired[other.id][0]], reasons[0] if reasons else ""


def _reading(other: Entry, axis: str, cost: float) -> int:
    """Index of the step at which a baseline is read: its first evaluation that costs at least as much, or its last."""
    return min(bisect_left(other.mean_costs[axis] or [], cost * (1 - 1e-9)), len(other.steps) - 1)


def _at_equal_cost(entry: Entry, rivals: Sequence[Entry], axis: str) -> LossChange:
    cost = entry.cost(axis) or 0.0
    rival = min(rivals, key=lambda other: other.mean_losses[_reading(other, axis, cost)])
    step = rival.steps[_reading(rival, axis, cost)]
    mine, theirs = entry.losses(entry.steps[-1]), rival.losses(step)
    try:
        test = statistics.welch(mine, theirs)
    except InputError:  # one run, or runs that are all the same
        change = sum(mine) / len(mine) - sum(theirs) / len(theirs)
        return LossChange(axis, change, None, None, None, rival.id, step)
    return LossChange(axis, test.mean, *test.interval, test.p, rival.id, step)


def _at_target(entry: Entry, rivals: Sequence[Entry], axis: str) -> CostChange | None:
    """None where the entry or all of its rivals do not pass the target."""
    mine, _ = target_of(entry)
    passing = [(target, other) for other in rivals if (target := target_of(other)[0]) is not None]
    if mine is None or not passing:
        return None
    theirs, rival = min(passing, key=lambda pair: _cost(pair[0], axis))
    my_cost, their_cost = _cost(mine, axis), _cost(theirs, axis)
    change = my_cost - their_cost
    if axis == "seconds":
        low, high, p = _in_pairs(entry, mine, rival, theirs)
    else:
        (low, high), p = _crossings(entry, rival, axis), 0.0 if change < 0 else 1.0
    if entry.steps == rival.steps and entry.data["plan"] == rival.data["plan"] and mine.step >= theirs.step:
        luck = mine.p  # the gain lies in the cost of a step; only passing at all can be luck
    else:
        luck = _p_of_loss(entry, mine, rival, axis)
    return CostChange(axis, change, 100 * change / their_cost, low, high, max(p, luck), rival.id)


def _cost(target: Target, axis: str) -> float:
    """A cost at the target, which was counted."""
    cost = target.costs[axis]
    return float("inf") if cost is None else cost


def _in_pairs(entry: Entry, mine: Target, rival: Entry, theirs: Target) -> tuple[float, float, float]:
    """Interval of the change in seconds over pairs of runs, and the one-sided p of no improvement."""
    seconds, their_seconds, _ = paired_seconds(entry, rival, mine.step, theirs.step)
    try:
        test = statistics.paired(seconds, their_seconds)
    except InputError:  # differences that are all the same
        change = seconds[0] - their_seconds[0]
        return change, change, 0.0 if change < 0 else 1.0
    return *test.interval, test.p


def _p_of_loss(entry: Entry, mine: Target, rival: Entry, axis: str) -> float:
    """The p that the loss at the target is no lower than the rival's at that cost: of a gain from an earlier
    evaluation alone."""
    step = rival.steps[_reading(rival, axis, _cost(mine, axis))]
    try:
        return statistics.welch(entry.losses(mine.step), rival.losses(step)).p
    except InputError:
        return 1.0


def _crossings(entry: Entry, rival: Entry, axis: str) -> tuple[float, float]:
    """Interval of the difference of two costs at the target, each known to the evaluations around its crossing."""
    (low, high), (their_low, their_high) = _crossing(entry, axis), _crossing(rival, axis)
    return low - their_high, high - their_low


def _crossing(entry: Entry, axis: str) -> tuple[float, float]:
    """Costs between which the mean crosses the target with CONFIDENCE: after the last evaluation that is surely above
    it, and not after the first that is surely below."""
    alpha, costs = (1 - CONFIDENCE) / 2, entry.mean_costs[axis] or []
    below = next((i for i, p in enumerate(entry.p_below) if p < alpha), len(costs) - 1)
    above = max((i for i, p in enumerate(entry.p_below[:below]) if 1 - p < alpha), default=-1)
    return costs[above] if above >= 0 else 0.0, costs[below]


def _conclusion(
    axis: str, losses: Sequence[LossChange], costs: Sequence[CostChange], missing: dict[str, str]
) -> tuple[str, str, float | None]:
    """The verdict on the axis that the track scores, its sentence, and its p."""
    loss = next((change for change in losses if change.axis == axis), None)
    cost = next((change for change in costs if change.axis == axis), None)
    if loss is None:
        other = next((change for change in losses if change.axis == "flops"), losses[0] if losses else None)
        rest = f"; at equal {other.axis}: {_loss_sentence(other)}" if other else ""
        return "not judged", f"not judged in {axis}: {missing[axis]}{rest}", None
    changes = f"at equal {axis}: {_loss_sentence(loss)}" + (f"; at the target: {_cost_sentence(cost)}" if cost else "")
    if loss.p is None or loss.low is None or loss.high is None:
        return "not judged", f"one run has no interval, so chance cannot be ruled out; {changes}", None
    adjusted, holds = statistics.holm([loss.p, *([cost.p] if cost else [])], ALPHA)
    p = min(adjusted)
    lows, highs = [loss.low, *([cost.low] if cost else [])], [loss.high, *([cost.high] if cost else [])]
    if any(holds):
        return "improves", f"improves on the frontier (p {p:.2g}); {changes}", p
    if max(lows) > 0 and min(highs) >= 0:
        return "worse", f"falls behind the frontier; {changes}", p
    return "inside the noise", f"inside the noise (p of no improvement {p:.2g}); {changes}", p


def _loss_sentence(change: LossChange) -> str:
    interval = f" [{change.low:+.4f}, {change.high:+.4f}]" if change.low is not None else ""
    return f"{change.change:+.4f} nats{interval} against {change.against}"


def _cost_sentence(change: CostChange) -> str:
    amount, low, high = (
        f"{value:+.1f}" if abs(value) < 1e5 else f"{value:+.3g}" for value in (change.change, change.low, change.high)
    )
    return f"{amount} {UNITS[change.axis]} ({change.percent:+.1f}%) [{low}, {high}] against {change.against}"


def records(entries: Sequence[Entry]) -> dict[str, str]:
    """Why an entry, of entries in the order of time, took its track's record when it was added, by id: the first to
    pass the target, or surely cheaper at it than the holder. Seconds have a record in each class of hardware, and are
    compared with the holder's runs or those of the same program that were interleaved with the new ones."""
    holders: dict[tuple[str, str | None], Entry] = {}
    reasons: dict[str, str] = {}
    programs: dict[Any, list[Entry]] = {}
    for entry in entries:
        programs.setdefault(_program(entry), []).append(entry)
    for entry in entries:
        axis = track_for(entry.track).scored
        target, _ = target_of(entry)
        if axis is None or target is None or target.costs[axis] is None:
            continue
        key = entry.track, entry.hardware if axis == "seconds" else None
        if key not in holders:
            reasons[entry.id] = "the first to pass the target"
        elif change := _gain(entry, holders[key], axis, programs[_program(holders[key])]):
            reasons[entry.id] = f"{change.percent:+.1f}% {UNITS[axis]}"
        else:
            continue
        holders[key] = entry
    return reasons


def _gain(entry: Entry, holder: Entry, axis: str, reruns: Sequence[Entry]) -> CostChange | None:
    """The change by which an entry surely costs less at the target than the holder of a record; None where it does not.
    `reruns`: the entries of the holder's program, the holder among them."""
    rivals = [holder, *(other for other in reruns if other is not holder)] if axis == "seconds" else [holder]
    for rival in rivals:
        if rival is not entry and not comparable(entry, rival) and _rivals(entry, [rival], axis)[0]:
            change = _at_target(entry, [rival], axis)
            if change is not None and change.p < ALPHA:
                return change
    return None


def _program(entry: Entry) -> tuple[Any, ...]:
    """What is equal in two entries that ran one program."""
    data = entry.data
    fields = json.dumps(data["fields"], sort_keys=True)
    return entry.track, entry.backend, data["precision"], fields, data["source"] and data["source"]["sha256"]
