"""Depth `probe`: is it a model of the next token? Asked of the final weights in a sandboxed process.

Inputs are rows of the val text, picked at random, and random tokens. Where two results must be equal, the allowance is
the rounding of one reordered sum, and at most as much again where the same call made twice differs.
"""

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from parity import weights as canonical
from parity.verify.context import Context, NotJudged
from parity.verify.rules import Finding, fails, holds, rule

ROWS = 16
ROW_TOKENS = 16 * 1024  # in one call: of long rows fewer than ROWS, but at least two
POSITIONS = 8  # in every row for which whole rows of log-probabilities are computed
ROUNDING = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2}  # nats: one token's loss, computed in another order
SUMS = 1e-5  # of probabilities: float32 keeps a sum of 50,000 to 3e-6
REPEATS = 8.0


class Rows(NamedTuple):
    """(B, T) int32 inputs and targets."""

    inputs: np.ndarray
    targets: np.ndarray


class Probe:
    """The final weights in the sandboxed process, and rows of text for it; one for each run, by `context.once`."""

    def __init__(self, context: Context):
        self.context, self.program = context, context.program
        self.precision = str(self.program.recipe.get("precision"))
        if self.precision != context.evidence.precision:
            raise NotJudged(f"run.json has precision {context.evidence.precision}, the program {self.precision}")
        self.vocab = context.slice.manifest.vocab_size
        self.state = self.program.load(context.evidence.final_weights, context.evidence.steps)
        self.count = rows_at_once(context.evidence.eval_context)

    @cached_property
    def rows(self) -> Rows:
        """`count` rows of the val text, picked at random, as long as in evaluation."""
        return val_rows(self.context, self.context.random("probe rows"), self.count)

    @cached_property
    def losses(self) -> np.ndarray:
        return self.token_losses(self.rows)

    @cached_property
    def allowed(self) -> float:
        """Nats by which two results may differ that must be equal."""
        noise = float(np.abs(self.token_losses(self.rows) - self.losses).max())
        return min(REPEATS * noise, ROUNDING[self.precision]) + ROUNDING[self.precision]

    def token_losses(self, rows: Rows) -> np.ndarray:
        """(B, T) losses, finite. Raises NotJudged otherwise."""
        losses = self.program.token_losses(self.state, *rows)
        if not np.isfinite(losses).all():
            raise NotJudged("token_losses gives numbers that are not finite")
        return losses

    def log_probs(self, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(B, P, V) in float64."""
        return self.program.log_probs(self.state, inputs, positions).astype(np.float64)

    def random_tokens(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.context.random(name).integers(0, self.vocab, shape, dtype=np.int32)


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


@rule("probe.causal", "probe", "what stands behind a position does not move its loss")
def causal(context: Context) -> Finding:
    p, evidence = context.once(Probe), context.evidence
    lengths = list(dict.fromkeys((evidence.eval_context, evidence.context)))  # of a row in evaluation, and in training
    tried, worst = [], (0.0, 0)
    for length in lengths:
        asked, moved = _worst_prefix(p, length)
        tried += asked
        worst = max(worst, moved)
        if worst[0] > p.allowed:
            return fails(
                f"changing the tokens from position {worst[1]} on moves losses before it by up to {worst[0]:.3g} nats, "
                f"allowed {p.allowed:.1g}: it looks ahead",
                moved=worst[0],
                prefix=worst[1],
                allowed=p.allowed,
            )
    return holds(
        f"{len(tried)} prefix lengths; moved by at most {worst[0]:.1g} nats, allowed {p.allowed:.1g}",
        prefixes=sorted(tried),
        moved=worst[0],
        allowed=p.allowed,
    )


def _worst_prefix(p: Probe, length: int) -> tuple[list[int], tuple[float, int]]:
    """The prefixes tried in rows of a length, and the largest movement of a loss before one, with that prefix."""
    context = p.context
    if length == context.evidence.eval_context:
        rows, losses = p.rows, p.losses
    else:
        rows = val_rows(context, context.random(f"rows of {length}"), rows_at_once(length), length)
        losses = p.token_losses(rows)
    count = len(rows.inputs)
    tried = prefixes(length, context.random(f"prefixes of {length}"), 16 * count, p.program.recipe.get("block"))
    worst = (0.0, 0)
    for first in range(0, len(tried), count):
        name = f"suffix {length} {first}"
        worst = max([worst, *_moved_by_suffix(p, rows, losses, tried[first : first + count], name)])
        if worst[0] > p.allowed:
            # once more with this prefix in all rows, since another rule judges influence between rows
            worst = max(_moved_by_suffix(p, rows, losses, [worst[1]] * count, f"all rows {worst[1]}"))
        if worst[0] > p.allowed:
            break
    return tried, worst


def _moved_by_suffix(
    p: Probe, rows: Rows, losses: np.ndarray, lengths: list[int], name: str
) -> list[tuple[float, int]]:
    """How far losses before each row's prefix length move when random tokens stand behind it."""
    inputs = rows.inputs.copy()
    tokens = p.random_tokens(name, inputs.shape)
    for row, prefix in enumerate(lengths):
        inputs[row, prefix:] = tokens[row, prefix:]
    moved = np.abs(p.token_losses(Rows(inputs, rows.targets)) - losses)
    return [(float(moved[row, :prefix].max()), prefix) for row, prefix in enumerate(lengths)]


@rule("probe.gradient", "probe", "the gradient of early losses does not depend on late inputs")
def gradient(context: Context) -> Finding:
    p = context.once(Probe)
    length, random = context.evidence.context, context.random("gradient prefixes")
    early = int(random.integers(length // 4, length // 2))
    late = int(random.integers(3 * length // 4, length - 1))
    rows = val_rows(context, context.random("gradient rows"), max(1, rows_at_once(length) // 2), length)
    limit, noise, worst = ROUNDING[p.precision], {}, (0.0, "", 0.0, 0)
    tried = [early, early + 1, late, late + 1]  # of two neighbours at most one is an edge of closed blocks
    for prefix in tried:
        changed = rows.inputs.copy()
        changed[:, prefix:] = p.random_tokens(f"gradient suffix {prefix}", changed.shape)[:, prefix:]
        first, other = (p.program.gradients(p.state, inputs, rows.targets, prefix) for inputs in (rows.inputs, changed))
        if not noise:
            again = p.program.gradients(p.state, *rows, prefix)
            noise = {name: _difference(grad, again.get(name)) for name, grad in first.items()}
        if not first or first.keys() != other.keys() or first.keys() != noise.keys():
            return fails("loss_and_grads gives other names from call to call, or none")
        for name, grad in first.items():
            moved, allowed = _difference(grad, other[name]), min(REPEATS * noise[name], limit) + limit
            worst = max(worst, (moved / allowed, name, moved, prefix))
    excess, name, moved, prefix = worst
    if excess > 1:
        return fails(
            f"changing the inputs from position {prefix} on moves the gradient of the losses before it in {name} by "
            f"{moved:.3g} of its size: it looks ahead",
            moved=moved,
            weight=name,
            prefix=prefix,
        )
    return holds(
        f"of {len(noise)} weights, at prefixes {tried}: moved by at most {moved:.1g} of their size", prefixes=tried
    )


def _difference(grad: Any, other: Any) -> float:
    """The largest difference of two gradients of a weight, relative to the first; inf where they cannot be compared."""
    if not isinstance(grad, np.ndarray) or not isinstance(other, np.ndarray) or grad.shape != other.shape:
        return math.inf
    size = float(np.abs(grad).max(initial=0.0)) or 1.0
    difference = float(np.abs(np.asarray(other, np.float64) - grad).max(initial=0.0)) / size
    return difference if math.isfinite(difference) else math.inf


@rule("probe.sums", "probe", "rows of log_probs are log-probabilities: they sum to 1")
def sums(context: Context) -> Finding:
    p = context.once(Probe)
    worst = 0.0
    for name, inputs in (("val text", p.rows.inputs), ("random tokens", p.random_tokens("sums", p.rows.inputs.shape))):
        rows = p.log_probs(inputs, positions(context, name))
        if rows.shape[-1] < p.vocab:
            return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
        if np.isnan(rows).any() or (rows > SUMS).any():
            return fails(f"log_probs on {name}: expected numbers up to 0, found {float(np.nanmax(rows)):.3g}")
        excess = np.exp(rows).sum(axis=-1) - 1
        worst = max(worst, float(np.abs(excess).max()))
        if worst > SUMS:
            return fails(
                f"probabilities on {name} sum to {1 + float(excess.max()):.6g}: these are scores, not probabilities",
                off=worst,
            )
    return holds(f"{2 * p.count * POSITIONS} rows of {p.vocab:,} sum to 1 within {worst:.1g}", off=worst)


@rule("probe.targets", "probe", "token_losses is -log_probs of the target, whatever the target is")
def targets(context: Context) -> Finding:
    p = context.once(Probe)
    where = positions(context, "targets")
    rows = p.log_probs(p.rows.inputs, where)
    if rows.shape[-1] < p.vocab:
        return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
    largest = 0.0
    for name, wanted in (("the text's", p.rows.targets), ("random", p.random_tokens("targets", p.rows.targets.shape))):
        expected = -np.take_along_axis(rows, wanted[:, where][..., None].astype(np.int64), axis=-1)[..., 0]
        differences = p.token_losses(Rows(p.rows.inputs, wanted))[:, where] - expected
        largest, mean = float(np.abs(differences).max()), float(differences.mean())
        if not largest <= 10 * p.allowed or not abs(mean) <= p.allowed:
            return fails(
                f"{name} targets: token_losses differs from -log_probs by up to {largest:.3g} nats, {mean:+.3g} on "
                "average",
                largest=largest,
                mean=mean,
            )
    return holds(f"the text's and random targets at {p.count * POSITIONS} positions", largest=largest)


@rule("probe.rows", "probe", "a row's losses do not depend on the other rows of its batch")
def independent_rows(context: Context) -> Finding:
    p = context.once(Probe)
    order = context.random("row order").permutation(p.count)
    permuted = p.token_losses(Rows(p.rows.inputs[order], p.rows.targets[order]))
    moved = float(np.abs(permuted - p.losses[order]).max())
    inputs, half = p.rows.inputs.copy(), p.count // 2
    inputs[half:] = p.random_tokens("other rows", inputs[half:].shape)
    with_others = p.token_losses(Rows(inputs, p.rows.targets))
    moved = max(moved, float(np.abs(with_others[:half] - p.losses[:half]).max()))
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
    if not recipe.get("separate_documents"):
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
            inputs[row, :start] = other[row, :start]
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
    p = context.once(Probe)
    program, half = p.program, p.count // 2
    state = program.load(context.evidence.final_weights, context.evidence.steps)
    digest, weights = program.digest(state), canonical.digest(program.export(state))
    random = context.random("pure rows")
    others = [val_rows(context, random, p.count) for _ in range(3)]
    first = program.token_losses(state, *p.rows)
    repeated = float(np.abs(program.token_losses(state, *p.rows) - first).max())
    for rows in (*others, *reversed(others)):
        program.token_losses(state, *rows)
    moved = float(np.abs(program.token_losses(state, *p.rows) - first).max())
    smaller = float(np.abs(program.token_losses(state, *(x[:half] for x in p.rows)) - first[:half]).max())
    same_weights, same_digest = weights == canonical.digest(program.export(state)), digest == program.digest(state)
    program.drop(state)
    if not same_weights:
        return fails("evaluating changes the state: its weights")
    if not same_digest:
        return fails("evaluating changes the state's digest")
    if repeated > ROUNDING[p.precision]:
        return fails(f"the same batch evaluated twice gives losses up to {repeated:.3g} nats apart", moved=repeated)
    if moved > p.allowed:
        return fails(
            f"the losses of one batch moved by up to {moved:.3g} nats after {2 * len(others)} others were evaluated: "
            "it learns, or keeps something",
            moved=moved,
        )
    if smaller > p.allowed:
        return fails(
            f"in a batch of half the size losses differ by up to {smaller:.3g} nats, allowed {p.allowed:.1g}",
            moved=smaller,
        )
    return holds(
        f"twice, in another order, in another batch size: at most {max(moved, smaller):.1g} nats apart", moved=moved
    )


def positions(context: Context, name: str) -> np.ndarray:
    """POSITIONS random positions of a row, the first and the last among them."""
    length = context.evidence.eval_context
    some = context.random(f"positions {name}").choice(
        np.arange(1, length - 1), min(POSITIONS, length) - 2, replace=False
    )
    return np.sort(np.concatenate([[0, length - 1], some])).astype(np.int64)
