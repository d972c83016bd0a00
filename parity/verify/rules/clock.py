"""Depth `log`: the clocks against each other, and the speed against the most that the devices can do."""

from typing import Any, NamedTuple

import numpy as np

from parity.devices import speed_limit
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import logged_float
from parity.verify.log import Log
from parity.verify.rules import Finding, fails, holds, rule

PHASES = ("warm-up", "train", "evaluate", "checkpoint")
DRIFT_S, DRIFT = 0.5, 0.005  # of the wall clock against the monotonic one: what time servers correct while a run lasts
EDGE_S = 0.25  # between a reading of the training clock and the log's line that has it, on a busy machine
SAME_S, SAME = 1e-4, 1e-6  # between two records of one interval
GAP_S, GAP = 0.05, 0.05  # between phases: reading the last loss, the guard, the log's lines
UNTIMED_S, HIDDEN = 1.0, 0.25  # of the training: on a busy machine evaluations and checkpoints are not equally long
# How much longer than the first the phases may be on the whole; disks vary.
UNTIMED_PHASES = {"evaluate": 1.5, "checkpoint": 4.0}


class Phase(NamedTuple):
    """A phase of the log: its name, its first and last line, its beginning and length by the log's clock."""

    name: str
    first: int
    last: int
    begin_s: float
    seconds: float


def phases(context: Context) -> tuple[list[Phase], str]:
    """The phases in order, without one that an interrupted run left open; and what is wrong with them, or ""."""
    complete: list[Phase] = []
    opened: dict[str, Any] | None = None
    for event in context.log.events:
        if event["event"] == "resume":
            opened = None
        if event["event"] != "phase":
            continue
        name, begins = event["name"], event["edge"] == "begin"
        if name not in PHASES:
            return complete, f"line {event['n']}: unknown phase {name[:40]!r}"
        if begins:
            if opened is not None and not context.log.of("resume"):
                return complete, f"line {event['n']}: {name} begins inside {opened['name']}"
            opened = event
            continue
        if opened is None or opened["name"] != name:
            return complete, f"line {event['n']}: {name} ends, but had not begun"
        begin_s, end_s = (edge.get("at_s", edge["clock_s"]) for edge in (opened, event))
        if abs(opened["clock_s"] - begin_s) > EDGE_S or abs(event["clock_s"] - end_s) > EDGE_S:
            return complete, f"line {event['n']}: the training clock and the log's clock differ"
        complete.append(Phase(name, opened["n"], event["n"], begin_s, end_s - begin_s))
        opened = None
    return complete, ""


class ClockReading(NamedTuple):
    """Both clocks at one line of the log, and whether the line is a resume."""

    n: int
    clock_s: float
    wall_s: float
    resumes: bool


@rule("clock.agree", "log", "the monotonic clock and the wall clock ran on together, and neither ran back")
def agree(context: Context) -> Finding:
    readings = _clock_readings(context.log)
    worst_s, start = 0.0, readings[0] if readings else None
    for i, reading in enumerate(readings):
        # a new process logs up to two lines before its resume event
        if i == 0 or any(later.resumes for later in readings[i : i + 3]):
            start = reading  # another process has clocks of its own
            continue
        previous = readings[i - 1]
        if reading.clock_s < previous.clock_s or reading.wall_s < previous.wall_s - DRIFT_S:
            return fails(f"line {reading.n}: a clock ran back")
        assert start is not None  # there is a first reading
        clock_s, wall_s = reading.clock_s - start.clock_s, reading.wall_s - start.wall_s
        worst_s = max(worst_s, abs(wall_s - clock_s))
        if abs(wall_s - clock_s) > DRIFT_S + DRIFT * clock_s:
            return fails(
                f"line {reading.n}: since line {start.n} the monotonic clock ran {clock_s:.2f} s, the wall clock "
                f"{wall_s:.2f} s: one was slowed or set, or the machine slept"
            )
    return holds(f"never more than {worst_s:.3f} s apart", apart_s=float(worst_s))


def _clock_readings(log: Log) -> list[ClockReading]:
    clock_s, wall_s = log.columns["clock_s"], log.columns["time_s"]
    return [
        ClockReading(n, clock_s[line], wall_s[line], False)
        if isinstance(line, int)
        else ClockReading(n, line["clock_s"], line["time_s"], line["event"] == "resume")
        for n, line in log.stream
    ]


@rule("clock.train", "log", "the training time is the time that passed while training")
def train_time(context: Context) -> Finding:
    log = context.log
    trained = [phase for phase in phases(context)[0] if phase.name == "train"]
    if not len(log.n):
        raise NotJudged("the log has no steps")
    steps, train = log.columns["step_s"], log.columns["train_s"]
    increase = np.diff(train, prepend=0.0)
    resumes = [event["n"] for event in log.of("resume")]
    different = np.flatnonzero(~np.isclose(increase, steps, rtol=1e-6, atol=1e-6))
    if len(different):
        i = different[0]
        return fails(f"step {log.step[i]}: {steps[i]:.6f} s by itself, {increase[i]:.6f} s by the training time so far")
    ends = [*(phase.first for phase in trained[1:]), 2**62]
    for phase, end in zip(trained, ends, strict=False):  # no phase: one end more
        rows = np.flatnonzero((log.n > phase.first) & (log.n < end))
        if any(phase.last < n < end for n in resumes):
            continue  # cut off in between: the lost steps are repeated
        clocked = float(increase[rows].sum())
        if abs(clocked - phase.seconds) > SAME_S + SAME * phase.seconds:
            return fails(
                f"lines {phase.first} to {phase.last}: {phase.seconds:.3f} s passed while training, the training clock "
                f"has {clocked:.3f} s",
                wall_s=phase.seconds,
                clock_s=clocked,
            )
    total = sum(phase.seconds for phase in trained)
    return holds(
        f"{float(train[-1]):.2f} s on the training clock, {total:.2f} s in the log's train phases", wall_s=total
    )


@rule("clock.phases", "log", "every second belongs to a phase, and steps to the phase `train`")
def all_in_phases(context: Context) -> Finding:
    log = context.log
    complete, problem = phases(context)
    if problem:
        return fails(problem)
    trained = [phase for phase in complete if phase.name == "train"]
    if not trained:
        return fails("the log has no phase `train`")
    resumes = [event["n"] for event in log.of("resume")]
    if not resumes:
        before = np.searchsorted([phase.first for phase in complete], log.n) - 1
        in_train = np.isin(before, [i for i, phase in enumerate(complete) if phase.name == "train"])
        outside = np.flatnonzero((before < 0) | ~in_train)
        if len(outside):
            i = outside[0]
            return fails(f"line {log.n[i]}: step {log.step[i]} was logged after another phase than train")
    gaps = [
        after.begin_s - before.begin_s - before.seconds
        for before, after in zip(complete, complete[1:], strict=False)
        if not any(before.last < n < after.last for n in resumes)
    ]
    total, train = sum(gaps), sum(phase.seconds for phase in trained)
    allowed = UNTIMED_S / 2 + GAP_S * len(gaps) + GAP * train
    if total > allowed:
        return fails(
            f"{total:.2f} s between the phases, expected at most {allowed:.2f} s: work continued while the clock was "
            "stopped",
            between_s=total,
            allowed_s=allowed,
        )
    return holds(f"{total:.2f} s between {len(complete)} phases", between_s=total, allowed_s=allowed)


@rule("clock.untimed", "log", "evaluations and checkpoints took no longer after training than before it")
def untimed(context: Context) -> Finding:
    complete, _ = phases(context)
    train = sum(phase.seconds for phase in complete if phase.name == "train")
    summaries = []
    for name, factor in UNTIMED_PHASES.items():
        seconds = [phase.seconds for phase in complete if phase.name == name]
        if not seconds:
            return fails(f"the log has no phase {name}")
        allowed = factor * len(seconds) * seconds[0] + UNTIMED_S + HIDDEN * train
        if sum(seconds) > allowed:
            return fails(
                f"{len(seconds)} {name} phases took {sum(seconds):.2f} s, the first of them {seconds[0]:.2f} s; "
                f"expected at most {allowed:.2f} s: training work continued in them",
                seconds=seconds,
            )
        summaries.append(f"{len(seconds)} {name} phases {sum(seconds):.1f} s, the first {seconds[0]:.2f} s")
    return holds("; ".join(summaries))


@rule("clock.speed", "log", "no faster than the devices can be")
def speed(context: Context) -> Finding:
    evidence, log = context.evidence, context.log
    if not len(log.n) or not log.of("finish"):
        raise NotJudged("the log has no steps, or no finish")
    counted = log.of("finish")[-1]["totals"].get("flops_per_step")
    if evidence.recipe is not None and not evidence.user_program:
        # without attention and optimizer: a lower bound
        flops = 6.0 * evidence.recipe.matmul_params() * int(log.tokens[-1])
    elif logged_float(counted) > 0:
        flops = logged_float(counted) * evidence.steps
    else:
        return fails(f"the finish has {counted} FLOPs a step, of a program that must multiply matrices")
    limit, basis = _speed_limit(context)
    reached = flops / max(seconds := float(log.columns["train_s"][-1]), 1e-9)
    if reached > limit:
        return fails(
            f"{flops:.3g} FLOPs in {seconds:.3g} s are {reached:.3g} a second; at most {limit:.3g}: {'; '.join(basis)}",
            flops_per_s=reached,
            limit=limit,
        )
    return holds(f"{reached:.3g} of at most {limit:.3g} FLOP/s ({'; '.join(basis)})", flops_per_s=reached, limit=limit)


def _speed_limit(context: Context) -> tuple[float, list[str]]:
    """FLOP/s that the devices can do at most, by the largest number of devices or machines that the run ever had."""
    evidence = context.evidence
    resumes = context.log.of("resume")  # may be with more devices or machines than at the start
    hosts = [evidence.run["host"], *(event.get("host") or {} for event in resumes)]
    limit, basis = 0.0, []
    for device in evidence.run["devices"]:
        flops_per_s, source = speed_limit(
            device["kind"], device["platform"], evidence.run["host"]["cores"], evidence.precision
        )
        if device["platform"] == "cpu":
            count = max(host.get("machines", 1) for host in hosts)
        else:
            resumed = [list(event.get("devices") or []).count(device["kind"]) for event in resumes]
            count = max([device["count"], *resumed])
        limit += flops_per_s * count
        basis.append(source)
    return limit, basis
