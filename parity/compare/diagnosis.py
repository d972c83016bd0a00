"""The likeliest reasons of a finding: faults of the catalogue are planted in the reference until one explains it."""

import dataclasses
import importlib.util
import math
from fnmatch import fnmatch

from parity.compare.case import Case
from parity.compare.faults.catalogue import FAULTS
from parity.compare.faults.plant import Fault
from parity.compare.judge import Pairing, judge
from parity.compare.levels import Level
from parity.compare.observation import Finding, Observation
from parity.compare.side import Memo, Side

REFERENCE = "torchref"  # needs no compilation for every fault
NOT_TRIED = ("layout",)  # each try would be a set of processes
PLANTED = " planted in "


def diagnosed(
    finding: Finding, level: Level, case: Case, observed: dict[Side, list[Observation]], memo: Memo
) -> Finding:
    """The finding with its reasons: the side that departs from the reference, and the faults that, planted in the
    reference, make the two agree. If there are none: the catalogue's faults that show at this location."""
    known = [fault for fault in FAULTS.values() if fault.level == level.name and case.recipe.name in fault.recipes]
    here = [fault for fault in known if matches(fault, finding)]
    reasons = tuple(f"perhaps: {fault.sentence}" for fault in here[:3])
    tiny = case.track.scale == "tiny"  # the catalogue's scale
    if (
        tiny
        and case.recipe.precision == "float64"
        and level.name not in NOT_TRIED
        and importlib.util.find_spec("torch")
    ):
        groups = here, [fault for fault in known if fault not in here]
        reasons = _departure(level, case, groups, observed, memo, reasons)
    return dataclasses.replace(finding, reasons=reasons)


def _departure(
    level: Level,
    case: Case,
    groups: tuple[list[Fault], ...],
    observed: dict[Side, list[Observation]],
    memo: Memo,
    otherwise: tuple[str, ...],
) -> tuple[str, ...]:
    """Which side departs from the reference, and with which fault of the first group that has one the reference
    agrees the longest; `otherwise` where neither side departs, or for want of such a fault."""
    a, b = observed
    reference = next((side for side in (b, a) if side.backend == REFERENCE and not side.fault), None)
    reference = reference or Side(REFERENCE, device=a.device)
    plain = reference.observe(level, case, memo)
    departures = {
        side: first_difference(level.name, observations, plain, side)
        for side, observations in observed.items()
        if side is not reference
    }
    suspect = next((side for side, index in departures.items() if index < math.inf), None)
    if suspect is None:
        return otherwise
    who = f"{suspect.name} departs from {REFERENCE}"
    if suspect.name == REFERENCE:
        who = f"this {REFERENCE} departs from a plain one"
    for candidates in groups:
        agreement = {
            fault: _agreement(fault, suspect, observed[suspect], level, case, memo)
            for fault in candidates
            if REFERENCE in fault.backends
        }
        longest = max(agreement.values(), default=0)
        if longest > departures[suspect]:
            until = f" as far as {plain[int(longest)].location}" if longest < len(plain) else ""
            return tuple(
                f"{who}; with the mistake {fault.name}{PLANTED}{REFERENCE} they agree{until}: {fault.sentence}"
                for fault, index in agreement.items()
                if index == longest
            )
    return who, *otherwise


def first_difference(level: str, observations: list[Observation], reference: list[Observation], side: Side) -> float:
    """The index of the first value at which a side departs from the reference in float64; infinite where they agree and
    miss what is expected of each alone at the same locations."""
    pairing = Pairing("a", "b", strict=bool(side.backend), check_expected=False, b_is_reference=True)
    finding = judge(level, observations, reference, pairing, "float64").finding
    if finding is None:
        return math.inf if _unexpected(level, observations) == _unexpected(level, reference) else -1
    keys, key = [x.key for x in reference], (finding.line, finding.location)
    return keys.index(key) if key in keys else -1


def _agreement(
    fault: Fault, suspect: Side, observations: list[Observation], level: Level, case: Case, memo: Memo
) -> float:
    """Where the suspect departs from the reference with a fault; -1 for a fault that cannot be planted here."""
    try:
        planted = Side(REFERENCE, fault, suspect.device).observe(level, case, memo)
    except Exception:  # noqa: BLE001 - whatever a fault leads to, there is a finding to be reported
        return -1
    return first_difference(level.name, observations, planted, suspect)


def _unexpected(level: str, observations: list[Observation]) -> set[tuple[str, str]]:
    """The locations at which a side is not what is expected of it alone."""
    pairing = Pairing("a", "a")
    expected = [x for x in observations if x.expected is not None]
    return {x.key for x in expected if judge(level, [x], [x], pairing, "float64").finding}


def matches(fault: Fault, finding: Finding) -> bool:
    """Whether a finding is where the fault must be found: its pattern is for "line: location"."""
    return any(fnmatch(f"{finding.line}: {finding.location}", pattern) for pattern in fault.location.split("|"))


def named_faults(finding: Finding) -> list[str]:
    """The faults that the reasons name."""
    return [reason.split(PLANTED)[0].split()[-1] for reason in finding.reasons if PLANTED in reason]
