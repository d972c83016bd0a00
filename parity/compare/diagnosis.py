"""The likeliest reasons of a finding: faults of the catalogue are planted in the reference until one explains it."""

import dataclasses
import importlib.util
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

from parity.compare.case import Case
from parity.compare.faults.catalogue import FAULTS
from parity.compare.faults.plant import Fault
from parity.compare.judge import Pairing, judge
from parity.compare.levels import LEVELS, Level
from parity.compare.observation import Finding, Observation, difference
from parity.compare.side import Memo, Side
from parity.progress import ProgressLine

REFERENCE = "torchref"  # needs no compilation for every fault
NOT_TRIED = ("layout",)  # each try would be a set of processes
PLANTED = " planted in "
SHOWS_LATER = {  # the levels behind its own at which a fault shows, for whoever cannot or does not ask for its own
    "data": ("trajectory", "evaluation"),
    "forward": ("loss", "gradients", "trajectory", "evaluation"),
    "loss": ("gradients", "trajectory", "evaluation"),
    "gradients": ("update", "trajectory", "evaluation"),
    "update": ("trajectory", "evaluation"),
}
LATER_S = 120.0  # how long faults of earlier levels are tried
ALIKE = 30.0  # a mistake whose effect is larger or smaller by more than this is no guess
BETTER = 10.0  # a mistake that explains so much of a difference is one
PARALLEL = 0.99  # cosine of two differences that have the same reason in another amount


@dataclass(frozen=True)
class _Trial:
    """A fault planted in the reference: the index of the first value at which the suspect still departs, what is then
    left of the difference that was found, the fault's own effect there, and the cosine of the two; nan where there are
    no numbers."""

    fault: Fault
    agrees_to: float
    left: float
    effect: float
    cosine: float


def diagnosed(
    finding: Finding,
    level: Level,
    case: Case,
    observed: dict[Side, list[Observation]],
    memo: Memo,
    judged: Collection[str] = tuple(LEVELS),
) -> Finding:
    """The finding with its reasons: the side that departs from the reference, and the faults that, planted in the
    reference, make the two agree. If there are none: the catalogue's faults that show at this location, and have an
    effect of about this size.

    `judged`: the levels that hold at every location, whose faults cannot be the reason.
    """
    known = [fault for fault in FAULTS.values() if case.recipe.name in fault.recipes]
    own = [fault for fault in known if fault.level == level.name]
    here = [fault for fault in own if matches(fault, finding)]
    reasons = tuple(f"perhaps: {fault.sentence}" for fault in here[:3])
    tiny = case.track.scale == "tiny"  # the catalogue's scale
    if (
        tiny
        and case.recipe.precision == "float64"
        and level.name not in NOT_TRIED
        and importlib.util.find_spec("torch")
    ):
        earlier = [name for name, later in SHOWS_LATER.items() if level.name in later and name not in judged]
        groups = [here, [fault for fault in own if fault not in here]]
        groups += [[fault for fault in known if fault.level == name] for name in earlier]
        reasons = _departure(finding, level, case, groups, observed, memo)
        if not any(PLANTED in reason for reason in reasons) and "forward" in earlier:
            reasons += ("level forward was not judged in full, which names the first tensor that differs",)
    return dataclasses.replace(finding, reasons=reasons)


def _departure(
    finding: Finding,
    level: Level,
    case: Case,
    groups: Sequence[list[Fault]],
    observed: dict[Side, list[Observation]],
    memo: Memo,
) -> tuple[str, ...]:
    """Which side departs from the reference, and with which fault of the first group that has one the reference
    agrees the longest; for want of such a fault, or where neither side departs, guesses."""
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
        return tuple(f"perhaps: {fault.sentence}" for fault in groups[0][:3])
    who = f"{suspect.name} departs from {REFERENCE}"
    if suspect.name == REFERENCE:
        who = f"this {REFERENCE} departs from a plain one"
    trials: list[_Trial] = []
    begin_s, progress = time.monotonic(), ProgressLine()
    for number, candidates in enumerate(groups):
        tried = []
        for fault in (fault for fault in candidates if REFERENCE in fault.backends):
            if number > 1 and time.monotonic() - begin_s > LATER_S:
                break
            progress.draw(f"looking for the reason: {fault.name}")
            tried += _trial(fault, suspect, observed[suspect], plain, finding, level, case, memo)
        progress.draw("")
        longest = max((trial.agrees_to for trial in tried), default=0)
        if longest > departures[suspect]:
            until = f" as far as {plain[int(longest)].location}" if longest < len(plain) else ""
            return tuple(
                f"{who}; with the mistake {trial.fault.name}{PLANTED}{REFERENCE} they agree{until}: "
                f"{trial.fault.sentence}"
                for trial in tried
                if trial.agrees_to == longest
            )
        trials += tried
    found, _ = _apart(observed[suspect], plain, finding)
    return who, *_guesses(trials, groups[0], found)


def _guesses(trials: list[_Trial], here: list[Fault], found: float) -> Iterator[str]:
    """The fault that explains most of the difference; or those that give a multiple of it; or those that show at this
    location and have an effect of about its size."""
    best = min(trials, key=lambda trial: trial.left if trial.left >= 0 else math.inf, default=None)
    if best and best.left * BETTER < found:
        yield (
            f"perhaps, beside another: {best.fault.sentence} ({best.fault.name}: with it in {REFERENCE} the difference "
            f"falls from {found:.2g} to {best.left:.2g})"
        )
        return
    alike = [trial for trial in trials if not _of_other_size(trial.effect, found)]
    parallel = [trial for trial in alike if abs(trial.cosine) > PARALLEL]
    for trial in sorted(parallel, key=lambda trial: -abs(trial.cosine))[:3]:
        yield f"perhaps, in another amount or sign: {trial.fault.sentence} ({trial.fault.name})"
    if not parallel:
        yield from [f"perhaps: {trial.fault.sentence}" for trial in alike if trial.fault in here][:3]


def _of_other_size(effect: float, found: float) -> bool:
    """Whether a fault's effect is larger or smaller by orders of magnitude than the difference that was found."""
    return effect * ALIKE < found or effect > found * ALIKE  # false for nan


def _apart(a: list[Observation], b: list[Observation], finding: Finding) -> tuple[float, np.ndarray]:
    """The relative difference of two sides where the finding is, and a - b; nan where they have no numbers there."""
    key = finding.line, finding.location
    x, y = (next((x for x in observations if x.key == key), None) for observations in (a, b))
    if x is None or y is None or isinstance(x.value, str) or x.value.shape != y.value.shape:
        return math.nan, np.array(math.nan)
    apart = np.asarray(x.value, np.float64) - np.asarray(y.value, np.float64)
    return difference(x.value, y.value, y.scale, "float64").relative, apart


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Of two arrays of more than one number; else nan."""
    if x.shape != y.shape or x.size < 2 or not x.any() or not y.any():
        return math.nan
    return float(np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y)))


def first_difference(level: str, observations: list[Observation], reference: list[Observation], side: Side) -> float:
    """The index of the first value at which a side departs from the reference in float64; infinite where they agree and
    miss what is expected of each alone at the same locations."""
    pairing = Pairing("a", "b", strict=bool(side.backend), check_expected=False, b_is_reference=True)
    finding = judge(level, observations, reference, pairing, "float64").finding
    if finding is None:
        return math.inf if _unexpected(level, observations) == _unexpected(level, reference) else -1
    keys, key = [x.key for x in reference], (finding.line, finding.location)
    return keys.index(key) if key in keys else -1


def _trial(
    fault: Fault,
    suspect: Side,
    observations: list[Observation],
    plain: list[Observation],
    finding: Finding,
    level: Level,
    case: Case,
    memo: Memo,
) -> list[_Trial]:
    """The suspect against the reference with a fault; nothing for a fault that cannot be planted here."""
    try:
        planted = Side(REFERENCE, fault, suspect.device).observe(level, case, memo)
        agrees_to = first_difference(level.name, observations, planted, suspect)
        effect, change = _apart(planted, plain, finding)
        cosine = _cosine(_apart(observations, plain, finding)[1], change)
        return [_Trial(fault, agrees_to, _apart(observations, planted, finding)[0], effect, cosine)]
    except Exception:  # noqa: BLE001 - whatever a fault leads to, there is a finding to be reported
        return []


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
