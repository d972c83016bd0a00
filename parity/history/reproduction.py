"""Whether the figures reported for the public records follow from the public runs that are archived here.

The archive holds only some of the runs behind the reported figures (31 of 75 for record 15), so most figures cannot be
reproduced exactly. What can be decided is whether the missing runs can account for the difference: whether losses
within the reported extremes exist that, added to the archived ones, give the reported mean and deviation. Where one run
is missing, its loss follows, and everything else tests it. docs/appendix/history.md lists the results.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from parity.history.records import TARGET, History, Record, Run, load, own_runs, runs_of
from parity.statistics import p_below

LOSS_HALF_UNIT = 0.5e-5 + 1e-9  # mean and deviation are reported to 5 decimals; single losses to the 4 of the logs
TIME_HALF_UNIT = 0.5e-2 + 1e-9  # times are reported to a hundredth of a second
P_DIGITS = 3  # p-values are reported to 3 significant digits
LOSS_UNIT = 1e-4  # of a single loss in track 1's logs
FIELDS = ("runs", "loss_mean", "loss_min", "loss_max", "loss_std", "p", "time_mean", "time_min", "steps")
OTHER_HARDWARE_SPREAD = 1.05  # mean over least time; other records stay within 2%, but for one that mixes step counts
SAMPLES = 21

Value = float | int | tuple[int, ...] | None


@dataclass(frozen=True)
class Figures:
    """Statistics of final losses (nats per token) and times (seconds); `p` is of the t-test against 3.28."""

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
    """One record's reported figures against the archived runs.

    `status`: `agrees` (every field), `partly` (runs are missing, and can account for every difference), `unexplained`,
    `no runs` (figures, but no archived run), `no logs` (no figures). `of`: the set of archived runs; `found`: its
    figures; `note`: its peculiarities; `missing`: the number of missing runs; `missing_mean` and `missing_seconds`:
    what those must average.
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
    """One field in which the archived runs do not give the reported figure, with the explanation."""

    record: str
    field: str
    given: Value
    found: Value
    explanation: str


def figures(runs: Sequence[Run]) -> Figures:
    """The figures of one or more runs."""
    losses, times = [run.loss for run in runs], [run.seconds for run in runs if run.seconds is not None]
    return Figures(
        len(runs),
        fmean(losses),
        min(losses),
        max(losses),
        stdev(losses) if len(runs) > 1 else None,
        p_below("small", losses, TARGET) if len(set(losses)) > 1 else None,
        fmean(times) if times else None,
        min(times, default=None),
        tuple(sorted({run.steps for run in runs})),
    )


def agree(field: str, reported: Value, value: Value) -> bool:
    """Whether a computed figure rounds to the reported one."""
    if not isinstance(reported, int | float) or not isinstance(value, int | float) or field == "runs":
        return reported == value
    half = TIME_HALF_UNIT if field.startswith("time") else LOSS_HALF_UNIT
    if field == "p":
        half = 0.5 * 10 ** (math.floor(math.log10(reported)) + 1 - P_DIGITS) * (1 + 1e-9) if reported else 0.0
    return abs(reported - value) <= half


def p_range(record: Record) -> tuple[float, float]:
    """The range of p-values of the t-test against 3.28 that the rounding of the reported mean and deviation allows."""
    from scipy import stats

    if record.runs is None or record.loss_mean is None or record.loss_std is None or record.runs < 2:
        return math.nan, math.nan
    rounding = np.array([-LOSS_HALF_UNIT, LOSS_HALF_UNIT])
    errors = (record.loss_std + rounding) / math.sqrt(record.runs)
    p = stats.t.cdf((record.loss_mean + rounding[:, None] - TARGET) / errors, record.runs - 1)
    return float(p.min()), float(p.max())


def obstacle(losses: Sequence[float], record: Record) -> str:
    """Why no further losses can complete these to the reported figures; "" where some can.

    With n runs reported and m archived, the n - m others must sum to n mean - (sum of the archived), have the squares
    that the deviation leaves, lie within the reported extremes, and contain an extreme that is not archived.
    """
    n, mean, low, high = record.runs or 0, record.loss_mean or 0.0, record.loss_min or 0.0, record.loss_max or 0.0
    missing = n - len(losses)
    if missing < 0:
        return f"{len(losses)} runs are more than the {n} reported"
    if min(losses) < low - LOSS_HALF_UNIT or max(losses) > high + LOSS_HALF_UNIT:
        return f"losses from {min(losses):.4f} to {max(losses):.4f} leave the reported {low:.4f} to {high:.4f}"
    known = list(losses)
    known += [low] * (missing > 0 and min(losses) > low + LOSS_HALF_UNIT)
    known += [high] * (n - len(known) > 0 and max(losses) < high - LOSS_HALF_UNIT)
    if n - len(known) == 1:
        known.append(round((n * mean - sum(known)) / LOSS_UNIT) * LOSS_UNIT)
    return _complete(known, record) if n == len(known) else _incomplete(np.asarray(known), n - len(known), record)


def _complete(losses: Sequence[float], record: Record) -> str:
    """Why losses that are all determined do not have the reported figures; "" where they have."""
    deviation = stdev(losses) if len(losses) > 1 else None
    values = {"loss_mean": fmean(losses), "loss_min": min(losses), "loss_max": max(losses), "loss_std": deviation}
    for field, value in values.items():
        if not agree(field, reported := getattr(record, field), value):
            return f"the only completion has {field} {value:.5f}, reported {reported}"
    return ""


def _incomplete(known: np.ndarray, missing: int, record: Record) -> str:
    """Why `missing` more losses within the extremes cannot give mean and deviation, at any value that rounds to those
    reported; "" where they can."""
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


@functools.lru_cache(maxsize=4)
def reproductions(history: History | None = None) -> tuple[Reproduction, ...]:
    """Every row of the ladder against the archived runs, in the ladder's order."""
    history = history or load()
    return tuple(_reproduce(record, history.runs) for record in history.records)


def disagreements(history: History | None = None) -> list[Disagreement]:
    """Every field in which the archived runs do not give the reported figure, with its explanation."""
    history = history or load()
    rows = []
    for record, result in zip(history.records, reproductions(history), strict=True):
        for field in FIELDS if result.status not in ("agrees", "no logs") else ():
            reported, value = getattr(record, field), getattr(result.found, field, None)
            if not agree(field, reported, value):
                rows.append(Disagreement(record.label, field, reported, value, _explain(field, record, result)))
    return rows


def mixed(record: Record) -> str:
    """Why the reported figures are not of the record alone; "" where nothing says so.

    They are mixed where they cover several step counts, or where the mean time is more than 5% above the least.
    """
    if len(record.steps) > 1:
        return f"runs of {' and '.join(map(str, record.steps))} steps went into the reported figures"
    if record.time_mean and record.time_min and record.time_mean > OTHER_HARDWARE_SPREAD * record.time_min:
        return (
            f"times from {record.time_min:g} s, with a mean of {record.time_mean:g} s: runs on fewer GPUs went into "
            "the reported figures"
        )
    return ""


def _candidates(record: Record, runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Different sets of runs that the reported figures may be of, the widest first."""
    together = runs_of(record, runs)
    sets = [
        ("every complete run of the folder", [run for run in together if run.folder == record.folder]),
        ("every complete run of both folders of this title", together),
        ("the runs that are not of a baseline", [run for run in together if not run.baseline]),
        ("the record's own runs", own_runs(record, together)),
    ]
    return [(name, runs) for i, (name, runs) in enumerate(sets) if runs and all(runs != other for _, other in sets[:i])]


def _obstacle(found: Figures, losses: Sequence[float], record: Record) -> str:
    """Why a set of runs cannot be among those of the reported figures; "" where it can."""
    if unknown := set(found.steps) - set(record.steps):
        return f"runs of {min(unknown)} steps are not among the reported {' and '.join(map(str, record.steps))}"
    least_s = record.time_min or 0.0
    if found.time_min is not None and found.time_min < least_s - TIME_HALF_UNIT:
        return f"a time of {found.time_min:.2f} s is below the least reported, {least_s:g} s"
    missing_s = _missing_seconds(found, record)
    if missing_s is not None and missing_s < least_s - TIME_HALF_UNIT * (record.runs or 1):
        return f"the missing runs would have to take {missing_s:.2f} s, below the least reported, {record.time_min:g} s"
    return obstacle(losses, record)


def _missing_seconds(found: Figures, record: Record) -> float | None:
    n = record.runs or 0
    if n <= found.runs or found.time_mean is None or record.time_mean is None:
        return None
    return (n * record.time_mean - found.runs * found.time_mean) / (n - found.runs)


def _reproduce(record: Record, runs: Sequence[Run]) -> Reproduction:
    if record.runs is None:
        return Reproduction(record.label, "no logs", "", "no figures of logs are reported")
    results = []
    for name, candidate in _candidates(record, runs):
        losses, found = [run.loss for run in candidate], figures(candidate)
        results.append((name, found, losses, _obstacle(found, losses, record)))
    if not results:
        sentence = f"none of its {record.runs} run(s) is archived here: nothing to compare"
        return Reproduction(record.label, "no runs", "", sentence, missing=record.runs)
    for name, found, _, problem in results:
        if not problem and all(agree(field, getattr(record, field), getattr(found, field)) for field in FIELDS):
            return Reproduction(record.label, "agrees", name, f"every figure follows from {name}", found)
    for name, found, losses, problem in results:
        if not problem and found.runs < record.runs:
            return _partly(record, name, found, losses, _peculiarities(record, runs))
    problems = [f"{name}: {problem or 'as many runs, other figures'}" for name, _, _, problem in results]
    name, found, *_ = results[0]
    sentence = f"unexplained: {'; '.join(problems)}"
    return Reproduction(record.label, "unexplained", name, sentence, found, record.runs - found.runs)


def _partly(record: Record, name: str, found: Figures, losses: Sequence[float], note: str) -> Reproduction:
    n, missing = record.runs or 0, (record.runs or 0) - found.runs
    mean, seconds = (n * (record.loss_mean or 0.0) - sum(losses)) / missing, _missing_seconds(found, record)
    sentence = f"{found.runs} of the {n} runs are archived ({name}); " + (
        f"one run of {mean:.4f} accounts for mean and deviation"
        if missing == 1
        else f"{missing} runs that average {mean:.4f}, within the reported extremes, account for mean and deviation"
    )
    sentence += f"; {note}" if note else ""
    return Reproduction(record.label, "partly", name, sentence, found, missing, mean, seconds, note)


def _peculiarities(record: Record, runs: Sequence[Run]) -> str:
    """What a reader of the folder must know: mixed figures, runs that ended early, copies of another record's run."""
    folder = [run for run in runs if run.folder == record.folder]
    early = sum(not run.complete for run in folder)
    copies = {
        other.folder for run in folder for other in runs if other.folder != run.folder and other.points == run.points
    }
    notes = [
        mixed(record),
        f"{early} run(s) that ended early are left out" if early else "",
        f"it contains a copy of a run of {' and '.join(sorted(copies))}" if copies else "",
    ]
    return "; ".join(note for note in notes if note)


def _explain(field: str, record: Record, result: Reproduction) -> str:
    """Why one field differs; begins with `unexplained` where the missing runs cannot account for it."""
    if result.status != "partly" or result.found is None:
        return result.sentence
    few = f"{result.found.runs} of {record.runs} runs are archived"
    others = f"{few}; the other {result.missing} must average"
    if field == "runs":
        return f"{few} ({result.of})"
    if field == "loss_mean":
        return f"{others} {result.missing_mean:.4f}, within the reported extremes"
    if field == "loss_std":
        return f"{few}; losses within the reported extremes exist that complete the reported deviation"
    if field in ("loss_min", "loss_max", "time_min"):
        return f"{few}; the reported extreme is that of a missing run"
    if field == "p":
        low, high = p_range(record)
        follows = low * (1 - 5e-3) <= (record.p or 0.0) <= high * (1 + 5e-3)
        return (
            f"{few}; the reported p {'follows' if follows else 'does NOT follow: unexplained'} from the reported "
            f"number of runs, mean and deviation ({low:.3g} to {high:.3g} for their rounding)"
        )
    if field == "steps":
        absent = [str(steps) for steps in record.steps if steps not in result.found.steps]
        return f"{few}; none of them has {' or '.join(absent)} steps"
    seconds = result.missing_seconds
    many = "; some of them ran on fewer GPUs" if seconds and record.seconds and seconds > 2 * record.seconds else ""
    return f"{others} {seconds:.2f} s{many}" if seconds else few
