"""The catalogue: single mistakes that people make when they write or port such a program, plantable in either backend.

`place` is a pattern for "line: place" of the finding; a fault must be caught at its level, the earliest that can see it.
"""

import numpy as np

from parity.compare.faults import layers as parts
from parity.compare.faults import optimizers
from parity.compare.faults.plant import MODELS, Fault, by_backend, one
from parity.compare.faults.programs import PROGRAM_PATCHES
from parity.compare.faults.records import NARROW, OF_8_BITS, OF_RECORDS
from parity.errors import InputError, nearest
from parity.recipes import QUINTIC

NANOGPT, MUON, RECORDS = ("nanogpt",), ("muon",), ("record-11", "record-21")
TURNED, FIRST_TWO = (*MUON, *RECORDS), (*NANOGPT, *MUON)
STREAM = "parity.data.stream"
EVALUATION = "parity.harness.evaluation"
FIRST_NORM = "stream: norm_in|stream: blocks.0.norm1"
SCORES = "attn: blocks.0.attn:y"
QUERY = "attn: blocks.0.attn:q"
STEPPED = "weights after a step: *|weights on the way: *"
PLAIN_MASK, WINDOWS = ("nanogpt", "muon", "record-11"), "record-21's mask is planted by itself"
DECAYS = "the records have no decay"
LAYOUTS = "all recipes share the code for layouts, and each try is a set of processes"


def _one(module: str, name: str, change):
    return one(module, name, change=change)


def _by_backend(module: str, name: str, change):
    return by_backend(module, name, change=change)


def _norms(**wrong):
    return lambda backend: [
        parts.forward_of(
            backend,
            kind,
            parts.norm(
                centred=kind == "LayerNorm" or wrong.get("centred", False),
                **{k: v for k, v in wrong.items() if k != "centred"},
            ),
        )
        for kind in ("LayerNorm", "RMSNorm", "Norm")
    ]


def _blocks(change):
    return parts.forward(("Block",), lambda backend: parts.block(change))


def _program(name):
    return lambda backend: PROGRAM_PATCHES[name][backend]


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
        place, self._place = (
            self._place,
            lambda inputs, targets: place(
                np.ascontiguousarray(inputs[rank::ranks]), np.ascontiguousarray(targets[rank::ranks])
            ),
        )
        try:
            return original(self, span)
        finally:
            self._rank, self._ranks, self._place = rank, ranks, place

    return load


DATA = [
    Fault(
        "data-shifted",
        "batches begin one token late",
        "data",
        "train: step 0",
        patches=_one(
            STREAM,
            "_window",
            lambda original: lambda shards, span, start, stop: original(shards, span, start + 1, stop + 1),
        ),
    ),
    Fault(
        "data-shard-end",
        "a shard ends where p + n + 1 > its length, not >=",
        "data",
        "across shard ends: *",
        patches=_shards(1),
    ),
    Fault(
        "data-last-batch-dropped",
        "the last batch of every shard is dropped",
        "data",
        "train: step 28",
        patches=_one(STREAM, "_blocks", _dropped_batches),
    ),
    Fault(
        "data-second-shard-late",
        "every shard but the first begins at its second token",
        "data",
        "train: step 29",
        patches=_one(STREAM, "_blocks", _later_shards),
    ),
    Fault(
        "data-ranks-interleaved",
        "ranks take rows in turns, not consecutive parts",
        "data",
        "train, by rank: step 0, rank 0 of 2",
        patches=_one(STREAM, "Reader._load", _interleaved),
    ),
    Fault(
        "data-resume-from-start",
        "a resumed run reads the data from the beginning",
        "data",
        "resumed in the middle: step 30",
        patches=_one(
            STREAM, "available_spans", lambda original: lambda lengths, plan, start_step=0: original(lengths, plan)
        ),
    ),
    Fault(
        "data-val-late",
        "the val tokens begin one row late",
        "data",
        "val: step 0",
        patches=_one(
            STREAM,
            "eval_spans",
            lambda original: lambda start, tokens, batch, seq_len: original(start + seq_len, tokens, batch, seq_len),
        ),
    ),
    Fault(
        "data-targets-are-inputs",
        "targets are the inputs themselves, not the next tokens",
        "data",
        "train: step 0",
        patches=_one(STREAM, "_rows", lambda original: lambda window, seq_len: (original(window, seq_len)[0],) * 2),
    ),
]


def _weights(change):
    return _one(
        "parity.weights",
        "initial_weights",
        lambda original: (
            lambda recipe, seed: {name: change(recipe, name, w) for name, w in original(recipe, seed).items()}
        ),
    )


INIT = [
    Fault(
        "init-residual-unscaled",
        "residual projections are not scaled by 1 / sqrt(2 L)",
        "init",
        "bytes: *proj.weight",
        NANOGPT,
        patches=_weights(lambda recipe, name, w: w * (2 * recipe.layers) ** 0.5 if name.endswith("proj.weight") else w),
        only="the others start these at zero",
    ),
    Fault(
        "init-variance-as-std",
        "0.33 / fan-in is taken for a standard deviation",
        "init",
        "bytes: blocks.0.attn.q.weight",
        MUON,
        patches=_weights(
            lambda recipe, name, w: w * (0.33 / recipe.dim) ** 0.5 if name.startswith("blocks") and w.ndim == 2 else w
        ),
        only="the others give no variance",
    ),
    Fault(
        "init-next-seed",
        "weights are drawn with the next seed",
        "init",
        "bytes: embed.weight",
        patches=_one(
            "parity.weights", "initial_weights", lambda original: lambda recipe, seed: original(recipe, seed + 1)
        ),
    ),
    Fault(
        "init-exported-in-bfloat16",
        "exported weights have been rounded to bfloat16",
        "init",
        "bytes: embed.weight",
        patches=_program("export-bfloat16"),
    ),
    Fault(
        "init-squares-transposed",
        "square matrices are exported transposed",
        "init",
        "bytes: blocks.0.attn.*|bytes: positions.weight",
        patches=_program("export-transposed"),
    ),
]


def _capped(form):
    return _by_backend(
        MODELS, "rational_softcap", lambda backend: lambda original: lambda x, cap: form(parts.arrays(backend), x, cap)
    )


def _q_k_v(change):
    """A patch of attention: `change(q, k, v, scale)` gives what the right one is called with."""
    return one(
        MODELS,
        "causal_attention",
        "window_attention",
        change=lambda original: lambda q, k, v, scale, *rest: original(*change(q, k, v, scale), *rest),
    )


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
            return y if index.ndim == 2 else parts.arrays(backend).concatenate([y[1:], y[:1]])

        return call

    return change


FORWARD = [
    Fault(
        "norm-eps-1e-6", "the norms' epsilon is 1e-6", "forward", FIRST_NORM, recipe=parts.with_fields(norm_eps=1e-6)
    ),
    Fault(
        "norm-eps-1e-8", "the norms' epsilon is 1e-8", "forward", FIRST_NORM, recipe=parts.with_fields(norm_eps=1e-8)
    ),
    Fault(
        "norm-eps-1e-5",
        "the norms' epsilon is 1e-5",
        "forward",
        FIRST_NORM,
        TURNED,
        parts.with_fields(norm_eps=1e-5),
        only="it is nanogpt's own",
    ),
    Fault("norm-axis", "norms go over the positions, not the channels", "forward", FIRST_NORM, patches=_norms(axis=1)),
    Fault(
        "norm-gain-missing",
        "norms have no gain",
        "forward",
        FIRST_NORM,
        FIRST_TWO,
        patches=_norms(gain=False),
        only="the records' norms have none",
    ),
    Fault(
        "norm-bias-missing",
        "LayerNorm has no bias",
        "forward",
        FIRST_NORM,
        NANOGPT,
        patches=_norms(bias=False),
        only="RMSNorm has none",
    ),
    Fault(
        "norm-unbiased",
        "LayerNorm's variance is divided by D - 1",
        "forward",
        FIRST_NORM,
        NANOGPT,
        patches=_norms(unbiased=True),
        only="RMSNorm takes no variance",
    ),
    Fault(
        "norm-centred",
        "RMSNorm takes the mean off",
        "forward",
        FIRST_NORM,
        TURNED,
        patches=_norms(centred=True),
        only="LayerNorm does",
    ),
    Fault(
        "gelu-tanh",
        "GELU by tanh in place of the exact one",
        "forward",
        "mlp: blocks.0.mlp.proj:in",
        NANOGPT,
        parts.with_fields(gelu="tanh"),
        only="the others have ReLU squared",
    ),
    Fault(
        "relu-not-squared",
        "ReLU is not squared",
        "forward",
        "mlp: blocks.0.mlp.proj:in",
        TURNED,
        patches=parts.forward(("MLP",), lambda backend: _mlp(lambda x: (x + abs(x)) / 2)),
        only="nanogpt has GELU",
    ),
    Fault(
        "attention-scale",
        "scores are scaled by the model's width, not the head's",
        "forward",
        SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, v, scale * q.shape[2] ** -0.5)),
    ),
    Fault(
        "attention-scale-missing",
        "scores are not scaled",
        "forward",
        SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, v, 1.0)),
    ),
    Fault(
        "mask-one-ahead",
        "a position sees the next token",
        "forward",
        SCORES,
        PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, ahead=1)),
        only=WINDOWS,
    ),
    Fault(
        "mask-own-excluded",
        "a position does not see itself",
        "forward",
        SCORES,
        PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, ahead=-1)),
        only=WINDOWS,
    ),
    Fault(
        "mask-value-small",
        "masked scores are -20, not minus infinity",
        "forward",
        SCORES,
        PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, masked=-20.0)),
        only=WINDOWS,
    ),
    Fault(
        "rotary-sign",
        "rotary turns the other way",
        "forward",
        QUERY,
        TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, sign=-1.0)),
        only="nanogpt has no rotary",
    ),
    Fault(
        "rotary-base",
        "rotary's base is 10,000 instead of 1,024, or the other way round",
        "forward",
        QUERY,
        TURNED,
        lambda recipe: parts.with_fields(rotary_base=1024.0 if recipe.rotary_base > 1024 else 10_000.0)(recipe),
        only="nanogpt has no rotary",
    ),
    Fault(
        "rotary-full",
        "rotary turns all channels, not half of them",
        "forward",
        QUERY,
        MUON,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, spread=True)),
        only="nanogpt has no rotary, and the records have a mistake of their own",
    ),
    Fault(
        "rotary-pairs",
        "rotary turns neighbours, not the halves of a head",
        "forward",
        QUERY,
        TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, pairs=True)),
        only="nanogpt has no rotary",
    ),
    Fault(
        "rotary-from-1",
        "rotary's positions begin at 1",
        "forward",
        QUERY,
        TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, first=1)),
        only="nanogpt has no rotary",
    ),
    Fault(
        "position-from-1",
        "learned positions begin at 1",
        "forward",
        "stream: positions",
        NANOGPT,
        patches=parts.forward(("Embedding",), _positions),
        only="the others have no learned positions",
    ),
    Fault(
        "embedding-scaled",
        "embeddings are multiplied by sqrt(D)",
        "forward",
        "stream: embed",
        patches=parts.forward(
            ("Embedding",),
            lambda backend: (
                lambda original: (
                    lambda self, index: (
                        original(self, index) * (self.weight.shape[-1] ** 0.5 if index.ndim == 2 else 1.0)
                    )
                )
            ),
        ),
    ),
    Fault(
        "heads-transposed",
        "channels are cut into heads the wrong way round",
        "forward",
        f"{QUERY}|attn: blocks.0.attn:v|attn: blocks.0.attn.lambdas:in",
        patches=_one(MODELS, "split_heads", _heads_last),
    ),
    Fault(
        "q-k-swapped", "q and k are swapped", "forward", SCORES, patches=_q_k_v(lambda q, k, v, scale: (k, q, v, scale))
    ),
    Fault(
        "qkv-order",
        "q, k, v are cut in the order k, q, v",
        "forward",
        SCORES,
        ("nanogpt", "record-21"),
        patches=_q_k_v(lambda q, k, v, scale: (k, q, v, scale)),
        only="the others have three matrices",
    ),
    Fault(
        "qk-norm-missing",
        "q and k are not normalised",
        "forward",
        QUERY,
        TURNED,
        patches=_one(
            MODELS,
            "rms_norm",
            lambda original: lambda x, eps, wide, gain=None: x if gain is None else original(x, eps, wide, gain),
        ),
        only="nanogpt does not normalise them",
    ),
    Fault(
        "residual-scale",
        "what blocks add is halved",
        "forward",
        "attn: blocks.0.attn|stream: blocks.0.norm2:in",
        patches=_blocks("scaled"),
    ),
    Fault(
        "block-parallel",
        "the MLP reads the block's input, not what attention has added to",
        "forward",
        "stream: blocks.0.norm2:in",
        patches=_blocks("parallel"),
    ),
    Fault(
        "post-norm",
        "norms come behind the sums, not before the parts",
        "forward",
        "attn: blocks.0.attn:in|stream: blocks.0.norm1:in",
        patches=_blocks("post"),
    ),
    Fault(
        "bfloat16-v",
        "v is rounded to bfloat16",
        "forward",
        SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, parts.narrowed(v), scale)),
    ),
    Fault(
        "softcap-30",
        "logits are capped at 30, not 15",
        "forward",
        "logits: logits",
        MUON,
        parts.with_fields(logit_cap=30.0),
        only="nanogpt has no cap, and the records' is 30",
    ),
    Fault(
        "softcap-tanh",
        "logits are capped by tanh",
        "forward",
        "logits: logits",
        MUON,
        patches=_capped(lambda np_, x, cap: cap * np_.tanh(x / cap)),
        only="nanogpt has no cap, and the records have mistakes of their own",
    ),
    Fault(
        "head-bias-missing",
        "the head has no bias",
        "forward",
        "stream: head",
        MUON,
        patches=_program("head-bias"),
        only="the others' heads have none",
    ),
]


def _smoothed(backend):
    def change(original):
        def token_losses(raw_logits, targets, softcap=lambda x: x):
            np_ = parts.arrays(backend)
            known = softcap(raw_logits)[..., :512]
            spread = np_.log(np_.exp(known).sum(-1)) - known.mean(-1)
            return 0.9 * original(raw_logits, targets, softcap) + 0.1 * spread

        return token_losses

    return change


def _padding_masked(backend):
    return lambda original: (
        lambda self, scores: original(self, scores) - 1e30 * (parts.arrays(backend).arange(scores.shape[-1]) >= 512)
    )


LOSS = [
    Fault(
        "label-smoothing",
        "targets are smoothed by 0.1",
        "loss",
        "token losses: token_losses",
        patches=_by_backend("layers", "token_losses", _smoothed),
    ),
    Fault(
        "loss-reduction",
        "the loss is summed instead of averaged, or averaged instead of summed",
        "loss",
        "reduction: * over the batch",
        recipe=parts.other_reduction,
    ),
    Fault(
        "padding-in-softmax",
        "rows above the tokenizer's take part in the softmax",
        "loss",
        "token losses: token_losses",
        NANOGPT,
        lambda recipe: parts.with_fields(tokenizer_size=recipe.vocab_size)(recipe),
        only="in the others they do take part",
    ),
    Fault(
        "padding-masked",
        "rows above the tokenizer's take no part in the softmax",
        "loss",
        "token losses: token_losses",
        TURNED,
        patches=_by_backend(MODELS, "Model.softcap", change=_padding_masked),
        only="in nanogpt they take none",
    ),
    Fault(
        "end-of-text-ignored",
        "targets that are end of text do not count",
        "loss",
        "token losses: token_losses",
        patches=_one(
            "layers",
            "token_losses",
            lambda original: (
                lambda raw_logits, targets, *softcap: original(raw_logits, targets, *softcap) * (targets != 511)
            ),
        ),
    ),
    Fault(
        "zero-ignored",
        "targets that are token 0 do not count, as if they were padding",
        "loss",
        "token losses: token_losses",
        patches=_one(
            "layers",
            "token_losses",
            lambda original: (
                lambda raw_logits, targets, *softcap: original(raw_logits, targets, *softcap) * (targets != 0)
            ),
        ),
    ),
    Fault(
        "evaluation-in-train-mode",
        "evaluation drops out a tenth of the embedding",
        "loss",
        "token losses: token_losses",
        patches=_program("dropout"),
    ),
]

GRADIENTS = [
    Fault(
        "head-untied",
        "the tied head is a copy: the embedding does not get its gradient",
        "gradients",
        "gradients: embed.weight",
        NANOGPT,
        patches=_program("untied"),
        only="the others' heads are not tied",
    ),
    Fault(
        "norm-statistics-detached",
        "no gradient flows through the norms' statistics",
        "gradients",
        "gradients: blocks.3.mlp.*|gradients: blocks.3.norm2.*|gradients: blocks.3.attn.*|gradients: skips.weight",
        patches=_norms(constant=True),
    ),
    Fault(
        "v-detached",
        "no gradient flows through v",
        "gradients",
        "gradients: blocks.3.attn.*|gradients: skips.weight",
        patches=_q_k_v(lambda q, k, v, scale: (q, k, parts.detached(v) + 0 * v, scale)),
    ),
    Fault(
        "clip-norm",
        "gradients are clipped to 2, not 1",
        "gradients",
        "after clipping: * of a gradient of norm 3",
        NANOGPT,
        parts.with_fields(clip_norm=2.0),
        only="the others do not clip",
    ),
    Fault(
        "clip-per-tensor",
        "every tensor is clipped by its own norm",
        "gradients",
        "after clipping: * of a gradient of norm 3",
        NANOGPT,
        patches=_program("clip-per-tensor"),
        only="the others do not clip",
    ),
    Fault(
        "clip-always",
        "gradients below the norm are scaled up to it",
        "gradients",
        "after clipping: * of a gradient of norm 0.3",
        NANOGPT,
        patches=_program("clip-always"),
        only="the others do not clip",
    ),
    Fault(
        "clip-epsilon-missing",
        "the clipping factor has no epsilon",
        "gradients",
        "after clipping: * of a gradient of norm 3",
        NANOGPT,
        patches=_program("clip-epsilon"),
        only="the others do not clip",
    ),
]


def _group(matches, group):
    return _one(
        "optim",
        "group_of",
        lambda original: (
            lambda recipe: {name: group if matches(name) else found for name, found in original(recipe).items()}
        ),
    )


UPDATE = [
    Fault(
        "schedule-off-by-one",
        "the rate of every step is the next one's",
        "update",
        "schedule: *",
        patches=_one("optim", "learning_rates", parts.table(lambda recipe, rates: np.append(rates[1:], rates[-1]))),
    ),
    Fault(
        "schedule-late",
        "the table is right, and read one step late",
        "update",
        f"decay: *|{STEPPED}",
        patches=_program("late-rate"),
    ),
    Fault(
        "warmup-from-zero",
        "the warm-up begins at 0",
        "update",
        "schedule: *",
        NANOGPT,
        patches=_one(
            "optim",
            "learning_rates",
            parts.table(
                lambda recipe, rates: (
                    np.append(0.0, rates[:-1])[: recipe.warmup_steps].tolist() + rates[recipe.warmup_steps :].tolist()
                )
            ),
        ),
        only="the others have no warm-up",
    ),
    Fault(
        "decay-linear",
        "the rate falls in a line, not as a cosine",
        "update",
        "schedule: *",
        NANOGPT,
        patches=_one(
            "optim",
            "learning_rates",
            parts.table(
                lambda recipe, rates: np.minimum(rates, rates.max() * (1 - np.arange(len(rates)) / len(rates)))
            ),
        ),
        only="the others' falls in a line",
    ),
    Fault(
        "cooldown",
        "the cool-down takes 0.6 of the steps",
        "update",
        "schedule: *",
        TURNED,
        parts.with_fields(cooldown=0.6),
        only="nanogpt has a cosine",
    ),
    Fault(
        "beta1",
        "AdamW's first factor is another",
        "update",
        "first moment: *",
        recipe=lambda recipe: parts.with_fields(betas=(0.85, recipe.betas[1]))(recipe),
    ),
    Fault(
        "beta2",
        "AdamW's second factor is 0.999",
        "update",
        "second moment: *",
        recipe=lambda recipe: parts.with_fields(betas=(recipe.betas[0], 0.999))(recipe),
    ),
    Fault(
        "adam-epsilon",
        "AdamW's epsilon is a hundred times as large",
        "update",
        STEPPED,
        recipe=lambda recipe: parts.with_fields(adam_eps=recipe.adam_eps * 100)(recipe),
    ),
    Fault(
        "adam-epsilon-in-root",
        "AdamW's epsilon stands inside the root",
        "update",
        STEPPED,
        patches=optimizers.eps_in_root,
    ),
    Fault(
        "adam-correction-missing",
        "AdamW's moments are not corrected for their start",
        "update",
        STEPPED,
        patches=optimizers.no_correction,
    ),
    Fault(
        "decay-coupled",
        "decay is added to the gradient (L2), not taken from the weight",
        "update",
        "decay: *",
        FIRST_TWO,
        patches=optimizers.coupled_decay,
        only=DECAYS,
    ),
    Fault(
        "decay-unscaled",
        "decay is not scaled by the rate",
        "update",
        "decay: *",
        FIRST_TWO,
        patches=optimizers.unscaled_decay,
        only=DECAYS,
    ),
    Fault(
        "decay-after",
        "decay comes after the update, not before",
        "update",
        STEPPED,
        FIRST_TWO,
        patches=optimizers.decay_after,
        only=DECAYS,
    ),
    Fault(
        "decay-on-gains",
        "gains are decayed as matrices are",
        "update",
        "groups: *norm*",
        NANOGPT,
        patches=_group(lambda name: "norm" in name and name.endswith("weight"), "decay"),
        only="muon decays all of its groups, the records none",
    ),
    Fault(
        "decay-value",
        "weight decay is half as strong",
        "update",
        "decay: *",
        FIRST_TWO,
        recipe=lambda recipe: parts.with_fields(
            **{
                name: getattr(recipe, name) / 2
                for name in ("weight_decay", "adam_decay", "muon_decay")
                if hasattr(recipe, name)
            }
        )(recipe),
        only=DECAYS,
    ),
    Fault(
        "group-wrong",
        "the head's weight has the rate of vectors",
        "update",
        "groups: head.weight",
        MUON,
        patches=_group(lambda name: name == "head.weight", "vector"),
        only="nanogpt's groups have one rate, and the records no vectors",
    ),
    Fault(
        "group-twice",
        "the embedding is in two groups",
        "update",
        "groups: embed.weight",
        TURNED,
        patches=_program("two-groups"),
        only="nanogpt has one optimizer, which refuses it",
    ),
    Fault(
        "parameter-frozen",
        "one matrix is never updated",
        "update",
        "decay: blocks.1.mlp.fc.weight|weights after a step: blocks.1.mlp.fc.weight",
        patches=_program("frozen"),
    ),
    Fault(
        "momentum-summed",
        "momentum is a sum, not an average",
        "update",
        "momentum: *",
        ("muon", "record-21"),
        parts.with_optimizer("matrix", "MuonSGD"),
        only="nanogpt has no Muon, and in record-11 it is a sum",
    ),
    Fault(
        "nesterov-missing",
        "Muon does not look ahead",
        "update",
        STEPPED,
        TURNED,
        patches=optimizers.no_nesterov,
        only="nanogpt has no Muon",
    ),
    Fault(
        "aspect-missing",
        "tall matrices are not scaled by sqrt(rows / columns)",
        "update",
        "weights after a step: *.mlp.fc.weight",
        TURNED,
        patches=optimizers.no_aspect,
        only="nanogpt has no Muon",
    ),
    Fault(
        "newton-schulz-coefficients",
        "Newton-Schulz has the other coefficients: the quick ones, or those that converge",
        "update",
        "Newton-Schulz: 64 x 64 *step 1",
        TURNED,
        lambda recipe: parts.with_fields(
            newton_schulz=QUINTIC if recipe.newton_schulz != QUINTIC else (2.0, -1.5, 0.5)
        )(recipe),
        only="nanogpt has no Muon",
    ),
    Fault(
        "newton-schulz-count",
        "Newton-Schulz takes 5 steps, or 6 where it should take 5",
        "update",
        "Newton-Schulz: 64 x 64 *step 5|Newton-Schulz: 64 x 64 *result",
        TURNED,
        lambda recipe: parts.with_fields(newton_schulz_steps=6 if recipe.newton_schulz_steps == 5 else 5)(recipe),
        only="nanogpt has no Muon",
    ),
    Fault(
        "newton-schulz-untransposed",
        "tall matrices are not transposed (the same result, four times the work)",
        "update",
        "Newton-Schulz: 256 x 64 *step 0",
        TURNED,
        patches=_one("optim", "newton_schulz", parts.orthogonalize_untransposed),
        only="nanogpt has no Muon",
    ),
    Fault(
        "newton-schulz-epsilon",
        "the epsilon beside the norm is 1e-6",
        "update",
        "Newton-Schulz: 64 x 64 *step 0",
        TURNED,
        patches=_one("optim", "newton_schulz", parts.orthogonalize_with_epsilon(10.0)),
        only="nanogpt has no Muon",
    ),
]

RUNS = [
    Fault(
        "stale-weights-evaluated",
        "evaluation takes the weights of the step before",
        "trajectory",
        "token losses: *",
        patches=_program("stale"),
    ),
    Fault(
        "first-batch-repeated",
        "every step trains on the first batch",
        "trajectory",
        "losses: *",
        patches=_program("first-batch"),
    ),
    Fault(
        "evaluation-on-fewer-tokens",
        "evaluation leaves out the last batch",
        "evaluation",
        "tokens scored: *",
        patches=_one(EVALUATION, "eval_spans", lambda original: lambda *args: list(original(*args))[:-1]),
    ),
    Fault(
        "evaluation-on-confirm",
        "evaluation scores the confirm tokens",
        "evaluation",
        "tokens scored: *",
        patches=_one(
            EVALUATION,
            "evaluate",
            lambda original: (
                lambda program, state, slice_, part, *rest: original(program, state, slice_, "confirm", *rest)
            ),
        ),
    ),
    Fault(
        "evaluation-summed-narrowly",
        "losses are summed in float32",
        "evaluation",
        "val loss: *",
        patches=_one(
            EVALUATION, "_sum", lambda original: lambda program, losses: float(np.float32(original(program, losses)))
        ),
    ),
    Fault(
        "restore-without-moments",
        "a resumed run has empty moments",
        "restore",
        "restored moments: *",
        patches=_program("no-moments"),
    ),
    Fault(
        "restore-without-step",
        "a resumed run counts its steps from 0 again",
        "restore",
        "steps after a restore: *",
        patches=_program("no-step"),
    ),
]

LAYOUT = [
    Fault(
        "averaged-twice",
        "gradients are averaged over the ranks twice",
        "layout",
        "losses: *|gradient norms: *",
        FIRST_TWO,
        patches=_program("averaged-twice"),
        only=LAYOUTS,
    ),
    Fault(
        "not-averaged",
        "gradients are summed over the ranks where they must be averaged",
        "layout",
        "losses: *|gradient norms: *",
        NANOGPT,
        patches=_program("not-averaged"),
        only="muon sums them, and the layouts of the records are not compared",
    ),
    Fault(
        "clipped-before-averaging",
        "each rank clips its own gradient before they are averaged",
        "layout",
        "losses: *|gradient norms: *",
        NANOGPT,
        patches=_program("clipped-early"),
        only="the others do not clip",
    ),
    Fault(
        "ranks-read-one-part",
        "every rank trains on the first part of the batch",
        "layout",
        "gradient norms: *|losses: *",
        FIRST_TWO,
        patches=_program("one-part"),
        only=LAYOUTS,
    ),
]

FAULTS = {
    fault.name: fault
    for fault in (*DATA, *INIT, *FORWARD, *LOSS, *GRADIENTS, *UPDATE, *RUNS, *LAYOUT, *OF_RECORDS, *OF_8_BITS)
}
NARROW_FAULTS = {fault.name: fault for fault in NARROW}
"""What only a comparison in a narrow precision can see."""


def fault_for(name: str) -> Fault:
    """The fault of a name; InputError with the nearest where there is none."""
    known = FAULTS | NARROW_FAULTS
    if name not in known:
        raise InputError(f"unknown fault {name!r}; {nearest(name, known)}")
    return known[name]
