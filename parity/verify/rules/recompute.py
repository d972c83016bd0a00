"""Depth `recompute`: losses from the final weights, summed by the verifier itself; the first weights from the seed."""

import math
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

from parity import weights as canonical
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import logged_float
from parity.verify.rules import Finding, fails, holds, not_judged, rule
from parity.verify.rules.differences import CEILING, mean_of
from parity.verify.rules.lookahead import POSITIONS as LOOKED_AHEAD
from parity.verify.rules.lookahead import Gain, final_gain, gain_over_witness
from parity.verify.rules.probe import Probe, Rows
from parity.verify.rules.scores import DECOYS, Scored, final_scores, score
from parity.verify.sandbox.client import SandboxError

LOSS = {"float64": 1e-9, "float32": 5e-5, "bfloat16": 5e-3}  # nats: a mean over the val tokens, on another machine
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-23}  # averages are taken in float32 at least
CHEAP_TOKENS = 1 << 16  # of all evaluations together: so many are recomputed whole
SOME = 16  # one of so many rows of an evaluation on which nothing rests
ROW_SIGMAS = 6.5  # what 5 are of a normal distribution, of one with 31 degrees of freedom
FEW_LOOKED_AHEAD = 512  # positions asked for without what follows at an evaluation that no attempt claims
CONFIRM_LOOKED_AHEAD = 256  # and at the confirm text
UNTRAINED = 0.1  # nats that may have been learned before the first step
RENAMINGS, RENAMED_TOKENS = 16, 1024  # random names of the tokens, and how many tokens of the val text take each
# Under names that are drawn like the true ones, the true ones are no further below the mean than this many standard
# deviations of 16, but once in 100,000 times.
RENAMED_SIGMAS = 6.0


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
    weights = program.export_and_drop(program.restore(folder))
    saved = canonical.digest(weights)
    if saved != digest and not (evidence.has_user_code and _equal_to_rounding(context, weights)):
        return fails(f"the last checkpoint's weights have digest {saved[:12]}, weights.safetensors {digest[:12]}")
    return holds(f"digest {digest[:12]}, {len(evidence.final_weights)} weights", digest=digest)


def _equal_to_rounding(context: Context, weights: canonical.Weights) -> bool:
    """Whether weights are the final ones but for the last bits: user code may compute an average of what it saved,
    which another machine rounds otherwise."""
    final, epsilon = context.evidence.final_weights, EPSILON[context.evidence.precision]
    return final.keys() == weights.keys() and all(
        w.shape == final[name].shape
        and bool((np.abs(w - final[name]) <= 4 * epsilon * np.abs(final[name]).max()).all())
        for name, w in weights.items()
    )


@rule("recompute.val", "recompute", "the final val loss follows from the final weights")
def val(context: Context) -> Finding:
    steps = context.evidence.steps
    logged = logged_losses(context).get(steps)
    if logged is None:
        raise NotJudged(f"the log has no evaluation at step {steps}")
    scored = context.once(final_scores)
    with suppress(NotJudged, SandboxError, ValueError):  # recompute.ahead will raise it
        context.once(final_gain)
    context.facts["val_loss"] = scored.loss
    add_evaluation(context, steps, scored.loss)
    return compare(context, scored, logged)


@rule("recompute.evaluations", "recompute", "evaluations before the last follow from their checkpoints")
def evaluations(context: Context) -> Finding:
    """Those on which something may rest are recomputed whole, the others in some rows, by their distance to the end."""
    evidence, logged = context.evidence, logged_losses(context)
    steps = [step for step in evidence.run["checkpoints"] if step in logged and step != evidence.steps]
    target = math.inf if evidence.track.target is None else evidence.track.target
    crossing = [step for step in steps if logged[step] <= target][:1]
    claimed = [step for step in steps if step in context.at_steps]
    cheap = evidence.track.val_tokens * len(steps) <= CHEAP_TOKENS
    whole = set(steps) if cheap or context.whole else {*crossing, *claimed}
    errors: dict[str, float] = {}
    gains: dict[int, Future[Gain]] = {}
    for step in steps:
        p = Probe(context, step)
        if step in whole:
            scored = score(p, "val")
            finding = compare(context, scored, logged[step])
            if finding.status == "holds":
                gains[step] = gain_over_witness(p, scored, LOOKED_AHEAD if step in claimed else FEW_LOOKED_AHEAD)
            add_evaluation(context, step, scored.loss)
        else:
            finding = _in_some_rows(p, logged[step])
            errors[str(step)] = finding.evidence["error"]
        p.program.drop(p.state)
        if finding.status != "holds":
            return fails(f"step {step}: {finding.reason}", step=step, **finding.evidence)
    with suppress(NotJudged, SandboxError, ValueError):  # while the answers are waited for
        context.once(confirm_scores)
    for step, gain in ((step, gain.result()) for step, gain in gains.items()):
        if gain.problem:
            return fails(f"step {step}: losses {gain.problem}", step=step, **gain.facts())
        context.facts.setdefault("leak_bounds", {})[str(step)] = gain.bound
    others = f", {len(errors)} in some rows, the coarsest to {max(errors.values()):.2g} nats" if errors else ""
    return holds(f"{len(whole)} recomputed{others}", recomputed=sorted(whole), errors=errors)


def _in_some_rows(p: Probe, logged: float) -> Finding:
    """An evaluation in a random part of its rows: their mean distance to their losses at the end must be what the log
    has, within ROW_SIGMAS standard errors."""
    final = p.context.once(final_scores)
    rows = p.random("some rows").permutation(len(final.losses))
    rows = np.sort(rows[: max(2, len(rows) * DECOYS // (DECOYS + 1) // SOME)])  # with random ones, whole batches
    scored = score(p, "val", rows)
    distance = mean_of((scored.losses - final.losses[rows]).mean(axis=1))
    found, allowed = final.loss + distance.mean, ROW_SIGMAS * distance.error + LOSS[p.precision]
    evidence = {"found": found, "logged": logged, "error": allowed}
    if scored.problem:
        return fails(scored.problem, **evidence)
    if not abs(found - logged) <= allowed:
        return fails(
            f"{found:.4f} by {len(rows)} rows, logged {logged:.4f}, {found - logged:+.2g}; allowed {allowed:.2g}",
            **evidence,
        )
    return holds("", **evidence)


def logged_losses(context: Context) -> dict[int, float]:
    """The logged val loss of every evaluation, the last one of a step."""
    return {event["step"]: logged_float(event["val_loss"]) for event in context.log.of("eval")}


def add_evaluation(context: Context, step: int, loss: float) -> None:
    """Enters a recomputed val loss into the verdict's facts: on these a claim or a point may rest."""
    context.facts.setdefault("evaluations", {})[str(step)] = loss


def compare(context: Context, scored: Scored, logged: float) -> Finding:
    """A recomputed val loss against the logged one."""
    computed, allowed = scored.loss, LOSS[context.evidence.precision]
    if scored.problem:
        return fails(scored.problem, found=computed, logged=logged)
    if not abs(computed - logged) <= allowed:
        return fails(
            f"computed {computed:.6f}, logged {logged:.6f}, {computed - logged:+.2g}; allowed {allowed:.0e}",
            found=computed,
            logged=logged,
        )
    return holds(
        f"computed {computed:.6f}, logged {logged:.6f}, {computed - logged:+.1g}", found=computed, logged=logged
    )


def confirm_scores(context: Context) -> Scored:
    """The confirm text scored with the final weights; once for each run, by `context.once`."""
    return score(context.once(Probe), "confirm")


@rule(
    "recompute.confirm",
    "recompute",
    "the loss on tokens that no run has seen is as far from the val loss as the baseline's",
)
def confirm(context: Context) -> Finding:
    track, facts = context.evidence.track, context.facts
    p, scored = context.once(Probe), context.once(confirm_scores)
    # A look ahead here would hide what was learned of val.
    gain = gain_over_witness(p, scored, CONFIRM_LOOKED_AHEAD).result()
    if problem := scored.problem or gain.problem:
        return fails(f"confirm: losses {problem}" if gain.problem else problem, **gain.facts())
    loss = facts["confirm_loss"] = scored.loss
    gap = loss - context.once(final_scores).loss
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


@rule("recompute.ahead", "recompute", "val losses are those of a process that does not know what follows")
def ahead(context: Context) -> Finding:
    gain = context.once(final_gain).result()
    context.facts.setdefault("leak_bounds", {})[str(context.evidence.steps)] = gain.bound
    if gain.problem:
        return fails(f"judged losses {gain.problem}", **gain.facts())
    return holds(
        f"at {gain.mean.count:,} positions {gain.mean.mean:+.1g} nats on average, at most {gain.largest:.1g}; an "
        f"undetected leak can have brought {gain.bound:.2g} nats per token",
        **gain.facts(),
    )


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
    """What is learned is what helps in the text and not where all tokens but the end of text have changed their names:
    a copy of what followed the last equal context, say, helps in both."""
    p = context.once(Probe)
    random, end = context.random("other names"), p.program.recipe.get("end_of_text")
    count = min(p.count, max(2, RENAMED_TOKENS // p.rows.inputs.shape[1]))
    names = [np.arange(p.vocab)]
    for _ in range(RENAMINGS):
        others = np.array([token for token in range(p.vocab) if token != end])
        new = np.arange(p.vocab)
        new[others] = random.permutation(others)
        names.append(new)
    inputs, targets = (np.concatenate([new[x[:count]] for new in names]).astype(np.int32) for x in p.rows)
    state = p.program.init(context.evidence.run["seed"])
    uniform, losses = math.log(p.vocab), []
    for first in range(0, len(inputs), p.count):
        some = np.resize(np.arange(first, min(first + p.count, len(inputs))), p.count)
        losses.append(p.token_losses(Rows(inputs[some], targets[some]), state)[: len(inputs) - first])
    p.program.drop(state)
    each = np.concatenate(losses)
    each = np.where(each < CEILING, each, uniform)  # a mask of impossible tokens counts as a guess
    loss, *renamed = each.reshape(len(names), -1).mean(axis=1)
    learned, spread = float(np.mean(renamed)) - loss, float(np.std(renamed, ddof=1))
    evidence = {"found": float(loss), "learned": learned, "spread": spread}
    summary = f"{loss:.3f} nats, {learned:+.3f} better than under other names of the tokens"
    if not learned <= max(UNTRAINED, RENAMED_SIGMAS * spread):
        return fails(f"the first weights score {summary}, which scatter by {spread:.2g}", **evidence)
    return holds(f"{summary}; a uniform guess {uniform:.3f}", **evidence)


def _first_difference(expected: canonical.Weights, saved: canonical.Weights) -> str:
    """The first weight in which two sets differ; "" where they are equal to the last bit."""
    for name in sorted(expected.keys() | saved.keys()):
        if name not in expected or name not in saved:
            return f"weight {name} is in one of the two only"
        a, b = expected[name], saved[name]
        if a.shape != b.shape or a.tobytes() != b.astype(a.dtype).tobytes():
            return f"weight {name} differs"
    return ""
