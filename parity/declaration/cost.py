"""The cost of an attempt over everything that was ever started for it, and whether its budget has room for more."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.declaration.record import AttemptRun, Budget
from parity.errors import InputError
from parity.formats import chain_log, run_log


@dataclass(frozen=True)
class Cost:
    """`seconds` of training and `steps` include repeated ones. `flops` is None while no run has measured a step."""

    runs: int = 0
    seconds: float = 0.0
    steps: int = 0
    flops: float | None = 0.0


def flops_of(run: AttemptRun, runs: Sequence[AttemptRun]) -> float | None:
    """FLOPs of all steps of a run; without totals of its own, at the FLOPs a step of a finished one."""
    rates = [r.flops / r.steps for r in (run, *runs) if r.flops is not None and r.steps]
    if not run.steps_made:
        return 0.0
    return rates[0] * run.steps_made if rates else None


def spent(runs: Sequence[AttemptRun]) -> Cost:
    """The cost of these runs together."""
    flops = [flops_of(run, runs) for run in runs]
    seconds, steps = sum(run.seconds for run in runs), sum(run.steps_made for run in runs)
    known = [value for value in flops if value is not None]
    return Cost(len(runs), seconds, steps, sum(known) if len(known) == len(flops) else None)


def shortfall(budget: Budget, runs: Sequence[AttemptRun], new: int, interrupted: AttemptRun | None = None) -> str:
    """Why the budget has no room for `new` further runs, or for the rest of an interrupted one; "" where it has.

    Seconds and FLOPs must suffice for the next run alone: the average of the finished ones, less its cost so far.
    """
    cost = spent(runs)
    if budget.runs is not None and new and cost.runs + new > budget.runs:
        return f"the budget is {budget.runs} runs, {cost.runs} were started, and {new} more are needed"
    for unit, name, limit in (("seconds", "s of training", budget.seconds), ("flops", "FLOPs", budget.flops)):
        finished = [_amount(run, runs, unit) for run in runs if run.exit_code == 0]
        mean = sum(finished) / len(finished) if finished else 0.0
        rest = max(0.0, mean - (_amount(interrupted, runs, unit) if interrupted else 0.0))
        used = getattr(cost, unit) or 0.0
        if limit is not None and (used >= limit or used + rest > limit):
            return (
                f"the budget is {limit:.6g} {name}, {used:.6g} are used, and a run has taken {mean:.6g} on "
                "average: the next would pass it"
            )
    return ""


def _amount(run: AttemptRun, runs: Sequence[AttemptRun], unit: str) -> float:
    return run.seconds if unit == "seconds" else flops_of(run, runs) or 0.0


def progress(path: Path) -> tuple[float, int, dict[str, Any] | None]:
    """Training seconds and steps in a run's log so far, and the totals of its finish; of a log that was cut off or
    damaged, up to there."""
    seconds, steps, totals = 0.0, 0, None
    with suppress(InputError):
        for event, _ in chain_log.read(path / "log.jsonl", run_log.FORMAT, run_log.problem, tolerate_torn=True):
            if event["event"] == "step" and isinstance(event.get("train_s"), int | float):
                seconds, steps = float(event["train_s"]), steps + 1
            elif event["event"] == "finish" and isinstance(event.get("totals"), dict):
                totals = event["totals"]  # the last event
    return seconds, steps, totals
