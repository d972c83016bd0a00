"""Mistakes that people make when they port the techniques of records 11 and 21: skips, residuals, windows, documents, 8
bits."""

import importlib
from typing import Any

from parity.compare.faults import layers as parts
from parity.compare.faults import optimizers
from parity.compare.faults.plant import MODELS, Change, Fault, Patch, by_backend, in_module
from parity.compare.faults.programs import CLASSES, step_of

RECORDS, ELEVEN, TWENTY_ONE = ("record-11", "record-21"), ("record-11",), ("record-21",)
SCORES, QUERY, MIXED = "attn: blocks.0.attn:y", "attn: blocks.0.attn:q", "attn: blocks.?.attn.lambdas"
SHORT_SCORES = "attn: blocks.1.attn:y"
SCHEDULES = "parity.recipes.schedules"
EVALUATION = "parity.harness.evaluation"
OTHERS = "the others have no such part"


def _embedding_not_normed(backend: str) -> list[Patch]:
    """A model whose norm after the embedding is left out."""

    def change(original):
        def call(self, *inputs):
            with parts.shadowed(self, "norm_in", lambda x: x):
                return original(self, *inputs)

        return call

    return [parts.forward_of(backend, "Model", change)]


def _input_before_norm(backend: str) -> list[Patch]:
    """A model whose residual from the input takes the embedding before its norm."""
    embedded: list[Any] = [None]

    def model(original):
        def call(self, *inputs):
            norm = self.norm_in

            def remembering(x):
                embedded[0] = x
                return norm(x)

            with parts.shadowed(self, "norm_in", remembering):
                return original(self, *inputs)

        return call

    def residual(original):
        return lambda self, x, x0: original(self, x, embedded[0])

    return [parts.forward_of(backend, "Model", model), parts.forward_of(backend, "InputResidual", residual)]


def _skips_after(backend: str) -> list[Patch]:
    """Blocks behind which the output of the first half is added, not before."""
    waiting: list[Any] = []

    def skip(original):
        def call(self, x, outputs, i):
            waiting.append(lambda x: original(self, x, outputs, i))
            return x

        return call

    def block(original):
        def call(self, x, *context):
            result = original(self, x, *context)
            if not waiting:
                return result
            add = waiting.pop()
            return (add(result[0]), *result[1:]) if isinstance(result, tuple) else add(result)

        return call

    return [parts.forward_of(backend, "SkipConnections", skip), parts.forward_of(backend, "Block", block)]


def _values_of_block_before(backend: str) -> list[Patch]:
    """v is mixed with that of the block before, not of the first."""
    previous: list[Any] = [None]

    def change(original):
        def call(self, v, first):
            before, previous[0] = previous[0], v
            return original(self, v, None if first is None else before)

        return call

    return [parts.forward_of(backend, "FirstValueMix", change)]


def _value_embeddings(change):
    """A recipe whose table block -> value embedding is changed: `change(table, count)`."""

    def changed(recipe):
        table = change(recipe.value_embedding_of, recipe.value_embedding_count)
        return parts.with_class(recipe, value_embedding_of=table)

    return changed


def _same(kind: str, change: Change):
    """A patch of what a part computes, alike in both backends."""
    return parts.forward((kind,), lambda backend: change)


def _factors_swapped(original):
    def call(self, x, x0):
        scale = self.weight[...]
        return scale[1] * x + scale[0] * x0

    return call


def _first_values_swapped(original):
    def call(self, v, first):
        a = self.weight[...][0]
        return a * v + (1 - a) * (v if first is None else first)

    return call


def _value_embeddings_swapped(original):
    def call(self, v, value):
        a = self.weight[...]
        return a[0] * v if value is None else a[1] * v + a[0] * value.reshape(v.shape)

    return call


def _rounded_up(original):
    """With w + 1 blocks for w, the integer part of a half is what rounding up makes of w / 2."""

    def call(self, x, value, segments, window: Any):
        more = self.window_divisor - 1
        window = window._replace(blocks=window.blocks + more) if hasattr(window, "_replace") else window + more
        return original(self, x, value, segments, window)

    return call


def _other_softcap(backend):
    """record-11's softcap by a root, record-21's by tanh."""

    def change(original):
        def softcap(self, raw_logits):
            c = self.logit_bound
            if hasattr(self, "logit_slope"):
                return c * parts.arrays(backend).tanh(raw_logits / c)
            return c * raw_logits / (raw_logits**2 + c**2) ** 0.5

        return softcap

    return change


def _other_rotary(original):
    return lambda x, base, accum, full=False, table_dtype=None: original(x, base, accum, not full, table_dtype)


def _one_more(original):
    return lambda q, k, v, scale, documents, window, block, most: original(
        q, k, v, scale, documents, window + 1, block, most + 1
    )


def _sliding(backend):
    """A window that every position has of its own, not its block."""
    np_ = parts.arrays(backend)

    def change(original):
        def window_attention(q, k, v, scale, documents, window, block, most):
            t = np_.arange(q.shape[1])
            near = (t[None, :] <= t[:, None]) & (t[:, None] - t[None, :] < window * block)
            seen = near & (documents[:, :, None] == documents[:, None, :])
            scores = np_.where(seen[:, None], np_.einsum("bthk,bshk->bhts", q, k) * scale, -1e30)
            probs = np_.exp(
                scores - parts.detached(scores.max(-1) if backend == "jaxrun" else scores.amax(-1))[..., None]
            )
            return np_.einsum("bhts,bshk->bthk", probs / probs.sum(-1)[..., None], v)

        return window_attention

    return change


def _window(change):
    """A patch of the schedule of windows: `change(step, steps, end, block)` in its place."""
    return in_module(SCHEDULES, "window_schedule", change=lambda original: change)


def _late_window(original):
    return lambda step, steps, end, block: original(max(0, step - 1), steps, end, block)


def _evaluated_at(step_for):
    """Patches of evaluation that takes the window of another step than the state's: `step_for(recipe)`."""

    def change(original):
        def token_losses(self, state, batch):
            step = step_of(state)
            found = original(self, self.with_step(state, step_for(self.recipe)), batch)
            self.with_step(state, step)  # torch's state is changed in place
            return found

        return token_losses

    return lambda backend: [Patch("program", f"{CLASSES[backend]}.token_losses", change)]


def _bound_for_deviation(original):
    """The bound of the uniform distribution where its standard deviation is meant, or the other way round."""

    def initial_weights(recipe, seed):
        factor = 3**0.5 if recipe.name == "record-11" else 3**-0.5
        drawn = {name for name, parameter in recipe.parameters().items() if parameter.bound is not None}
        return {
            name: (w * factor).astype(w.dtype) if name in drawn else w for name, w in original(recipe, seed).items()
        }

    return initial_weights


def _scalars_with_the_head(original):
    return lambda recipe: {name: "head" if group == "scalar" else group for name, group in original(recipe).items()}


def _reversed(original):
    return lambda self, x, outputs, i: original(self, x, outputs[::-1], i)


def _value_mixes_swapped(backend):
    first = _same("FirstValueMix", _first_values_swapped)(backend)
    return first + _same("ValueMix", _value_embeddings_swapped)(backend)


def _long_and_short_swapped(recipe):
    short = set(range(recipe.layers)) - recipe.long_window_layers
    return parts.with_fields(long_blocks=tuple(sorted(short)))(recipe)


def _ending_late(original):
    return lambda tokens, end: original(tokens, end) - 1 * (tokens == end)


def _constant_lambdas(original):
    def call(self, x, x0):
        lambdas = parts.detached(self.weight[...])
        return lambdas[0] * x + lambdas[1] * x0 + 0 * self.weight[...].sum()

    return call


def _in_short_rows(original):
    def evaluate(program, state, slice_, part, tokens, batch, row, *rest):
        return original(program, state, slice_, part, tokens, batch, program.recipe.context, *rest)

    return evaluate


# fmt: off
OF_RECORDS = (
    Fault("init-bound-as-deviation", "a uniform draw has its bound for standard deviation, or the other way round",
        "init", "bytes: blocks.0.attn.q*.weight", RECORDS,
        patches=in_module("parity.weights", "initial_weights", change=_bound_for_deviation), only=OTHERS),
    Fault("bare-block-another", "another block is the one without attention", "init", "names: all weights",
        TWENTY_ONE, parts.with_fields(bare_block=1), only=OTHERS),
    Fault("embedding-not-normed", "the stream begins with the embedding as it is, without a norm", "forward",
        "stream: norm_in:in", RECORDS, patches=_embedding_not_normed, only="the others have mistakes of their norms"),
    Fault("input-before-norm", "x0, which blocks add again, is taken before the norm of the embedding", "forward",
        "stream: blocks.0.lambdas", RECORDS, patches=_input_before_norm, only=OTHERS),
    Fault("input-factors-swapped", "blocks begin with l1 x + l0 x0", "forward", "stream: blocks.1.lambdas", RECORDS,
        patches=_same("InputResidual", _factors_swapped), only=OTHERS),
    Fault("skips-reversed", "the first output that was kept is added first, not the last", "forward", "stream: skips",
        RECORDS, patches=_same("SkipConnections", _reversed), only=OTHERS),
    Fault("skips-after", "kept outputs are added behind the block, not before", "forward", "stream: skips", RECORDS,
        patches=_skips_after, only=OTHERS),
    Fault("values-of-block-before", "v is mixed with that of the block before, not of the first", "forward", MIXED,
        ELEVEN, patches=_values_of_block_before, only=OTHERS),
    Fault("value-mix-swapped", "v = a v + (1 - a) v1, or a1 v + a0 e", "forward", MIXED, RECORDS,
        patches=_value_mixes_swapped, only=OTHERS),
    Fault("value-embeddings-late", "the value embeddings of the first blocks are used one block later", "forward",
        MIXED, TWENTY_ONE,
        recipe=_value_embeddings(lambda table, count: {i + 1 if i < count else i: n for i, n in table.items()}),
        only=OTHERS),
    Fault("value-embeddings-once", "value embeddings are used by the first blocks only", "forward", MIXED, TWENTY_ONE,
        recipe=_value_embeddings(lambda table, count: {i: n for i, n in table.items() if i < count}), only=OTHERS),
    Fault("rotary-of-the-other-record",
        "rotary turns the whole head where half of it stands still, or the other way round", "forward", QUERY,
        RECORDS, patches=in_module(MODELS, "rotary", change=_other_rotary), only="muon has a mistake of its own"),
    Fault("window-long-short-swapped", "long windows are where the short ones should be", "forward", SCORES,
        TWENTY_ONE, _long_and_short_swapped, only=OTHERS),
    Fault("window-short-rounded-up", "the half of an odd window is rounded up", "forward", SHORT_SCORES, TWENTY_ONE,
        patches=parts.forward(("Attention",), lambda backend: _rounded_up), only=OTHERS),
    Fault("window-one-more", "a window does not count the position's own block", "forward", SCORES, TWENTY_ONE,
        patches=in_module(MODELS, "window_attention", change=_one_more), only=OTHERS),
    Fault("window-sliding", "the window moves with every position, not with its block", "forward", SCORES, TWENTY_ONE,
        patches=by_backend(MODELS, "window_attention", change=_sliding), only=OTHERS),
    Fault("window-rounded-down", "the window is rounded down to whole blocks", "forward", SCORES, TWENTY_ONE,
        patches=_window(lambda step, steps, end, block: max(1, end * step // (block * steps))), only=OTHERS),
    Fault("window-of-the-context", "the window grows to the whole row", "forward", SCORES, TWENTY_ONE,
        lambda recipe: parts.with_fields(window=recipe.context)(recipe), only=OTHERS),
    Fault("documents-end-late", "the end-of-text token belongs to the document before it", "forward", SCORES,
        TWENTY_ONE, patches=in_module(MODELS, "segment_ids", change=_ending_late), only=OTHERS),
    Fault("documents-ignored", "positions see the documents before their own", "forward", SCORES, TWENTY_ONE,
        patches=in_module(MODELS, "segment_ids", change=lambda original: lambda tokens, end: 0 * original(tokens, end)),
        only=OTHERS),
    Fault("cap-half", "logits are capped at 15, not 30", "forward", "logits: logits", RECORDS,
        parts.with_fields(logit_cap=15.0), only="muon's cap is 15"),
    Fault("cap-slope", "the sigmoid of the cap has the slope 15, not 7.5", "forward", "logits: logits", TWENTY_ONE,
        parts.with_fields(logit_slope=15.0), only=OTHERS),
    Fault("cap-of-another-record", "logits are capped by tanh in place of the sigmoid, or by a root in place of tanh",
        "forward", "logits: logits", RECORDS, patches=by_backend(MODELS, "Model.softcap", change=_other_softcap),
        only="muon has a mistake of its own"),
    Fault("evaluation-first-window", "evaluation takes the window that training began with", "loss",
        "token losses: token_losses", TWENTY_ONE, patches=_evaluated_at(lambda recipe: 0), only=OTHERS),
    Fault("evaluation-widest-window", "evaluation takes the widest window", "loss", "token losses: token_losses",
        TWENTY_ONE, patches=_evaluated_at(lambda recipe: recipe.steps), only=OTHERS),
    Fault("factor-gradient-missing", "the factors of the residual are constants: no gradient reaches them",
        "gradients", "gradients: blocks.?.lambdas.weight", RECORDS, patches=_same("InputResidual", _constant_lambdas),
        only=OTHERS),
    Fault("scalars-with-the-head", "learned factors have the head's rate", "update",
        "groups: blocks.0.lambdas.weight", RECORDS,
        patches=in_module("optim", "group_of", change=_scalars_with_the_head), only=OTHERS),
    Fault("momentum-averaged", "momentum is an average, not a sum", "update", "momentum: *", ELEVEN,
        parts.with_optimizer("matrix", "Muon"), only="in the others it is an average"),
    Fault("momentum-warmup", "momentum rises over twice as many steps", "update", "schedule: momentum", RECORDS,
        lambda recipe: parts.with_fields(momentum_steps=2 * recipe.momentum_steps)(recipe),
        only="in the others it does not rise"),
    Fault("momentum-from-zero", "momentum rises from 0, not from 0.85", "update", "schedule: momentum", RECORDS,
        parts.with_fields(momentum_start=0.0), only="in the others it does not rise"),
    Fault("final-rate-zero", "rates fall to 0, not to a tenth", "update", "schedule: embed", TWENTY_ONE,
        parts.with_fields(final_fraction=0.0), only="the others' fall to 0"),
    Fault("window-late", "the window of every step is that of the one before", "update", "schedule: window",
        TWENTY_ONE, patches=in_module(SCHEDULES, "window_schedule", change=_late_window), only=OTHERS),
    Fault("window-from-nothing", "the window begins at no block, not at one", "update", "schedule: window",
        TWENTY_ONE, patches=_window(lambda step, steps, end, block: -(-end * step // (block * steps))), only=OTHERS),
    Fault("stack-as-one-matrix", "the stack for q, k and v is orthogonalised as one tall matrix", "update",
        "weights after a step: *.attn.qkv.weight", TWENTY_ONE, patches=optimizers.stack_as_one,
        only="the others have no stack"),
    Fault("evaluation-in-short-rows", "evaluation has rows of training's length", "evaluation", "val loss: *",
        TWENTY_ONE, patches=in_module(EVALUATION, "evaluate", change=_in_short_rows),
        only="the others have one length"),
)
# fmt: on


def _in_8_bits(backend):
    def change(original):
        def raw_logits(self, x):
            fp8 = importlib.import_module(f"{backend}.kernels.fp8")
            return fp8.fp8_matmul(x, self.head.weight[...], self.fp8_scales, 1.0)

        return raw_logits

    return change


def _formats_swapped(original):
    def round_to_fp8(x, scale, dtype):
        text = str(dtype)
        if "torch" in text:
            import torch

            return original(x, scale, torch.float8_e5m2 if "e4m3" in text else torch.float8_e4m3fn)
        import jax.numpy as jnp

        return original(x, scale, jnp.float8_e5m2 if "e4m3" in text else jnp.float8_e4m3fn)

    return round_to_fp8


def _scales(**wrong: float):
    def change(recipe):
        names = ("x", "weight", "gradient")
        return parts.with_fields(
            fp8_scales=tuple(wrong.get(name, scale) for name, scale in zip(names, recipe.fp8_scales, strict=True))
        )(recipe)

    return change


# fmt: off
OF_8_BITS = (
    Fault("fp8-gradient-scale", "the head's gradient is scaled by 2^9 before it is rounded to 8 bits, not by 2^19",
        "loss", "8 bits: dx of x and gradient", TWENTY_ONE, _scales(gradient=2.0 ** 9), only=OTHERS),
    Fault("fp8-weight-unscaled", "the head's weight is not scaled before it is rounded to 8 bits", "loss",
        "8 bits: y of weight and gradient", TWENTY_ONE, _scales(weight=1.0), only=OTHERS),
    Fault("fp8-formats-swapped", "the gradient has e4m3, x and the weight e5m2", "loss",
        "8 bits: y of x and gradient", TWENTY_ONE,
        patches=in_module("kernels.fp8", "round_to_fp8", change=_formats_swapped), only=OTHERS),
)
# fmt: on

# fmt: off
NARROW = (
    Fault("fp8-missing", "the head's product is not rounded to 8 bits in training", "loss", "8 bits: *", TWENTY_ONE,
        parts.with_fields(fp8=False), only=OTHERS, dtype="bfloat16"),
    Fault("fp8-in-evaluation", "evaluation too has the head's product in 8 bits", "loss",
        "token losses: *|log-probabilities: *", TWENTY_ONE,
        patches=by_backend(MODELS, "Model.raw_logits", change=_in_8_bits), only=OTHERS, dtype="bfloat16"),
)
# fmt: on
