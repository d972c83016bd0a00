"""Does a loss depend on what stands behind its position? Suffixes are changed, and losses before them must stay.

`recompute.ahead` is the sharpest: a fresh process gives the probabilities of val tokens and has seen nothing that
follows them, so whatever the judged losses gain by looking ahead, by whatever code, shows as their distance from it.
"""

import math
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from parity.verify.context import Context
from parity.verify.rules import OWN_CODE, Finding, fails, holds, rule
from parity.verify.rules.differences import MEAN_ROUNDING, ROUNDING, SIGMAS, Mean, clipped, largest, mean_of
from parity.verify.rules.probe import REPEATS, Probe, Rows, prefixes, probes, rows_at_once, val_rows
from parity.verify.rules.scores import Scored, final_scores, unigram

POSITIONS = 3000  # of the val text that are asked for in a process that does not know what follows
POSITIONS_OF_RECIPES = 256  # of our own recipes, whose code here is the verifier's
TOKENS = 1 << 20  # that this may cost on a CPU; fewer positions of long rows, unless the whole training is repeated
UNIFORM = 0.25  # of these positions: drawn evenly; the others in proportion to what the model knows more than a unigram
SHORTENED = 256  # tokens of rows that are worth compiling for another length
CONFIDENCE = 3.0  # -log 0.05: events of which 3 are expected are missed once in 20 times


class Moved(NamedTuple):
    """How losses before changed suffixes moved: the largest with its prefix; gains of the true suffix, in nats, at the
    position directly before, and on average over all before."""

    worst: tuple[float, int]
    before: list[float]
    average: list[float]
    prefixes: list[int]


@rule("probe.causal", "probe", "what stands behind a position does not move its loss")
def causal(context: Context) -> Finding:
    evidence = context.evidence
    tried, before, average, worst = [], [], [], (0.0, 0)
    for p in probes(context):
        # of a row in evaluation and in training; at a checkpoint between, a quarter as many in evaluation
        lengths = list(dict.fromkeys((evidence.eval_context, evidence.context))) if p.step is None else []
        for length in lengths or [evidence.eval_context]:
            moved = _suffixes(p, length, (16 if lengths else 4) * p.count)
            tried, worst = tried + moved.prefixes, max(worst, moved.worst)
            if worst[0] > p.allowed:
                return fails(
                    f"{p.where}changing the tokens from position {worst[1]} on moves losses before it by up to "
                    f"{worst[0]:.3g} nats, allowed {p.allowed:.1g}: it looks ahead",
                    moved=worst[0],
                    prefix=worst[1],
                    allowed=p.allowed,
                )
            before, average = before + moved.before, average + moved.average
            for place, gains in (("the position before it", moved.before), ("positions before it", moved.average)):
                gain, rounding = mean_of(np.array(gains)), MEAN_ROUNDING["float32"]
                if gain.is_off(rounding):
                    return fails(
                        f"{p.where}the true suffix of a prefix makes the loss at {place} {gain.mean:.3g} nats smaller "
                        f"than a random one, on average of {gain.count}; allowed {SIGMAS:g} standard errors of "
                        f"{gain.error:.1g}: it looks ahead",
                        gain=gain.mean,
                        standard_error=gain.error,
                    )
    gain = mean_of(np.array(before))
    return holds(
        f"{len(tried)} prefix lengths; moved by at most {worst[0]:.1g} nats, on average {gain.mean:.1g}",
        prefixes=sorted(tried),
        moved=worst[0],
        gain=gain.mean,
        standard_error=gain.error,
    )


def _suffixes(p: Probe, length: int, most: int) -> Moved:
    """How losses move in rows of a length, at up to `most` prefixes. Ends at the first that moves too far."""
    if length == p.context.evidence.eval_context:
        rows, losses = p.rows, p.losses
    else:
        rows = val_rows(p.context, p.random(f"rows of {length}"), rows_at_once(length), length)
        losses = p.token_losses(rows)
    count = len(rows.inputs)
    tried = prefixes(length, p.random(f"prefixes of {length}"), most, p.program.recipe.get("block"))
    worst, before, average = (0.0, 0), [], []
    for first in range(0, len(tried), count):
        some = tried[first : first + count]
        gains = _gains(p, rows, losses, some, f"suffix {length} {first}")
        worst = max([worst, *((largest(gain), len(gain)) for gain in gains)])
        if worst[0] > p.allowed:
            # once more with this prefix in all rows, since another rule judges influence between rows
            gains = _gains(p, rows, losses, [worst[1]] * count, f"all rows {worst[1]}")
            worst = max((largest(gain), len(gain)) for gain in gains)
        if worst[0] > p.allowed:
            break
        before += [float(gain[-1]) for gain in gains]
        average += [float(gain.mean()) for gain in gains]
    return Moved(worst, before, average, tried)


def _gains(p: Probe, rows: Rows, losses: np.ndarray, lengths: list[int], name: str) -> list[np.ndarray]:
    """How much larger losses before each row's prefix length are when random tokens stand behind it."""
    inputs = rows.inputs.copy()
    tokens = p.random_tokens(name, inputs.shape)
    for row, prefix in enumerate(lengths):
        inputs[row, prefix:] = tokens[row, prefix:]
    gains = p.token_losses(Rows(inputs, rows.targets)) - losses
    return [gains[row, :prefix] for row, prefix in enumerate(lengths)]


@rule("probe.gradient", "probe", "the gradient of early losses does not depend on late inputs")
def gradient(context: Context) -> Finding:
    if context.trusts_code:
        return holds(OWN_CODE)
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


class Gain(NamedTuple):
    """What judged losses gain over those of a process that does not know what follows: `mean` in nats per token of the
    split, the `largest` single difference and the one `allowed`, and the `bound` of what an undetected leak can have
    brought, in nats per token."""

    mean: Mean
    largest: float
    allowed: float
    bound: float

    @property
    def problem(self) -> str:
        """What is wrong, in words that follow "judged losses"; "" for nothing."""
        if not self.largest <= self.allowed:
            return (
                f"differ by up to {self.largest:.3g} nats from those of a process that does not know what follows, "
                f"allowed {self.allowed:.1g}: it looks ahead, or keeps what it has seen"
            )
        if self.mean.is_off(MEAN_ROUNDING["float32"]):
            return (
                f"are {self.mean.mean:.3g} nats smaller on average than those of a process that does not know what "
                f"follows, allowed {SIGMAS:g} standard errors of {self.mean.error:.1g}: it looks ahead, or keeps what "
                "it has seen"
            )
        return ""

    def facts(self) -> dict[str, Any]:
        return {
            "gain": self.mean.mean,
            "standard_error": self.mean.error,
            "positions": self.mean.count,
            "largest": self.largest,
            "allowed": self.allowed,
            "leak_bound": self.bound,
        }


class Draw(NamedTuple):
    """Tokens of a split drawn with replacement: the different ones (ascending), how often each was drawn, and the
    weight of its difference, which makes the weighted mean over all draws unbiased for the mean over the split."""

    tokens: np.ndarray
    times: np.ndarray
    weights: np.ndarray


def draw(advantage: np.ndarray, count: int, random: np.random.Generator) -> Draw:
    """`count` draws: a few evenly, most in proportion to `advantage`, by how much smaller a loss is than a unigram's
    (nats, at least 0): what a leak brings is found there. Weights are at most 1 / UNIFORM."""
    size, total = len(advantage), float(advantage.sum())
    share = advantage / total if total > 0 else np.full(size, 1 / size)
    chance = UNIFORM / size + (1 - UNIFORM) * share
    tokens, times = np.unique(random.choice(size, count, p=chance), return_counts=True)
    return Draw(tokens, times, 1 / (size * chance[tokens]))


def rare_bound(advantage: np.ndarray, count: int) -> float:
    """Nats per token that a leak can have brought whose positions none of `count` draws met.

    As far as the model without it is no worse than a unigram, it brings no more than its positions' advantage, and
    CONFIDENCE draws are expected to meet it where that is CONFIDENCE / (count (1 - UNIFORM)) of the whole advantage.
    """
    return CONFIDENCE / (count * (1 - UNIFORM)) * float(advantage.mean())


def gain_over_witness(p: Probe, scored: Scored, positions: int) -> Future[Gain]:
    """Asks a fresh process for the losses of some judged tokens; it sees random or other text behind their positions.

    That goes on beside what the caller does, one question after another. The bound is that of a leak at many positions,
    the mean and SIGMAS standard errors, and that of a rare one.
    """
    context, length = p.context, p.context.evidence.eval_context
    gpu = context.device != "cpu" and any(device["platform"] != "cpu" for device in context.evidence.run["devices"])
    if not gpu and not context.whole:
        positions = min(positions, TOKENS // length)
    if context.trusts_code:
        positions = min(positions, POSITIONS_OF_RECIPES)
    advantage = np.maximum(unigram(context.slice)[scored.targets] - scored.losses, 0.0).ravel()
    tokens, times, weights = draw(advantage, positions, p.random("witnessed"))
    allowed = 10 * p.allowed

    def gain() -> Gain:
        differences = clipped(_witnessed(p, scored, tokens)) - clipped(scored.losses.ravel()[tokens])
        mean = mean_of(np.repeat(differences * weights, times))
        bound = max(mean.upper, 0.0) + rare_bound(advantage, positions)
        return Gain(mean, largest(differences), allowed, bound)

    return context.submit("witness", gain)


def _witnessed(p: Probe, scored: Scored, tokens: np.ndarray) -> np.ndarray:
    """The losses of some tokens (row * T + position, ascending) by a fresh process.

    Earlier positions are asked for first, each with other text behind it: the process has not seen the row further than
    the position. Half of the rows end in random tokens, half in train text.
    """
    context, (_, length) = p.context, scored.losses.shape
    witness = context.sandboxed("witness")
    state, random = p.fresh_state(witness), p.random("other text")
    train = context.slice.train[0]
    rows, where = np.divmod(tokens, length)
    order, losses, stops = np.lexsort((random.random(len(tokens)), where)), np.empty(len(tokens)), _lengths(p, length)
    for begin, stop in zip((0, *stops), stops, strict=False):
        chosen = order[(where[order] >= begin) & (where[order] < stop)]
        for first in range(0, len(chosen), p.count):
            some = chosen[first : first + p.count]
            padded = np.resize(some, p.count)  # batches of one size, so that nothing is compiled again
            inputs, at = scored.inputs[rows[padded], :stop].copy(), where[padded]
            for i, position in enumerate(at):
                start = int(random.integers(len(train) - stop))
                others = np.asarray(train[start : start + stop], np.int32)
                if random.random() < 0.5:
                    others = random.integers(0, p.vocab, stop, dtype=np.int32)
                inputs[i, position + 1 :] = others[position + 1 :]
            answer, each = witness.log_probs(state, inputs, at.astype(np.int64)), np.arange(p.count)
            found = answer[each, each, scored.targets[rows[padded], at]]
            losses[some] = -found[: len(some)].astype(np.float64)
    witness.drop(state)
    return losses


def _lengths(p: Probe, length: int) -> tuple[int, ...]:
    """How long the rows are that are asked for: for our own recipes, early positions are at the end of shorter ones."""
    half, block = length // 2, p.program.recipe.get("block") or 1
    short = length >= SHORTENED and 2 * half == length and half % block == 0 and not p.context.evidence.has_user_code
    return (half, length) if short else (length,)


def final_gain(context: Context) -> Future[Gain]:
    """That of the final weights on the val text; asked once for each run, by `context.once`."""
    return gain_over_witness(context.once(Probe), context.once(final_scores), POSITIONS)
