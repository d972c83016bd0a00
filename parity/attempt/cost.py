"""What an attempt has cost, over everything that was ever started for it, and whether its budget has room for more."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.attempt.record import Budget, MadeRun
from parity.errors import InputError


@dataclass(frozen=True)
class Cost:
    """`seconds` of training and `steps` include those that were made twice. `flops` is None where no run has said yet
    what a step takes."""

    runs: int = 0
    seconds: float = 0.0
    steps: int = 0
    flops: float | None = 0.0


def flops_of(run: MadeRun, runs: Sequence[MadeRun]) -> float | None:
    """FLOPs of all steps that a run made; where it did not end well, at what a step of a finished one took."""
    rates = [r.flops / r.steps for r in (run, *runs) if r.flops is not None and r.steps]
    if not run.steps_made:
        return 0.0
    return rates[0] * run.steps_made if rates else None


def spent(runs: Sequence[MadeRun]) -> Cost:
    """What these runs have cost together."""
    flops = [flops_of(run, runs) for run in runs]
    seconds, steps = sum(run.seconds for run in runs), sum(run.steps_made for run in runs)
    return Cost(len(runs), seconds, steps, None if None in flops else sum(flops))


def lacking(budget: Budget, runs: Sequence[MadeRun], new: int, going: MadeRun | None = None) -> str:
    """Why the budget has no room for `new` further runs, or for going on with one; "" where it has.

    Seconds and FLOPs are asked for the next run alone: what a finished one took on average, less what it has had.
    """
    so_far = spent(runs)
    if budget.runs is not None and new and so_far.runs + new > budget.runs:
        return f"the budget is {budget.runs} runs, {so_far.runs} were started, and {new} more are needed"
    for unit, limit in (("seconds", budget.seconds), ("flops", budget.flops)):
        done = [_amount(run, runs, unit) for run in runs if run.exit_code == 0]
        had = _amount(going, runs, unit) if going else 0.0
        mean = sum(done) / len(done) if done else 0.0
        total = getattr(so_far, unit) or 0.0
        if limit is not None and (total >= limit or total + max(0.0, mean - had) > limit):
            name = {"seconds": "s of training", "flops": "FLOPs"}[unit]
            return (
                f"the budget is {limit:.6g} {name}, {total:.6g} are used, and a run has taken {mean:.6g} on "
                "average: the next would pass it"
            )
    return ""


def _amount(run: MadeRun, runs: Sequence[MadeRun], unit: str) -> float:
    return run.seconds if unit == "seconds" else flops_of(run, runs) or 0.0


def progress(path: Path) -> tuple[float, int, dict[str, Any] | None]:
    """Training seconds and steps that a run's log has so far, and the totals of its finish; a log that was cut off or
    damaged is read as far as it goes."""
    from parity.harness.runlog import read

    seconds, steps, totals = 0.0, 0, None
    with suppress(InputError):
        for event in read(path / "log.jsonl", tolerate_torn=True):
            if event["event"] == "step" and isinstance(event.get("train_s"), int | float):
                seconds, steps = float(event["train_s"]), steps + 1
            elif event["event"] == "finish" and isinstance(event.get("totals"), dict):
                totals = event["totals"]  # the last event
    return seconds, steps, totals
