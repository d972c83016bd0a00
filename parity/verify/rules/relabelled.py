"""Rule `knowledge.relabelled`: what a program computes does not depend on which token has which id.

Token ids get other names, at random but for end of text, in weights and in batches. A program that learns from its
batches alone gives the same losses; one that knows something about tokens, or where its weights should end, does not:
a table in the code, weights as a constant, an optimizer or a regulariser that pulls the weights to a known place.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import numpy as np

from parity.verify.context import Context, NotJudged
from parity.verify.rules import Finding, fails, holds, not_judged, rule
from parity.verify.rules.differences import clipped
from parity.verify.rules.probe import Probe, Rows
from parity.verify.rules.replay import Replay, largest_difference
from parity.verify.sandbox.client import SandboxError
from parity.weights import Weights

STEPS = 4  # repeated with renamed token ids, from the start and from the checkpoint before the last
MOST_TOKENS = 32_768  # in the segment where the loss fell most; at least STEPS, and no more than the segment
MASKED = "scoring gives tokens a probability of 0 by their ids"
MASK_POSITIONS = 8  # in every row
DECLARED_STEPS = 12  # from the start, of a program that says that it depends on token ids
# Nats, of the mean over the positions of the probed rows. Renaming the ids changes the order of the head's sums, and
# nothing else: float32 keeps the logarithm of such a sum to 1e-6.
LOSS = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 5e-3}
# Relative, of a training loss: how far a state that `load` made may be from one that `init` made (another dropout), and
# how far other collisions of hashed ids may move it. 2% of 6 nats are 0.12.
ALIKE = 0.02

T = TypeVar("T")


class Place(NamedTuple):
    """Losses at one place of the run: with renamed token ids, and as they must be."""

    name: str
    renamed: list[float]
    expected: list[float]


class Relabelling:
    """Renamed token ids, and a fresh process that sees them and no others at the start and at the end of the run.

    It is asked beside the rules of depth `recompute`, for three results: `final`, `start` and `later`.
    """

    def __init__(self, context: Context):
        self.context = context
        self.program = context.sandboxed("relabelled")
        self.replay = context.once(Replay)
        self.probe = context.once(Probe)
        self.expected = self.probe.losses
        self.first_weights = context.program.export_and_drop(context.program.init(context.evidence.run["seed"]))
        recipe = self.program.recipe
        size, fixed = context.slice.manifest.vocab_size, recipe.get("end_of_text")
        others = [token for token in range(size) if token != fixed]
        self.ids = np.arange(size)
        self.ids[others] = context.random("relabelled").permutation(others)
        self.declared = str(recipe.get("token_ids") or "")[:300]
        steps = min(DECLARED_STEPS if self.declared else STEPS, context.evidence.steps)
        self.final = self._submit(self._final)
        self.start = self._submit(partial(self._start, steps))
        places = [] if self.declared else sorted(self._checkpoints().items())
        self.later = [self._submit(partial(self._checkpoint, *place)) for place in places]

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        return self.context.submit("relabelled", work)

    def places(self, start: Place) -> Iterator[Place]:
        """The start, and the checkpoints whose states can be renamed."""
        yield start
        for place in self.later:
            if (result := place.result()) is not None:
                yield result

    @cached_property
    def allowed(self) -> float:
        """The relative difference of a training loss that another order of sums causes."""
        return self.replay.allowed().loss

    def rows(self, rows: Rows) -> Rows:
        return Rows(*(self.ids[x].astype(np.int32) for x in rows))

    def weights(self, weights: Weights) -> Weights:
        """Weights with renamed token ids. Raises NotJudged where it cannot be told which axes those index."""
        from parity.verify.sandbox.tokens import renamed

        shapes = {name: list(value.shape) for name, value in weights.items()}
        try:
            axes = self.program.call("token_axes", shapes=shapes)
        except SandboxError as error:
            raise NotJudged(f"{error}: give those axes another size than the vocabulary's") from None
        if not any(axes.get(name) for name in weights):
            raise NotJudged("no exported weight has an axis as long as the vocabulary: token ids cannot be renamed")
        return {
            name: np.ascontiguousarray(renamed(value, tuple(axes.get(name, ())), self.ids))
            for name, value in weights.items()
        }

    def losses(self, state: int, first: int, steps: int) -> list[float]:
        """Training losses of the next steps on the plan's batches with renamed token ids."""
        return [
            self.program.step(state, *self.rows(self.replay.batch(step)))["loss"]
            for step in range(first, first + steps)
        ]

    def logged(self, first: int, steps: int) -> list[float]:
        log = self.context.log
        rows = [np.flatnonzero(log.step == step) for step in range(first, first + steps)]
        if not all(map(len, rows)):
            raise NotJudged(f"the log lacks some of the steps {first} to {first + steps - 1}")
        return [float(log.columns["loss"][row[-1]]) for row in rows]

    def _start(self, steps: int) -> Place:
        """The first steps of the run."""
        state = self.program.load(self.weights(self.first_weights), 0)
        found = self.losses(state, 0, steps)
        self.program.drop(state)
        return Place("the first steps", found, self.logged(0, steps))

    def loaded(self, steps: int) -> list[float]:
        """Losses of the first steps with the ids as they are, from a state that `load` made of the first weights."""
        program = self.context.program
        state = program.load(self.first_weights, 0)
        found = [program.step(state, *self.replay.batch(step))["loss"] for step in range(steps)]
        program.drop(state)
        return found

    def _checkpoints(self) -> dict[int, int]:
        """By step of a checkpoint, how many steps are repeated from it: the last checkpoint but one, which shows what
        goes on to the end, and of the replayed segments the one in which the loss fell most."""
        evidence, log = self.context.evidence, self.context.log
        losses = dict(zip(log.step.tolist(), log.columns["loss"].tolist(), strict=True))
        steps = sorted(set(evidence.run["checkpoints"]))
        found = {first: min(STEPS, last - first) for first, last in zip(steps[-2:], steps[-1:], strict=False)}
        fell = [(losses.get(a, 0.0) - losses.get(b - 1, 0.0), a, b) for a, b in self.replay.segments if a > 0]
        if fell:
            _, first, last = max(fell)
            tokens = self.replay.batch(first).inputs.size
            found[first] = min(last - first, max(STEPS, MOST_TOKENS // tokens))
        return {first: count for first, count in found.items() if first > 0 and evidence.checkpoint(first).is_dir()}

    def _checkpoint(self, first: int, steps: int) -> Place | None:
        """Steps from a checkpoint; None where its state holds what cannot be renamed."""
        state = self.program.restore(self.context.evidence.checkpoint(first))
        try:
            self.program.call("rename_tokens", state=state, ids=self.ids)
        except SandboxError as error:
            if "Unclear" not in str(error):
                raise
            return None
        found = self.losses(state, first, steps)
        self.program.drop(state)
        return Place(f"steps {first} to {first + steps}", found, self.logged(first, steps))

    def masks(self) -> bool:
        """Whether the program gives tokens a probability of 0 in val rows."""
        probe = self.context.once(Probe)
        places = np.linspace(0, probe.rows.inputs.shape[1] - 1, MASK_POSITIONS).astype(np.int64)
        return bool(np.isneginf(probe.log_probs(probe.rows.inputs, np.unique(places))).any())

    def _final(self) -> tuple[float, float]:
        """Mean difference of the final weights' losses of val rows, and the mean of its size."""
        evidence = self.context.evidence
        state = self.program.load(self.weights(evidence.final_weights), evidence.steps)
        losses = self.program.token_losses(state, *self.rows(self.probe.rows))
        self.program.drop(state)
        difference = clipped(losses) - self.expected
        return float(difference.mean()), float(np.abs(difference).mean())


@rule(
    "knowledge.relabelled",
    "replay",
    "renaming the token ids renames the result, and changes no loss",
    beside=Relabelling,
)
def relabelled(context: Context) -> Finding:
    r = context.once(Relabelling)
    if r.declared:
        return _declared(r)
    mean, size = r.final.result()
    limit = LOSS[context.evidence.precision]
    masked = not size <= limit and r.masks()
    if masked:
        context.facts["token_ids"] = MASKED
    elif not size <= limit:
        return fails(
            f"the final weights' losses of val text with renamed token ids: expected the same, found {mean:+.3g} nats "
            f"on average, {size:.3g} in size, allowed {limit:.0e}: something is known about tokens by their ids",
            mean=mean,
            size=size,
        )
    steps, worst = min(STEPS, context.evidence.steps), 0.0
    start = r.start.result()
    if _apart(start) > r.allowed:
        loaded = r.loaded(steps)
        if (apart := _difference(loaded, start.expected)) > ALIKE:
            return fails(
                f"a state that load makes of the first weights trains otherwise than one that init makes: expected "
                f"losses {_listed(start.expected)}, found {_listed(loaded)}",
                apart=apart,
            )
        start = start._replace(expected=loaded)
    for place in r.places(start):
        if not (apart := _apart(place)) <= r.allowed:
            return fails(
                f"{place.name} with renamed token ids: expected losses {_listed(place.expected)}, found "
                f"{_listed(place.renamed)}: something is known about tokens by their ids, or where the weights should "
                "end",
                apart=apart,
                allowed=r.allowed,
                found=place.renamed,
                expected=place.expected,
            )
        worst = max(worst, apart)
    if masked:
        return not_judged(
            f"training losses equal to {worst:.1g} of their size; {MASKED}, and these cannot be renamed: read where",
            apart=worst,
            allowed=r.allowed,
        )
    return holds(
        f"training losses equal to {worst:.1g} of their size, the final weights' to {size:.1g} nats",
        apart=worst,
        allowed=r.allowed,
        final=size,
    )


def _declared(r: Relabelling) -> Finding:
    """Of a program that says why it depends on token ids: its first steps come out alike, and a person reads it."""
    r.context.facts["token_ids"] = r.declared
    start = r.start.result()
    mean = [sum(losses) / len(losses) for losses in (start.renamed, start.expected)]
    apart = abs(mean[0] - mean[1]) / max(abs(mean[1]), 1e-9)
    says = f"the program says that it depends on token ids: {r.declared!r}"
    if not apart <= ALIKE:
        return fails(
            f"{says}; its first {len(start.renamed)} steps with renamed ids: expected a mean loss of {mean[1]:.4f} "
            f"within {ALIKE:.0%}, found {mean[0]:.4f}",
            apart=apart,
        )
    return not_judged(
        f"{says}; its first {len(start.renamed)} steps with renamed ids have a mean loss of {mean[0]:.4f}, as they are "
        f"{mean[1]:.4f}: read where it uses them",
        apart=apart,
    )


def _apart(place: Place) -> float:
    return _difference(place.renamed, place.expected)


def _difference(found: list[float], expected: list[float]) -> float:
    """The largest relative difference; inf for numbers that are not finite."""
    if not found:
        return math.inf
    return largest_difference(found, expected)[0]


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.5f}" for loss in losses)
