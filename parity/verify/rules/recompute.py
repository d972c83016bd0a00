"""Depth `recompute`: losses from the final weights, summed by the verifier itself; the first weights from the seed."""

import math
from typing import NamedTuple

import numpy as np

from parity import weights as canonical
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import logged_float
from parity.verify.rules import Finding, fails, holds, not_judged, rule
from parity.verify.rules.probe import ROUNDING, SUMS, Probe, Rows

LOSS = {"float64": 1e-9, "float32": 5e-5, "bfloat16": 5e-3}  # nats: a mean over the val tokens, on another machine
WITNESSED = 12  # batches whose losses at one position are held against whole rows of log_probs from a fresh process
UNTRAINED = 0.1  # nats by which the first loss may be below that of a uniform guess


@rule(
    "recompute.weights", "recompute", "the final weights are those that the log ends with and the last checkpoint holds"
)
def final_weights(context: Context) -> Finding:
    evidence, program = context.evidence, context.program
    logged = context.log.states("final weights")
    last = logged[-1]["digest"] if logged else "none"
    digest = canonical.digest(evidence.final_weights)
    if digest != last:
        return fails(f"weights.safetensors has digest {digest[:12]}, the log ends with {last[:12]}")
    folder = evidence.checkpoint(evidence.steps)
    if not folder.is_dir():
        raise NotJudged(f"the checkpoint of step {evidence.steps} is not in {folder.parent}: put it back")
    saved = canonical.digest(program.export_and_drop(program.restore(folder)))
    if saved != digest:
        return fails(f"the last checkpoint's weights have digest {saved[:12]}, weights.safetensors {digest[:12]}")
    return holds(f"digest {digest[:12]}, {len(evidence.final_weights)} weights", digest=digest)


@rule("recompute.val", "recompute", "the final val loss follows from the final weights")
def val(context: Context) -> Finding:
    evals = [event for event in context.log.of("eval") if event["step"] == context.evidence.steps]
    if not evals:
        raise NotJudged(f"the log has no evaluation at step {context.evidence.steps}")
    logged = logged_float(evals[-1]["val_loss"])
    computed, samples = score(context, "val")
    context.facts["val_loss"] = computed
    allowed = LOSS[context.evidence.precision]
    if not abs(computed - logged) <= allowed:
        return fails(
            f"computed {computed:.6f}, logged {logged:.6f}, {computed - logged:+.2g}; allowed {allowed:.0e}",
            found=computed,
            logged=logged,
        )
    if problem := _contradiction(context, samples):
        return fails(problem)
    return holds(
        f"computed {computed:.6f}, logged {logged:.6f}, {computed - logged:+.1g}", found=computed, logged=logged
    )


@rule(
    "recompute.confirm",
    "recompute",
    "the loss on tokens that no run has seen is as far from the val loss as the baseline's",
)
def confirm(context: Context) -> Finding:
    track, facts = context.evidence.track, context.facts
    if "val_loss" not in facts:
        facts["val_loss"], _ = score(context, "val")
    loss, _ = score(context, "confirm")
    gap = loss - facts["val_loss"]
    facts["confirm_loss"] = loss
    summary = f"confirm {loss:.4f}, {gap:+.4f} from val; the baseline's"
    if track.confirm_gap is None:
        return not_judged(f"{summary} gap on this track is not known yet", confirm=loss, gap=gap)
    usual, allowed = track.confirm_gap
    if not gap <= usual + allowed:
        return fails(
            f"confirm {loss:.4f} is {gap:+.4f} from val, the baseline's {usual:+.4f}, allowed {allowed:.2f} more: "
            "fitted to the val tokens",
            confirm=loss,
            gap=gap,
        )
    return holds(f"{summary} {usual:+.4f}", confirm=loss, gap=gap)


@rule("recompute.initial", "recompute", "the first weights are those of the seed")
def initial(context: Context) -> Finding:
    evidence, program = context.evidence, context.program
    seed, folder = evidence.run["seed"], evidence.checkpoint(0)
    if not folder.is_dir():
        raise NotJudged(f"the checkpoint of step 0 is not in {folder.parent}: put it back")
    saved = program.export_and_drop(program.restore(folder))
    if evidence.recipe is None or evidence.user_program:
        expected = program.export_and_drop(program.init(seed))
    else:
        expected = canonical.initial_weights(evidence.recipe, seed)
    if difference := _first_difference(expected, saved):
        return fails(f"{difference}: the checkpoint of step 0 is not what seed {seed} gives")
    logged = context.log.states("initial weights")
    if not logged or logged[0]["digest"] != canonical.digest(saved):
        return fails("the log's first weights are not those of the checkpoint of step 0")
    return holds(f"{len(saved)} weights of seed {seed}, to the last bit")


@rule("recompute.untrained", "recompute", "before the first step nothing has been learned")
def untrained(context: Context) -> Finding:
    p = context.once(Probe)
    state = p.program.init(context.evidence.run["seed"])
    loss = float(p.program.token_losses(state, *p.rows).mean())
    p.program.drop(state)
    uniform = math.log(p.vocab)
    if not loss >= uniform - UNTRAINED:
        return fails(f"the first weights score {loss:.3f} nats, a uniform guess {uniform:.3f}", found=loss)
    return holds(f"{loss:.3f} nats, a uniform guess {uniform:.3f}", found=loss)


class Sample(NamedTuple):
    """The losses of one batch of val rows at one position: inputs (B, T), targets (B,), losses (B,)."""

    inputs: np.ndarray
    position: int
    targets: np.ndarray
    losses: np.ndarray


def score(context: Context, split: str) -> tuple[float, list[Sample]]:
    """Mean loss over the tokens of a split (val, confirm), summed exactly, and each batch's losses at one position.

    The position is random. Batches have as many rows as those of the probes, and come in random order.
    """
    p = context.once(Probe)
    shard, start, available = context.slice.part(split)
    length, tokens = context.evidence.eval_context, context.evidence.track.val_tokens
    if tokens > available:
        raise NotJudged(
            f"part {split} of slice {context.slice.name} has {available:,} tokens, the track scores {tokens:,}"
        )
    rows = tokens // length
    random, sums, samples = context.random(f"scored {split}"), [], []
    for first in random.permutation(np.arange(0, rows, p.count)):
        count = min(p.count, rows - int(first))
        begin = start + int(first) * length
        window = np.asarray(shard[begin : begin + count * length + 1], np.int32)
        batch = Rows(window[:-1].reshape(count, length), window[1:].reshape(count, length))
        losses = p.token_losses(batch)
        sums.append(math.fsum(losses.ravel()))
        position = int(random.integers(length))
        samples.append(Sample(batch.inputs, position, batch.targets[:, position], losses[:, position]))
    return math.fsum(sums) / tokens, samples


def _contradiction(context: Context, samples: list[Sample]) -> str:
    """What a fresh process contradicts in some of the losses; "" for nothing.

    The process was given no targets, and no text behind the position whose log_probs it is asked for.
    """
    witness, p = context.sandboxed("witness"), context.once(Probe)
    random = context.random("witness")
    state = witness.load(context.evidence.final_weights, context.evidence.steps)
    full = [sample for sample in samples if len(sample.inputs) == p.count] or samples
    for i in random.choice(len(full), min(WITNESSED, len(full)), replace=False):
        sample = full[int(i)]
        inputs = sample.inputs.copy()
        inputs[:, sample.position + 1 :] = random.integers(0, p.vocab, inputs[:, sample.position + 1 :].shape)
        rows = witness.log_probs(state, inputs, np.array([sample.position], np.int64)).astype(np.float64)[:, 0]
        if rows.shape[1] < p.vocab or not float(np.abs(np.exp(rows).sum(axis=1) - 1).max()) <= SUMS:
            return "rows of log_probs on the val text are no log-probabilities"
        difference = float(np.abs(sample.losses + rows[np.arange(len(rows)), sample.targets]).max())
        if not difference <= 10 * ROUNDING[p.precision]:
            return f"losses of val tokens differ by up to {difference:.3g} nats from those that a fresh process gives"
    return ""


def _first_difference(expected: canonical.Weights, saved: canonical.Weights) -> str:
    """The first weight in which two sets differ; "" where they are equal to the last bit."""
    for name in sorted(expected.keys() | saved.keys()):
        if name not in expected or name not in saved:
            return f"weight {name} is in one of the two only"
        a, b = expected[name], saved[name]
        if a.shape != b.shape or a.tobytes() != b.astype(a.dtype).tobytes():
            return f"weight {name} differs"
    return ""
