"""What each public record gave: seconds, percent, share of the whole, nats, and how sure that is.

The gains in seconds are between the claims of neighbouring rows of the ladder. Nothing of this is verified, and
machines drift by 5 to 8% between sessions, so that a claim of less needs the older program timed beside the new one.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from parity.history.records import (
    TARGET,
    History,
    Record,
    Run,
    baseline_runs,
    load,
    mean_curve,
    own_runs,
    same_hardware,
)
from parity.history.reproduction import figures, mixed
from parity.statistics import ALPHA, holm, welch

DRIFT = "5 to 8%"
DRIFT_PERCENT = 8.0
LOGS_DIFFER_PERCENT = 2.0  # logs whose mean time is further than this from the claim were not timed where the claim was


@dataclass(frozen=True)
class Gain:
    """A row of the ladder against the row before it. Positive is better: seconds, percent and nats saved.

    `share` is ln(old seconds / new seconds) over that from the first row to the last. `nats`: old minus new mean final
    loss. `p_lower` and `p_higher`: Welch's one-sided p that the new mean loss is lower, or higher; `loss_runs` how many
    runs of each. `log_seconds`: old minus new mean time of logs, `beside` where the old were run in the new record's
    own folder; `p_time` its one-sided p. `nats_at_equal_time`: the older mean curve, interpolated at the new mean final
    time, minus the new mean final loss. `drift_percent`: mean time of the record's own logs over its claim. None:
    cannot be said; `sure` has the reason.
    """

    record: str
    sure: str
    short: str
    seconds: float | None = None
    percent: float | None = None
    share: float | None = None
    nats: float | None = None
    loss_runs: tuple[int, int] | None = None
    p_lower: float | None = None
    p_higher: float | None = None
    log_seconds: float | None = None
    time_runs: tuple[int, int] | None = None
    p_time: float | None = None
    beside: bool = False
    nats_at_equal_time: float | None = None
    drift_percent: float | None = None


@dataclass(frozen=True)
class Summary:
    """How many gains are shown: tests done, and those that hold at 0.01, `single` on their own, the others after Holm's
    correction over all of their kind.

    `target`: given p-values that the mean is below 3.28, how many are below 0.01, and how many after Holm.
    `time_beside` and `time_logs` divide the time tests by what they compare with; they hold under one correction.
    """

    records: int
    loss_tests: int
    loss_lower_single: int
    loss_lower: int
    loss_higher_single: int
    loss_higher: int
    time_tests: int
    time_faster: int
    time_beside: tuple[int, int]
    time_logs: tuple[int, int]
    target_tests: int
    target_single: int
    target_holm: int
    drift: tuple[float, float]


@dataclass(frozen=True)
class _Loss:
    """Final losses of a record: runs, mean and deviation in nats per token (None for one run)."""

    runs: int
    mean: float
    sd: float | None


def gains(history: History | None = None) -> tuple[Gain, ...]:
    """Every row of the ladder against the row before it, in the ladder's order."""
    return _gains(history or load())


@functools.lru_cache(maxsize=4)
def _gains(history: History) -> tuple[Gain, ...]:
    whole = math.log(history.records[0].seconds / history.records[-1].seconds)
    return tuple(_gain(history.records, index, history.runs, whole) for index in range(len(history.records)))


def summary(history: History | None = None) -> Summary:
    """How many of the records are significant one by one, each kind of test under Holm's correction."""
    history = history or load()
    rows = gains(history)
    lower, higher = [[p for g in rows if (p := getattr(g, name)) is not None] for name in ("p_lower", "p_higher")]
    timed = [g for g in rows if g.p_time is not None]
    faster = holm([g.p_time for g in timed if g.p_time is not None])[1] if timed else []
    beside = [held for g, held in zip(timed, faster, strict=True) if g.beside]
    logs = [held for g, held in zip(timed, faster, strict=True) if not g.beside]
    target = [r.p for r in history.records if r.p is not None]
    drifts = [g.drift_percent for g in rows if g.drift_percent is not None]
    return Summary(
        len({r.n for r in history.records}),
        len(lower),
        sum(p < ALPHA for p in lower),
        sum(holm(lower)[1]),
        sum(p < ALPHA for p in higher),
        sum(holm(higher)[1]),
        len(timed),
        sum(faster),
        (len(beside), sum(beside)),
        (len(logs), sum(logs)),
        len(target),
        sum(p < ALPHA for p in target),
        sum(holm(target)[1]),
        (min(drifts), max(drifts)),
    )


def loss_at(curve: Sequence[tuple[int, float | None, float]], seconds: float) -> float | None:
    """A mean curve's loss at a training time, linear between evaluations; None outside them or without times.

    Between evaluations a falling curve lies below the line, so this is too high rather than too low: for a reader, not
    for a claim.
    """
    for (_, s0, loss0), (_, s1, loss1) in itertools.pairwise(curve):
        if s0 is not None and s1 is not None and s0 <= seconds <= s1 and s1 > s0:
            return loss0 + (loss1 - loss0) * (seconds - s0) / (s1 - s0)
    return None


def _gain(records: Sequence[Record], index: int, runs: Sequence[Run], whole: float) -> Gain:
    record, own = records[index], own_runs(records[index], runs)
    drift = _drift(record, own)
    if not index:
        return Gain(record.label, "the first: nothing to compare it with", "first", drift_percent=drift)
    if record.retiming:
        why = f"record {record.n} timed again under other conditions: no gain of its own; its three times span 2.7%"
        return Gain(record.label, why + _say_drift(record, record, None, own), "re-timed", drift_percent=drift)
    before = records[index - 1]
    before_own, older = own_runs(before, runs), baseline_runs(record, runs)
    new, old = _losses(record, own), _losses(before, before_own)
    p_lower, p_higher = _loss_test(new, old)
    log_seconds, time_runs, p_time, beside = _time_test(own, older, before_own)
    percent = 100 * (before.seconds - record.seconds) / before.seconds
    if log_seconds is not None and time_runs and p_time is not None:
        said, short = _say_time(percent, log_seconds, time_runs, p_time, beside)
    else:
        said, short = _say_untimed(percent, len(own), len(older), len(before_own))
    return Gain(
        record.label,
        f"{said}; {_say_loss(new, old, p_lower, p_higher)}{_say_drift(record, before, drift, own)}",
        short,
        seconds=before.seconds - record.seconds,
        percent=percent,
        share=math.log(before.seconds / record.seconds) / whole,
        nats=old.mean - new.mean if old and new else None,
        loss_runs=(new.runs, old.runs) if p_lower is not None and new and old else None,
        p_lower=p_lower,
        p_higher=p_higher,
        log_seconds=log_seconds,
        time_runs=time_runs,
        p_time=p_time,
        beside=beside,
        nats_at_equal_time=_at_equal_time(own, before_own, (drift, _drift(before, before_own))),
        drift_percent=drift,
    )


def _losses(record: Record, own: Sequence[Run]) -> _Loss | None:
    """The figures given, where they are of the record alone, since more runs went into them; otherwise of its own runs
    kept here."""
    if record.runs is not None and record.loss_mean is not None and not mixed(record):
        return _Loss(record.runs, record.loss_mean, record.loss_std)
    if not own:
        return None
    found = figures(own)
    return _Loss(found.runs, found.loss_mean, found.loss_std)


def _loss_test(new: _Loss | None, old: _Loss | None) -> tuple[float | None, float | None]:
    """Welch's one-sided p-values, from means and deviations, that the new loss is lower, and that it is higher."""
    from scipy import stats

    if new is None or old is None or new.sd is None or old.sd is None or not new.sd + old.sd:
        return None, None
    p = float(
        stats.ttest_ind_from_stats(
            new.mean, new.sd, new.runs, old.mean, old.sd, old.runs, equal_var=False, alternative="less"
        ).pvalue
    )
    return p, 1 - p


def _time_test(
    own: Sequence[Run], beside: Sequence[Run], before: Sequence[Run]
) -> tuple[float | None, tuple[int, int] | None, float | None, bool]:
    """(old minus new mean seconds, numbers of runs, one-sided p, whether the old were run beside the new)."""
    new = _times(own)
    for others, is_beside in ((beside, True), (before, False)):
        old = _times(others)
        if len(new) >= 2 and len(old) >= 2 and same_hardware(own, others):
            return fmean(old) - fmean(new), (len(new), len(old)), welch(new, old).p, is_beside
    return None, None, None, False


def _times(runs: Sequence[Run]) -> list[float]:
    return [run.seconds for run in runs if run.seconds is not None]


def _at_equal_time(
    own: Sequence[Run], before: Sequence[Run], drifts: tuple[float | None, float | None]
) -> float | None:
    """None also where the two sets of logs were not timed alike: seconds of one machine are no seconds of the other."""
    times, (new, old) = _times(own), drifts
    if (
        not times
        or not same_hardware(own, before)
        or new is None
        or old is None
        or abs(new - old) > LOGS_DIFFER_PERCENT
    ):
        return None
    older = loss_at(mean_curve(before), fmean(times))
    return None if older is None else older - fmean(run.loss for run in own)


def _drift(record: Record, own: Sequence[Run]) -> float | None:
    times = _times(own)
    return 100 * (fmean(times) / record.seconds - 1) if times else None


def _say_loss(new: _Loss | None, old: _Loss | None, p_lower: float | None, p_higher: float | None) -> str:
    if new is None or old is None:
        return f"loss: no logs of {'it' if new is None else 'the record before'}, so nobody can say"
    if p_lower is None or p_higher is None:
        return f"loss: {_count(new.runs)} against {_count(old.runs)}, so nobody can say"
    kind = "lower" if p_lower < ALPHA else "higher" if p_higher < ALPHA else "no difference shown"
    p = f"p {p_lower:.2g}" if p_lower <= p_higher else f"p {p_higher:.2g} that it is higher"
    return f"loss: {kind} ({_signed(new.mean - old.mean)}, {new.runs} runs against {old.runs}, {p})"


def _say_untimed(percent: float, own: int, older: int, before: int) -> tuple[str, str]:
    """A sentence on seconds that no test can be made of, and a word or two for the table."""
    against = f"{older} of an older program beside it" if older else f"{before or 'none'} of the record before"
    runs = f"{_count(own)} kept against {against}" if own else "no logs kept"
    if percent > DRIFT_PERCENT:
        return f"time: {runs}, too few to test, but {percent:.0f}% is more than machines drift ({DRIFT})", "> drift"
    return (
        f"time: {runs}, too few to test, so {percent:.1f}% cannot be told from the drift of machines ({DRIFT})",
        "no logs" if not own else "one run" if own == 1 else "no pair",
    )


def _say_time(percent: float, log_seconds: float, counts: tuple[int, int], p: float, beside: bool) -> tuple[str, str]:
    """A sentence on tested seconds, and a word or two for the table."""
    less, tested = (
        f"{abs(log_seconds):.2f} s {'less' if log_seconds > 0 else 'more'}",
        f"{counts[0]} runs against {counts[1]}, p {p:.2g}",
    )
    if beside:
        return (
            f"time: beside an older program, run again in the same folder, it takes {less} ({tested})",
            "beside" if p < ALPHA else "not shown",
        )
    if p < ALPHA and percent > DRIFT_PERCENT:
        return (
            f"time: its logs take {less} ({tested}), and {percent:.0f}% is more than machines drift ({DRIFT})",
            "> drift",
        )
    return (
        f"time: its logs take {less} than those of the record before ({tested}), but on another day: drift is {DRIFT}",
        "other day" if p < ALPHA else "not shown",
    )


def _say_drift(record: Record, before: Record, drift: float | None, own: Sequence[Run]) -> str:
    said = ""
    if record.loss_mean is not None and record.loss_mean >= TARGET:
        said += f"; its mean final loss given, {record.loss_mean:g}, is not below {TARGET:g}"
    if drift is not None and abs(drift) > LOGS_DIFFER_PERCENT:
        said += f"; its logs take {abs(drift):.1f}% {'more' if drift > 0 else 'less'} than was claimed"
    if own and own[0].gpu and "H100" not in own[0].gpu:
        said += f"; its logs are of {own[0].gpu}"
    if before.retiming and not record.retiming:
        said += f"; against record {before.n} as it was timed last"
    return said


def _signed(nats: float) -> str:
    return f"{round(nats, 4) + 0.0:+.4f}"


def _count(runs: int) -> str:
    return "one run" if runs == 1 else f"{runs} runs"
