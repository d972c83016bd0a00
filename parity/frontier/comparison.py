"""Comparisons of entries two by two: the effect of one technique, and one recipe in two backends."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from parity import statistics
from parity.errors import InputError
from parity.frontier.delta import pairs
from parity.frontier.entry import Entry
from parity.frontier.scores import comparable

SAME = ("recipe", "backend", "precision")  # of two entries whose difference is to be a technique's
CHOICES = ("checkpoints", "val_every", "final_val_every")  # of a recipe, that its numbers do not depend on


@dataclass(frozen=True)
class Effect:
    """What a technique changes: final loss (nats per token) and training seconds (a ratio, over pairs of runs made in turns), each with
    its 95% interval; p is two-sided, that the losses are of one mean. Seconds are None where the runs were not made in turns."""

    technique: str
    with_it: str
    without: str
    loss: float
    low: float
    high: float
    p: float
    p_holm: float
    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    seconds_reason: str


@dataclass(frozen=True)
class Crossed:
    """One recipe in two backends: the losses' difference (first minus second) with the 90% interval of the equivalence test, whether it is
    within the margin, and the ratio of training seconds with its 95% interval, None where runs were not made in turns."""

    first: str
    second: str
    margin: float
    loss: float
    low: float
    high: float
    p: float
    equal: bool
    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    seconds_reason: str


def ablations(entries: Sequence[Entry]) -> tuple[list[Effect], list[str]]:
    """The effect of every technique that two comparable entries differ in and in no other, corrected by Holm's method; and why pairs that
    differ in one were left out. A technique of an entry is held against one baseline, so that it counts once: one made in turns with the
    entry, else the latest before it."""
    couples: dict[tuple[str, str], list[tuple[Entry, Entry]]] = {}
    found, skipped = [], []
    for a, b in itertools.combinations(entries, 2):
        different = set(a.techniques) ^ set(b.techniques)
        if len(different) != 1 or a.track != b.track or any(a.data[name] != b.data[name] for name in SAME):
            continue
        reason = comparable(a, b) or next(
            (f"{one.id} has one run: no interval" for one in (a, b) if len(one.runs) < 2), ""
        )
        if reason:
            skipped.append(reason)
            continue
        technique = different.pop()
        new, old = (a, b) if technique in a.techniques else (b, a)
        couples.setdefault((new.id, technique), []).append((new, old))
    for (_, technique), rivals in couples.items():
        new, old = max(rivals, key=_nearness)
        skipped += [
            f"{other.id} as a baseline: {new.id} is held against {old.id} alone"
            for _, other in rivals
            if other is not old
        ]
        test = statistics.welch(new.losses(), old.losses())
        found.append(
            Effect(
                technique,
                new.id,
                old.id,
                test.mean,
                *test.interval,
                2 * min(test.p, 1 - test.p),
                1.0,
                *_seconds(new, old),
            )
        )
    if found:
        adjusted, _ = statistics.holm([effect.p for effect in found])
        found = [Effect(**(vars(effect) | {"p_holm": p})) for effect, p in zip(found, adjusted)]
    return found, skipped


def _nearness(couple: tuple[Entry, Entry]) -> tuple[bool, bool, float]:
    """How well an entry and a baseline go together: made in turns, the baseline before the entry, and not long before."""
    new, old = couple
    return bool(pairs(new, old)[0]), old.began_s < new.began_s, -abs(new.began_s - old.began_s)


def pairs_across(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Every two entries of one recipe, with the same fields and techniques, in two backends."""
    return [
        (a, b) if a.backend < b.backend else (b, a) for a, b in itertools.combinations(entries, 2) if not _apart(a, b)
    ]


def cross(a: Entry, b: Entry, margin: float) -> Crossed:
    """Compares one recipe in two backends. Raises InputError where the entries are not that, or have one run."""
    if reason := _apart(a, b) or comparable(a, b):
        raise InputError(f"cross: expected one recipe in two backends, found that {reason}: choose two others")
    test = statistics.equivalent(a.losses(), b.losses(), margin)
    return Crossed(a.id, b.id, margin, test.mean, *test.interval, test.p, test.holds, *_seconds(a, b))


def _apart(a: Entry, b: Entry) -> str:
    """Why two entries are not one recipe in two backends; "" where they are."""
    if a.backend == b.backend:
        return f"{a.id} and {b.id} are both {a.backend}"
    for name in ("track", "recipe", "precision", "plan"):
        if a.data[name] != b.data[name]:
            return f"{a.id} and {b.id} differ in {name}"
    if set(a.techniques) != set(b.techniques):
        return f"{a.id} and {b.id} declare other techniques"
    other = [
        name
        for name in {*a.data["fields"], *b.data["fields"]} - set(CHOICES)
        if a.data["fields"].get(name) != b.data["fields"].get(name)
    ]
    return f"{a.id} and {b.id} differ in {min(other)}" if other else ""


def _seconds(a: Entry, b: Entry) -> tuple[float | None, float | None, float | None, str]:
    """Ratio of the seconds of whole runs, over pairs made in turns."""
    both, reason = pairs(a, b)
    if not both:
        return None, None, None, reason
    mine, theirs = (one.costs("seconds", one.steps[-1]) or [] for one in (a, b))
    return *statistics.ratio([mine[i] for i, _ in both], [theirs[j] for _, j in both]), ""
