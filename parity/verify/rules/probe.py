"""Depth `probe`: is it a model of the next token? Asked of the final weights in a process apart.

Inputs are rows of the val text, picked at random, and random tokens. Where two results must be equal, the allowance is the
rounding of one reordered sum, and as much again at most where the same call made twice differs.
"""

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from parity import weights as canonical
from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule

ROWS = 16
ROW_TOKENS = 16 * 1024  # asked about at once: of long rows there are fewer, at least two
POSITIONS = 8  # of every row that whole rows of log-probabilities are asked for
ROUNDING = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2}  # nats: one token's loss, computed in another order
SUMS = 1e-5  # of probabilities: float32 keeps a sum of 50,000 to 3e-6
REPEATS = 8.0


class Rows(NamedTuple):
    """(B, T) int32 inputs and targets."""

    inputs: np.ndarray
    targets: np.ndarray


class Probe:
    """The final weights in the process apart, with rows to ask about; made once a run."""

    def __init__(self, context: Context):
        self.context, self.remote = context, context.remote
        self.precision = str(self.remote.facts.get("precision"))
        if self.precision != context.evidence.precision:
            raise NotJudged(f"run.json says precision {context.evidence.precision}, the program {self.precision}")
        self.vocab = context.slice.manifest.vocab_size
        self.state = self.remote.load(context.evidence.final_weights, context.evidence.steps)

    @cached_property
    def rows(self) -> Rows:
        """Rows of the val text that were picked at random, as long as in evaluation."""
        return val_rows(self.context, self.context.random("probe rows"), self.count)

    @property
    def count(self) -> int:
        """How many rows are asked about at once."""
        return rows_at_once(self.context.evidence.eval_context)

    @cached_property
    def losses(self) -> np.ndarray:
        return self.ask(self.rows)

    @cached_property
    def allowed(self) -> float:
        """Nats by which two results may differ that must be equal."""
        noise = float(np.abs(self.ask(self.rows) - self.losses).max())
        return min(REPEATS * noise, ROUNDING[self.precision]) + ROUNDING[self.precision]

    def ask(self, rows: Rows) -> np.ndarray:
        """(B, T) losses, finite. Raises NotJudged otherwise."""
        found = self.remote.token_losses(self.state, *rows)
        if not np.isfinite(found).all():
            raise NotJudged("token_losses gives numbers that are not finite")
        return found

    def random_tokens(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.context.random(name).integers(0, self.vocab, shape, dtype=np.int32)


def probe(context: Context) -> Probe:
    """The run's probe, made by the first rule that needs it."""
    if not hasattr(context, "_probe"):
        context._probe = Probe(context)
    return context._probe


def rows_at_once(length: int) -> int:
    """How many rows of a length are asked about at once."""
    return max(2, min(ROWS, ROW_TOKENS // length))


def val_rows(context: Context, random: np.random.Generator, count: int, length: int | None = None) -> Rows:
    """Rows of the val text, each a row that the evaluation scores, or of another length."""
    shard, start, _ = context.slice.part("val")
    length = length or context.evidence.eval_context
    available = context.evidence.track.val_tokens // length
    picks = random.choice(available, count, replace=count > available)
    windows = np.stack([np.asarray(shard[start + i * length : start + (i + 1) * length + 1], np.int32) for i in picks])
    return Rows(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))


def prefixes(length: int, random: np.random.Generator, most: int, block: int | None = None) -> list[int]:
    """Prefix lengths around every power of two and every multiple of 64 (or of a sixteenth of a row), and random ones; of a program
    whose attention has blocks the edges of these first."""
    unit = max(2, min(64, length // 4))
    edges = {2**k for k in range(16)} | set(range(unit, length, unit)) | {length // 2, length - 1}
    own = set(range(block, length, block)) if isinstance(block, int) and 1 < block < length else set()
    found = {p for edge in edges | own for p in (edge - 1, edge, edge + 1) if 1 <= p < length}
    if len(found) > most // 2:
        first = own if len(own) <= most // 2 else set()
        others = sorted(found - first)
        found = (
            first
            | set(random.choice(others, min(len(others), most // 2 - len(first)), replace=False).tolist())
            | {1, length - 1}
        )
    while len(found) < min(most, length - 1):
        found.add(int(random.integers(1, length)))
    return sorted(found)


@rule("probe.plan", "probe", "the program's own plan is the one that run.json names")
def own_plan(context: Context) -> Found:
    p, run = probe(context), context.evidence.run
    facts = p.remote.facts
    wanted = {
        "plan": run["plan"],
        "eval_steps": run.get("eval_steps"),
        "checkpoint_steps": run["checkpoints"],
        "name": run["recipe"]["name"],
        "tokenizer_size": p.vocab,
        "eval_context": context.evidence.eval_context,
    }
    for name, expected in wanted.items():
        if facts.get(name) != expected:
            return fails(f"{name}: run.json has {str(expected)[:60]}, the program {str(facts.get(name))[:60]}")
    return holds(f"{context.evidence.steps:,} steps, {len(run['checkpoints'])} checkpoints")


@rule("probe.causal", "probe", "what stands behind a position does not move its loss")
def causal(context: Context) -> Found:
    p = probe(context)
    evidence, asked = context.evidence, {}
    worst = (0.0, 0)
    for length in dict.fromkeys((evidence.eval_context, evidence.context)):  # rows as in evaluation, and as in training
        rows = (
            p.rows
            if length == evidence.eval_context
            else val_rows(context, context.random(f"rows of {length}"), rows_at_once(length), length)
        )
        count, losses = len(rows.inputs), p.losses if rows is p.rows else p.ask(rows)
        asked[length] = prefixes(
            length, context.random(f"prefixes of {length}"), 16 * count, p.remote.facts.get("block")
        )
        for first in range(0, len(asked[length]), count):
            name = f"suffix {length} {first}"
            worst = max([worst, *_moved_by_suffix(p, rows, losses, asked[length][first : first + count], name)])
            if (
                worst[0] > p.allowed
            ):  # once more with this prefix in all rows: other rows' tokens are the business of another rule
                worst = max(_moved_by_suffix(p, rows, losses, [worst[1]] * count, f"all rows {worst[1]}"))
            if worst[0] > p.allowed:
                break
        if worst[0] > p.allowed:
            break
    wanted = sorted(prefix for lengths in asked.values() for prefix in lengths)
    if worst[0] > p.allowed:
        return fails(
            f"changing the tokens from position {worst[1]} on moves losses before it by up to {worst[0]:.3g} nats, allowed "
            f"{p.allowed:.1g}: it looks ahead",
            moved=worst[0],
            prefix=worst[1],
            allowed=p.allowed,
        )
    return holds(
        f"{len(wanted)} prefix lengths; moved by at most {worst[0]:.1g} nats, allowed {p.allowed:.1g}",
        prefixes=wanted,
        moved=worst[0],
        allowed=p.allowed,
    )


def _moved_by_suffix(
    p: Probe, rows: Rows, losses: np.ndarray, lengths: list[int], name: str
) -> list[tuple[float, int]]:
    """How far losses before each row's prefix length move when random tokens stand behind it."""
    inputs = rows.inputs.copy()
    tokens = p.random_tokens(name, inputs.shape)
    for row, prefix in enumerate(lengths):
        inputs[row, prefix:] = tokens[row, prefix:]
    moved = np.abs(p.ask(Rows(inputs, rows.targets)) - losses)
    return [(float(moved[row, :prefix].max()), prefix) for row, prefix in enumerate(lengths)]


@rule("probe.gradient", "probe", "the gradient of early losses does not depend on late inputs")
def gradient(context: Context) -> Found:
    p = probe(context)
    length, random = context.evidence.context, context.random("gradient prefixes")
    worst, noise, places = (0.0, "", 0.0, 0), {}, []
    early, late = (
        int(random.integers(low, high)) for low, high in ((length // 4, length // 2), (3 * length // 4, length - 1))
    )
    rows = val_rows(context, context.random("gradient rows"), max(1, rows_at_once(length) // 2), length)
    for prefix in (
        early,
        early + 1,
        late,
        late + 1,
    ):  # one of two neighbours is no edge of blocks that see within themselves alone
        places.append(prefix)
        changed = rows.inputs.copy()
        changed[:, prefix:] = p.random_tokens(f"gradient suffix {prefix}", changed.shape)[:, prefix:]
        first, other = (p.remote.gradients(p.state, inputs, rows.targets, prefix) for inputs in (rows.inputs, changed))
        if not noise:
            again = p.remote.gradients(p.state, *rows, prefix)
            noise = {name: _apart(g, again.get(name)) for name, g in first.items()}
        if not first or first.keys() != other.keys() or first.keys() != noise.keys():
            return fails("loss_and_grads gives other names from call to call, or none")
        for name, g in first.items():
            limit = ROUNDING[p.precision]
            moved, allowed = _apart(g, other[name]), min(REPEATS * noise[name], limit) + limit
            worst = max(worst, (moved / allowed, name, moved, prefix))
    if worst[0] > 1:
        return fails(
            f"changing the inputs from position {worst[3]} on moves the gradient of the losses before it in {worst[1]} by "
            f"{worst[2]:.3g} of its size: it looks ahead",
            moved=worst[2],
            weight=worst[1],
            prefix=worst[3],
        )
    return holds(
        f"of {len(noise)} weights, at prefixes {places}: moved by at most {worst[2]:.1g} of their size", prefixes=places
    )


def _apart(g: Any, other: Any) -> float:
    """The largest difference of two gradients of a weight, relative to the first; inf where they cannot be compared."""
    if not isinstance(g, np.ndarray) or not isinstance(other, np.ndarray) or g.shape != other.shape:
        return math.inf
    found = float(np.abs(np.asarray(other, np.float64) - g).max(initial=0.0)) / (
        float(np.abs(g).max(initial=0.0)) or 1.0
    )
    return found if math.isfinite(found) else math.inf


@rule("probe.sums", "probe", "rows of log_probs are log-probabilities: they sum to 1")
def sums(context: Context) -> Found:
    p = probe(context)
    worst = 0.0
    count = p.count
    for name, inputs in (("val text", p.rows.inputs), ("random tokens", p.random_tokens("sums", p.rows.inputs.shape))):
        rows = p.remote.log_probs(p.state, inputs, positions(context, name)).astype(np.float64)
        if rows.shape[-1] < p.vocab:
            return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
        if np.isnan(rows).any() or (rows > SUMS).any():
            return fails(f"log_probs on {name}: expected numbers up to 0, found {float(np.nanmax(rows)):.3g}")
        worst = max(worst, float(np.abs(np.exp(rows).sum(axis=-1) - 1).max()), key=abs)
        if worst > SUMS:
            return fails(
                f"probabilities on {name} sum to {1 + float((np.exp(rows).sum(axis=-1) - 1).max()):.6g}: these are scores, not "
                "probabilities",
                off=worst,
            )
    return holds(f"{2 * count * POSITIONS} rows of {p.vocab:,} sum to 1 within {worst:.1g}", off=worst)


@rule("probe.targets", "probe", "token_losses is -log_probs of the target, whatever the target is")
def targets(context: Context) -> Found:
    p = probe(context)
    where = positions(context, "targets")
    rows = p.remote.log_probs(p.state, p.rows.inputs, where).astype(np.float64)
    if rows.shape[-1] < p.vocab:
        return fails(f"log_probs has {rows.shape[-1]} columns, the vocabulary {p.vocab} tokens")
    for name, wanted in (("the text's", p.rows.targets), ("random", p.random_tokens("targets", p.rows.targets.shape))):
        expected = -np.take_along_axis(rows, wanted[:, where][..., None].astype(np.int64), axis=-1)[..., 0]
        apart = p.ask(Rows(p.rows.inputs, wanted))[:, where] - expected
        largest, mean = float(np.abs(apart).max()), float(apart.mean())
        if not largest <= 10 * p.allowed or not abs(mean) <= p.allowed:
            return fails(
                f"{name} targets: token_losses differs from -log_probs by up to {largest:.3g} nats, {mean:+.3g} on average",
                largest=largest,
                mean=mean,
            )
    return holds(f"the text's and random targets at {p.count * POSITIONS} positions", largest=largest)


@rule("probe.rows", "probe", "a row's losses do not depend on the other rows of its batch")
def rows_apart(context: Context) -> Found:
    p = probe(context)
    order = context.random("row order").permutation(p.count)
    permuted = p.ask(Rows(p.rows.inputs[order], p.rows.targets[order]))
    moved = float(np.abs(permuted - p.losses[order]).max())
    inputs, half = p.rows.inputs.copy(), p.count // 2
    inputs[half:] = p.random_tokens("other rows", inputs[half:].shape)
    moved = max(moved, float(np.abs(p.ask(Rows(inputs, p.rows.targets))[:half] - p.losses[:half]).max()))
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
def documents_apart(context: Context) -> Found:
    p = probe(context)
    if not p.remote.facts.get("separate_documents"):
        return holds("the recipe does not keep documents apart")
    end_of_text, length = p.remote.facts.get("end_of_text"), context.evidence.eval_context
    wanted = prefixes(length, context.random("document starts"), 4 * p.count, p.remote.facts.get("block"))
    worst = (0.0, 0)
    for first in range(0, len(wanted), p.count):
        starts = (wanted[first : first + p.count] * p.count)[: p.count]
        inputs = p.rows.inputs.copy()
        other = p.random_tokens(f"documents {first}", inputs.shape)
        for row, start in enumerate(starts):
            inputs[row, start] = end_of_text
        before = p.ask(Rows(inputs, p.rows.targets))
        for row, start in enumerate(starts):
            inputs[row, :start] = other[row, :start]
        moved = np.abs(p.ask(Rows(inputs, p.rows.targets)) - before)
        worst = max([worst, *((float(moved[row, start:].max()), start) for row, start in enumerate(starts))])
        if worst[0] > p.allowed:
            return fails(
                f"changing the tokens before a document that starts at position {worst[1]} moves its losses by up to {worst[0]:.3g} "
                f"nats, allowed {p.allowed:.1g}: it sees another document",
                moved=worst[0],
                start=worst[1],
            )
    return holds(
        f"{len(wanted)} starts; moved by at most {worst[0]:.1g} nats, allowed {p.allowed:.1g}",
        starts=wanted,
        moved=worst[0],
    )


@rule("probe.pure", "probe", "evaluation leaves nothing behind: not in the state, nor in later losses")
def pure(context: Context) -> Found:
    p = probe(context)
    state = p.remote.load(context.evidence.final_weights, context.evidence.steps)
    digest, before = p.remote.digest(state), canonical.digest(p.remote.export(state))
    random = context.random("pure rows")
    others = [val_rows(context, random, p.count) for _ in range(3)]
    first = p.remote.token_losses(state, *p.rows)
    again = float(np.abs(p.remote.token_losses(state, *p.rows) - first).max())
    for rows in (*others, *reversed(others)):
        p.remote.token_losses(state, *rows)
    moved = float(np.abs(p.remote.token_losses(state, *p.rows) - first).max())
    half = Rows(*(x[: p.count // 2] for x in p.rows))
    smaller = float(np.abs(p.remote.token_losses(state, *half) - first[: p.count // 2]).max())
    after = canonical.digest(p.remote.export(state))
    same = digest == p.remote.digest(state)
    p.remote.drop(state)
    if after != before or not same:
        return fails(
            "evaluating changes the state: its weights" if after != before else "evaluating changes the state's digest"
        )
    if again > ROUNDING[p.precision]:
        return fails(f"the same batch evaluated twice gives losses up to {again:.3g} nats apart", moved=again)
    if moved > p.allowed:
        return fails(
            f"the losses of one batch moved by up to {moved:.3g} nats after {2 * len(others)} others were evaluated: it "
            "learns, or keeps something",
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
    """Positions of a row that are asked for, the first and the last among them."""
    length = context.evidence.eval_context
    some = context.random(f"positions {name}").choice(
        np.arange(1, length - 1), min(POSITIONS, length) - 2, replace=False
    )
    return np.sort(np.concatenate([[0, length - 1], some])).astype(np.int64)
