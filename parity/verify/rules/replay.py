"""Depths `replay` and `cross`: stretches of the training made again from checkpoints, and the weights in the other backend.

Which stretches is drawn after the run. The process that makes them again is a fresh one that has seen no later checkpoint.
"""

import importlib.util
import math
from typing import Any, NamedTuple

import numpy as np

from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule
from parity.verify.rules.data import positions
from parity.verify.rules.probe import Rows, rows_at_once, val_rows
from parity.verify.sandbox.client import Remote

OTHER = {"jaxrun": "torchref", "torchref": "jaxrun"}
REPEATED = 4  # steps that are made twice from one checkpoint, to see how well the program repeats itself
# Relative: (what is always allowed, for another machine adds in another order; what is never allowed) of a step's loss and
# gradient norm, and of how far the weights move over a stretch. Between them: 8 times the program's own repetition.
LOSS = {"float64": (1e-8, 1e-6), "float32": (1e-4, 2e-3), "bfloat16": (5e-3, 2e-2)}
NORM = {"float64": (1e-7, 1e-5), "float32": (5e-3, 5e-2), "bfloat16": (5e-2, 2e-1)}
MOVE = {"float64": (1e-6, 1e-4), "float32": (2e-2, 1e-1), "bfloat16": (1e-1, 3e-1)}
REPEATS = 8.0
CROSS = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 1e-2}  # nats: a mean loss in the other backend


class Spread(NamedTuple):
    """Relative: how far two makings of the same steps are apart in losses, gradient norms and the weights' movement."""

    loss: float
    norm: float
    move: float


class Replay:
    """A fresh process, the stretches drawn, and the weights at their ends as the checkpoints have them."""

    def __init__(self, context: Context):
        self.context, evidence = context, context.evidence
        steps = evidence.run["checkpoints"]
        stretches = [(a, b) for a, b in zip(steps, steps[1:]) if b > a]
        if not stretches:
            raise NotJudged("the run has no two checkpoints to make a stretch between again")
        picks = context.random("stretches").permutation(len(stretches))[: context.segments]
        self.stretches = [(0, evidence.steps)] if context.whole else [stretches[i] for i in sorted(picks.tolist())]
        context.facts["replayed"] = [list(stretch) for stretch in self.stretches]
        for step in sorted({step for stretch in self.stretches for step in stretch}):
            if not evidence.checkpoint(step).is_dir():
                raise NotJudged(
                    f"the checkpoint of step {step} is not in {evidence.path / 'checkpoints'}: put it back, or make the "
                    "run again"
                )
        self.places = list(positions(context))
        self.weights = {step: self._weights(step) for stretch in self.stretches for step in stretch}
        self.remote = context.started("replay")
        self.repeated: Spread | None = None

    def start(self, step: int) -> int:
        """The state before a step: from the seed where it is the first, which no checkpoint can have a part in."""
        if step == 0:
            return self.remote.init(self.context.evidence.run["seed"])
        return self.remote.restore(self.context.evidence.checkpoint(step))

    def batch(self, step: int) -> Rows:
        """The plan's batch of a step."""
        shard, position, tokens, length = self.places[step]
        window = np.asarray(self.context.slice.train[shard][position : position + tokens + 1], np.int32)
        return Rows(window[:-1].reshape(-1, length), window[1:].reshape(-1, length))

    def run(self, state: int, first: int, last: int) -> list[dict[str, float]]:
        """Makes steps first .. last - 1."""
        return [self.remote.step(state, *self.batch(step)) for step in range(first, last)]

    def spread(self) -> Spread:
        """How well the program repeats itself from the first stretch's checkpoint."""
        if self.repeated is None:
            first, end = self.stretches[0]
            last = min(end, first + REPEATED)
            made = []
            for _ in range(2):
                state = self.start(first)
                made.append((self.run(state, first, last), self.remote.export(state)))
                self.remote.drop(state)
            (a, at_a), (b, at_b) = made
            self.repeated = Spread(
                *(apart([x[name] for x in a], [x[name] for x in b])[0] for name in ("loss", "grad_norm")),
                moved(self.weights[first], at_a, at_b)[0],
            )
        return self.repeated

    def allowed(self) -> Spread:
        """What two makings may differ by here."""
        spread, precision = self.spread(), self.context.evidence.precision
        return Spread(
            *(
                min(max(REPEATS * found, table[precision][0]), table[precision][1])
                for found, table in zip(spread, (LOSS, NORM, MOVE))
            )
        )

    def _weights(self, step: int) -> dict[str, np.ndarray]:
        remote = self.context.remote
        state = remote.restore(self.context.evidence.checkpoint(step))
        found = remote.export(state)
        remote.drop(state)
        return found


def replay(context: Context) -> Replay:
    """The run's replay, made by the first rule that needs it."""
    if not hasattr(context, "_replay"):
        context._replay = Replay(context)
    return context._replay


@rule("replay.repeat", "replay", "the program repeats its own steps as well as its precision allows")
def repeat(context: Context) -> Found:
    r = replay(context)
    spread, precision = r.spread(), context.evidence.precision
    for name, found, table in zip(Spread._fields, spread, (LOSS, NORM, MOVE)):
        if not REPEATS * found <= table[precision][1]:
            return fails(
                f"{REPEATED} steps made twice from one checkpoint differ by {found:.2g} of their {name}, allowed "
                f"{table[precision][1] / REPEATS:.1g}: what cannot be repeated cannot be verified",
                **spread._asdict(),
            )
    same = not any(spread)
    return holds(
        "to the last bit" if same else f"losses to {spread.loss:.1g}, weights to {spread.move:.1g} of their way",
        **spread._asdict(),
    )


@rule("replay.reported", "replay", "the training loss that was logged is the one whose gradient is taken")
def reported(context: Context) -> Found:
    r = replay(context)
    log, worst = context.log, 0.0
    for first, _ in r.stretches:
        state = r.start(first)
        found = float(r.remote.call("training_loss", state=state, **r.batch(first)._asdict()))
        r.remote.drop(state)
        logged = _logged(log, first, "loss")
        apart_by = abs(found - logged) / max(abs(found), 1e-9)
        worst = max(worst, apart_by)
        if not apart_by <= LOSS[context.evidence.precision][0]:
            return fails(
                f"step {first}: logged {logged:.6f}, the loss whose gradient is taken is {found:.6f}",
                logged=logged,
                found=found,
            )
    return holds(f"at {len(r.stretches)} steps within {worst:.1g}")


@rule("replay.stretches", "replay", "stretches drawn after the run come out as they were logged and saved")
def stretches(context: Context) -> Found:
    r = replay(context)
    allowed, evidence, said = r.allowed(), {}, []
    for first, last in r.stretches:
        state = r.start(first)
        made = r.run(state, first, last)
        end = r.remote.export(state)
        r.remote.drop(state)
        losses = apart([x["loss"] for x in made], [_logged(context.log, step, "loss") for step in range(first, last)])
        norms = apart(
            [x["grad_norm"] for x in made], [_logged(context.log, step, "grad_norm") for step in range(first, last)]
        )
        way = moved(r.weights[first], end, r.weights[last])
        evidence[f"{first}-{last}"] = {"loss": losses[0], "grad_norm": norms[0], "weights": way[0]}
        for name, (found, where), limit in (("loss", losses, allowed.loss), ("gradient norm", norms, allowed.norm)):
            if not found <= limit:
                return fails(
                    f"step {first + where}: the {name} differs by {found:.2g} of its size, allowed {limit:.1g}",
                    **evidence,
                )
        if not way[0] <= allowed.move:
            return fails(
                f"steps {first} to {last}: weight {way[1]} ends {way[0]:.2g} of its way from where the checkpoint has it, allowed "
                f"{allowed.move:.1g}",
                **evidence,
            )
        exact = not (losses[0] or norms[0] or way[0])
        said.append(
            f"{first} to {last}"
            + (" to the last bit" if exact else f" (losses to {losses[0]:.1g}, weights to {way[0]:.1g})")
        )
    return holds(f"steps {', '.join(said)}", **evidence)


@rule("replay.single", "replay", "a step is one gradient of its batch, and one update by it")
def single(context: Context) -> Found:
    r = replay(context)
    if context.evidence.own:
        raise NotJudged("what a step of an own program is made of is its own affair")
    first, _ = r.stretches[-1]
    ends = []
    for name in ("step", "update"):
        state = r.start(first)
        r.remote.call(name, state=state, **r.batch(first)._asdict())
        ends.append(r.remote.export(state))
        r.remote.drop(state)
    way = moved(r.weights[first], *ends)
    allowed = MOVE[context.evidence.precision][0]
    if not way[0] <= allowed:
        return fails(
            f"step {first} moves {way[1]} {way[0]:.2g} of its way elsewhere than one update by one gradient does, allowed "
            f"{allowed:.1g}",
            apart=way[0],
        )
    return holds(f"step {first}, taken apart: {way[0]:.1g} of its way elsewhere", apart=way[0])


@rule("replay.audit", "replay", "in the process apart the program tried nothing but to compute")
def audit(context: Context) -> Found:
    seen = [*context.remote.audit, *replay(context).remote.audit]
    return fails(f"{len(seen)} tried: {seen[0]}", events=seen[:50]) if seen else holds("nothing")


@rule("cross.loss", "cross", "the other backend finds the same loss for the same weights")
def cross(context: Context) -> Found:
    evidence = context.evidence
    other = OTHER.get(evidence.backend)
    if evidence.own or other is None:
        raise NotJudged("own code has no twin in the other backend")
    package = {"jaxrun": "jax", "torchref": "torch"}[other]
    if not importlib.util.find_spec(package):
        raise NotJudged(f"{package} is not installed here: pip install {package}")
    twin = Remote.start(_as(context, other))
    context.closing.append(twin.close)
    rows = [val_rows(context, context.random(f"cross {i}"), rows_at_once(evidence.eval_context)) for i in range(4)]
    means = []
    for remote in (context.remote, twin):
        state = remote.load(evidence.final_weights, evidence.steps)
        means.append(math.fsum(float(remote.token_losses(state, *some).mean()) for some in rows) / len(rows))
        remote.drop(state)
    here, there = means
    if not abs(here - there) <= CROSS[evidence.precision]:
        return fails(
            f"{evidence.backend} finds {here:.6f}, {other} {there:.6f}: {here - there:+.2g}", here=here, there=there
        )
    return holds(f"{here:.6f} in {evidence.backend}, {there:.6f} in {other}", here=here, there=there)


def apart(a: list[float], b: list[float]) -> tuple[float, int]:
    """The largest relative difference of two series, and where; inf for numbers that are not finite."""
    x, y = np.asarray(a), np.asarray(b)
    found = np.abs(x - y) / np.maximum(np.abs(y), 1e-12)
    found[~np.isfinite(found)] = np.inf
    return float(found.max()), int(found.argmax())


def moved(start: dict[str, np.ndarray], a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """How far two ends of a weight's way are apart, of its length, for the weight where that is most.

    Weights that moved less than a millionth of their size count by their size.
    """
    if not start.keys() == a.keys() == b.keys():
        return math.inf, "names"
    worst = (0.0, "")
    for name, w in start.items():
        x, y, z = (np.asarray(v[name], np.float64) for v in (start, a, b))
        if not x.shape == y.shape == z.shape:
            return math.inf, name
        way = max(float(np.linalg.norm(z - x)), 1e-6 * float(np.linalg.norm(x)), 1e-12)
        found = float(np.linalg.norm(y - z)) / way
        worst = max(worst, (found if math.isfinite(found) else math.inf, name))
    return worst


def _logged(log: Any, step: int, column: str) -> float:
    """What the log says of a step, the last time that it was made."""
    rows = np.flatnonzero(log.step == step)
    if not len(rows):
        raise NotJudged(f"the log has no step {step}")
    return float(log.columns[column][rows[-1]])


def _as(context: Context, backend: str) -> Context:
    """The same run as one of the other backend, without own code."""
    import copy

    twin = copy.copy(context)
    twin.evidence = copy.copy(context.evidence)
    twin.evidence.run = {**context.evidence.run, "backend": backend, "options": {}, "program": None}
    twin.facts, twin.closing, twin.processes = {}, [], {}
    return twin
