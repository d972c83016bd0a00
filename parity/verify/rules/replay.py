"""Depths `replay` and `cross`: segments of the training repeated from checkpoints; the weights in the other backend.

The segments are drawn after the run, and repeated by a fresh process that has read no later checkpoint.
"""

import copy
import importlib.util
import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from parity.verify.context import Context, NotJudged
from parity.verify.log import Log
from parity.verify.rules import Finding, fails, holds, rule
from parity.verify.rules.data import positions
from parity.verify.rules.probe import Rows, rows_at_once, val_rows
from parity.weights import Weights

OTHER = {"jaxrun": ("torchref", "torch"), "torchref": ("jaxrun", "jax")}  # the other backend and its framework
REPEATED = 4  # steps that are run twice from one checkpoint, to see how well the program repeats itself
# Relative: (always allowed, for another machine adds in another order; never allowed) of a step's loss and gradient
# norm, and of how far the weights move over a segment. Between them: 8 times the program's own repetition.
LOSS = {"float64": (1e-8, 1e-6), "float32": (1e-4, 2e-3), "bfloat16": (5e-3, 2e-2)}
NORM = {"float64": (1e-7, 1e-5), "float32": (5e-3, 5e-2), "bfloat16": (5e-2, 2e-1)}
MOVE = {"float64": (1e-6, 1e-4), "float32": (2e-2, 1e-1), "bfloat16": (1e-1, 3e-1)}
TABLES = (LOSS, NORM, MOVE)
REPEATS = 8.0
CROSS = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 1e-2}  # nats: a mean loss in the other backend


class Spread(NamedTuple):
    """Relative differences between two repetitions of the same steps: in losses, gradient norms, weights' movement."""

    loss: float
    norm: float
    move: float


class Replay:
    """A fresh process, the segments drawn, and the weights at their ends as the checkpoints have them."""

    def __init__(self, context: Context):
        self.context, evidence = context, context.evidence
        steps = evidence.run["checkpoints"]
        segments = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if b > a]
        if not segments:
            raise NotJudged("the run has no two checkpoints with a segment between them to repeat")
        # "stretches" only names the random numbers; another name would draw other segments for a seed
        picks = context.random("stretches").permutation(len(segments))[: context.segments]
        self.segments = [(0, evidence.steps)] if context.whole else [segments[i] for i in sorted(picks.tolist())]
        context.facts["replayed"] = [list(segment) for segment in self.segments]
        ends = sorted({step for segment in self.segments for step in segment})
        for step in ends:
            if not evidence.checkpoint(step).is_dir():
                raise NotJudged(
                    f"the checkpoint of step {step} is not in {evidence.path / 'checkpoints'}: put it back, or make "
                    "the run again"
                )
        self.positions = list(positions(context))
        program = context.program
        self.weights = {step: program.export_and_drop(program.restore(evidence.checkpoint(step))) for step in ends}
        self.program = context.sandboxed("replay")

    def start(self, step: int) -> int:
        """The state before a step: from the seed where it is the first, so that no checkpoint has a part in it."""
        if step == 0:
            return self.program.init(self.context.evidence.run["seed"])
        return self.program.restore(self.context.evidence.checkpoint(step))

    def batch(self, step: int) -> Rows:
        """The plan's batch of a step."""
        shard, position, tokens, length = self.positions[step]
        window = np.asarray(self.context.slice.train[shard][position : position + tokens + 1], np.int32)
        return Rows(window[:-1].reshape(-1, length), window[1:].reshape(-1, length))

    def repeat(self, first: int, last: int) -> tuple[dict[str, list[float]], Weights]:
        """Repeats steps first .. last - 1: their losses and gradient norms, and the weights at the end."""
        state = self.start(first)
        metrics = [self.program.step(state, *self.batch(step)) for step in range(first, last)]
        return {name: [m[name] for m in metrics] for name in ("loss", "grad_norm")}, self.program.export_and_drop(state)

    def call_once(self, name: str, step: int) -> tuple[Any, Weights]:
        """The answer to one call with a step's batch on the state before it, and the weights after it."""
        state = self.start(step)
        answer = self.program.call(name, state=state, **self.batch(step)._asdict())
        return answer, self.program.export_and_drop(state)

    @cached_property
    def spread(self) -> Spread:
        """How well the program repeats itself from the first segment's checkpoint."""
        first, end = self.segments[0]
        (a, weights_a), (b, weights_b) = (self.repeat(first, min(end, first + REPEATED)) for _ in range(2))
        loss, norm = (largest_difference(a[name], b[name])[0] for name in ("loss", "grad_norm"))
        return Spread(loss, norm, move_difference(self.weights[first], weights_a, weights_b)[0])

    def allowed(self) -> Spread:
        """The differences that are allowed here between a repetition and the log."""
        precision = self.context.evidence.precision
        limits = (table[precision] for table in TABLES)
        return Spread(
            *(min(max(REPEATS * own, low), high) for own, (low, high) in zip(self.spread, limits, strict=True))
        )


@rule("replay.repeat", "replay", "the program repeats its own steps as well as its precision allows")
def repeat(context: Context) -> Finding:
    spread, precision = context.once(Replay).spread, context.evidence.precision
    for name, difference, table in zip(Spread._fields, spread, TABLES, strict=True):
        if not REPEATS * difference <= table[precision][1]:
            return fails(
                f"{REPEATED} steps run twice from one checkpoint differ by {difference:.2g} of their {name}, allowed "
                f"{table[precision][1] / REPEATS:.1g}: what cannot be repeated cannot be verified",
                **spread._asdict(),
            )
    precise = f"losses to {spread.loss:.1g}, weights to {spread.move:.1g} of their movement"
    return holds(precise if any(spread) else "to the last bit", **spread._asdict())


@rule("replay.reported", "replay", "the training loss that was logged is the one whose gradient is taken")
def reported(context: Context) -> Finding:
    r = context.once(Replay)
    worst = 0.0
    for first, _ in r.segments:
        state = r.start(first)
        computed = float(r.program.call("training_loss", state=state, **r.batch(first)._asdict()))
        r.program.drop(state)
        logged = _logged(context.log, first, "loss")
        difference = abs(computed - logged) / max(abs(computed), 1e-9)
        worst = max(worst, difference)
        if not difference <= LOSS[context.evidence.precision][0]:
            return fails(
                f"step {first}: logged {logged:.6f}, the loss whose gradient is taken is {computed:.6f}",
                logged=logged,
                found=computed,
            )
    return holds(f"at {len(r.segments)} steps within {worst:.1g}")


@rule("replay.stretches", "replay", "segments drawn after the run come out as they were logged and saved")
def segments(context: Context) -> Finding:
    r = context.once(Replay)
    allowed, evidence, summaries = r.allowed(), {}, []
    for first, last in r.segments:
        metrics, weights = r.repeat(first, last)
        loss, norm = (
            largest_difference(metrics[name], [_logged(context.log, step, name) for step in range(first, last)])
            for name in ("loss", "grad_norm")
        )
        move, weight = move_difference(r.weights[first], weights, r.weights[last])
        evidence[f"{first}-{last}"] = {"loss": loss[0], "grad_norm": norm[0], "weights": move}
        for name, (difference, where), limit in (("loss", loss, allowed.loss), ("gradient norm", norm, allowed.norm)):
            if not difference <= limit:
                return fails(
                    f"step {first + where}: the {name} differs by {difference:.2g} of its size, allowed {limit:.1g}",
                    **evidence,
                )
        if not move <= allowed.move:
            return fails(
                f"steps {first} to {last}: weight {weight} ends {move:.2g} of its movement from where the checkpoint "
                f"has it, allowed {allowed.move:.1g}",
                **evidence,
            )
        exact = not (loss[0] or norm[0] or move)
        precise = "to the last bit" if exact else f"(losses to {loss[0]:.1g}, weights to {move:.1g})"
        summaries.append(f"{first} to {last} {precise}")
    return holds(f"steps {', '.join(summaries)}", **evidence)


@rule("replay.single", "replay", "a step is one gradient of its batch, and one update by it")
def single(context: Context) -> Finding:
    r = context.once(Replay)
    if context.evidence.user_program:
        raise NotJudged("a user program may compose its step as it likes")
    first, _ = r.segments[-1]
    (_, by_step), (_, by_update) = (r.call_once(name, first) for name in ("step", "update"))
    move, weight = move_difference(r.weights[first], by_step, by_update)
    allowed = MOVE[context.evidence.precision][0]
    if not move <= allowed:
        return fails(
            f"step {first} moves {weight} {move:.2g} of its movement elsewhere than one update by one gradient does, "
            f"allowed {allowed:.1g}",
            apart=move,
        )
    return holds(
        f"step {first} and one update by one gradient differ by {move:.1g} of the weights' movement", apart=move
    )


@rule("replay.audit", "replay", "in the sandbox the program tried nothing but to compute")
def audit(context: Context) -> Finding:
    events = [*context.program.audit, *context.once(Replay).program.audit]
    return fails(f"{len(events)} attempts: {events[0]}", events=events[:50]) if events else holds("nothing")


@rule("cross.loss", "cross", "the other backend finds the same loss for the same weights")
def cross(context: Context) -> Finding:
    evidence = context.evidence
    if evidence.user_program or evidence.backend not in OTHER:
        raise NotJudged("user code has no twin in the other backend")
    other, package = OTHER[evidence.backend]
    if not importlib.util.find_spec(package):
        raise NotJudged(f"{package} is not installed here: pip install {package}")
    twin = copy.copy(evidence)
    twin.run = {**evidence.run, "backend": other, "options": {}, "program": None}
    rows = [val_rows(context, context.random(f"cross {i}"), rows_at_once(evidence.eval_context)) for i in range(4)]
    means = []
    for program in (context.program, context.sandboxed("cross", twin)):
        state = program.load(evidence.final_weights, evidence.steps)
        means.append(math.fsum(float(program.token_losses(state, *some).mean()) for some in rows) / len(rows))
        program.drop(state)
    here, there = means
    if not abs(here - there) <= CROSS[evidence.precision]:
        return fails(
            f"{evidence.backend} finds {here:.6f}, {other} {there:.6f}: {here - there:+.2g}", here=here, there=there
        )
    return holds(f"{here:.6f} in {evidence.backend}, {there:.6f} in {other}", here=here, there=there)


def largest_difference(a: list[float], b: list[float]) -> tuple[float, int]:
    """The largest relative difference of two series, and where; inf for numbers that are not finite."""
    x, y = np.asarray(a), np.asarray(b)
    difference = np.abs(x - y) / np.maximum(np.abs(y), 1e-12)
    difference[~np.isfinite(difference)] = np.inf
    return float(difference.max()), int(difference.argmax())


def move_difference(start: Weights, a: Weights, b: Weights) -> tuple[float, str]:
    """How far apart a weight ends in `a` and `b`, relative to its movement from `start` to `b`: the largest, by name.

    Weights that moved less than a millionth of their size count by their size.
    """
    if not start.keys() == a.keys() == b.keys():
        return math.inf, "names"
    worst = (0.0, "")
    for name in start:
        x, y, z = (np.asarray(weights[name], np.float64) for weights in (start, a, b))
        if not x.shape == y.shape == z.shape:
            return math.inf, name
        moved = max(float(np.linalg.norm(z - x)), 1e-6 * float(np.linalg.norm(x)), 1e-12)
        difference = float(np.linalg.norm(y - z)) / moved
        worst = max(worst, (difference if math.isfinite(difference) else math.inf, name))
    return worst


def _logged(log: Log, step: int, column: str) -> float:
    """The logged value of a step, the last time that it was run."""
    rows = np.flatnonzero(log.step == step)
    if not len(rows):
        raise NotJudged(f"the log has no step {step}")
    return float(log.columns[column][rows[-1]])
