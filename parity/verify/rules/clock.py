"""Depth `log`: the clocks against each other, and the speed against what the devices can do at best."""

from typing import Any, NamedTuple

import numpy as np

from parity.devices import speed_limit
from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule
from parity.verify.rules.log import _real

PHASES = ("warm-up", "train", "evaluate", "checkpoint")
DRIFT_S, DRIFT = 0.5, 0.005  # of the wall clock against the monotonic one: what time servers correct while a run lasts
EDGE_S = 0.25  # between a reading of the training clock and the log's line that tells it, on a busy machine
SAME_S, SAME = 1e-4, 1e-6  # of one interval told twice
GAP_S, GAP = 0.05, 0.05  # between phases: reading the last loss, the guard, the log's lines
UNTIMED_S, HIDDEN = 1.0, 0.25  # of the training: on a busy machine evaluations and checkpoints are not equally long
EVALUATIONS, CHECKPOINTS = 1.5, 4.0  # how much longer than the first the others may be on the whole; disks vary


class Phase(NamedTuple):
    """A phase of the log: its name, its first and last line, its beginning and length by the log's clock."""

    name: str
    first: int
    last: int
    begin_s: float
    seconds: float


def phases(context: Context) -> tuple[list[Phase], str]:
    """The phases in order, and what is wrong with them, if anything. A phase that an interrupted run left open is left out."""
    found: list[Phase] = []
    opened: dict[str, Any] | None = None
    for event in context.log.events:
        if event["event"] == "resume":
            opened = None
        if event["event"] != "phase":
            continue
        name, begins = event["name"], event["edge"] == "begin"
        if name not in PHASES:
            return found, f"line {event['n']}: unknown phase {name[:40]!r}"
        if begins and opened is not None and not context.log.of("resume"):
            return found, f"line {event['n']}: {name} begins inside {opened['name']}"
        if not begins and (opened is None or opened["name"] != name):
            return found, f"line {event['n']}: {name} ends, and had not begun"
        if begins:
            opened = event
        else:
            begin_s, end_s = (edge.get("at_s", edge["clock_s"]) for edge in (opened, event))
            if any(abs(edge["clock_s"] - at_s) > EDGE_S for edge, at_s in ((opened, begin_s), (event, end_s))):
                return found, f"line {event['n']}: the training clock and the log's clock are apart"
            found.append(Phase(name, opened["n"], event["n"], begin_s, end_s - begin_s))
            opened = None
    return found, ""


@rule("clock.agree", "log", "the monotonic clock and the wall clock ran on together, and neither ran back")
def agree(context: Context) -> Found:
    log = context.log
    lines = [
        (
            n,
            *(
                (log.columns["clock_s"][x], log.columns["time_s"][x])
                if isinstance(x, int)
                else (x["clock_s"], x["time_s"])
            ),
            not isinstance(x, int) and x["event"] == "resume",
        )
        for n, x in log.stream
    ]
    worst, start = 0.0, 0
    for i, (n, clock, wall, resumed) in enumerate(lines):
        if i == 0 or resumed or _restarted(lines, i):
            start = i  # another process: its clocks begin anew
            continue
        before = lines[i - 1]
        if clock < before[1] or wall < before[2] - DRIFT_S:
            return fails(f"line {n}: a clock ran back")
        apart = (wall - lines[start][2]) - (clock - lines[start][1])
        worst = max(worst, abs(apart), key=abs)
        if abs(apart) > DRIFT_S + DRIFT * (clock - lines[start][1]):
            return fails(
                f"line {n}: since line {lines[start][0]} the monotonic clock ran {clock - lines[start][1]:.2f} s, the wall "
                f"clock {wall - lines[start][2]:.2f} s: one was slowed or set, or the machine slept"
            )
    return holds(f"never more than {abs(worst):.3f} s apart", apart_s=abs(float(worst)))


def _restarted(lines: list, i: int) -> bool:
    """Whether a resume follows within the next lines: what a new process logs before it says so."""
    return any(line[3] for line in lines[i : i + 3])


@rule("clock.train", "log", "the training time is the time that passed while training")
def train_time(context: Context) -> Found:
    log = context.log
    found, _ = phases(context)
    trained = [phase for phase in found if phase.name == "train"]
    if not len(log.n):
        raise NotJudged("the log has no steps")
    steps, train = log.columns["step_s"], log.columns["train_s"]
    grown = np.diff(train, prepend=0.0)
    starts = [event["n"] for event in log.of("resume")]
    for i in np.flatnonzero(~np.isclose(grown, steps, rtol=1e-6, atol=1e-6)):
        return fails(f"step {log.step[i]}: {steps[i]:.6f} s by itself, {grown[i]:.6f} s by the training time so far")
    ends = [*(phase.first for phase in trained[1:]), 2**62]
    for phase, end in zip(trained, ends):
        rows = np.flatnonzero((log.n > phase.first) & (log.n < end))
        if any(phase.last < n < end for n in starts):
            continue  # cut off in between: what was lost is made again
        clocked = float(grown[rows].sum())
        if abs(clocked - phase.seconds) > SAME_S + SAME * phase.seconds:
            return fails(
                f"lines {phase.first} to {phase.last}: {phase.seconds:.3f} s passed while training, the training clock "
                f"says {clocked:.3f} s",
                wall_s=phase.seconds,
                clock_s=clocked,
            )
    total = sum(phase.seconds for phase in trained)
    return holds(
        f"{float(train[-1]):.2f} s on the training clock, {total:.2f} s in the log's train phases", wall_s=total
    )


@rule("clock.phases", "log", "every second belongs to a phase, and steps to the phase `train`")
def all_in_phases(context: Context) -> Found:
    log = context.log
    found, problem = phases(context)
    if problem:
        return fails(problem)
    trained = [phase for phase in found if phase.name == "train"]
    if not trained:
        return fails("the log has no phase `train`")
    if not log.of("resume"):
        before = np.searchsorted([phase.first for phase in found], log.n) - 1
        outside = np.flatnonzero(
            (before < 0) | ~np.isin(before, [i for i, phase in enumerate(found) if phase.name == "train"])
        )
        if len(outside):
            return fails(
                f"line {log.n[outside[0]]}: step {log.step[outside[0]]} was logged after another phase than train"
            )
    resumed = [event["n"] for event in log.of("resume")]
    gaps = [
        after.begin_s - before.begin_s - before.seconds
        for before, after in zip(found, found[1:])
        if not any(before.last < n < after.last for n in resumed)
    ]
    total, train = sum(gaps), sum(phase.seconds for phase in trained)
    allowed = UNTIMED_S / 2 + GAP_S * len(gaps) + GAP * train
    if total > allowed:
        return fails(
            f"{total:.2f} s between the phases, expected at most {allowed:.2f} s: something ran on while the clock stood",
            between_s=total,
            allowed_s=allowed,
        )
    return holds(f"{total:.2f} s between {len(found)} phases", between_s=total, allowed_s=allowed)


@rule("clock.untimed", "log", "evaluations and checkpoints took no longer after training than before it")
def untimed(context: Context) -> Found:
    found, _ = phases(context)
    train = sum(phase.seconds for phase in found if phase.name == "train")
    said = []
    for name, factor in (("evaluate", EVALUATIONS), ("checkpoint", CHECKPOINTS)):
        seconds = [phase.seconds for phase in found if phase.name == name]
        if not seconds:
            return fails(f"the log has no phase {name}")
        allowed = factor * len(seconds) * seconds[0] + UNTIMED_S + HIDDEN * train
        if sum(seconds) > allowed:
            return fails(
                f"{len(seconds)} {name} phases took {sum(seconds):.2f} s, the first of them {seconds[0]:.2f} s; expected at "
                f"most {allowed:.2f} s: work of the training ran on in them",
                seconds=seconds,
            )
        said.append(f"{len(seconds)} {name} phases {sum(seconds):.1f} s, the first {seconds[0]:.2f} s")
    return holds("; ".join(said))


@rule("clock.speed", "log", "no faster than the devices can be")
def speed(context: Context) -> Found:
    evidence, log = context.evidence, context.log
    if not len(log.n) or not log.of("finish"):
        raise NotJudged("the log has no steps, or no finish")
    totals = log.of("finish")[-1]["totals"]
    counted = _real(totals.get("flops_per_step"))
    tokens = int(log.tokens[-1])
    if evidence.recipe is not None and not evidence.own:
        flops = 6.0 * evidence.recipe.matmul_params() * tokens  # without attention and optimizer: a lower bound
    elif counted > 0:
        flops = counted * evidence.steps
    else:
        return fails(
            f"the finish says {totals.get('flops_per_step')} FLOPs a step, of a program that must multiply matrices"
        )
    limit, basis = 0.0, []
    again = log.of("resume")  # a run may go on with more devices or machines than it began with
    for device in evidence.run["devices"]:
        one, why = speed_limit(device["kind"], device["platform"], evidence.run["host"]["cores"], evidence.precision)
        counts = [device["count"], *(list(event.get("devices") or []).count(device["kind"]) for event in again)]
        machines = [
            host.get("machines", 1) for host in (evidence.run["host"], *(event.get("host") or {} for event in again))
        ]
        limit += one * max(counts if device["platform"] != "cpu" else machines)
        basis.append(why)
    seconds = float(log.columns["train_s"][-1])
    reached = flops / max(seconds, 1e-9)
    if reached > limit:
        return fails(
            f"{flops:.3g} FLOPs in {seconds:.3g} s are {reached:.3g} a second; at most {limit:.3g}: {'; '.join(basis)}",
            flops_per_s=reached,
            limit=limit,
        )
    return holds(f"{reached:.3g} of at most {limit:.3g} FLOP/s ({'; '.join(basis)})", flops_per_s=reached, limit=limit)
