"""Mistakes in the forward pass, the loss and the gradients.

`place` is a pattern for "line: place" of the finding; a fault must be caught at its level, the earliest that can see
it.
"""

from parity.compare.faults import layers as parts
from parity.compare.faults.plant import MODELS, Fault, by_backend, in_module
from parity.compare.faults.programs import PROGRAM_PATCHES

NANOGPT, MUON, RECORDS = ("nanogpt",), ("muon",), ("record-11", "record-21")

TURNED, FIRST_TWO = (*MUON, *RECORDS), (*NANOGPT, *MUON)

FIRST_NORM = "stream: norm_in|stream: blocks.0.norm1"

SCORES = "attn: blocks.0.attn:y"

QUERY = "attn: blocks.0.attn:q"

PLAIN_MASK, WINDOWS = ("nanogpt", "muon", "record-11"), "record-21's mask is planted by itself"


def _one(module: str, name: str, change):
    return in_module(module, name, change=change)


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


def _capped(form):
    return _by_backend(
        MODELS, "rational_softcap", lambda backend: lambda original: lambda x, cap: form(parts.arrays(backend), x, cap)
    )


def _q_k_v(change):
    """A patch of attention: `change(q, k, v, scale)` gives what the right one is called with."""
    return in_module(
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


def _embedding_scaled(original):
    return lambda self, index: original(self, index) * (self.weight.shape[-1] ** 0.5 if index.ndim == 2 else 1.0)


def _norm_only_with_a_gain(original):
    return lambda x, eps, accum, gain=None: x if gain is None else original(x, eps, accum, gain)


# fmt: off
FORWARD = [
    Fault("norm-eps-1e-6", "the norms' epsilon is 1e-6", "forward", FIRST_NORM,
        recipe=parts.with_fields(norm_eps=1e-06)),
    Fault("norm-eps-1e-8", "the norms' epsilon is 1e-8", "forward", FIRST_NORM,
        recipe=parts.with_fields(norm_eps=1e-08)),
    Fault("norm-eps-1e-5", "the norms' epsilon is 1e-5", "forward", FIRST_NORM, TURNED,
        parts.with_fields(norm_eps=1e-05), only="it is nanogpt's own"),
    Fault("norm-axis", "norms go over the positions, not the channels", "forward", FIRST_NORM,
        patches=_norms(axis=1)),
    Fault("norm-gain-missing", "norms have no gain", "forward", FIRST_NORM, FIRST_TWO, patches=_norms(gain=False),
        only="the records' norms have none"),
    Fault("norm-bias-missing", "LayerNorm has no bias", "forward", FIRST_NORM, NANOGPT, patches=_norms(bias=False),
        only="RMSNorm has none"),
    Fault("norm-unbiased", "LayerNorm's variance is divided by D - 1", "forward", FIRST_NORM, NANOGPT,
        patches=_norms(unbiased=True), only="RMSNorm takes no variance"),
    Fault("norm-centred", "RMSNorm takes the mean off", "forward", FIRST_NORM, TURNED, patches=_norms(centred=True),
        only="LayerNorm does"),
    Fault("gelu-tanh", "GELU by tanh in place of the exact one, or the other way round", "forward",
        "mlp: blocks.0.mlp.proj:in", NANOGPT,
        lambda recipe: parts.with_fields(gelu="exact" if recipe.gelu == "tanh" else "tanh")(recipe),
        only="the others have ReLU squared"),
    Fault("relu-not-squared", "ReLU is not squared", "forward", "mlp: blocks.0.mlp.proj:in", TURNED,
        patches=parts.forward(("MLP",), lambda backend: _mlp(lambda x: (x + abs(x)) / 2)), only="nanogpt has GELU"),
    Fault("attention-scale", "scores are scaled by the model's width, not the head's", "forward", SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, v, scale * q.shape[2] ** (-0.5)))),
    Fault("attention-scale-missing", "scores are not scaled", "forward", SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, v, 1.0))),
    Fault("mask-one-ahead", "a position sees the next token", "forward", SCORES, PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, ahead=1)),
        only=WINDOWS),
    Fault("mask-own-excluded", "a position does not see itself", "forward", SCORES, PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, ahead=-1)),
        only=WINDOWS),
    Fault("mask-value-small", "masked scores are -20, not minus infinity", "forward", SCORES, PLAIN_MASK,
        patches=_by_backend(MODELS, "causal_attention", lambda backend: parts.attention(backend, masked=-20.0)),
        only=WINDOWS),
    Fault("rotary-sign", "rotary turns the other way", "forward", QUERY, TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, sign=-1.0)),
        only="nanogpt has no rotary"),
    Fault("rotary-base", "rotary's base is 10,000 instead of 1,024, or the other way round", "forward", QUERY, TURNED,
        lambda recipe: parts.with_fields(rotary_base=1024.0 if recipe.rotary_base > 1024 else 10000.0)(recipe),
        only="nanogpt has no rotary"),
    Fault("rotary-full", "rotary turns all channels, not half of them", "forward", QUERY, MUON,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, spread=True)),
        only="nanogpt has no rotary, and the records have a mistake of their own"),
    Fault("rotary-pairs", "rotary turns neighbours, not the halves of a head", "forward", QUERY, TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, pairs=True)),
        only="nanogpt has no rotary"),
    Fault("rotary-from-1", "rotary's positions begin at 1", "forward", QUERY, TURNED,
        patches=_by_backend(MODELS, "rotary", lambda backend: parts.rotary(backend, first=1)),
        only="nanogpt has no rotary"),
    Fault("position-from-1", "learned positions begin at 1", "forward", "stream: positions", NANOGPT,
        patches=parts.forward(("Embedding",), _positions), only="the others have no learned positions"),
    Fault("embedding-scaled", "embeddings are multiplied by sqrt(D)", "forward", "stream: embed",
        patches=parts.forward(("Embedding",), lambda backend: _embedding_scaled)),
    Fault("heads-transposed", "channels are cut into heads the wrong way round", "forward",
        f"{QUERY}|attn: blocks.0.attn:v|attn: blocks.0.attn.lambdas:in",
        patches=_one(MODELS, "split_heads", _heads_last)),
    Fault("q-k-swapped", "q and k are swapped", "forward", SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (k, q, v, scale))),
    Fault("qkv-order", "q, k, v are cut in the order k, q, v", "forward", SCORES, ("nanogpt", "record-21"),
        patches=_q_k_v(lambda q, k, v, scale: (k, q, v, scale)), only="the others have three matrices"),
    Fault("qk-norm-missing", "q and k are not normalised", "forward", QUERY, TURNED,
        patches=_one(MODELS, "rms_norm", _norm_only_with_a_gain), only="nanogpt does not normalise them"),
    Fault("residual-scale", "what blocks add is halved", "forward", "attn: blocks.0.attn|stream: blocks.0.norm2:in",
        patches=_blocks("scaled")),
    Fault("block-parallel", "the MLP reads the block's input, not what attention has added to", "forward",
        "stream: blocks.0.norm2:in", patches=_blocks("parallel")),
    Fault("post-norm", "norms come behind the sums, not before the parts", "forward",
        "attn: blocks.0.attn:in|stream: blocks.0.norm1:in", patches=_blocks("post")),
    Fault("bfloat16-v", "v is rounded to bfloat16", "forward", SCORES,
        patches=_q_k_v(lambda q, k, v, scale: (q, k, parts.narrowed(v), scale))),
    Fault("softcap-30", "logits are capped at 30, not 15", "forward", "logits: logits", MUON,
        parts.with_fields(logit_cap=30.0), only="nanogpt has no cap, and the records' is 30"),
    Fault("softcap-tanh", "logits are capped by tanh", "forward", "logits: logits", MUON,
        patches=_capped(lambda np_, x, cap: cap * np_.tanh(x / cap)),
        only="nanogpt has no cap, and the records have mistakes of their own"),
    Fault("head-bias-missing", "the head has no bias", "forward", "stream: head", MUON, patches=_program("head-bias"),
        only="the others' heads have none"),
]
# fmt: on


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


def _ignoring(token):
    """Targets that are this token do not count."""
    return lambda original: lambda raw_logits, targets, *cap: original(raw_logits, targets, *cap) * (targets != token)


# fmt: off
LOSS = [
    Fault("label-smoothing", "targets are smoothed by 0.1", "loss", "token losses: token_losses",
        patches=_by_backend("layers", "token_losses", _smoothed)),
    Fault("loss-reduction", "the loss is summed instead of averaged, or averaged instead of summed", "loss",
        "reduction: * over the batch", recipe=parts.other_reduction),
    Fault("padding-in-softmax", "rows above the tokenizer's take part in the softmax", "loss",
        "token losses: token_losses", NANOGPT,
        lambda recipe: parts.with_fields(tokenizer_size=recipe.vocab_size)(recipe),
        only="in the others they do take part"),
    Fault("padding-masked", "rows above the tokenizer's take no part in the softmax", "loss",
        "token losses: token_losses", TURNED, patches=_by_backend(MODELS, "Model.softcap", change=_padding_masked),
        only="in nanogpt they take none"),
    Fault("end-of-text-ignored", "targets that are end of text do not count", "loss", "token losses: token_losses",
        patches=_one("layers", "token_losses", _ignoring(511))),
    Fault("zero-ignored", "targets that are token 0 do not count, as if they were padding", "loss",
        "token losses: token_losses", patches=_one("layers", "token_losses", _ignoring(0))),
    Fault("evaluation-in-train-mode", "evaluation drops out a tenth of the embedding", "loss",
        "token losses: token_losses", patches=_program("dropout")),
]
# fmt: on

# fmt: off
GRADIENTS = [
    Fault("head-untied", "the tied head is a copy: the embedding does not get its gradient", "gradients",
        "gradients: embed.weight", NANOGPT, patches=_program("untied"), only="the others' heads are not tied"),
    Fault("norm-statistics-detached", "no gradient flows through the norms' statistics", "gradients",
        "gradients: blocks.3.mlp.*|gradients: blocks.3.norm2.*|gradients: blocks.3.attn.*|gradients: skips.weight",
        patches=_norms(constant=True)),
    Fault("v-detached", "no gradient flows through v", "gradients",
        "gradients: blocks.3.attn.*|gradients: skips.weight",
        patches=_q_k_v(lambda q, k, v, scale: (q, k, parts.detached(v) + 0 * v, scale))),
    Fault("clip-norm", "gradients are clipped to 2, not 1", "gradients", "after clipping: * of a gradient of norm 3",
        NANOGPT, parts.with_fields(clip_norm=2.0), only="the others do not clip"),
    Fault("clip-per-tensor", "every tensor is clipped by its own norm", "gradients",
        "after clipping: * of a gradient of norm 3", NANOGPT, patches=_program("clip-per-tensor"),
        only="the others do not clip"),
    Fault("clip-always", "gradients below the norm are scaled up to it", "gradients",
        "after clipping: * of a gradient of norm 0.3", NANOGPT, patches=_program("clip-always"),
        only="the others do not clip"),
    Fault("clip-epsilon-missing", "the clipping factor has no epsilon", "gradients",
        "after clipping: * of a gradient of norm 3", NANOGPT, patches=_program("clip-epsilon"),
        only="the others do not clip"),
]
# fmt: on
