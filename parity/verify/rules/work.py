"""Depth `replay`: what a step is, and how long steps, evaluations and the first weights take."""

import math
import os
import secrets
import shutil
from typing import Any, NamedTuple

import numpy as np

from parity.verify.context import Context, NotJudged
from parity.verify.rules import OWN_CODE, Finding, fails, holds, rule
from parity.verify.rules.clock import phases
from parity.verify.rules.probe import Rows
from parity.verify.rules.replay import MOVE, Replay, first_inits, last_rows, move_difference
from parity.verify.sandbox.client import SandboxedProgram, SandboxError
from parity.verify.timing import Spent, timed
from parity.weights import Weights

# The slope of a loss along its gradient, found by two losses on either side, is the gradient's length; a gradient that
# is the sum of two, or taken elsewhere, is longer. Relative; low precisions round the losses.
SLOPE = {"float64": 0.1, "float32": 0.1, "bfloat16": 0.5}
SLOPE_LOSS = 0.005  # of the loss, by which it is moved to find the slope
EVALUATION_FLOPS = 0.5  # of a step's on the same tokens: forward is a third of forward and backward
EVALUATION_S = 10.0  # of a step's, where FLOPs cannot be counted: a mixture in numpy takes 3 on a tiny model
# Steps on the same machine on another day differ by less than a tenth in their fastest repetition; a third is left for
# memory and clock frequency. While other programs run, processors share their cores and caches, and a second of one
# does up to half as little.
SAME_MACHINE, BUSY_MACHINE = 1.3, 2.5
SHORT_S = 0.05  # beside that, of all repeated steps: what another tenant of the processors takes from short ones
# How much longer evaluations are, relative to steps; other machines differ by 2. What is beyond must be a quarter of
# the training, and half a second, since nothing less can be told from a machine that was busy at times.
SCORING, SCORING_ELSEWHERE, HIDDEN, HIDDEN_S = 1.5, 3.0, 0.25, 0.5
STEP_S, BATCH_S, SCORED_S = 2e-4, 3e-3, 0.1  # of a step's call; of an evaluation's batch; of an evaluation
# Of building, beside its imports; of the first weights, beside INIT times what the backend's own program takes.
BUILD_S, INIT_S, INIT, SETUP_STEPS = 1.5, 0.1, 2.0, 10
TRIES = 3


@rule("replay.single", "replay", "a step is one gradient of its batch, and one update by it")
def single(context: Context) -> Finding:
    if context.trusts_code:
        context.facts["steps_counted"] = "single"
        return holds(OWN_CODE)
    r, own = context.once(Replay), bool(context.evidence.user_program)
    random = context.random("single")
    first, last = r.segments[-1]
    points = [(first, int(random.integers(first, last))), (r.segments[int(random.integers(len(r.segments)))][0],) * 2]
    context.facts["steps_counted"] = "own" if own else "single"
    worst = 0.0
    for begin, step in points:
        try:
            problem, apart = _several_updates(context, r, begin, step, own)
        except SandboxError as error:
            if not own:
                raise
            raise NotJudged(f"its steps and tokens are the program's own count: {error}") from None
        if problem and own:
            raise NotJudged(f"its steps and tokens are the program's own count: {problem}")
        if problem:
            return fails(problem, apart=apart)
        worst = max(worst, apart)
    context.facts["steps_counted"] = "single"
    steps = ", ".join(str(step) for _, step in points)
    return holds(
        f"steps {steps} and one update by one gradient differ by {worst:.1g} of the weights' movement", apart=worst
    )


def _several_updates(context: Context, r: Replay, begin: int, step: int, own: bool) -> tuple[str, float]:
    """Why a step is not one update by one gradient, or ""; and how far apart the two end, in their movement.

    The gradient is taken in a process of its own, so that the update cannot look at the batch.
    """
    program, batch, precision = r.program, r.batch(step), context.evidence.precision
    state = r.start(begin)
    r.run(state, begin, step)
    folder = program.scratch / f"state-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        program.call("save", state=state, directory=str(folder))
        beside, apart_from = context.program.restore(folder), program.restore(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    start: Weights = program.call("plain_weights", state=apart_from)
    found = context.program.call("plain_gradient", state=beside, **batch._asdict())
    context.program.drop(beside)
    program.call("plain_update", state=apart_from, grads=found["grads"])
    updated: Weights = program.call("plain_weights", state=apart_from)
    program.drop(apart_from)
    program.step(state, *batch)
    stepped: Weights = program.call("plain_weights", state=state)
    program.drop(state)
    move, weight = move_difference(start, stepped, updated)
    allowed = MOVE[precision][0]
    if not move <= allowed:
        return (
            f"step {step} moves {weight} {move:.2g} of its movement elsewhere than one update by one gradient does, "
            f"allowed {allowed:.1g}",
            move,
        )
    if own:
        error = _slope_error(context.program, batch, start, found, step)
        if not error <= SLOPE[precision]:
            return (
                f"step {step}: the gradient is {error:.2g} off the slope of the loss, allowed {SLOPE[precision]}",
                move,
            )
    return "", move


def _slope_error(program: SandboxedProgram, batch: Rows, weights: Weights, found: dict[str, Any], step: int) -> float:
    """How much the slope of the loss along its gradient differs from the gradient's length, relative to it."""
    grads = {name: np.asarray(grad, np.float64) for name, grad in found["grads"].items()}
    length = math.sqrt(sum(float(np.sum(grad**2)) for grad in grads.values()))
    if not length > 0 or not math.isfinite(length):
        return math.inf
    far = SLOPE_LOSS * abs(float(found["loss"])) / length**2
    losses = []
    for sign in (1, -1):
        moved = {name: (w + sign * far * grads[name]).astype(w.dtype) for name, w in weights.items()}
        state = program.load(moved, step)
        losses.append(float(program.call("plain_gradient", state=state, **batch._asdict())["loss"]))
        program.drop(state)
    slope = (losses[0] - losses[1]) / (2 * far * length)
    return abs(slope / length - 1)


class Pace(NamedTuple):
    """Seconds of repeated steps, here and in the log, and their tokens."""

    here_s: float
    logged_s: float
    steps: int
    tokens: int
    busy: bool


@rule("replay.speed", "replay", "steps, evaluations and the first weights take here what they were logged to take")
def speed(context: Context) -> Finding:
    r, log, evidence = context.once(Replay), context.log, context.evidence
    _ = r.program  # started first: it says whether it could be compiled
    elsewhere, threads = other_machine(context), _threads(context)
    logged = {step: float(log.columns["step_s"][row]) for step, row in last_rows(log).items()}
    pace = _pace(r, logged, threads)
    for _ in range(1 if context.whole else TRIES):
        if pace.steps and (elsewhere or pace.here_s <= SAME_MACHINE * pace.logged_s + STEP_S * pace.steps + SHORT_S):
            break
        for segment in r.segments:
            r.repeat(*segment)
        pace = _pace(r, logged, threads)
    if pace.busy and not elsewhere and threads > 1 and evidence.backend == "torchref":
        elsewhere = "the machine is busy here"  # its threads wait for one another by spinning
    factor = BUSY_MACHINE if pace.busy else SAME_MACHINE
    allowed_s = factor * pace.logged_s + STEP_S * pace.steps + SHORT_S
    spent: dict[str, Any] = {**pace._asdict(), "compared": elsewhere or "the same machine"}
    context.facts["seconds"] = f"not compared: {elsewhere}" if elsewhere else f"compared, at most {factor} x the log's"
    if not elsewhere and pace.here_s > allowed_s:
        return fails(
            f"{pace.steps} steps take {pace.here_s:.3f} s here, on the same machine, expected at most "
            f"{allowed_s:.3f} s: they were logged to take {pace.logged_s:.3f} s",
            **spent,
        )
    here_s, logged_s, batches = _evaluation(context, r, threads)
    factor = SCORING_ELSEWHERE if elsewhere or pace.busy else SCORING
    expected_s = factor * here_s * pace.logged_s / max(pace.here_s, 1e-9) + BATCH_S * batches + SCORED_S
    spent |= {"evaluation_here_s": here_s, "evaluation_logged_s": logged_s, "evaluation_expected_s": expected_s}
    beyond_s, train_s = len(log.of("eval")) * (logged_s - expected_s), float(log.columns["train_s"].max())
    if beyond_s > HIDDEN_S + HIDDEN * train_s:
        return fails(
            f"an evaluation was logged to take {logged_s:.2f} s, expected at most {expected_s:.2f} s beside steps of "
            f"{1e3 * pace.logged_s / pace.steps:.1f} ms: here it takes {here_s:.2f} s beside steps of "
            f"{1e3 * pace.here_s / pace.steps:.1f} ms",
            **spent,
        )
    step_s = pace.here_s / pace.steps
    if evidence.has_user_code and (problem := _setup_problem(context, r, step_s, threads)):
        return fails(problem, **spent)
    where = f"not compared with the log's ({elsewhere})" if elsewhere else f"logged {pace.logged_s:.2f} s"
    return holds(
        f"{pace.steps} steps {pace.here_s:.2f} s, {where}; an evaluation {here_s:.2f} s, logged {logged_s:.2f} s",
        **spent,
    )


def other_machine(context: Context) -> str:
    """Why seconds here cannot be compared with those of the log; "" where it is the same kind of machine."""
    from parity.harness import fingerprint  # names no framework; the verifier imports nothing else that makes a run

    run = context.evidence.run
    if reason := context.once(Replay).not_compiled:
        return reason
    here, there = fingerprint.host(), run["host"]
    for name in ("cpu", "cores"):
        if here[name] != there.get(name):
            return f"{name}: {here[name]} here, {there.get(name)} there"
    devices = [(device["kind"], device["count"]) for device in run["devices"]]
    if devices != [(kind := context.program.recipe["device"], 1)]:
        return f"1 x {kind} here, {' + '.join(f'{count} x {kind}' for kind, count in devices)} there"
    if run.get("processes", 1) != 1 or there.get("machines", 1) != 1:
        return "several processes there"
    versions = fingerprint.versions()
    for name in ("jax", "jaxlib") if context.evidence.backend == "jaxrun" else ("torch",):
        if versions.get(name) != run["versions"].get(name):
            return f"{name} {versions.get(name)} here, {run['versions'].get(name)} there"
    return ""


def _threads(context: Context) -> int:
    """The most threads that the program computes with here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = context.evidence.run.get("environment", {}).get("OMP_NUM_THREADS", "")
    return (
        min(cores, int(limit)) if context.evidence.backend == "torchref" and limit.isdecimal() and int(limit) else cores
    )


def _pace(r: Replay, logged: dict[int, float], threads: int) -> Pace:
    """Of all segments, every chunk by its fastest try, with the time until the weights could be read."""
    spent, logged_s, steps, tokens = Spent(), 0.0, 0, 0
    for first, last in r.segments:
        tried = [chunk for chunk in r.chunks(first, last) if chunk in r.spent]
        for chunk in tried:
            spent += min(r.spent[chunk], key=lambda tried: tried.wall_s)
            logged_s += sum(logged[step] for step in range(chunk.first, chunk.first + chunk.steps))
            steps, tokens = steps + chunk.steps, tokens + chunk.steps * math.prod(chunk.shape)
        if tried and (drained := r.drained.get((first, last))):
            spent += min(drained, key=lambda tried: tried.wall_s)
    return Pace(spent.least_s(threads), logged_s, steps, tokens, spent.busy)


def _evaluation(context: Context, r: Replay, threads: int) -> tuple[float, float, int]:
    """Seconds of one evaluation's scoring, here and at least in the log, and its batches."""
    evidence, shortest = context.evidence, math.inf
    digests = {event["n"]: event["clock_s"] for event in context.log.of("state")}
    for phase in (phase for phase in phases(context)[0] if phase.name == "evaluate"):
        inside = sorted(clock_s for n, clock_s in digests.items() if phase.first < n < phase.last)
        # a digest before the scoring, and one after it
        digest_s = inside[0] - phase.begin_s if len(inside) == 2 else 0.0
        seconds = inside[1] - inside[0] - digest_s if len(inside) == 2 else phase.seconds
        shortest = min(shortest, max(0.0, seconds))
    size = next((event["batch_tokens"] for event in context.log.of("eval")), evidence.eval_context)
    size = min(size, 65_536 // evidence.eval_context * evidence.eval_context) or evidence.eval_context
    shard, start, _ = context.slice.part("val")
    window = np.asarray(shard[start : start + size + 1], np.int32)
    rows = Rows(*(part.reshape(-1, evidence.eval_context) for part in (window[:-1], window[1:])))
    state, tries = r.program.restore(evidence.checkpoint(r.segments[-1][1])), []
    for _ in range(4):
        with timed(r.program.process) as spent:
            r.program.token_losses(state, *rows)
        tries.append(spent.wall_s)
    r.program.drop(state)
    batches = -(-evidence.run["val_tokens"] // size)
    return min(tries[1:]) * batches, shortest, batches


def _setup_problem(context: Context, r: Replay, step_s: float, threads: int) -> str:
    """What is wrong with the time that building the program and its first weights takes here, or ""."""
    program, inits = r.program, r.first_inits
    for attempt in range(2):
        allowed_s, took_s = BUILD_S + SETUP_STEPS * step_s, program.built.least_s(threads)
        problem = ""
        if took_s > allowed_s:
            problem = f"building the program takes {took_s:.2f} s here, expected at most {allowed_s:.2f} s"
        for plain, own in inits:
            allowed_s, took_s = INIT_S + INIT * plain.wall_s + SETUP_STEPS * step_s, own.least_s(threads)
            if took_s > allowed_s:
                problem = f"the first weights take {took_s:.2f} s here, expected at most {allowed_s:.2f} s"
        if not problem:
            return ""
        if not attempt:  # once more, in a fresh process
            program = context.sandboxed("speed")
            inits = first_inits(program, context.evidence.run["seed"])
    return f"{problem}: training is for the steps"


@rule("replay.evaluation", "replay", "scoring a token costs at most half of a training step on it")
def evaluation(context: Context) -> Finding:
    r = context.once(Replay)
    first, last = r.segments[-1]
    counted = r.program.call("flops", state=r.start(first), **r.batch(first)._asdict())
    scored, step = (counted.get(name) for name in ("evaluation", "step"))
    if scored is not None and step:
        share = float(scored) / float(step)
        if share > EVALUATION_FLOPS:
            return fails(
                f"scoring a batch takes {share:.2f} of the FLOPs of a step on it, expected at most {EVALUATION_FLOPS}: "
                "evaluations do more than score",
                share=share,
            )
        return holds(f"{share:.2f} of a step's FLOPs", share=share)
    batch, tries = r.batch(first), {"token_losses": [], "step": []}
    state = r.start(first)
    for _ in range(3):
        for name, seconds in tries.items():
            with timed(r.program.process) as spent:
                r.program.call(name, state=state, **batch._asdict())
            seconds.append(spent.wall_s)
    r.program.drop(state)
    share = min(tries["token_losses"]) / min(tries["step"])
    if share > EVALUATION_S:
        return fails(
            f"scoring a batch takes {share:.2f} of the time of a step on it, expected at most {EVALUATION_S}: "
            "evaluations do more than score",
            share=share,
        )
    return holds(f"{share:.2f} of a step's time; FLOPs cannot be counted", share=share)
