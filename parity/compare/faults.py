"""The catalogue: single mistakes that people make when they write or port such a program, plantable in either backend.

`place` is a pattern for "line: place" of the finding; a fault must be caught at its level, the earliest that can see it.
"""

import numpy as np

from parity.compare import faulty_parts as parts
from parity.compare.faulty_optimizers import faulty_adamw, faulty_muon
from parity.compare.faulty_program_parts import PROGRAM_PATCHES
from parity.compare.planting import Fault, Patch
from parity.errors import InputError, nearest

NANOGPT, MUON = ("nanogpt",), ("muon",)
STREAM = "parity.data.stream"
EVALUATION = "parity.harness.evaluation"
FIRST_NORM = "stream: norm_in|stream: blocks.0.norm1"
SCORES = "attn: blocks.0.attn:y"
QUERY = "attn: blocks.0.attn:q"
STEPPED = "weights after a step: *|weights on the way: *"


def _one(module: str, name: str, change):
    """A patch that is the same in both backends."""
    return lambda backend: [Patch(module, name, change)]


def _by_backend(module: str, name: str, change):
    """A patch whose change depends on the backend."""
    return lambda backend: [Patch(module, name, change(backend))]


def _forward(kinds, change):
    """A patch of what module classes compute."""
    return lambda backend: [parts.forward_of(backend, kind, change(backend)) for kind in kinds]


def _norms(**wrong):
    return lambda backend: [parts.forward_of(backend, kind, parts.norm(centred=kind == "LayerNorm" or wrong.get("centred", False),
                            **{k: v for k, v in wrong.items() if k != "centred"})) for kind in ("LayerNorm", "RMSNorm")]  # fmt: skip


def _blocks(change):
    return _forward(("NanoBlock", "MuonBlock"), lambda backend: parts.block(change))


def _program(name):
    return lambda backend: PROGRAM_PATCHES[name][backend]


def _adamw(wrong):
    return lambda backend: [Patch("optim", "adamw", lambda original: faulty_adamw(backend, wrong))]


def _muon(wrong):
    return lambda backend: [Patch("optim", "muon", lambda original: faulty_muon(backend, wrong))]


def _both(wrong):
    return lambda backend: _adamw(wrong)(backend) + _muon(wrong)(backend)


def _shards(longer):
    """The rule for a shard's end as if every shard were longer."""
    return _one(STREAM, "_blocks", lambda original: lambda lengths, plan: original([n + longer for n in lengths], plan))


def _later_shards(original):
    def blocks(lengths, plan):
        return (b._replace(position=b.position + 1) if b.shard else b for b in original(lengths, plan))

    return blocks


def _dropped_batches(original):
    def blocks(lengths, plan):
        return original([n - plan[0].tokens if n > 2 * plan[0].tokens else n for n in lengths], plan)

    return blocks


def _interleaved(original):
    def load(self, span):
        rank, self._rank = self._rank, 0
        ranks, self._ranks = self._ranks, 1
        place, self._place = self._place, lambda inputs, targets: place(
            np.ascontiguousarray(inputs[rank::ranks]), np.ascontiguousarray(targets[rank::ranks]))
        try:
            return original(self, span)
        finally:
            self._rank, self._ranks, self._place = rank, ranks, place

    return load


DATA = [
    Fault("data-shifted", "batches begin one token late", "data", "train: step 0", patches=_one(
        STREAM, "_window", lambda original: lambda shards, span, start, stop: original(shards, span, start + 1, stop + 1))),
    Fault("data-shard-end", "a shard ends where p + n + 1 > its length, not >=", "data", "across shard ends: *",
          patches=_shards(1)),
    Fault("data-last-batch-dropped", "the last batch of every shard is dropped", "data", "train: step 28",
          patches=_one(STREAM, "_blocks", _dropped_batches)),
    Fault("data-second-shard-late", "every shard but the first begins at its second token", "data", "train: step 29",
          patches=_one(STREAM, "_blocks", _later_shards)),
    Fault("data-ranks-interleaved", "ranks take rows in turns, not consecutive parts", "data", "train, by rank: step 0, rank 0 of 2",
          patches=_one(STREAM, "Reader._load", _interleaved)),
    Fault("data-resume-from-start", "a resumed run reads the data from the beginning", "data", "resumed in the middle: step 30",
          patches=_one(STREAM, "spans_there", lambda original: lambda lengths, plan, start_step=0: original(lengths, plan))),
    Fault("data-val-late", "the val tokens begin one row late", "data", "val: step 0", patches=_one(
        STREAM, "eval_spans", lambda original: lambda start, tokens, batch, seq_len: original(start + seq_len, tokens, batch, seq_len))),
    Fault("data-targets-are-inputs", "targets are the inputs themselves, not the next tokens", "data", "train: step 0",
          patches=_one(STREAM, "_rows", lambda original: lambda window, seq_len: (original(window, seq_len)[0],) * 2)),
]


def _weights(change):
    return _one("parity.weights", "initial_weights", lambda original: lambda recipe, seed: {
        name: change(recipe, name, w) for name, w in original(recipe, seed).items()})


INIT = [
    Fault("init-residual-unscaled", "residual projections are not scaled by 1 / sqrt(2 L)", "init", "bytes: *proj.weight",
          NANOGPT, patches=_weights(lambda recipe, name, w: w * (2 * recipe.layers) ** 0.5 if name.endswith("proj.weight") else w),
          only="muon starts these at zero"),
    Fault("init-variance-as-std", "0.33 / fan-in is taken for a standard deviation", "init", "bytes: blocks.0.attn.q.weight",
          MUON, patches=_weights(lambda recipe, name, w: w * (0.33 / recipe.dim) ** 0.5 if name.startswith("blocks") and w.ndim == 2 else w),
          only="nanogpt gives standard deviations"),
    Fault("init-next-seed", "weights are drawn with the next seed", "init", "bytes: embed.weight", patches=_one(
        "parity.weights", "initial_weights", lambda original: lambda recipe, seed: original(recipe, seed + 1))),
    Fault("init-exported-in-bfloat16", "exported weights have been rounded to bfloat16", "init", "bytes: embed.weight",
          patches=_program("export-bfloat16")),
    Fault("init-squares-transposed", "square matrices are exported transposed", "init", "bytes: blocks.0.attn.*|bytes: positions.weight",
          patches=_program("export-transposed")),
]


def _capped(form):
    return _by_backend("model", "capped", lambda backend: lambda original: lambda x, cap: form(parts.arrays(backend), x, cap))


def _q_k_v(change):
    """A patch of attention: `change(q, k, v, scale)` gives what the right one is called with."""
    return _one("model", "causal_attention", lambda original: lambda q, k, v, scale: original(*change(q, k, v, scale)))


def _heads_last(original):
    def heads(x, head_dim):
        y = original(x, head_dim)
        return x.reshape(y.shape[0], y.shape[1], head_dim, y.shape[2]).swapaxes(2, 3)

    return heads


def _mlp(activation):
    return lambda original: lambda self, x: self.proj(activation(self.fc(x)))


def _positions(backend):
    def change(original):
        def call(self, index):
            y = original(self, index)
            return y if y.ndim == 3 else parts.arrays(backend).concatenate([y[1:], y[:1]])

        return call

    return change


FORWARD = [
    Fault("norm-eps-1e-6", "the norms' epsilon is 1e-6", "forward", FIRST_NORM, recipe=parts.with_fields(norm_eps=1e-6)),
    Fault("norm-eps-1e-8", "the norms' epsilon is 1e-8", "forward", FIRST_NORM, recipe=parts.with_fields(norm_eps=1e-8)),
    Fault("norm-eps-1e-5", "the norms' epsilon is 1e-5", "forward", FIRST_NORM, MUON, parts.with_fields(norm_eps=1e-5),
          only="it is nanogpt's own"),
    Fault("norm-axis", "norms go over the positions, not the channels", "forward", FIRST_NORM, patches=_norms(axis=1)),
    Fault("norm-gain-missing", "norms have no gain", "forward", FIRST_NORM, patches=_norms(gain=False)),
    Fault("norm-bias-missing", "LayerNorm has no bias", "forward", FIRST_NORM, NANOGPT, patches=_norms(bias=False),
          only="RMSNorm has none"),
    Fault("norm-unbiased", "LayerNorm's variance is divided by D - 1", "forward", FIRST_NORM, NANOGPT,
          patches=_norms(unbiased=True), only="RMSNorm takes no variance"),
    Fault("norm-centred", "RMSNorm takes the mean off", "forward", FIRST_NORM, MUON, patches=_norms(centred=True),
          only="LayerNorm does"),
    Fault("gelu-tanh", "GELU by tanh in place of the exact one", "forward", "mlp: blocks.0.mlp.proj:in", NANOGPT,
          parts.with_fields(gelu="tanh"), only="muon has ReLU squared"),
    Fault("relu-not-squared", "ReLU is not squared", "forward", "mlp: blocks.0.mlp.proj:in", MUON, patches=_forward(
        ("MuonMLP",), lambda backend: _mlp(lambda x: (x + abs(x)) / 2)), only="nanogpt has GELU"),
    Fault("attention-scale", "scores are scaled by the model's width, not the head's", "forward", SCORES, patches=_q_k_v(
        lambda q, k, v, scale: (q, k, v, scale * q.shape[2] ** -0.5))),
    Fault("attention-scale-missing", "scores are not scaled", "forward", SCORES, patches=_q_k_v(
        lambda q, k, v, scale: (q, k, v, 1.0))),
    Fault("mask-one-ahead", "a position sees the next token", "forward", SCORES, patches=_by_backend(
        "model", "causal_attention", lambda backend: parts.attention(backend, ahead=1))),
    Fault("mask-own-excluded", "a position does not see itself", "forward", SCORES, patches=_by_backend(
        "model", "causal_attention", lambda backend: parts.attention(backend, ahead=-1))),
    Fault("mask-value-small", "masked scores are -20, not minus infinity", "forward", SCORES, patches=_by_backend(
        "model", "causal_attention", lambda backend: parts.attention(backend, masked=-20.0))),
    Fault("rotary-sign", "rotary turns the other way", "forward", QUERY, MUON, patches=_by_backend(
        "model", "rotary", lambda backend: parts.rotary(backend, sign=-1.0)), only="nanogpt has no rotary"),
    Fault("rotary-base", "rotary's base is 10,000", "forward", QUERY, MUON, parts.with_fields(rotary_base=10_000.0),
          only="nanogpt has no rotary"),
    Fault("rotary-full", "rotary turns all channels, not half of them", "forward", QUERY, MUON, patches=_by_backend(
        "model", "rotary", lambda backend: parts.rotary(backend, full=True)), only="nanogpt has no rotary"),
    Fault("rotary-pairs", "rotary turns neighbours, not the halves of a head", "forward", QUERY, MUON, patches=_by_backend(
        "model", "rotary", lambda backend: parts.rotary(backend, pairs=True)), only="nanogpt has no rotary"),
    Fault("rotary-from-1", "rotary's positions begin at 1", "forward", QUERY, MUON, patches=_by_backend(
        "model", "rotary", lambda backend: parts.rotary(backend, first=1)), only="nanogpt has no rotary"),
    Fault("position-from-1", "learned positions begin at 1", "forward", "stream: positions", NANOGPT, patches=_forward(
        ("Embedding",), _positions), only="muon has no learned positions"),
    Fault("embedding-scaled", "embeddings are multiplied by sqrt(D)", "forward", "stream: embed", patches=_forward(
        ("Embedding",), lambda backend: lambda original: lambda self, index: original(self, index) * (
            self.weight.shape[-1] ** 0.5 if index.ndim == 2 else 1.0))),
    Fault("heads-transposed", "channels are cut into heads the wrong way round", "forward", f"{QUERY}|attn: blocks.0.attn:v",
          patches=_one("model", "heads", _heads_last)),
    Fault("q-k-swapped", "q and k are swapped", "forward", SCORES, patches=_q_k_v(lambda q, k, v, scale: (k, q, v, scale))),
    Fault("qkv-order", "q, k, v are cut in the order k, q, v", "forward", QUERY, NANOGPT, patches=_forward(
        ("NanoAttention",), parts.swapped_qkv), only="muon has three matrices"),
    Fault("qk-norm-missing", "q and k are not normalised", "forward", QUERY, MUON, patches=_one(
        "model", "rms_norm", lambda original: lambda x, eps, wide, gain=None: x if gain is None else original(x, eps, wide, gain)),
        only="nanogpt does not normalise them"),
    Fault("residual-scale", "what blocks add is halved", "forward", "attn: blocks.0.attn|stream: blocks.0.norm2:in",
          patches=_blocks("scaled")),
    Fault("block-parallel", "the MLP reads the block's input, not what attention has added to", "forward",
          "stream: blocks.0.norm2:in", patches=_blocks("parallel")),
    Fault("post-norm", "norms come behind the sums, not before the parts", "forward",
          "attn: blocks.0.attn:in|stream: blocks.0.norm1:in", patches=_blocks("post")),
    Fault("bfloat16-v", "v is rounded to bfloat16", "forward", SCORES, patches=_q_k_v(
        lambda q, k, v, scale: (q, k, parts.narrowed(v), scale))),
    Fault("softcap-30", "logits are capped at 30, not 15", "forward", "logits: logits", MUON, parts.with_fields(logit_cap=30.0),
          only="nanogpt has no cap"),
    Fault("softcap-tanh", "logits are capped by tanh", "forward", "logits: logits", MUON, patches=_capped(
        lambda np_, x, cap: cap * np_.tanh(x / cap)), only="nanogpt has no cap"),
    Fault("head-bias-missing", "the head has no bias", "forward", "stream: head", MUON, patches=_program("head-bias"),
          only="nanogpt's head has none"),
]


def _smoothed(backend):
    def change(original):
        def token_losses(scores, targets, *squash):
            np_ = parts.arrays(backend)
            known = (squash[0](scores) if squash else scores)[..., :512]
            spread = np_.log(np_.exp(known).sum(-1)) - known.mean(-1)
            return 0.9 * original(scores, targets, *squash) + 0.1 * spread

        return token_losses

    return change


def _padding_masked(np_, x, cap):
    y = cap * x / (x * x + cap**2) ** 0.5
    return y - 1e30 * (np_.arange(x.shape[-1]) >= 512)


LOSS = [
    Fault("label-smoothing", "targets are smoothed by 0.1", "loss", "token losses: token_losses", patches=_by_backend(
        "model", "token_losses", _smoothed)),
    Fault("loss-reduction", "the loss is summed instead of averaged, or averaged instead of summed", "loss",
          "reduction: * over the batch", recipe=parts.other_reduction),
    Fault("padding-in-softmax", "rows above the tokenizer's take part in the softmax", "loss", "token losses: token_losses", NANOGPT,
          lambda recipe: parts.with_fields(tokenizer_size=recipe.vocab_size)(recipe), only="in muon they do take part"),
    Fault("padding-masked", "rows above the tokenizer's take no part in the softmax", "loss", "token losses: token_losses", MUON,
          patches=_capped(_padding_masked), only="in nanogpt they take none"),
    Fault("end-of-text-ignored", "targets that are end of text do not count", "loss", "token losses: token_losses", patches=_one(
        "model", "token_losses", lambda original: lambda scores, targets, *squash: original(scores, targets, *squash) * (targets != 511))),
    Fault("zero-ignored", "targets that are token 0 do not count, as if they were padding", "loss", "token losses: token_losses",
          patches=_one("model", "token_losses", lambda original: lambda scores, targets, *squash: original(scores, targets, *squash) * (targets != 0))),
    Fault("evaluation-in-train-mode", "evaluation drops out a tenth of the embedding", "loss", "token losses: token_losses",
          patches=_program("dropout")),
]

GRADIENTS = [
    Fault("head-untied", "the tied head is a copy: the embedding does not get its gradient", "gradients",
          "gradients: embed.weight", NANOGPT, patches=_program("untied"), only="muon's head is not tied"),
    Fault("norm-statistics-detached", "no gradient flows through the norms' statistics", "gradients",
          "gradients: blocks.3.mlp.*|gradients: blocks.3.norm2.*|gradients: blocks.3.attn.*", patches=_norms(constant=True)),
    Fault("v-detached", "no gradient flows through v", "gradients", "gradients: blocks.3.attn.*", patches=_q_k_v(
        lambda q, k, v, scale: (q, k, parts.detached(v) + 0 * v, scale))),
    Fault("clip-norm", "gradients are clipped to 2, not 1", "gradients", "after clipping: * of a gradient of norm 3", NANOGPT,
          parts.with_fields(clip_norm=2.0), only="muon does not clip"),
    Fault("clip-per-tensor", "every tensor is clipped by its own norm", "gradients", "after clipping: * of a gradient of norm 3",
          NANOGPT, patches=_program("clip-per-tensor"), only="muon does not clip"),
    Fault("clip-always", "gradients below the norm are scaled up to it", "gradients", "after clipping: * of a gradient of norm 0.3",
          NANOGPT, patches=_program("clip-always"), only="muon does not clip"),
    Fault("clip-epsilon-missing", "the clipping factor has no epsilon", "gradients", "after clipping: * of a gradient of norm 3",
          NANOGPT, patches=_program("clip-epsilon"), only="muon does not clip"),
]


def _group(matches, group):
    return _one("optim", "group_of", lambda original: lambda recipe: {
        name: group if matches(name) else found for name, found in original(recipe).items()})


UPDATE = [
    Fault("schedule-off-by-one", "the rate of every step is the next one's", "update", "schedule: *", patches=_one(
        "optim", "rates", parts.table(lambda recipe, rates: np.append(rates[1:], rates[-1])))),
    Fault("schedule-late", "the table is right, and read one step late", "update", f"decay: *|{STEPPED}", patches=_program("late-rate")),
    Fault("warmup-from-zero", "the warm-up begins at 0", "update", "schedule: *", NANOGPT, patches=_one(
        "optim", "rates", parts.table(lambda recipe, rates: np.append(0.0, rates[:-1])[: recipe.warmup_steps].tolist()
                                      + rates[recipe.warmup_steps :].tolist())), only="muon has no warm-up"),
    Fault("decay-linear", "the rate falls in a line, not as a cosine", "update", "schedule: *", NANOGPT, patches=_one(
        "optim", "rates", parts.table(lambda recipe, rates: np.minimum(
            rates, rates.max() * (1 - np.arange(len(rates)) / len(rates))))), only="muon's falls in a line"),
    Fault("cooldown", "the cool-down takes 0.6 of the steps", "update", "schedule: *", MUON, parts.with_fields(cooldown=0.6),
          only="nanogpt has a cosine"),
    Fault("beta1", "AdamW's first factor is another", "update", "first moment: *", recipe=lambda recipe: parts.with_fields(
        betas=(0.85, recipe.betas[1]))(recipe)),
    Fault("beta2", "AdamW's second factor is 0.999", "update", "second moment: *", recipe=lambda recipe: parts.with_fields(
        betas=(recipe.betas[0], 0.999))(recipe)),
    Fault("adam-epsilon", "AdamW's epsilon is a hundred times as large", "update", STEPPED, recipe=lambda recipe: parts.with_fields(
        adam_eps=recipe.adam_eps * 100)(recipe)),
    Fault("adam-epsilon-in-root", "AdamW's epsilon stands inside the root", "update", STEPPED, patches=_adamw("eps_in_root")),
    Fault("adam-correction-missing", "AdamW's moments are not corrected for their start", "update", STEPPED,
          patches=_adamw("no_correction")),
    Fault("decay-coupled", "decay is added to the gradient (L2), not taken from the weight", "update", "decay: *",
          patches=_adamw("coupled_decay")),
    Fault("decay-unscaled", "decay is not scaled by the rate", "update", "decay: *", patches=_both("unscaled_decay")),
    Fault("decay-after", "decay comes after the update, not before", "update", STEPPED, patches=_both("decay_after")),
    Fault("decay-on-gains", "gains are decayed as matrices are", "update", "groups: *norm*", NANOGPT, patches=_group(
        lambda name: "norm" in name and name.endswith("weight"), "decay"), only="muon decays all of its groups"),
    Fault("decay-value", "weight decay is half as strong", "update", "decay: *", recipe=lambda recipe: parts.with_fields(
        **{name: getattr(recipe, name) / 2 for name in ("weight_decay", "adam_decay", "muon_decay") if hasattr(recipe, name)})(recipe)),
    Fault("group-wrong", "the head's weight has the rate of vectors", "update", "groups: head.weight", MUON, patches=_group(
        lambda name: name == "head.weight", "vector"), only="nanogpt's groups have one rate"),
    Fault("group-twice", "the embedding is in two groups", "update", "groups: embed.weight", MUON, patches=_program("two-groups"),
          only="nanogpt has one optimizer, which refuses it"),
    Fault("parameter-frozen", "one matrix is never updated", "update", "decay: blocks.1.mlp.fc.weight", patches=_program("frozen")),
    Fault("momentum-summed", "momentum is a sum, not an average", "update", "momentum: *", MUON, patches=_muon("momentum_sum"),
          only="nanogpt has no Muon"),
    Fault("nesterov-missing", "Muon does not look ahead", "update", STEPPED, MUON, patches=_muon("no_nesterov"),
          only="nanogpt has no Muon"),
    Fault("aspect-missing", "tall matrices are not scaled by sqrt(rows / columns)", "update", "weights after a step: *.mlp.fc.weight",
          MUON, patches=_muon("no_aspect"), only="nanogpt has no Muon"),
    Fault("newton-schulz-coefficients", "Newton-Schulz has the coefficients of the quintic", "update",
          "Newton-Schulz: 64 x 64 *step 1", MUON, parts.with_fields(newton_schulz=(3.4445, -4.775, 2.0315)), only="nanogpt has no Muon"),
    Fault("newton-schulz-count", "Newton-Schulz takes 5 steps", "update", "Newton-Schulz: 64 x 64 *step 5|Newton-Schulz: 64 x 64 *result",
          MUON, parts.with_fields(newton_schulz_steps=5), only="nanogpt has no Muon"),
    Fault("newton-schulz-untransposed", "tall matrices are not transposed (the same result, four times the work)", "update",
          "Newton-Schulz: 256 x 64 *step 0", MUON, patches=_by_backend("optim", "orthogonalize", parts.orthogonalize_untransposed),
          only="nanogpt has no Muon"),
    Fault("newton-schulz-epsilon", "the epsilon beside the norm is 1e-6", "update", "Newton-Schulz: 64 x 64 *step 0", MUON,
          patches=_one("optim", "orthogonalize", parts.orthogonalize_with_epsilon(10.0)), only="nanogpt has no Muon"),
]

RUNS = [
    Fault("stale-weights-evaluated", "evaluation takes the weights of the step before", "trajectory", "token losses: *",
          patches=_program("stale")),
    Fault("first-batch-repeated", "every step trains on the first batch", "trajectory", "losses: *", patches=_program("first-batch")),
    Fault("evaluation-on-fewer-tokens", "evaluation leaves out the last batch", "evaluation", "tokens scored: *", patches=_one(
        EVALUATION, "eval_spans", lambda original: lambda *args: list(original(*args))[:-1])),
    Fault("evaluation-on-confirm", "evaluation scores the confirm tokens", "evaluation", "tokens scored: *", patches=_one(
        EVALUATION, "evaluate", lambda original: lambda program, state, slice_, part, *rest: original(program, state, slice_, "confirm", *rest))),
    Fault("evaluation-summed-narrowly", "losses are summed in float32", "evaluation", "val loss: *", patches=_one(
        EVALUATION, "_sum", lambda original: lambda program, losses: float(np.float32(original(program, losses))))),
    Fault("restore-without-moments", "a resumed run has empty moments", "restore", "restored moments: *", patches=_program("no-moments")),
    Fault("restore-without-step", "a resumed run counts its steps from 0 again", "restore", "steps after a restore: *",
          patches=_program("no-step")),
]

LAYOUT = [
    Fault("averaged-twice", "gradients are averaged over the ranks twice", "layout", "losses: *|gradient norms: *",
          patches=_program("averaged-twice")),
    Fault("not-averaged", "gradients are summed over the ranks where they must be averaged", "layout", "losses: *|gradient norms: *",
          NANOGPT, patches=_program("not-averaged"), only="muon sums them"),
    Fault("clipped-before-averaging", "each rank clips its own gradient before they are averaged", "layout",
          "losses: *|gradient norms: *", NANOGPT, patches=_program("clipped-early"), only="muon does not clip"),
    Fault("ranks-read-one-part", "every rank trains on the first part of the batch", "layout", "gradient norms: *|losses: *", patches=_program("one-part")),
]

FAULTS = {fault.name: fault for fault in (*DATA, *INIT, *FORWARD, *LOSS, *GRADIENTS, *UPDATE, *RUNS, *LAYOUT)}


def fault_for(name: str) -> Fault:
    """The fault of a name; InputError with the nearest where there is none."""
    if name not in FAULTS:
        raise InputError(f"unknown fault {name!r}; {nearest(name, FAULTS)}")
    return FAULTS[name]
