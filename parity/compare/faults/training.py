"""Mistakes in the optimizer, in evaluation and resuming, and over several devices.

`place` is a pattern for "line: place" of the finding; a fault must be caught at its level, the earliest that can see
it.
"""

import numpy as np

from parity.compare.faults import layers as parts
from parity.compare.faults import optimizers
from parity.compare.faults.plant import Fault, in_module
from parity.compare.faults.programs import PROGRAM_PATCHES
from parity.recipes import QUINTIC

NANOGPT, MUON, RECORDS = ("nanogpt",), ("muon",), ("record-11", "record-21")

TURNED, FIRST_TWO = (*MUON, *RECORDS), (*NANOGPT, *MUON)

EVALUATION = "parity.harness.evaluation"

STEPPED = "weights after a step: *|weights on the way: *"

DECAYS = "the records have no decay"

LAYOUTS = "all recipes share the code for layouts, and each try is a set of processes"


def _one(module: str, name: str, change):
    return in_module(module, name, change=change)


def _program(name):
    return lambda backend: PROGRAM_PATCHES[name][backend]


def _group(matches, group):
    return _one(
        "optim",
        "group_of",
        lambda original: (
            lambda recipe: {name: group if matches(name) else found for name, found in original(recipe).items()}
        ),
    )


def _warmup_from_zero(recipe, rates):
    late = np.append(0.0, rates[:-1])
    return late[: recipe.warmup_steps].tolist() + rates[recipe.warmup_steps :].tolist()


def _linear_decay(recipe, rates):
    return np.minimum(rates, rates.max() * (1 - np.arange(len(rates)) / len(rates)))


def _half_the_decay(recipe):
    fields = [name for name in ("weight_decay", "adam_decay", "muon_decay") if hasattr(recipe, name)]
    return parts.with_fields(**{name: getattr(recipe, name) / 2 for name in fields})(recipe)


def _other_coefficients(recipe):
    other = QUINTIC if recipe.newton_schulz != QUINTIC else (2.0, -1.5, 0.5)
    return parts.with_fields(newton_schulz=other)(recipe)


# fmt: off
UPDATE = [
    Fault("schedule-off-by-one", "the rate of every step is the next one's", "update", "schedule: *",
        patches=_one("optim", "learning_rates", parts.table(lambda recipe, rates: np.append(rates[1:], rates[-1])))),
    Fault("schedule-late", "the table is right, and read one step late", "update", f"decay: *|{STEPPED}",
        patches=_program("late-rate")),
    Fault("warmup-from-zero", "the warm-up begins at 0", "update", "schedule: *", NANOGPT,
        patches=_one("optim", "learning_rates", parts.table(_warmup_from_zero)), only="the others have no warm-up"),
    Fault("decay-linear", "the rate falls in a line, not as a cosine", "update", "schedule: *", NANOGPT,
        patches=_one("optim", "learning_rates", parts.table(_linear_decay)), only="the others' falls in a line"),
    Fault("cooldown", "the cool-down takes 0.6 of the steps", "update", "schedule: *", TURNED,
        parts.with_fields(cooldown=0.6), only="nanogpt has a cosine"),
    Fault("beta1", "AdamW's first factor is another", "update", "first moment: *",
        recipe=lambda recipe: parts.with_fields(betas=(0.85, recipe.betas[1]))(recipe)),
    Fault("beta2", "AdamW's second factor is 0.999", "update", "second moment: *",
        recipe=lambda recipe: parts.with_fields(betas=(recipe.betas[0], 0.999))(recipe)),
    Fault("adam-epsilon", "AdamW's epsilon is a hundred times as large", "update", STEPPED,
        recipe=lambda recipe: parts.with_fields(adam_eps=recipe.adam_eps * 100)(recipe)),
    Fault("adam-epsilon-in-root", "AdamW's epsilon stands inside the root", "update", STEPPED,
        patches=optimizers.eps_in_root),
    Fault("adam-correction-missing", "AdamW's moments are not corrected for their start", "update", STEPPED,
        patches=optimizers.no_correction),
    Fault("decay-coupled", "decay is added to the gradient (L2), not taken from the weight", "update", "decay: *",
        FIRST_TWO, patches=optimizers.coupled_decay, only=DECAYS),
    Fault("decay-unscaled", "decay is not scaled by the rate", "update", "decay: *", FIRST_TWO,
        patches=optimizers.unscaled_decay, only=DECAYS),
    Fault("decay-after", "decay comes after the update, not before", "update", STEPPED, FIRST_TWO,
        patches=optimizers.decay_after, only=DECAYS),
    Fault("decay-on-gains", "gains are decayed as matrices are", "update", "groups: *norm*", NANOGPT,
        patches=_group(lambda name: "norm" in name and name.endswith("weight"), "decay"),
        only="muon decays all of its groups, the records none"),
    Fault("decay-value", "weight decay is half as strong", "update", "decay: *", FIRST_TWO, recipe=_half_the_decay,
        only=DECAYS),
    Fault("group-wrong", "the head's weight has the rate of vectors", "update", "groups: head.weight", MUON,
        patches=_group(lambda name: name == "head.weight", "vector"),
        only="nanogpt's groups have one rate, and the records no vectors"),
    Fault("group-twice", "the embedding is in two groups", "update", "groups: embed.weight", TURNED,
        patches=_program("two-groups"), only="nanogpt has one optimizer, which refuses it"),
    Fault("parameter-frozen", "one matrix is never updated", "update",
        "decay: blocks.1.mlp.fc.weight|weights after a step: blocks.1.mlp.fc.weight", patches=_program("frozen")),
    Fault("momentum-summed", "momentum is a sum, not an average", "update", "momentum: *", ("muon", "record-21"),
        parts.with_optimizer("matrix", "MuonSGD"), only="nanogpt has no Muon, and in record-11 it is a sum"),
    Fault("nesterov-missing", "Muon does not look ahead", "update", STEPPED, TURNED, patches=optimizers.no_nesterov,
        only="nanogpt has no Muon"),
    Fault("aspect-missing", "tall matrices are not scaled by sqrt(rows / columns)", "update",
        "weights after a step: *.mlp.fc.weight", TURNED, patches=optimizers.no_aspect, only="nanogpt has no Muon"),
    Fault("newton-schulz-coefficients",
        "Newton-Schulz has the other coefficients: the quick ones, or those that converge", "update",
        "Newton-Schulz: 64 x 64 *step 1", TURNED, _other_coefficients, only="nanogpt has no Muon"),
    Fault("newton-schulz-count", "Newton-Schulz takes 5 steps, or 6 where it should take 5", "update",
        "Newton-Schulz: 64 x 64 *step 5|Newton-Schulz: 64 x 64 *result", TURNED,
        lambda recipe: parts.with_fields(newton_schulz_steps=6 if recipe.newton_schulz_steps == 5 else 5)(recipe),
        only="nanogpt has no Muon"),
    Fault("newton-schulz-untransposed", "tall matrices are not transposed (the same result, four times the work)",
        "update", "Newton-Schulz: 256 x 64 *step 0", TURNED,
        patches=_one("optim", "newton_schulz", parts.orthogonalize_untransposed), only="nanogpt has no Muon"),
    Fault("newton-schulz-epsilon", "the epsilon beside the norm is 1e-6", "update", "Newton-Schulz: 64 x 64 *step 0",
        TURNED, patches=_one("optim", "newton_schulz", parts.orthogonalize_with_epsilon(10.0)),
        only="nanogpt has no Muon"),
]
# fmt: on


def _on_confirm(original):
    return lambda program, state, slice_, part, *rest: original(program, state, slice_, "confirm", *rest)


def _summed_in_float32(original):
    return lambda program, losses: float(np.float32(original(program, losses)))


# fmt: off
RUNS = [
    Fault("stale-weights-evaluated", "evaluation takes the weights of the step before", "trajectory",
        "token losses: *", patches=_program("stale")),
    Fault("first-batch-repeated", "every step trains on the first batch", "trajectory", "losses: *",
        patches=_program("first-batch")),
    Fault("evaluation-on-fewer-tokens", "evaluation leaves out the last batch", "evaluation", "tokens scored: *",
        patches=_one(EVALUATION, "eval_spans", lambda original: lambda *args: list(original(*args))[:-1])),
    Fault("evaluation-on-confirm", "evaluation scores the confirm tokens", "evaluation", "tokens scored: *",
        patches=_one(EVALUATION, "evaluate", _on_confirm)),
    Fault("evaluation-summed-narrowly", "losses are summed in float32", "evaluation", "val loss: *",
        patches=_one(EVALUATION, "_sum", _summed_in_float32)),
    Fault("restore-without-moments", "a resumed run has empty moments", "restore", "restored moments: *",
        patches=_program("no-moments")),
    Fault("restore-without-step", "a resumed run counts its steps from 0 again", "restore",
        "steps after a restore: *", patches=_program("no-step")),
]
# fmt: on

# fmt: off
LAYOUT = [
    Fault("averaged-twice", "gradients are averaged over the ranks twice", "layout", "losses: *|gradient norms: *",
        FIRST_TWO, patches=_program("averaged-twice"), only=LAYOUTS),
    Fault("not-averaged", "gradients are summed over the ranks where they must be averaged", "layout",
        "losses: *|gradient norms: *", NANOGPT, patches=_program("not-averaged"),
        only="muon sums them, and the layouts of the records are not compared"),
    Fault("clipped-before-averaging", "each rank clips its own gradient before they are averaged", "layout",
        "losses: *|gradient norms: *", NANOGPT, patches=_program("clipped-early"), only="the others do not clip"),
    Fault("ranks-read-one-part", "every rank trains on the first part of the batch", "layout",
        "gradient norms: *|losses: *", FIRST_TWO, patches=_program("one-part"), only=LAYOUTS),
]
# fmt: on
