"""Depth `probe`: is it a model of the next token? Asked in a sandboxed process of the final weights, and of those of
another checkpoint, drawn at random: what is scored there must be as honest as the end.

Inputs are rows of the val text, picked at random, and random tokens. Where two results must be equal, the allowance is
the rounding of one reordered sum, and at most as much again where the same call made twice differs; their mean is held
against its standard error (differences.py).
"""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from parity import weights as canonical
from parity.verify.context import Context, NotJudged
from parity.verify.rules import OWN_CODE, Finding, fails, holds, rule
from parity.verify.rules.differences import MEAN_ROUNDING, ROUNDING, SIGMAS, clipped, largest, mean_of
from parity.verify.sandbox.client import SandboxedProgram

ROWS = 16
ROW_TOKENS = 16 * 1024  # in one call: of long rows fewer than ROWS, but at least two
POSITIONS = 8  # in every row for which whole rows of log-probabilities are computed
SUMS = 1e-5  # of probabilities: float32 keeps a sum of 50,000 to 3e-6
REPEATS = 8.0


class Rows(NamedTuple):
    """(B, T) int32 inputs and targets."""

    inputs: np.ndarray
    targets: np.ndarray


class Probe:
    """A state in the sandboxed process, and rows of text for it: the final weights, or the checkpoint of a step.

    Rules get that of the final weights by `context.once(Probe)`, and both by `probes`.
    """

    def __init__(self, context: Context, step: int | None = None):
        self.context, self.program, self.step = context, context.program, step
        self.where = "" if step is None else f"at the checkpoint of step {step}, "
        self.precision = str(self.program.recipe.get("precision"))
        if self.precision != context.evidence.precision:
            raise NotJudged(f"run.json has precision {context.evidence.precision}, the program {self.precision}")
        self.vocab = context.slice.manifest.vocab_size
        self.count = rows_at_once(context.evidence.eval_context)
        self.state = self.fresh_state(self.program)
        self.lowest = math.inf  # of all losses that token_losses gave

    def fresh_state(self, program: SandboxedProgram) -> int:
        """The state, loaded once more. Raises NotJudged where the checkpoint is missing."""
        evidence = self.context.evidence
        if self.step is None:
            return program.load(evidence.final_weights, evidence.steps)
        folder = evidence.checkpoint(self.step)
        if not folder.is_dir():
            raise NotJudged(f"the checkpoint of step {self.step} is not in {folder.parent}: put it back")
        return program.restore(folder)

    @cached_property
    def rows(self) -> Rows:
        """`count` rows of the val text, picked at random, as long as in evaluation."""
        return val_rows(self.context, self.random("probe rows"), self.count)

    @cached_property
    def losses(self) -> np.ndarray:
        return self.token_losses(self.rows)

    @cached_property
    def allowed(self) -> float:
        """Nats by which two results may differ that must be equal."""
        noise = largest(self.token_losses(self.rows) - self.losses)
        return min(REPEATS * noise, ROUNDING[self.precision]) + ROUNDING[self.precision]

    def token_losses(self, rows: Rows, state: int | None = None) -> np.ndarray:
        """(B, T) losses, clipped. Raises NotJudged where some are no numbers."""
        losses = self.program.token_losses(self.state if state is None else state, *rows)
        if np.isnan(losses).any():
            raise NotJudged(f"{self.where}token_losses gives values that are no numbers")
        self.lowest = min(self.lowest, float(losses.min(initial=math.inf)))
        return clipped(losses)

    def log_probs(self, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(B, P, V) in float64."""
        return self.program.log_probs(self.state, inputs, positions).astype(np.float64)

    def random(self, name: str) -> np.random.Generator:
        """Random numbers for one purpose, others for each state."""
        return self.context.random(name if self.step is None else f"{name} of step {self.step}")

    def random_tokens(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.random(name).integers(0, self.vocab, shape, dtype=np.int32)


def probes(context: Context) -> list[Probe]:
    """The final weights and, where the run has checkpoints between its first and its last, one of these."""
    return [context.once(Probe), *context.once(_between)]


def _between(context: Context) -> list[Probe]:
    steps = sorted({*context.evidence.run["checkpoints"]} - {0, context.evidence.steps})
    return [Probe(context, int(context.random("probed checkpoint").choice(steps)))] if steps else []


def rows_at_once(length: int) -> int:
    """How many rows of a length go into one call."""
    return max(2, min(ROWS, ROW_TOKENS // length))


def val_rows(context: Context, random: np.random.Generator, count: int, length: int | None = None) -> Rows:
    """Random rows of the val text: rows that the evaluation scores, or of another length."""
    shard, start, _ = context.slice.part("val")
    length = length or context.evidence.eval_context
    available = context.evidence.track.val_tokens // length
    picks = random.choice(available, count, replace=count > available)
    windows = np.stack([np.asarray(shard[start + i * length : start + (i + 1) * length + 1], np.int32) for i in picks])
    return Rows(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))


def prefixes(length: int, random: np.random.Generator, most: int, block: int | None = None) -> list[int]:
    """At most `most` prefix lengths: around powers of two and multiples of 64 (or of a quarter of a short row), and
    random ones; for a program whose attention has blocks, the edges of these first."""
    unit = max(2, min(64, length // 4))
    edges = {2**k for k in range(16)} | set(range(unit, length, unit)) | {length // 2, length - 1}
    block_edges = set(range(block, length, block)) if isinstance(block, int) and 1 < block < length else set()
    chosen = {p for edge in edges | block_edges for p in (edge - 1, edge, edge + 1) if 1 <= p < length}
    if len(chosen) > most // 2:
        first = block_edges if len(block_edges) <= most // 2 else set()
        others = sorted(chosen - first)
        picks = random.choice(others, min(len(others), most // 2 - len(first)), replace=False)
        chosen = first | set(picks.tolist()) | {1, length - 1}
    while len(chosen) < min(most, length - 1):
        chosen.add(int(random.integers(1, length)))
    return sorted(chosen)


@rule("probe.plan", "probe", "the program's own plan is the one that run.json names")
def own_plan(context: Context) -> Finding:
    p, run = context.once(Probe), context.evidence.run
    expected = {
        "plan": run["plan"],
        "eval_steps": run.get("eval_steps"),
        "checkpoint_steps": run["checkpoints"],
        "name": run["recipe"]["name"],
        "tokenizer_size": p.vocab,
        "eval_context": context.evidence.eval_context,
    }
    for name, value in expected.items():
        if p.program.recipe.get(name) != value:
            return fails(f"{name}: run.json has {str(value)[:60]}, the program {str(p.program.recipe.get(name))[:60]}")
    return holds(f"{context.evidence.steps:,} steps, {len(run['checkpoints'])} checkpoints")


@rule("probe.sums", "probe", "rows of log_probs are log-probabilities: they sum to 1")
def sums(context: Context) -> Finding:
    worst, asked = 0.0, 0
    for p in probes(context):
        random = p.random_tokens("sums", p.rows.inputs.shape)
        for name, inputs in (("val text", p.rows.inputs), ("random tokens", random)):
            rows = p.log_probs(inputs, positions(p, name))
            if rows.shape[-1] < p.vocab:
                return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
            if np.isnan(rows).any() or (rows > SUMS).any():
                return fails(
                    f"{p.where}log_probs on {name}: expected numbers up to 0, found {float(np.nanmax(rows)):.3g}"
                )
            excess = np.exp(rows).sum(axis=-1) - 1
            worst, asked = max(worst, largest(excess)), asked + excess.size
            if worst > SUMS:
                return fails(
                    f"{p.where}probabilities on {name} sum to {1 + float(excess.max()):.6g}: these are scores, not "
                    "probabilities",
                    off=worst,
                )
    return holds(f"{asked} rows of {p.vocab:,} sum to 1 within {worst:.1g}", off=worst)


@rule("probe.targets", "probe", "token_losses is -log_probs of the target, whatever the target is")
def targets(context: Context) -> Finding:
    worst, means = 0.0, {}
    for p in probes(context):
        where = positions(p, "targets")
        rows = p.log_probs(p.rows.inputs, where)
        if rows.shape[-1] < p.vocab:
            return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
        random = p.random_tokens("targets", p.rows.targets.shape)
        for name, wanted in (("the text's", p.rows.targets), ("random", random)):
            expected = -np.take_along_axis(rows, wanted[:, where][..., None].astype(np.int64), axis=-1)[..., 0]
            differences = p.token_losses(Rows(p.rows.inputs, wanted))[:, where] - clipped(expected)
            mean, rounding = mean_of(differences), MEAN_ROUNDING[p.precision]
            means[name], worst = mean.mean, max(worst, largest(differences))
            if not worst <= 10 * p.allowed or mean.is_off(rounding):
                return fails(
                    f"{p.where}{name} targets: token_losses differs from -log_probs by up to {worst:.3g} nats, "
                    f"{mean.mean:+.3g} on average; allowed {10 * p.allowed:.1g}, and on average "
                    f"{SIGMAS:g} standard errors of {mean.error:.1g} and {rounding:.0e} of rounding",
                    largest=worst,
                    mean=mean.mean,
                    standard_error=mean.error,
                )
    return holds(
        f"the text's and random targets at {differences.size} positions: at most {worst:.1g} nats apart",
        largest=worst,
        means=means,
    )


@rule("probe.rows", "probe", "a row's losses do not depend on the other rows of its batch")
def independent_rows(context: Context) -> Finding:
    p = context.once(Probe)
    order = context.random("row order").permutation(p.count)
    permuted = p.token_losses(Rows(p.rows.inputs[order], p.rows.targets[order]))
    moved = largest(permuted - p.losses[order])
    inputs, half = p.rows.inputs.copy(), p.count // 2
    inputs[half:] = p.random_tokens("other rows", inputs[half:].shape)
    with_others = p.token_losses(Rows(inputs, p.rows.targets))
    moved = max(moved, largest(with_others[:half] - p.losses[:half]))
    if moved > p.allowed:
        return fails(
            f"other rows in the batch move a row's losses by up to {moved:.3g} nats, allowed {p.allowed:.1g}",
            moved=moved,
        )
    return holds(f"moved by at most {moved:.1g} nats", moved=moved)


@rule(
    "probe.documents",
    "probe",
    "what stands in an earlier document of a row does not move a loss, where the recipe says so",
)
def independent_documents(context: Context) -> Finding:
    p = context.once(Probe)
    recipe, length = p.program.recipe, context.evidence.eval_context
    seen = recipe.get("seen_before_document")
    if not isinstance(seen, int):
        return holds("the recipe does not separate documents")
    tried = prefixes(length, context.random("document starts"), 4 * p.count, recipe.get("block"))
    worst = (0.0, 0)
    for first in range(0, len(tried), p.count):
        starts = (tried[first : first + p.count] * p.count)[: p.count]
        inputs = p.rows.inputs.copy()
        other = p.random_tokens(f"documents {first}", inputs.shape)
        for row, start in enumerate(starts):
            inputs[row, start] = recipe.get("end_of_text")
        before = p.token_losses(Rows(inputs, p.rows.targets))
        for row, start in enumerate(starts):
            inputs[row, : max(0, start - seen)] = other[row, : max(0, start - seen)]
        moved = np.abs(p.token_losses(Rows(inputs, p.rows.targets)) - before)
        worst = max([worst, *((float(moved[row, start:].max()), start) for row, start in enumerate(starts))])
        if worst[0] > p.allowed:
            return fails(
                f"changing the tokens before a document that starts at position {worst[1]} moves its losses by up to "
                f"{worst[0]:.3g} nats, allowed {p.allowed:.1g}: it sees another document",
                moved=worst[0],
                start=worst[1],
            )
    return holds(
        f"{len(tried)} starts; moved by at most {worst[0]:.1g} nats, allowed {p.allowed:.1g}",
        starts=tried,
        moved=worst[0],
    )


@rule("probe.pure", "probe", "evaluation leaves nothing behind: not in the state, nor in later losses")
def pure(context: Context) -> Finding:
    if context.trusts_code:
        return holds(OWN_CODE)
    moved, smaller = 0.0, 0.0
    for p in probes(context):
        program, half = p.program, p.count // 2
        state = p.fresh_state(program)
        digest, weights = program.digest(state), canonical.digest(program.export(state))
        random = p.random("pure rows")
        others = [val_rows(context, random, p.count) for _ in range(3)]
        first = p.token_losses(p.rows, state)
        repeated = largest(p.token_losses(p.rows, state) - first)
        for rows in (*others, *reversed(others)):
            p.token_losses(rows, state)
        moved = max(moved, largest(p.token_losses(p.rows, state) - first))
        part = Rows(*(x[:half] for x in p.rows))
        smaller = max(smaller, largest(p.token_losses(part, state) - first[:half]))
        same_weights, same_digest = weights == canonical.digest(program.export(state)), digest == program.digest(state)
        program.drop(state)
        if not same_weights:
            return fails(f"{p.where}evaluating changes the state: its weights")
        if not same_digest:
            return fails(f"{p.where}evaluating changes the state's digest")
        if repeated > ROUNDING[p.precision]:
            return fails(
                f"{p.where}the same batch evaluated twice gives losses up to {repeated:.3g} nats apart", moved=repeated
            )
        if moved > p.allowed:
            return fails(
                f"{p.where}the losses of one batch moved by up to {moved:.3g} nats after {2 * len(others)} others were "
                "evaluated: it learns, or keeps something",
                moved=moved,
            )
        if smaller > p.allowed:
            return fails(
                f"{p.where}in a batch of half the size losses differ by up to {smaller:.3g} nats, allowed "
                f"{p.allowed:.1g}",
                moved=smaller,
            )
    return holds(
        f"twice, in another order, in another batch size: at most {max(moved, smaller):.1g} nats apart", moved=moved
    )


@rule("probe.losses", "probe", "a token's loss is -log of a probability: never below 0")
def losses(context: Context) -> Finding:
    lowest, rounding = min(p.lowest for p in probes(context)), ROUNDING[context.evidence.precision]
    if lowest < -rounding:
        return fails(
            f"token_losses gave a loss of {lowest:.4g} nats: the least possible is 0, rounding apart ({rounding:.0e})",
            lowest=lowest,
        )
    return holds(f"of all losses asked for the least is {lowest:.1g}", lowest=lowest)


def positions(p: Probe, name: str) -> np.ndarray:
    """POSITIONS random positions of a row, the first and the last among them."""
    length = p.context.evidence.eval_context
    some = p.random(f"positions {name}").choice(np.arange(1, length - 1), min(POSITIONS, length) - 2, replace=False)
    return np.sort(np.concatenate([[0, length - 1], some])).astype(np.int64)
