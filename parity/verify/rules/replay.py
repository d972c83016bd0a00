"""Depths `replay` and `cross`: segments of the training repeated from checkpoints; the weights in the other backend.

The segments are drawn after the run, and repeated by a fresh process that has read no later checkpoint.
"""

import copy
import importlib.util
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parity.data.plain import plain_tokens
from parity.verify import coverage
from parity.verify.context import Context, NotJudged
from parity.verify.coverage import Segment
from parity.verify.log import Log
from parity.verify.rules import OWN_CODE, Finding, fails, holds, rule
from parity.verify.rules.data import planned
from parity.verify.rules.probe import Rows, rows_at_once, val_rows
from parity.verify.sandbox.client import SandboxedProgram, SandboxError
from parity.verify.timing import Spent, timed
from parity.weights import Weights

OTHER = {"jaxrun": ("torchref", "torch"), "torchref": ("jaxrun", "jax")}  # the other backend and its framework
REPEATED = 4  # steps of the longest segment that are run once more, to see how well the program repeats itself
# Relative: (always allowed, for another machine adds in another order; never allowed) of a step's loss and gradient
# norm, and of how far the weights move over a segment. Between them: 8 times the program's own repetition.
LOSS = {"float64": (1e-8, 1e-6), "float32": (1e-4, 2e-3), "bfloat16": (5e-3, 2e-2)}
NORM = {"float64": (1e-7, 1e-5), "float32": (5e-3, 5e-2), "bfloat16": (5e-2, 2e-1)}
MOVE = {"float64": (1e-6, 1e-4), "float32": (2e-2, 1e-1), "bfloat16": (1e-1, 3e-1)}
TABLES = (LOSS, NORM, MOVE)
REPEATS = 8.0
MOVEMENT_BYTES, KEPT_BYTES = 4 << 30, 256 << 20  # of checkpoints that are read for their movement; of weights kept
CHUNK_STEPS, CHUNK_TOKENS = 8, 65_536  # of one call
CROSS = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 1e-2}  # nats: a mean loss in the other backend


class Spread(NamedTuple):
    """Relative differences between two repetitions of the same steps: in losses, gradient norms, weights' movement."""

    loss: float
    norm: float
    move: float


class Repetition(NamedTuple):
    """Repeated steps: losses and gradient norms by name, the weights at the end, and those after the first REPEATED."""

    metrics: dict[str, list[float]]
    weights: Weights
    marked: Weights


class Chunk(NamedTuple):
    """Steps that one call repeats: the first, how many, and the rows and the row length of their batches."""

    first: int
    steps: int
    shape: tuple[int, int]


class Replay:
    """The segments drawn, and a fresh process that is started when they are repeated.

    `spent`: what every chunk of steps has taken each time, and by segment what its weights had to be waited for.
    """

    def __init__(self, context: Context):
        self.context, evidence = context, context.evidence
        steps = evidence.run["checkpoints"]
        segments = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if b > a]
        if not segments:
            raise NotJudged("the run has no two checkpoints with a segment between them to repeat")
        self.exported: dict[int, Weights] = {}
        self.segments = [(0, evidence.steps)] if context.whole else self._chosen(segments)
        self.longest = max(self.segments, key=lambda segment: segment[1] - segment[0])
        self.mark = min(self.longest[0] + REPEATED, self.longest[1])
        self.small = (evidence.path / "weights.safetensors").lstat().st_size <= KEPT_BYTES
        context.facts["replayed"] = [list(segment) for segment in self.segments]
        self.spans = list(planned(context))
        self.first_inits: list[tuple[Spent, Spent]] = []
        self.not_compiled = ""  # why a program that was compiled is not, here
        self.warm: set[tuple[int, int]] = set()  # shapes of batches that the process has compiled its step for
        self.spent: dict[Chunk, list[Spent]] = {}
        self.drained: dict[Segment, list[Spent]] = {}

    @cached_property
    def program(self) -> SandboxedProgram:
        """The fresh process, alone on the machine, as far as it is the verifier's."""
        self.context.settle()
        evidence = self.context.evidence
        if evidence.was_compiled and (compiled := self._compiled()):
            return compiled
        return self._started(compilers=False)

    def _started(self, compilers: bool) -> SandboxedProgram:
        program, evidence = self.context.sandboxed("replay", compilers=compilers), self.context.evidence
        self.first_inits = first_inits(program, evidence.run["seed"]) if evidence.has_user_code else []
        return program

    def _compiled(self) -> SandboxedProgram | None:
        """The process, with the program compiled in it as it was for the run; None where that cannot be done here.

        Compilers are started only where bubblewrap confines them: what they are given is untrusted.
        """
        facts = self.context.facts
        if "bubblewrap" not in facts.get("isolation", ""):
            self.not_compiled = "the program was compiled there, and here only bubblewrap could confine a compiler"
        else:
            try:
                program = self._started(compilers=True)
                state = program.init(self.context.evidence.run["seed"])
                program.step(state, *self.batch(0))
                program.drop(state)
                facts["compiled"] = "repeated steps are compiled, in a process that may start compilers"
                return program
            except SandboxError as error:
                self.context.end("replay")
                self.not_compiled = f"the program was compiled there, and cannot be here: {str(error).splitlines()[0]}"
        facts["compiled"] = f"not here: {self.not_compiled}"
        return None

    def _chosen(self, segments: list[Segment]) -> list[Segment]:
        """Segments drawn at random, and those whose loss fell or whose weights moved most.

        Where the weights would take too long to read, the last one, after which no training loss follows.
        """
        evidence = self.context.evidence
        # "stretches" only names the random numbers; another name would draw other segments for a seed
        chosen = coverage.drawn(segments, self.context.segments, self.context.random("stretches"))
        losses = np.full(evidence.steps, np.nan)
        losses[self.context.log.step] = self.context.log.columns["loss"]
        fell = coverage.standing_out(segments, coverage.beyond_neighbours(coverage.falls(losses, segments)))
        moved = {len(segments) - 1}
        size = sum(_size(evidence.checkpoint(step)) for step in evidence.run["checkpoints"])
        if len(segments) > 2 and size <= MOVEMENT_BYTES:
            ends = [segments[0][0], *(last for _, last in segments)]
            movements, before = [], self.weights(ends[0])
            for step in ends[1:]:
                after = self.weights(step)
                movements.append(coverage.movement(before, after))
                before = after
            moved = coverage.standing_out(segments, coverage.beyond_neighbours(coverage.speeds(movements, segments)))
        self.context.facts["drawn"] = {
            "at random": sorted(chosen),
            "loss fell": sorted(fell),
            "weights moved": sorted(moved),
        }
        return [segments[i] for i in sorted(chosen | fell | moved)]

    def weights(self, step: int) -> Weights:
        """The weights of a checkpoint; kept while there are few."""
        if step not in self.exported:
            checkpoint = self.context.evidence.checkpoint(step)
            if not checkpoint.is_dir():
                raise NotJudged(
                    f"the checkpoint of step {step} is not in {checkpoint.parent}: put it back, or make the run again"
                )
            program = self.context.program
            weights = program.export_and_drop(program.restore(checkpoint))
            if sum(w.nbytes for kept in self.exported.values() for w in kept.values()) > KEPT_BYTES:
                return weights
            self.exported[step] = weights
        return self.exported[step]

    def start(self, step: int, program: SandboxedProgram | None = None) -> int:
        """The state before a step: from the seed where it is the first, so that no checkpoint has a part in it.

        `program`: another process than that of this replay.
        """
        program = program or self.program
        if step == 0:
            return program.init(self.context.evidence.run["seed"])
        return program.restore(self.context.evidence.checkpoint(step))

    def batch(self, step: int) -> Rows:
        """The plan's batch of a step."""
        span = self.spans[step]
        tokens = plain_tokens(self.context.slice.train, span).astype(np.int32)
        inputs, targets = (part.reshape(-1, span.seq_len) for part in (tokens[..., :-1], tokens[..., 1:]))
        return Rows(np.ascontiguousarray(inputs), np.ascontiguousarray(targets))

    def _shape(self, step: int) -> tuple[int, int]:
        """Tokens of a step's batch and of its rows."""
        return self.spans[step].tokens, self.spans[step].seq_len

    def chunks(self, first: int, last: int) -> Iterator[Chunk]:
        """Steps first .. last - 1 in calls of a few steps with batches of one shape, none across the mark."""
        while first < last:
            tokens, length = self._shape(first)
            count, end = 1, self.mark if first < self.mark < last else last
            while (
                first + count < end
                and count < CHUNK_STEPS
                and (count + 1) * tokens <= CHUNK_TOKENS
                and self._shape(first + count) == (tokens, length)
            ):
                count += 1
            yield Chunk(first, count, (tokens // length, length))
            first += count

    def run(self, state: int, first: int, last: int) -> list[dict[str, float]]:
        """Repeats steps first .. last - 1 on a state, timed; their metrics."""
        metrics: list[dict[str, float]] = []
        for chunk in self.chunks(first, last):
            batches = [self.batch(step) for step in range(chunk.first, chunk.first + chunk.steps)]
            stacked = Rows(*(np.stack(arrays) for arrays in zip(*batches, strict=True)))
            with timed(self.program.process) as spent:
                metrics += self.program.steps(state, *stacked)
            if chunk.shape in self.warm:
                self.spent.setdefault(chunk, []).append(spent)
            self.warm.add(chunk.shape)
        return metrics

    def repeat(self, first: int, last: int) -> Repetition:
        """Repeats steps first .. last - 1."""
        state, marked = self.start(first), None
        metrics = []
        if self.small and (first, last) == self.longest and self.mark < last:
            metrics, marked = self.run(state, first, self.mark), self.program.export(state)
        metrics += self.run(state, first + len(metrics), last)
        with timed(self.program.process) as spent:
            weights = self.program.export(state)
        with timed(self.program.process) as again:
            self.program.export_and_drop(state)
        self.drained.setdefault((first, last), []).append(spent.less(again))
        return Repetition(
            {name: [m[name] for m in metrics] for name in ("loss", "grad_norm")}, weights, marked or weights
        )

    @cached_property
    def repeated(self) -> Repetition:
        """The longest segment, of a model whose weights may be kept."""
        return self.repeat(*self.longest)

    @cached_property
    def spread(self) -> Spread:
        """How well the program repeats itself from the longest segment's checkpoint."""
        first, _ = self.longest
        again, other = self.repeat(first, self.mark), self.repeated if self.small else self.repeat(first, self.mark)
        loss, norm = (
            largest_difference(values, other.metrics[name][: len(values)])[0] for name, values in again.metrics.items()
        )
        move, _ = move_difference(self.weights(first), again.weights, other.marked)
        if self.small:
            self.repeated = other._replace(marked={})
        return Spread(loss, norm, move)

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
    if context.trusts_code:
        return holds(OWN_CODE)
    r, program = context.once(Replay), context.program  # where replay.single needs the same gradient
    worst = 0.0
    for first, _ in r.segments:
        state = r.start(first, program)
        computed = float(program.call("training_loss", state=state, **r.batch(first)._asdict()))
        program.drop(state)
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
        metrics, weights, _ = r.repeated if r.small and (first, last) == r.longest else r.repeat(first, last)
        loss, norm = (
            largest_difference(metrics[name], [_logged(context.log, step, name) for step in range(first, last)])
            for name in ("loss", "grad_norm")
        )
        move, weight = move_difference(r.weights(first), weights, r.weights(last))
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


def _size(folder: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _logged(log: Log, step: int, column: str) -> float:
    """The logged value of a step, the last time that it was run."""
    rows = last_rows(log)
    if step not in rows:
        raise NotJudged(f"the log has no step {step}")
    return float(log.columns[column][rows[step]])


def last_rows(log: Log) -> dict[int, int]:
    """By step, its row in the log's columns, the last time that it was run."""
    return {step: row for row, step in enumerate(log.step.tolist())}


def first_inits(program: SandboxedProgram, seed: int) -> list[tuple[Spent, Spent]]:
    """What the first weights take in a fresh process, by the backend's own program, and by this one; of two seeds.

    A program that is not derived from the backend's own has nothing beside it.
    """
    inits = []
    for drawn in (seed, seed + 1):
        try:
            with timed(program.process) as plain:
                program.call("plain_init", seed=drawn)
        except SandboxError:
            plain = Spent()
        with timed(program.process) as own:
            state = program.init(drawn)
        program.drop(state)
        inits.append((plain, own))
    return inits
