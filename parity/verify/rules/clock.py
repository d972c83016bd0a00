"""Depth `log`: the clocks against each other, and the speed against the most that the devices can do."""

from typing import Any, NamedTuple

import numpy as np

from parity.devices import speed_limit
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import Evidence, logged_float
from parity.verify.log import Log
from parity.verify.rules import Finding, fails, holds, rule

PHASES = ("init", "warm-up", "train", "evaluate", "checkpoint")
DRIFT_S, DRIFT = 0.5, 0.005  # of the wall clock against the monotonic one: what time servers correct while a run lasts
LINES = 4  # that a new process logs before its resume event
EDGE_S = 0.25  # between a reading of the training clock and the log's line that has it, on a busy machine
SAME_S, SAME = 1e-4, 1e-6  # between two records of one interval
GAP_S, GAP = 0.05, 0.05  # between phases: reading the last loss, the guard, the log's lines
UNTIMED_S, HIDDEN = 1.0, 0.25  # of the training: on a busy machine evaluations and checkpoints are not equally long
# Where other programs leave no processor idle everything takes longer: GAP_S, UNTIMED_S, DIGEST_S up to so often.
FULL, SLOWED = 0.9, 4.0
# How much longer than the first the phases may be on the whole; disks vary.
UNTIMED_PHASES = {"evaluate": 1.5, "checkpoint": 4.0}
# Building and the first weights: a program's imports take up to a minute from a network disk; drawing, copying and
# digesting a weight twice takes 1e-7 s, and four times that on a busy machine. replay.speed times both without imports.
SETUP_S, SETUP_WEIGHT_S, SETUP = 60.0, 4e-7, 0.1
# Scoring a token is a third of a step's work on it, and at most half (replay.speed); twice that for a busy machine.
EVALUATION = 1.0
DIGEST_S = 6e-8  # for a weight: its 12 bytes of state twice, at 400 MB/s


def slowed(context: Context) -> float:
    """How much longer than alone the run took at most, 1 to SLOWED: by the processors' seconds that its phases log.

    1 on a machine that had processors idle, with a GPU, and where the log does not say.
    """
    run = context.evidence.run
    if any(device["platform"] != "cpu" for device in run["devices"]):
        return 1.0
    wall_s = own_s = machine_s = 0.0
    before: dict[str, Any] | None = None
    for event in context.log.events:
        if event["event"] == "resume":
            before = None
        if event["event"] != "phase" or not {"cpu_s", "machine_cpu_s"} <= event.keys():
            continue
        if before is not None:
            wall_s += event["clock_s"] - before["clock_s"]
            own_s += event["cpu_s"] - before["cpu_s"]
            machine_s += event["machine_cpu_s"] - before["machine_cpu_s"]
        before = event
    if wall_s <= 0 or own_s <= 0 or machine_s < FULL * run["host"]["cores"] * wall_s:
        return 1.0
    return float(np.clip(machine_s / own_s, 1.0, SLOWED))


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


@rule("clock.agree", "log", "the monotonic clock and the wall clock ran on together, and neither ran back")
def agree(context: Context) -> Finding:
    n, clock_s, wall_s, resumes = _clock_readings(context.log)
    if not len(n):
        return holds("no readings", apart_s=0.0)
    # Another process has clocks of its own: one starts at the first line, and up to LINES before a resume's.
    starts = np.arange(len(n)) == 0
    for ahead in range(LINES + 1):
        starts[: len(n) - ahead] |= resumes[ahead:]
    start = np.maximum.accumulate(np.where(starts, np.arange(len(n)), 0))
    back = np.zeros(len(n), bool)
    back[1:] = (np.diff(clock_s) < 0) | (np.diff(wall_s) < -DRIFT_S)
    clocked_s, passed_s = clock_s - clock_s[start], wall_s - wall_s[start]
    apart = np.abs(passed_s - clocked_s) > DRIFT_S + DRIFT * clocked_s
    if len(wrong := np.flatnonzero((back | apart) & ~starts)):
        i = wrong[0]
        if back[i]:
            return fails(f"line {n[i]}: a clock ran back")
        return fails(
            f"line {n[i]}: since line {n[start[i]]} the monotonic clock ran {clocked_s[i]:.2f} s, the wall clock "
            f"{passed_s[i]:.2f} s: one was slowed or set, or the machine slept"
        )
    worst_s = float(np.abs(passed_s - clocked_s)[~starts].max(initial=0.0))
    return holds(f"never more than {worst_s:.3f} s apart", apart_s=worst_s)


def _clock_readings(log: Log) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every line, in order: its number, both clocks in seconds, and whether it is a resume."""
    events = log.events
    n = np.concatenate([log.n, np.array([event["n"] for event in events], np.int64)])
    clocks = (
        np.concatenate([log.columns[name], np.array([float(event[name]) for event in events])])
        for name in ("clock_s", "time_s")
    )
    resumes = np.concatenate([np.zeros(len(log.n), bool), np.array([e["event"] == "resume" for e in events], bool)])
    order = np.argsort(n, kind="stable")
    clock_s, wall_s = (clock[order] for clock in clocks)
    return n[order], clock_s, wall_s, resumes[order]


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
    allowed = slowed(context) * (UNTIMED_S / 2 + GAP_S * len(gaps)) + GAP * train
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
        allowed = factor * len(seconds) * seconds[0] + slowed(context) * UNTIMED_S + HIDDEN * train
        if sum(seconds) > allowed:
            return fails(
                f"{len(seconds)} {name} phases took {sum(seconds):.2f} s, the first of them {seconds[0]:.2f} s; "
                f"expected at most {allowed:.2f} s: training work continued in them",
                seconds=seconds,
            )
        summaries.append(f"{len(seconds)} {name} phases {sum(seconds):.1f} s, the first {seconds[0]:.2f} s")
    return holds("; ".join(summaries))


@rule("clock.setup", "log", "building the program and its first weights took a small part of the training")
def setup(context: Context) -> Finding:
    starts, evidence = context.log.of("start"), context.evidence
    if not starts or not len(context.log.n):
        raise NotJudged("the log has no start, or no steps")
    build_s = logged_float(starts[0].get("build_s"))
    init = [phase.seconds for phase in phases(context)[0] if phase.name == "init"]
    if not build_s >= 0 or not init:
        return fails("the log does not say how long building the program and its first weights took")
    train = float(context.log.columns["train_s"].max(initial=0.0))
    allowed = SETUP_S + SETUP_WEIGHT_S * _weights(evidence) + SETUP * train
    took, spent = build_s + max(init), {"build_s": build_s, "init_s": max(init)}
    if took > allowed:
        return fails(
            f"building took {build_s:.1f} s and the first weights {max(init):.1f} s, expected at most {allowed:.1f} s "
            f"beside {train:.1f} s of training: work was done before the clock",
            **spent,
            allowed_s=allowed,
        )
    return holds(f"{build_s:.1f} s of building, {max(init):.2f} s for the first weights", **spent, allowed_s=allowed)


def _weights(evidence: Evidence) -> float:
    """About how many weights the final weights are, by the size of their file."""
    path = evidence.path / "weights.safetensors"
    return path.lstat().st_size / 4 if path.is_file() else 0.0


@rule("clock.evaluation", "log", "scoring a token took no longer than a training step on it")
def evaluation(context: Context) -> Finding:
    log, run = context.log, context.evidence.run
    if not len(log.n):
        raise NotJudged("the log has no steps")
    evaluations = [phase for phase in phases(context)[0] if phase.name == "evaluate"]
    tokens = np.diff(log.tokens, prepend=0).astype(float)
    counted = tokens > 0  # not the first step after a resume
    per_token_s = float(np.median(log.columns["step_s"][counted] / tokens[counted])) if counted.any() else 0.0
    train, digested = float(log.columns["train_s"].max()), len(log.states("after evaluation"))
    took = sum(phase.seconds for phase in evaluations)
    scoring = EVALUATION * per_token_s * run["val_tokens"] * len(evaluations)
    digesting = DIGEST_S * _weights(context.evidence) * digested
    allowed = scoring + slowed(context) * (digesting + UNTIMED_S) + HIDDEN * train
    spent = {"evaluations_s": took, "step_token_s": per_token_s, "allowed_s": allowed}
    if took > allowed:
        return fails(
            f"{len(evaluations)} evaluations took {took:.2f} s, expected at most {allowed:.2f} s beside "
            f"{train:.2f} s of training: they did more than score tokens",
            **spent,
        )
    return holds(f"{len(evaluations)} evaluations took {took:.2f} s, at most {allowed:.2f} s expected", **spent)


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
