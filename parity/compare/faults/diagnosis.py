"""The likeliest reasons of a finding: mistakes of the catalogue are planted in the reference until one explains it."""

import dataclasses
import importlib.util
import math
from fnmatch import fnmatch

from parity.compare.case import Case
from parity.compare.faults.catalogue import FAULTS
from parity.compare.faults.plant import Fault
from parity.compare.judge import Names, judge
from parity.compare.observation import Finding, Seen
from parity.compare.side import Side

REFERENCE = "torchref"  # nothing has to be compiled to try a mistake in it
NOT_TRIED = ("layout",)  # each try would be a set of processes


def diagnosed(
    a: Side, b: Side, case: Case, level, finding: Finding, seen_a: list[Seen], seen_b: list[Seen], memo: dict
) -> Finding:
    """The finding with its reasons: the side that departs from the reference, and which mistake, planted in the
    reference, makes the two agree at this level. Without such a one: those of the catalogue that show at this place."""
    known = [fault for fault in FAULTS.values() if fault.level == level.name and case.recipe.name in fault.recipes]
    here = [fault for fault in known if matches(fault, finding)]
    perhaps = tuple(f"perhaps: {fault.says}" for fault in here[:3])
    tiny = case.track.scale == "tiny"  # the catalogue's scale
    if (
        case.recipe.precision != "float64"
        or level.name in NOT_TRIED
        or not tiny
        or not importlib.util.find_spec("torch")
    ):
        return dataclasses.replace(finding, reasons=perhaps)
    reference = next((side for side in (b, a) if side.backend == REFERENCE and not side.fault), None) or Side(
        REFERENCE, device=a.device
    )
    plain = reference.observe(level, case, memo)
    suspect, seen = next(
        (
            (side, seen)
            for side, seen in ((a, seen_a), (b, seen_b))
            if side is not reference and first_difference(level.name, seen, plain, side) < math.inf
        ),
        (None, None),
    )
    if suspect is None:
        return dataclasses.replace(finding, reasons=perhaps)
    who = (
        f"{suspect.name} departs from {REFERENCE}"
        if suspect.name != REFERENCE
        else f"this {REFERENCE} departs from a plain one"
    )
    parting = first_difference(level.name, seen, plain, suspect)
    for candidates in (here, [fault for fault in known if fault not in here]):
        reached = {
            fault: _reached(fault, suspect, seen, level, case, memo)
            for fault in candidates
            if REFERENCE in fault.backends
        }
        furthest = max(reached.values(), default=0)
        if furthest > parting:
            next_place = f" as far as {plain[int(furthest)].place}" if furthest < len(plain) else ""
            return dataclasses.replace(
                finding,
                reasons=tuple(
                    f"{who}; with the mistake {fault.name} planted in {REFERENCE} they agree{next_place}: {fault.says}"
                    for fault, index in reached.items()
                    if index == furthest
                ),
            )
    return dataclasses.replace(finding, reasons=(who, *perhaps))


def first_difference(level: str, seen: list[Seen], other: list[Seen], side: Side) -> float:
    """The number of the first value at which a side parts from the reference in float64; infinite where they agree and
    depart from what is expected of each alone at the same places."""
    names = Names("a", "b", bool(side.backend), alone=False, b_is_reference=True)
    finding = judge(level, seen, other, names, "float64").finding
    if finding is None:
        return math.inf if _alone(level, seen) == _alone(level, other) else -1
    keys = [one.key for one in other]
    key = finding.line, finding.place
    return keys.index(key) if key in keys else -1


def _reached(fault: Fault, suspect: Side, seen: list[Seen], level, case: Case, memo: dict) -> float:
    """Where the suspect parts from the reference with a fault; -1 for a fault that cannot be planted here."""
    try:
        planted = Side(REFERENCE, fault, suspect.device).observe(level, case, memo)
    except Exception:  # noqa: BLE001 - whatever a mistake leads to, there is a finding to be reported
        return -1
    return first_difference(level.name, seen, planted, suspect)


def _alone(level: str, seen: list[Seen]) -> set[tuple[str, str]]:
    """The places at which a side is not what it must be by itself."""
    own = [one for one in seen if one.expected is not None]
    return {one.key for one in own if judge(level, [one], [one], Names("a", "a"), "float64").finding}


def matches(fault: Fault, finding: Finding) -> bool:
    """Whether a finding is where the fault must be named: its pattern is for "line: place"."""
    return any(fnmatch(f"{finding.line}: {finding.place}", pattern) for pattern in fault.place.split("|"))
