"""Whether the figures given for the public records come out again from the public runs that are kept here.

The runs kept are a part of those that the given figures were made of (for record 15, 31 of 75), so most figures cannot
come out alike. What can be decided is whether the missing runs can account for the difference: whether losses within
the given extremes exist that, added to those found, give the given mean and deviation. Where one run is missing, its
loss follows, and all else is a test of it. docs/history.md lists what was found.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from parity.history.records import TARGET, History, Record, Run, load, own_runs, runs_of
from parity.statistics import t_test

LOSS_HALF_UNIT = 0.5e-5 + 1e-9  # mean and deviation are given to 5 decimals; single losses to the 4 of the logs
TIME_HALF_UNIT = 0.5e-2 + 1e-9  # times are given to a hundredth of a second
P_DIGITS = 3  # p-values are given to 3 significant digits
LOSS_UNIT = 1e-4  # of a single loss in track 1's logs
FIELDS = ("runs", "loss_mean", "loss_min", "loss_max", "loss_std", "p", "time_mean", "time_min", "steps")
OTHER_HARDWARE_SPREAD = (
    1.05  # mean over least time; those of the other records are within 2%, but for one that mixes step counts
)
SAMPLES = 21

Value = float | int | tuple[int, ...] | None


@dataclass(frozen=True)
class Figures:
    """What a set of final losses (nats per token) and times (seconds) amounts to; `p` is of the t-test against 3.28."""

    runs: int
    loss_mean: float
    loss_min: float
    loss_max: float
    loss_std: float | None
    p: float | None
    time_mean: float | None
    time_min: float | None
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Reproduction:
    """One record's given figures against the runs kept here.

    `status`: `agrees` (every field), `partly` (fewer runs are kept, and those missing can account for every
    difference), `unexplained`, `no runs` (figures are given, no run is kept), `no logs` (no figures are given). `of`
    says which runs were taken, `note` what is odd about them, `missing` how many are not kept, `missing_mean` and
    `missing_seconds` what the missing must average.
    """

    record: str
    status: str
    of: str
    sentence: str
    found: Figures | None = None
    missing: int = 0
    missing_mean: float | None = None
    missing_seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Disagreement:
    """One field in which what was found is not what is given, and why, or that it is unexplained."""

    record: str
    field: str
    given: Value
    found: Value
    explanation: str


def figures(runs: Sequence[Run]) -> Figures:
    """The figures of one or more runs."""
    losses, times = [run.loss for run in runs], [run.seconds for run in runs if run.seconds is not None]
    differ = len(set(losses)) > 1
    return Figures(
        len(runs),
        fmean(losses),
        min(losses),
        max(losses),
        stdev(losses) if len(runs) > 1 else None,
        t_test(losses, TARGET).p if differ else None,
        fmean(times) if times else None,
        min(times, default=None),
        tuple(sorted({run.steps for run in runs})),
    )


def agree(field: str, given: Value, found: Value) -> bool:
    """Whether a figure found rounds to the one given."""
    if not isinstance(given, int | float) or not isinstance(found, int | float) or field == "runs":
        return given == found
    half = TIME_HALF_UNIT if field.startswith("time") else LOSS_HALF_UNIT
    if field == "p":
        half = 0.5 * 10 ** (math.floor(math.log10(given)) + 1 - P_DIGITS) * (1 + 1e-9) if given else 0.0
    return abs(given - found) <= half


def p_range(record: Record) -> tuple[float, float]:
    """Between which p-values the given number of runs, mean and deviation leave the t-test against 3.28, for their
    rounding."""
    from scipy import stats

    if record.runs is None or record.loss_mean is None or record.loss_std is None or record.runs < 2:
        return math.nan, math.nan
    found = [
        float(
            stats.t.cdf(
                (record.loss_mean + dm - TARGET) / (record.loss_std + ds) * math.sqrt(record.runs), record.runs - 1
            )
        )
        for dm in (-LOSS_HALF_UNIT, LOSS_HALF_UNIT)
        for ds in (-LOSS_HALF_UNIT, LOSS_HALF_UNIT)
    ]
    return min(found), max(found)


def obstacle(losses: Sequence[float], record: Record) -> str:
    """Why no further losses can make the found ones into the given figures; "" where some can.

    With n runs given and m found, the n - m others must sum to n mean - (sum found) and have the squares that the
    deviation leaves; they must lie within the given extremes, and contain an extreme that was not found.
    """
    n, mean, low, high = record.runs or 0, record.loss_mean or 0.0, record.loss_min or 0.0, record.loss_max or 0.0
    missing = n - len(losses)
    if missing < 0:
        return f"{len(losses)} runs are more than the {n} given"
    if min(losses) < low - LOSS_HALF_UNIT or max(losses) > high + LOSS_HALF_UNIT:
        return f"losses from {min(losses):.4f} to {max(losses):.4f} leave the given {low:.4f} to {high:.4f}"
    known = list(losses)
    known += [low] * (missing > 0 and min(losses) > low + LOSS_HALF_UNIT)
    known += [high] * (n - len(known) > 0 and max(losses) < high - LOSS_HALF_UNIT)
    if n - len(known) == 1:
        known.append(round((n * mean - sum(known)) / LOSS_UNIT) * LOSS_UNIT)
    if n == len(known):
        return _whole(known, record)
    return _further(np.asarray(known), n - len(known), record)


def _whole(losses: Sequence[float], record: Record) -> str:
    """Whether losses that are all determined have the given figures."""
    found = {
        "loss_mean": fmean(losses),
        "loss_min": min(losses),
        "loss_max": max(losses),
        "loss_std": stdev(losses) if len(losses) > 1 else None,
    }
    for field, value in found.items():
        if not agree(field, given := getattr(record, field), value):
            return f"the only completion has {field} {value:.5f}, given {given}"
    return ""


def _further(known: np.ndarray, missing: int, record: Record) -> str:
    """Whether `missing` more losses within the extremes can give mean and deviation, at any value that rounds to those
    given."""
    n, low, high, spread = record.runs or 0, record.loss_min or 0.0, record.loss_max or 0.0, record.loss_std or 0.0
    means = (record.loss_mean or 0.0) + np.linspace(-LOSS_HALF_UNIT, LOSS_HALF_UNIT, SAMPLES)
    further = (n * means - known.sum()) / missing
    inside = (further >= low) & (further <= high)
    if not inside.any():
        return f"the missing {missing} would have to average {further.mean():.5f}, outside {low:.4f} to {high:.4f}"
    rest = ((known[:, None] - means) ** 2).sum(0)
    least, most = [
        ((n - 1) * (spread + d) ** 2 - rest) / missing - (further - means) ** 2
        for d in (-LOSS_HALF_UNIT, LOSS_HALF_UNIT)
    ]
    # the variance of numbers between two bounds is between 0 and this (Bhatia-Davis); single losses are rounded, by up
    # to half a unit
    room = (high - further) * (further - low) + LOSS_UNIT**2 / 4
    if not (inside & (most >= 0) & (least <= room)).any():
        return f"no {missing} losses between {low:.4f} and {high:.4f} give the deviation {spread}"
    return ""


def reproductions(history: History | None = None) -> tuple[Reproduction, ...]:
    """Every row of the ladder against the runs kept, in the ladder's order."""
    return _reproductions(history or load())


@functools.lru_cache(maxsize=4)
def _reproductions(history: History) -> tuple[Reproduction, ...]:
    return tuple(_reproduce(record, history.runs) for record in history.records)


def disagreements(history: History | None = None) -> list[Disagreement]:
    """Every field in which the runs kept do not give the reported figure, with its explanation."""
    history = history or load()
    rows = []
    for record, result in zip(history.records, reproductions(history), strict=True):
        if result.status not in ("agrees", "no logs"):
            found = result.found
            rows += [
                Disagreement(record.label, field, given, value, _explain(field, record, result))
                for field in FIELDS
                if not agree(field, given := _given(record, field), value := getattr(found, field) if found else None)
            ]
    return rows


def mixed(record: Record) -> str:
    """Why the given figures are not of the record alone; "" where nothing says so.

    They mix where several step counts went in, or where the mean time is more than 5% above the least.
    """
    if len(record.steps) > 1:
        return f"runs of {' and '.join(map(str, record.steps))} steps went into the figures given"
    if record.time_mean and record.time_min and record.time_mean > OTHER_HARDWARE_SPREAD * record.time_min:
        return (
            f"times from {record.time_min:g} s, with a mean of {record.time_mean:g} s: runs on fewer GPUs went "
            "into the "
            "figures given"
        )
    return ""


def _candidates(record: Record, runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Sets of runs that the given figures may be of, the widest first."""
    together = runs_of(record, runs)
    folder = [run for run in together if run.folder == record.folder]
    sets = [
        ("every complete run of the folder", folder),
        ("every complete run of both folders of this title", together),
        ("the runs that are not of a baseline", [run for run in together if not run.baseline]),
        ("the record's own runs", own_runs(record, together)),
    ]
    return [(name, kept) for i, (name, kept) in enumerate(sets) if kept and all(kept != other for _, other in sets[:i])]


def _obstacle(found: Figures, losses: Sequence[float], record: Record) -> str:
    """Why a set of runs cannot be a part of those that the given figures are of; "" where it can."""
    if strange := set(found.steps) - set(record.steps):
        return f"runs of {min(strange)} steps are not among the given {' and '.join(map(str, record.steps))}"
    if (found.time_min is not None and record.time_min) and found.time_min < record.time_min - TIME_HALF_UNIT:
        return f"a time of {found.time_min:.2f} s is below the least given, {record.time_min:g} s"
    missing_s = _missing_seconds(found, record)
    if missing_s is not None and missing_s < (record.time_min or 0.0) - TIME_HALF_UNIT * (record.runs or 1):
        return f"the missing runs would have to take {missing_s:.2f} s, below the least given, {record.time_min:g} s"
    return obstacle(losses, record)


def _missing_seconds(found: Figures, record: Record) -> float | None:
    missing = (record.runs or 0) - found.runs
    if missing <= 0 or found.time_mean is None or record.time_mean is None:
        return None
    return ((record.runs or 0) * record.time_mean - found.runs * found.time_mean) / missing


def _reproduce(record: Record, runs: Sequence[Run]) -> Reproduction:
    if record.runs is None:
        return Reproduction(record.label, "no logs", "", "no figures of logs are reported")
    candidates = [(name, figures(kept), [run.loss for run in kept]) for name, kept in _candidates(record, runs)]
    if not candidates:
        return Reproduction(
            record.label,
            "no runs",
            "",
            f"of {record.runs} run(s) none is kept here: nothing can be compared",
            None,
            record.runs,
        )
    obstacles = [_obstacle(found, losses, record) for _, found, losses in candidates]
    for (name, found, _), problem in zip(candidates, obstacles, strict=True):
        if not problem and all(agree(field, _given(record, field), getattr(found, field)) for field in FIELDS):
            return Reproduction(record.label, "agrees", name, f"every figure comes out again from {name}", found)
    for (name, found, losses), problem in zip(candidates, obstacles, strict=True):
        if not problem and found.runs < record.runs:
            return _partly(record, name, found, losses, _oddities(record, runs))
    name, found, _ = candidates[0]
    problems = "; ".join(
        f"{name}: {problem or 'the same number of runs, other figures'}"
        for (name, _, _), problem in zip(candidates, obstacles, strict=True)
    )
    return Reproduction(record.label, "unexplained", name, f"unexplained: {problems}", found, record.runs - found.runs)


def _partly(record: Record, name: str, found: Figures, losses: Sequence[float], note: str) -> Reproduction:
    n, missing = record.runs or 0, (record.runs or 0) - found.runs
    mean, seconds = (n * (record.loss_mean or 0.0) - sum(losses)) / missing, _missing_seconds(found, record)
    sentence = f"{found.runs} of the {n} runs are kept ({name}); " + (
        f"one run of {mean:.4f} accounts for mean and deviation"
        if missing == 1
        else f"{missing} runs that average {mean:.4f}, within the extremes given, account for mean and deviation"
    )
    if note:
        sentence += f"; {note}"
    return Reproduction(record.label, "partly", name, sentence, found, missing, mean, seconds, note)


def _oddities(record: Record, runs: Sequence[Run]) -> str:
    """What a reader of the folder has to notice: mixed figures, runs that ended early, copies of another record's
    run."""
    folder = [run for run in runs if run.folder == record.folder]
    early = sum(not run.complete for run in folder)
    copies = {
        other.folder for run in folder for other in runs if other.folder != run.folder and other.points == run.points
    }
    notes = [
        mixed(record),
        f"{early} run(s) that ended early are left out" if early else "",
        f"a run of {' and '.join(sorted(copies))} is among them, copied" if copies else "",
    ]
    return "; ".join(note for note in notes if note)


def _given(record: Record, field: str) -> Value:
    return getattr(record, field)


def _explain(field: str, record: Record, result: Reproduction) -> str:
    """Why one field differs; begins with `unexplained` where nobody can say."""
    if result.status != "partly":
        return result.sentence
    few = f"{result.found.runs if result.found else 0} of {record.runs} runs are kept"
    if field == "runs":
        return f"{few} ({result.of})"
    if field == "loss_mean":
        return f"{few}; the other {result.missing} must average {result.missing_mean:.4f}, within the extremes given"
    if field == "loss_std":
        return f"{few}; losses within the extremes given exist that make up the given deviation"
    if field in ("loss_min", "loss_max", "time_min"):
        return f"{few}; the extreme given is that of a run that is not kept"
    if field == "p":
        low, high = p_range(record)
        said = (
            "follows" if low * (1 - 5e-3) <= (record.p or 0.0) <= high * (1 + 5e-3) else "does NOT follow: unexplained"
        )
        return (
            f"{few}; the p given {said} from the given number of runs, mean and deviation ({low:.3g} to {high:.3g} for "
            "their rounding)"
        )
    if field == "steps":
        lacking = [str(steps) for steps in record.steps if steps not in (result.found or record).steps]
        return f"{few}; none of those kept has {' or '.join(lacking)} steps"
    seconds = result.missing_seconds
    many = "; some of them ran on fewer GPUs" if seconds and record.seconds and seconds > 2 * record.seconds else ""
    return f"{few}; the other {result.missing} must average {seconds:.2f} s{many}" if seconds else few
