"""The losses that count: gathered by the verifier from whole rows of log_probs, which must sum to 1.

User code is asked for the probabilities of every token at a position and not told the target. Where all of them are too
many to ask for, and of our own recipes, whose code here is the verifier's, token_losses are held against the rows at
random positions.
"""

import math
from typing import NamedTuple

import numpy as np

from parity.data.slices import Slice
from parity.verify.context import Context, NotJudged
from parity.verify.rules.differences import MEAN_ROUNDING, ROUNDING, SIGMAS, clipped, largest, mean_of
from parity.verify.rules.probe import SUMS, Probe, Rows

GATHERED_BYTES = 4 << 30  # of float32 probabilities: as many are asked for as a split has; 2.1 GB on track pocket
ANSWER_BYTES = 80 << 20  # of one answer: rows of 16 x 256 tokens of a vocabulary of 4,096 and a little more
SAMPLED = 10_000  # positions whose rows are asked for where a split has more
SAMPLED_OF_RECIPES = 1000  # the same of our own recipes
DECOYS = 16  # one row of random tokens for so many of text
COUNTED = 1 << 20  # train tokens that the unigram counts


class Scored(NamedTuple):
    """Rows of a split: inputs and targets (R, T) int32, their losses (R, T) float64 in nats. `problem`: why they are no
    losses; "" where they are."""

    inputs: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    problem: str

    @property
    def loss(self) -> float:
        """Nats per token, summed exactly."""
        return math.fsum(self.losses.ravel()) / self.losses.size


def final_scores(context: Context) -> Scored:
    """The val text scored with the final weights; once for each run, by `context.once`."""
    return score(context.once(Probe), "val")


def score(p: Probe, split: str, rows: np.ndarray | None = None) -> Scored:
    """Scores a split (val, confirm), or some rows of it."""
    text = split_rows(p.context, split)
    return score_text(p, split, text if rows is None else Rows(*(part[rows] for part in text)))


def score_text(p: Probe, name: str, text: Rows) -> Scored:
    """Scores rows as long as in evaluation, in random order and in batches like those of the probes."""
    how = _gathered if not p.context.trusts_code and text.targets.size * p.vocab * 4 <= GATHERED_BYTES else _sampled
    return how(p, name, *text)


def split_rows(context: Context, split: str) -> Rows:
    """All rows of a split that evaluation scores. Raises NotJudged where the split has fewer."""
    shard, start, available = context.slice.part(split)
    length, tokens = context.evidence.eval_context, context.evidence.track.val_tokens
    if tokens > available:
        raise NotJudged(
            f"part {split} of slice {context.slice.name} has {available:,} tokens, the track scores {tokens:,}"
        )
    tokens -= tokens % length
    window = np.asarray(shard[start : start + tokens + 1], np.int32)
    return Rows(window[:-1].reshape(-1, length), window[1:].reshape(-1, length))


def _gathered(p: Probe, split: str, inputs: np.ndarray, targets: np.ndarray) -> Scored:
    """Losses from whole rows at all positions, rows of random tokens among them."""
    (count, length), random = targets.shape, p.random(f"scored {split}")
    batch = max(1, min(p.count, ANSWER_BYTES // (4 * length * p.vocab)))
    others = -(-count // DECOYS)
    others += -(count + others) % batch  # so that the last batch is whole
    decoys = random.integers(0, p.vocab, (others, length), dtype=np.int32)
    asked = np.concatenate([inputs, decoys])
    wanted = np.concatenate([targets, np.roll(decoys, -1, axis=1)])
    losses, off = np.empty(asked.shape), 0.0
    order = random.permutation(len(asked)).reshape(-1, batch)
    answers = p.program.log_probs_in_turn(p.state, ((asked[some], np.arange(length)) for some in order))
    for some, rows in zip(order, answers, strict=True):
        off = max(off, excess(rows, p.vocab))
        losses[some] = -at_targets(rows, wanted[some])
    return Scored(inputs, targets, losses[:count], _sum_problem(p, split, off))


def _sampled(p: Probe, split: str, inputs: np.ndarray, targets: np.ndarray) -> Scored:
    """Losses as token_losses gives them, held by their mean against whole rows at random positions."""
    (count, length), random = targets.shape, p.random(f"scored {split}")
    losses, order = np.empty(targets.shape), random.permutation(count)
    for first in range(0, count, p.count):
        some = order[first : first + p.count]
        padded = np.resize(some, p.count)  # batches of one size, so that nothing is compiled again
        losses[some] = p.program.token_losses(p.state, inputs[padded], targets[padded])[: len(some)]
    if not np.nanmin(losses) >= -ROUNDING[p.precision]:
        problem = f"{split}: a loss of {np.nanmin(losses):.4g} nats is no -log of a probability"
        return Scored(inputs, targets, losses, problem)
    wanted = SAMPLED_OF_RECIPES if p.context.trusts_code else SAMPLED
    each = max(1, min(length, ANSWER_BYTES // (4 * p.vocab * p.count), -(-wanted // p.count)))
    off, differences = 0.0, []
    for _ in range(-(-wanted // (each * p.count))):
        some = random.choice(count, p.count, replace=count < p.count)
        where = np.sort(random.choice(length, each, replace=False))
        rows = p.program.log_probs(p.state, inputs[some], where)
        off = max(off, excess(rows, p.vocab))
        gathered = -at_targets(rows, targets[some][:, where])
        differences.append(clipped(losses[some][:, where]) - clipped(gathered))
    return Scored(inputs, targets, losses, _sum_problem(p, split, off) or _difference(p, np.concatenate(differences)))


def _sum_problem(p: Probe, split: str, off: float) -> str:
    if off <= SUMS:
        return ""
    return f"{p.where}rows of log_probs on the {split} text sum to 1 only within {off:.3g}, allowed {SUMS:.0e}"


def _difference(p: Probe, differences: np.ndarray) -> str:
    """What is wrong with token_losses minus losses from whole rows; "" for nothing."""
    mean, rounding = mean_of(differences), MEAN_ROUNDING[p.precision]
    if not largest(differences) <= 10 * p.allowed:
        return (
            f"token_losses differs from whole rows by up to {largest(differences):.3g} nats, allowed "
            f"{10 * p.allowed:.1g}"
        )
    if mean.is_off(rounding):
        return (
            f"token_losses differs from whole rows by {mean.mean:+.3g} nats on average of {mean.count:,} positions, "
            f"allowed {SIGMAS:g} standard errors of {mean.error:.1g} and {rounding:.0e} of rounding"
        )
    return ""


def excess(rows: np.ndarray, vocab: int) -> float:
    """How far probabilities of rows (B, P, V) of log_probs sum from 1, at most; inf where they are none."""
    if rows.shape[-1] < vocab:
        return math.inf
    off = 0.0
    for row in rows:  # one at a time, since all exponentials take as much memory as the answer
        with np.errstate(over="ignore"):
            sums = np.exp(row).sum(axis=-1)  # in pairs, so that float32 keeps a sum of 50,000 to 1e-6
        off = max(off, float(np.abs(sums - 1).max()) if np.isfinite(sums).all() else math.inf)
    return off


def at_targets(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(B, P) log-probabilities of targets (B, P) from rows (B, P, V), in float64."""
    return np.take_along_axis(rows, targets[..., None].astype(np.int64), axis=-1)[..., 0].astype(np.float64)


def unigram(slice_: Slice) -> np.ndarray:
    """(V,) losses in nats of the train text's frequencies."""
    tokens = np.asarray(slice_.train[0][:COUNTED])
    counts = np.bincount(tokens, minlength=slice_.manifest.vocab_size) + 1.0
    return -np.log(counts / counts.sum())
