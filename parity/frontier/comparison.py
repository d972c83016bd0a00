"""Comparisons of two entries: the effect of one technique, and one recipe in two backends."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from parity import statistics
from parity.errors import InputError
from parity.frontier.delta import paired_seconds, pairs
from parity.frontier.entry import Entry
from parity.frontier.scores import comparable

SAME = ("recipe", "backend", "precision")  # of two entries whose difference is to be a technique's
CHOICES = ("checkpoints", "val_every", "final_val_every")  # of a recipe, that its numbers do not depend on


@dataclass(frozen=True)
class Effect:
    """What a technique changes: final loss (nats per token) and training seconds (a ratio, over pairs of interleaved
    runs), each with its 95% interval; p is two-sided, that the losses are of one mean. Seconds are None where the runs
    were not interleaved."""

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
    """One recipe in two backends: the losses' difference (first minus second) with the 90% interval of the equivalence
    test, whether it is within the margin, and the ratio of training seconds with its 95% interval, None where runs were
    not interleaved."""

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
    """The effect of every technique that is the only one in which two comparable entries differ, corrected by Holm's
    method; and why pairs that differ in one technique were left out. A technique of an entry is compared with one
    baseline, so that it counts once: one interleaved with the entry, else the latest before it."""
    baselines: dict[tuple[str, str], list[tuple[Entry, Entry]]] = {}
    effects, skipped = [], []
    for a, b in itertools.combinations(entries, 2):
        different = set(a.techniques) ^ set(b.techniques)
        if len(different) != 1 or a.track != b.track or any(a.data[name] != b.data[name] for name in SAME):
            continue
        single = [f"{entry.id} has one run: no interval" for entry in (a, b) if len(entry.runs) < 2]
        if reason := comparable(a, b) or next(iter(single), ""):
            skipped.append(reason)
            continue
        technique = different.pop()
        new, old = (a, b) if technique in a.techniques else (b, a)
        baselines.setdefault((new.id, technique), []).append((new, old))
    for (_, technique), candidates in baselines.items():
        new, old = max(candidates, key=_nearness)
        skipped += [
            f"{other.id} as a baseline: {new.id} is compared with {old.id} alone"
            for _, other in candidates
            if other is not old
        ]
        test = statistics.welch(new.losses(), old.losses())
        p = 2 * min(test.p, 1 - test.p)
        effects.append(Effect(technique, new.id, old.id, test.mean, *test.interval, p, 1.0, *_seconds(new, old)))
    if effects:
        adjusted, _ = statistics.holm([effect.p for effect in effects])
        effects = [dataclasses.replace(effect, p_holm=p) for effect, p in zip(effects, adjusted, strict=True)]
    return effects, skipped


def _nearness(couple: tuple[Entry, Entry]) -> tuple[bool, bool, float]:
    """How well a baseline suits an entry: interleaved with it, before it, and not long before."""
    new, old = couple
    return bool(pairs(new, old)[0]), old.began_s < new.began_s, -abs(new.began_s - old.began_s)


def pairs_across(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Every two entries of one recipe, with the same fields and techniques, in two backends."""
    return [
        (a, b) if a.backend < b.backend else (b, a)
        for a, b in itertools.combinations(entries, 2)
        if not _mismatch(a, b)
    ]


def cross(a: Entry, b: Entry, margin: float) -> Crossed:
    """Compares one recipe in two backends. Raises InputError where the entries are not that, or have one run."""
    if reason := _mismatch(a, b) or comparable(a, b):
        raise InputError(f"cross: expected one recipe in two backends, found that {reason}: choose two others")
    test = statistics.equivalent(a.losses(), b.losses(), margin)
    return Crossed(a.id, b.id, margin, test.mean, *test.interval, test.p, test.holds, *_seconds(a, b))


def _mismatch(a: Entry, b: Entry) -> str:
    """Why two entries are not one recipe in two backends; "" where they are."""
    if a.backend == b.backend:
        return f"{a.id} and {b.id} are both {a.backend}"
    for name in ("track", "recipe", "precision", "plan"):
        if a.data[name] != b.data[name]:
            return f"{a.id} and {b.id} differ in {name}"
    if set(a.techniques) != set(b.techniques):
        return f"{a.id} and {b.id} declare other techniques"
    fields, other = a.data["fields"], b.data["fields"]
    different = [name for name in {*fields, *other} - set(CHOICES) if fields.get(name) != other.get(name)]
    return f"{a.id} and {b.id} differ in {min(different)}" if different else ""


def _seconds(a: Entry, b: Entry) -> tuple[float | None, float | None, float | None, str]:
    """Ratio of the seconds of whole runs, over interleaved pairs."""
    seconds, other, reason = paired_seconds(a, b, a.steps[-1], b.steps[-1])
    return (None, None, None, reason) if reason else (*statistics.ratio(seconds, other), "")
