"""Depth `recompute`: the losses from the final weights, in the verifier's own reduction; the first weights from the seed."""

import math
from typing import Any, NamedTuple

import numpy as np

from parity import weights as canonical
from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule
from parity.verify.rules.log import _real
from parity.verify.rules.probe import ROUNDING, SUMS, Rows, probe

LOSS = {"float64": 1e-9, "float32": 5e-5, "bfloat16": 5e-3}  # nats: a mean over the val tokens, on another machine
WITNESSED = 12  # batches whose losses at one position are held against whole rows of log_probs from a fresh process
UNTRAINED = 0.1  # nats by which the first loss may be below that of a uniform guess


@rule(
    "recompute.weights", "recompute", "the final weights are those that the log ends with and the last checkpoint holds"
)
def final_weights(context: Context) -> Found:
    evidence = context.evidence
    logged = context.log.states("final weights")
    found = canonical.digest(evidence.final_weights)
    if not logged or logged[-1]["digest"] != found:
        return fails(
            f"weights.safetensors has digest {found[:12]}, the log ends with {logged[-1]['digest'][:12] if logged else 'none'}"
        )
    folder = evidence.checkpoint(evidence.steps)
    if not folder.is_dir():
        raise NotJudged(f"the checkpoint of step {evidence.steps} is not in {folder.parent}: put it back")
    state = context.remote.restore(folder)
    exported = canonical.digest(context.remote.export(state))
    context.remote.drop(state)
    if exported != found:
        return fails(f"the last checkpoint's weights have digest {exported[:12]}, weights.safetensors {found[:12]}")
    return holds(f"digest {found[:12]}, {len(evidence.final_weights)} weights", digest=found)


@rule("recompute.val", "recompute", "the final val loss follows from the final weights")
def val(context: Context) -> Found:
    evals = [event for event in context.log.of("eval") if event["step"] == context.evidence.steps]
    if not evals:
        raise NotJudged(f"the log has no evaluation at step {context.evidence.steps}")
    said = _real(evals[-1]["val_loss"])
    found, seen = scored(context, "val")
    context.facts["val_loss"] = found
    allowed = LOSS[context.evidence.precision]
    if not abs(found - said) <= allowed:
        return fails(
            f"computed {found:.6f}, logged {said:.6f}, {found - said:+.2g}; allowed {allowed:.0e}",
            found=found,
            logged=said,
        )
    if problem := unwitnessed(context, seen):
        return fails(problem)
    return holds(f"computed {found:.6f}, logged {said:.6f}, {found - said:+.1g}", found=found, logged=said)


@rule(
    "recompute.confirm",
    "recompute",
    "the loss on tokens that no run has seen is as far from the val loss as the baseline's",
)
def confirm(context: Context) -> Found:
    track = context.evidence.track
    if "val_loss" not in context.facts:
        context.facts["val_loss"], _ = scored(context, "val")
    found, _ = scored(context, "confirm")
    gap = found - context.facts["val_loss"]
    context.facts["confirm_loss"] = found
    if track.confirm_gap is None:
        return Found(
            "not judged",
            f"confirm {found:.4f}, {gap:+.4f} from val; the baseline's gap on this track is not known yet",
            {"confirm": found, "gap": gap},
        )
    usual, allowed = track.confirm_gap
    if not gap <= usual + allowed:
        return fails(
            f"confirm {found:.4f} is {gap:+.4f} from val, the baseline's {usual:+.4f}, allowed {allowed:.2f} more: fitted to the "
            "val tokens",
            confirm=found,
            gap=gap,
        )
    return holds(f"confirm {found:.4f}, {gap:+.4f} from val; the baseline's {usual:+.4f}", confirm=found, gap=gap)


@rule("recompute.initial", "recompute", "the first weights are those of the seed")
def initial(context: Context) -> Found:
    evidence, remote = context.evidence, context.remote
    seed = evidence.run["seed"]
    folder = evidence.checkpoint(0)
    if not folder.is_dir():
        raise NotJudged(f"the checkpoint of step 0 is not in {folder.parent}: put it back")
    state = remote.restore(folder)
    kept = remote.export(state)
    remote.drop(state)
    if evidence.own:
        state = remote.init(seed)
        wanted = remote.export(state)
        remote.drop(state)
    else:
        wanted = canonical.initial_weights(evidence.recipe, seed)
    if difference := _differ(wanted, kept):
        return fails(f"{difference}: the checkpoint of step 0 is not what seed {seed} gives")
    logged = context.log.states("initial weights")
    if not logged or logged[0]["digest"] != canonical.digest(kept):
        return fails("the log's first weights are not those of the checkpoint of step 0")
    return holds(f"{len(kept)} weights of seed {seed}, to the last bit")


@rule("recompute.untrained", "recompute", "before the first step nothing has been learned")
def untrained(context: Context) -> Found:
    p, evidence = probe(context), context.evidence
    state = p.remote.init(evidence.run["seed"])
    found = float(p.remote.token_losses(state, *p.rows).mean())
    p.remote.drop(state)
    guess = math.log(p.vocab)
    if not found >= guess - UNTRAINED:
        return fails(f"the first weights score {found:.3f} nats, a uniform guess {guess:.3f}", found=found)
    return holds(f"{found:.3f} nats, a uniform guess {guess:.3f}", found=found)


class Seen(NamedTuple):
    """What one batch of val rows scored at one position: inputs (B, T), targets (B,), losses (B,)."""

    inputs: np.ndarray
    position: int
    targets: np.ndarray
    losses: np.ndarray


def scored(context: Context, part: str) -> tuple[float, list[Seen]]:
    """Mean loss over a part's tokens, in batches of as many rows as the probes have, in random order, summed exactly; and
    what each batch scored at a random position."""
    p = probe(context)
    shard, start, available = context.slice.part(part)
    length, tokens = context.evidence.eval_context, context.evidence.track.val_tokens
    if tokens > available:
        raise NotJudged(
            f"part {part} of slice {context.slice.name} has {available:,} tokens, the track scores {tokens:,}"
        )
    rows = tokens // length
    random, total, seen = context.random(f"scored {part}"), [], []
    for first in random.permutation(np.arange(0, rows, p.count)):
        count = min(p.count, rows - int(first))
        begin = start + int(first) * length
        window = np.asarray(shard[begin : begin + count * length + 1], np.int32)
        batch = Rows(window[:-1].reshape(count, length), window[1:].reshape(count, length))
        losses = p.ask(batch)
        total.append(math.fsum(losses.ravel()))
        place = int(random.integers(length))
        seen.append(Seen(batch.inputs, place, batch.targets[:, place], losses[:, place]))
    return math.fsum(total) / tokens, seen


def unwitnessed(context: Context, seen: list[Seen]) -> str:
    """What is wrong with some of the losses, by whole rows of log_probs from a fresh process that has seen no targets and,
    behind the position that is asked for, no text; "" where nothing is."""
    witness, p = context.started("witness"), probe(context)
    random = context.random("witness")
    state = witness.load(context.evidence.final_weights, context.evidence.steps)
    full = [one for one in seen if len(one.inputs) == p.count] or seen
    for i in random.choice(len(full), min(WITNESSED, len(full)), replace=False):
        one = full[int(i)]
        inputs = one.inputs.copy()
        inputs[:, one.position + 1 :] = random.integers(0, p.vocab, inputs[:, one.position + 1 :].shape)
        rows = witness.log_probs(state, inputs, np.array([one.position], np.int64)).astype(np.float64)[:, 0]
        if rows.shape[1] < p.vocab or not float(np.abs(np.exp(rows).sum(axis=1) - 1).max()) <= SUMS:
            return "rows of log_probs on the val text are no log-probabilities"
        apart = float(np.abs(one.losses + rows[np.arange(len(rows)), one.targets]).max())
        if not apart <= 10 * ROUNDING[p.precision]:
            return f"losses of val tokens differ by up to {apart:.3g} nats from what a fresh process gives for their targets"
    return ""


def _differ(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """The first weight in which two sets differ; "" where they are equal to the last bit."""
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found:
            return f"weight {name} is in one of the two only"
        if (
            wanted[name].shape != found[name].shape
            or wanted[name].tobytes() != found[name].astype(wanted[name].dtype).tobytes()
        ):
            return f"weight {name} differs"
    return ""
