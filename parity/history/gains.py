"""What each public record gained: seconds, percent, share of the whole, nats, and how sure that is.

The gains in seconds are between the claims of neighbouring rows of the ladder. None of this is verified, and machines
drift by 5 to 8% between sessions: a smaller claim needs the older program timed beside the new one.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

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
from parity.tables import number

DRIFT = "5 to 8%"
DRIFT_PERCENT = 8.0
LOGS_DIFFER_PERCENT = 2.0  # logs whose mean time is further than this from the claim were not timed where the claim was


@dataclass(frozen=True)
class Gain:
    """A row of the ladder against the row before it. Positive is better: seconds, percent and nats saved.

    `share` is ln(old seconds / new seconds) over that from the first row to the last. `nats`: old minus new mean final
    loss. `p_lower` and `p_higher`: Welch's one-sided p that the new mean loss is lower, or higher; `loss_runs`: number
    of runs of each. `log_seconds`: old minus new mean time of logs, `beside`: the old runs are in the new record's own
    folder; `p_time`: its one-sided p. `nats_at_equal_time`: the older mean curve, interpolated at the new mean final
    time, minus the new mean final loss. `drift_percent`: mean time of the record's own logs over its claim. None:
    unknown; `sure` has the reason, `short` in a word or two.
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


class _Loss(NamedTuple):
    """Final losses of a record: runs, mean and deviation in nats per token (None for one run)."""

    runs: int
    mean: float
    sd: float | None


class _Time(NamedTuple):
    """Old minus new mean seconds of logs, runs of each, one-sided p, and whether the old were run beside the new."""

    saved_s: float
    runs: tuple[int, int]
    p: float
    beside: bool


@functools.lru_cache(maxsize=4)
def gains(history: History | None = None) -> tuple[Gain, ...]:
    """Every row of the ladder against the row before it, in the ladder's order."""
    history = history or load()
    whole = math.log(history.records[0].seconds / history.records[-1].seconds)
    return tuple(_gain(history.records, index, history.runs, whole) for index in range(len(history.records)))


def summary(history: History | None = None) -> dict[str, Any]:
    """How many gains are significant at 0.01: of the tests of each kind, those that are so on their own (`single`) and
    those that remain after Holm's correction.

    `target`: reported p-values that the mean is below 3.28. `time_beside` and `time_logs` (tests, significant) split
    the time tests by what they compare with. `drift`: the least and the largest, in percent.
    """
    history = history or load()
    rows = gains(history)
    lower = [gain.p_lower for gain in rows if gain.p_lower is not None]
    higher = [gain.p_higher for gain in rows if gain.p_higher is not None]
    timed = [(gain.p_time, gain.beside) for gain in rows if gain.p_time is not None]
    faster = holm([p for p, _ in timed])[1]
    beside = [holds for (_, beside), holds in zip(timed, faster, strict=True) if beside]
    target = [record.p for record in history.records if record.p is not None]
    drifts = [gain.drift_percent for gain in rows if gain.drift_percent is not None]
    return {
        "records": len({record.n for record in history.records}),
        "loss_tests": len(lower),
        "loss_lower_single": sum(p < ALPHA for p in lower),
        "loss_lower": sum(holm(lower)[1]),
        "loss_higher_single": sum(p < ALPHA for p in higher),
        "loss_higher": sum(holm(higher)[1]),
        "time_tests": len(timed),
        "time_faster": sum(faster),
        "time_beside": (len(beside), sum(beside)),
        "time_logs": (len(timed) - len(beside), sum(faster) - sum(beside)),
        "target_tests": len(target),
        "target_single": sum(p < ALPHA for p in target),
        "target_holm": sum(holm(target)[1]),
        "drift": (min(drifts), max(drifts)),
    }


def loss_at(curve: Sequence[tuple[int, float | None, float]], seconds: float) -> float | None:
    """A mean curve's loss at a training time, linear between evaluations; None outside them or without times.

    A falling curve lies below the line between two evaluations: the result is too high rather than too low, for a
    reader and not for a claim.
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
        return Gain(record.label, why + _describe_drift(record, record, None, own), "re-timed", drift_percent=drift)
    before = records[index - 1]
    comparable = record.proposal or not before.proposal
    before_own, baseline = own_runs(before, runs) if comparable else [], baseline_runs(record, runs)
    new, old = _losses(record, own), _losses(before, before_own) if comparable else None
    p_lower, p_higher = _loss_test(new, old)
    time = _time_test(own, baseline, before_own)
    percent = 100 * (before.seconds - record.seconds) / before.seconds
    if time:
        about_time, short = _describe_time(percent, time)
    else:
        about_time, short = _describe_untested_time(percent, len(own), len(baseline), len(before_own))
    about_loss = _describe_loss(new, old, p_lower, p_higher)
    return Gain(
        record.label,
        f"{about_time}; {about_loss}{_describe_drift(record, before, drift, own)}",
        short,
        seconds=before.seconds - record.seconds,
        percent=percent,
        share=math.log(before.seconds / record.seconds) / whole,
        nats=old.mean - new.mean if old and new else None,
        loss_runs=(new.runs, old.runs) if p_lower is not None and new and old else None,
        p_lower=p_lower,
        p_higher=p_higher,
        log_seconds=time.saved_s if time else None,
        time_runs=time.runs if time else None,
        p_time=time.p if time else None,
        beside=time is not None and time.beside,
        nats_at_equal_time=_at_equal_time(own, before_own, drift, _drift(before, before_own)),
        drift_percent=drift,
    )


def _losses(record: Record, own: Sequence[Run]) -> _Loss | None:
    """The reported figures where they are of the record alone, since they cover more runs; else its archived runs."""
    if record.runs is not None and record.loss_mean is not None and not mixed(record):
        return _Loss(record.runs, record.loss_mean, record.loss_std)
    if not own:
        return None
    archived = figures(own)
    return _Loss(archived.runs, archived.loss_mean, archived.loss_std)


def _loss_test(new: _Loss | None, old: _Loss | None) -> tuple[float | None, float | None]:
    """Welch's one-sided p-values, from means and deviations, that the new loss is lower, and that it is higher."""
    from scipy import stats

    if new is None or old is None or new.sd is None or old.sd is None or not new.sd + old.sd:
        return None, None
    numbers = (new.mean, new.sd, new.runs, old.mean, old.sd, old.runs)
    p = float(stats.ttest_ind_from_stats(*numbers, equal_var=False, alternative="less").pvalue)
    return p, 1 - p


def _time_test(own: Sequence[Run], baseline: Sequence[Run], before: Sequence[Run]) -> _Time | None:
    """The test against the baseline beside the record or, where there is none, against the record before."""
    new = _times(own)
    for others, beside in ((baseline, True), (before, False)):
        old = _times(others)
        if len(new) >= 2 and len(old) >= 2 and same_hardware(own, others):
            return _Time(fmean(old) - fmean(new), (len(new), len(old)), welch(new, old).p, beside)
    return None


def _times(runs: Sequence[Run]) -> list[float]:
    return [run.seconds for run in runs if run.seconds is not None]


def _at_equal_time(
    own: Sequence[Run], before: Sequence[Run], drift: float | None, drift_before: float | None
) -> float | None:
    """None also where the two sets of logs drifted apart: seconds of one machine are not those of another."""
    if drift is None or drift_before is None or not same_hardware(own, before):
        return None
    if abs(drift - drift_before) > LOGS_DIFFER_PERCENT:
        return None
    older = loss_at(mean_curve(before), fmean(_times(own)))
    return None if older is None else older - fmean(run.loss for run in own)


def _drift(record: Record, own: Sequence[Run]) -> float | None:
    times = _times(own)
    return 100 * (fmean(times) / record.seconds - 1) if times else None


def _describe_loss(new: _Loss | None, old: _Loss | None, p_lower: float | None, p_higher: float | None) -> str:
    if new is None or old is None:
        return f"loss: no logs of {'it' if new is None else 'the record before'}, so it cannot be tested"
    if p_lower is None or p_higher is None:
        return f"loss: {_count(new.runs)} against {_count(old.runs)}, so it cannot be tested"
    kind = "lower" if p_lower < ALPHA else "higher" if p_higher < ALPHA else "no difference shown"
    p = f"p {p_lower:.2g}" if p_lower <= p_higher else f"p {p_higher:.2g} that it is higher"
    return f"loss: {kind} ({number(new.mean - old.mean, '+z.4f')}, {new.runs} runs against {old.runs}, {p})"


def _describe_untested_time(percent: float, own: int, baseline: int, before: int) -> tuple[str, str]:
    """A sentence on seconds that cannot be tested, and a word or two for the table."""
    against = f"{baseline} of an older program beside it" if baseline else f"{before or 'none'} of the record before"
    runs = f"{_count(own)} archived against {against}" if own else "no logs archived"
    if percent > DRIFT_PERCENT:
        return f"time: {runs}, too few to test, but {percent:.0f}% is more than machines drift ({DRIFT})", "> drift"
    short = "no logs" if not own else "one run" if own == 1 else "no pair"
    return f"time: {runs}, too few to test, so {percent:.1f}% cannot be told from machine drift ({DRIFT})", short


def _describe_time(percent: float, time: _Time) -> tuple[str, str]:
    """A sentence on tested seconds, and a word or two for the table."""
    less = f"{abs(time.saved_s):.2f} s {'less' if time.saved_s > 0 else 'more'}"
    test, significant = f"{time.runs[0]} runs against {time.runs[1]}, p {time.p:.2g}", time.p < ALPHA
    if time.beside:
        sentence = f"time: beside an older program, run again in the same folder, it takes {less} ({test})"
        return sentence, "beside" if significant else "not shown"
    if significant and percent > DRIFT_PERCENT:
        return (
            f"time: its logs take {less} ({test}), and {percent:.0f}% is more than machines drift ({DRIFT})",
            "> drift",
        )
    sentence = (
        f"time: its logs take {less} than those of the record before ({test}), but on another day: drift is {DRIFT}"
    )
    return sentence, "other day" if significant else "not shown"


def _describe_drift(record: Record, before: Record, drift: float | None, own: Sequence[Run]) -> str:
    text = ""
    if record.loss_mean is not None and record.loss_mean >= TARGET:
        text += f"; its reported mean final loss, {record.loss_mean:g}, is not below {TARGET:g}"
    if drift is not None and abs(drift) > LOGS_DIFFER_PERCENT:
        text += f"; its logs take {abs(drift):.1f}% {'more' if drift > 0 else 'less'} than was claimed"
    if record.proposal:
        text += "; its logs are of the proposal, made on an older program, not of the merged one"
    elif before.proposal and own:
        text += f"; the logs of record {before.n} are of a proposal on an older program and are not compared"
    if own and own[0].gpu and "H100" not in own[0].gpu:
        text += f"; its logs are of {own[0].gpu}"
    if before.retiming and not record.retiming:
        text += f"; against the last timing of record {before.n}"
    return text


def _count(runs: int) -> str:
    return "one run" if runs == 1 else f"{runs} runs"
