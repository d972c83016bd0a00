"""Mistakes that people make when they port the techniques of record 40: rows by documents, windows of positions, YaRN,
gates, smear, backout, Polar Express, Adam on odd steps."""

from parity.compare.faults import layers as parts
from parity.compare.faults.plant import MODELS, Change, Fault, Patch, in_module
from parity.compare.faults.records import _evaluated_at
from parity.recipes import QUINTIC

FORTY = ("record-40",)
DOCUMENTS = "parity.data.documents"
QUERY, SCORES = "attn: blocks.1.attn:q", "attn: blocks.1.attn:y"
OWN = "the others have no such part"


def _part(kind: str, change: Change):
    """A patch of what a part computes, alike in both backends."""
    return parts.forward((kind,), lambda backend: change)


def _stages(change):
    """A recipe whose stages of attention are changed one by one: `change(stage, first)`."""

    def changed(recipe):
        stages = recipe.attention_stages
        return parts.with_class(recipe, attention_stages=tuple(change(stage, stages[0]) for stage in stages))

    return changed


def _interpolated(stage, first):
    """Every frequency scaled by the windows, as if none were kept."""
    factor = (first.long / stage.long) if stage.long > first.long else 1.0
    return stage._replace(frequencies=tuple(f * factor for f in first.frequencies))


def _window_changed(window):
    """A patch of a window's number of positions, the query's own included: `window(n)`."""
    return in_module(
        MODELS,
        "window_attention",
        change=lambda original: (
            lambda q, k, v, scale, segments, n, block, most: original(
                q, k, v, scale, segments, window(n), block, most + 8
            )
        ),
    )


def _in_blocks(original):
    """Windows that begin at blocks of 4 positions, as those of record 21 do."""
    return lambda q, k, v, scale, segments, n, block, most: original(
        q, k, v, scale, segments, (n + 3) // 4, 4, (most + 3) // 4
    )


def _rotated(change):
    """A patch of rotary by tables: `change(original, x, cos, sin, scale)`."""
    return in_module(
        MODELS,
        "rotate",
        change=lambda original: lambda x, cos, sin, scale=None: change(original, x, cos, sin, scale),
    )


def _rolled(original):
    """Smear that takes the last position for the one before the first."""

    def call(self, e):
        before = e[:, [-1, *range(e.shape[1] - 1)]]
        return e + self.factor(e) * self.gate(e) * before

    return call


def _gate_of_the_last(original):
    def call(self, x):
        return original(self, x[..., -self.weight.shape[-1] :])

    return call


def _doubled_gate(original):
    return lambda self, x: 2 * original(self, x)


def _last_first(original):
    return lambda self, x, i=0: original(self, x, self.weight.shape[0] - 1 - i)


def _value_embeddings(change):
    return lambda recipe: parts.with_class(recipe, value_embedding_of=change(recipe.value_embedding_of))


def _long_and_short_swapped(recipe):
    return parts.with_class(recipe, long_window_layers=frozenset(range(recipe.layers)) - recipe.long_window_layers)


def _next_stage(recipe):
    stage = type(recipe).attention_stage
    return parts.with_class(recipe, attention_stage=lambda self, step: stage(self, step + 1))


def _momentum_at_its_end(recipe):
    """The momentum reaches its end, as later records have it, and does not stay short of it."""
    kind = type(recipe)

    def momentum_at(self, step: int) -> float:
        low = self.momentum_steps <= step <= self.steps - self.momentum_cooldown
        return self.momentum if low else kind.momentum_at(self, step)

    return parts.with_class(recipe, momentum_at=momentum_at)


def _with_optimizers(kind: str, *groups: str):
    return lambda recipe: parts.with_class(recipe, optimizers=recipe.optimizers | dict.fromkeys(groups, kind))


def _half_gradients(backend: str) -> list[Patch]:
    """Half of the gradient in every step."""
    if backend == "jaxrun":

        def change(original):
            def odd_adam(*args):
                transform = original(*args)

                def update(updates, state, params=None):
                    return transform.update({name: g / 2 for name, g in updates.items()}, state, params)

                return transform._replace(update=update)

            return odd_adam

        return [Patch("optim", "odd_adam", change)]

    def halved(original):
        def step(self, closure=None):
            for group in self.param_groups:
                for w in group["params"]:
                    w.grad = w.grad / 2
            return original(self, closure)

        return step

    return [Patch("optim", "OddAdam.step", halved)]


# fmt: off
OF_RECORD_40 = (
    Fault("documents-not-cut", "documents are not cut to max_len in a row", "data", "train: step 0", FORTY,
        patches=in_module(DOCUMENTS, "_Documents.before",
            change=lambda original: lambda self, max_len: original(self, 1 << 30)), only=OWN),
    Fault("documents-cut-late", "documents are cut one token behind max_len", "data", "train: step 0", FORTY,
        patches=in_module(DOCUMENTS, "_Documents.before",
            change=lambda original: lambda self, max_len: original(self, max_len + 1)), only=OWN),
    Fault("documents-rows-reversed", "the rows of a batch are in the order of the last rank to the first", "data",
        "train: step 0", FORTY,
        patches=in_module(DOCUMENTS, "DocumentSpan.read",
            change=lambda original: lambda self, *args: original(self, *args)[::-1]), only=OWN),
    Fault("smear-missing", "no position takes anything from the one before it", "forward", "stream: smear*", FORTY,
        patches=_part("Smear", lambda original: lambda self, e: 1.0 * e), only=OWN),
    Fault("smear-around", "the first position takes the last one's embedding", "forward", "stream: smear", FORTY,
        patches=_part("Smear", _rolled), only=OWN),
    Fault("gate-of-the-last", "gates read the last channels, not the first", "forward", "stream: smear.gate", FORTY,
        patches=_part("Gate", _gate_of_the_last), only=OWN),
    Fault("gate-doubled", "gates are 1 at first, as those of record 55 are, not a half", "forward",
        "stream: smear.gate", FORTY, patches=_part("Gate", _doubled_gate), only=OWN),
    Fault("backout-next-block", "the output of the next block is backed out", "forward", "stream: norm_out:in", FORTY,
        lambda recipe: parts.with_class(recipe, backout_layer=recipe.backout_layer + 1), only=OWN),
    Fault("skip-factors-reversed", "the factors of the skips are taken from the last", "forward", "stream: skips*",
        FORTY, patches=_part("Scalars", _last_first), only=OWN),
    Fault("value-embedding-early", "value embeddings are used one block earlier", "forward", "attn: blocks.?.attn.*",
        FORTY, _value_embeddings(lambda table: {i - 1: n for i, n in table.items()}), only=OWN),
    Fault("bare-block-with-attention", "no block is without attention", "init", "names: all weights", FORTY,
        lambda recipe: parts.with_class(recipe, no_attention_layer=-1), only=OWN),
    Fault("window-of-positions-one-more", "position t sees t - w - 1 too", "forward", SCORES, FORTY,
        patches=_window_changed(lambda n: n + 1), only=OWN),
    Fault("window-of-positions-one-less", "position t sees no more than w positions, itself included", "forward",
        SCORES, FORTY, patches=_window_changed(lambda n: n - 1), only=OWN),
    Fault("window-in-blocks", "windows begin at blocks of positions, as those of record 21", "forward", SCORES, FORTY,
        patches=in_module(MODELS, "window_attention", change=_in_blocks), only=OWN),
    Fault("window-long-for-short", "blocks with the long window have the short one, the others the long one",
        "forward", SCORES, FORTY, _long_and_short_swapped, only=OWN),
    Fault("yarn-missing", "rotary is not adapted to wider windows", "forward", QUERY, FORTY,
        _stages(lambda stage, first: stage._replace(frequencies=first.frequencies)), only=OWN),
    Fault("yarn-scale-missing", "the scale of the scores does not grow with the windows", "forward", QUERY, FORTY,
        _stages(lambda stage, first: stage._replace(scale=first.scale)), only=OWN),
    Fault("yarn-of-all", "YaRN scales every frequency, also those that turn often", "forward", QUERY, FORTY,
        _stages(_interpolated), only=OWN),
    Fault("table-sign", "rotary by tables turns the other way", "forward", QUERY, FORTY,
        patches=_rotated(lambda original, x, cos, sin, scale: original(x, cos, -1 * sin, scale)), only=OWN),
    Fault("scale-twice", "the scale is applied to keys as to queries", "forward", "attn: blocks.1.attn:k", FORTY,
        patches=_rotated(lambda original, x, cos, sin, scale: original(x, cos, sin, 0.3 if scale is None else scale)),
        only=OWN),
    Fault("stage-early", "stages of attention begin one step early", "update", "schedule: window", FORTY, _next_stage,
        only=OWN),
    Fault("evaluation-first-stage", "evaluation takes the windows that training began with", "loss",
        "token losses: token_losses", FORTY, patches=_evaluated_at(lambda recipe: 0), only=OWN),
    Fault("evaluation-last-stage", "every evaluation takes the windows of the last", "loss",
        "token losses: token_losses", FORTY, patches=_evaluated_at(lambda recipe: recipe.steps), only=OWN),
    Fault("row-losses-averaged", "the loss is the mean of all tokens, not a row's sum", "loss", "reduction: *", FORTY,
        lambda recipe: parts.with_class(recipe, loss_reduction="mean"), only=OWN),
    Fault("adam-every-step", "Adam acts on every step", "update", "first moment: *", FORTY,
        _with_optimizers("AdamW", "embed", "head", "scalar"), only=OWN),
    Fault("adam-mean-of-two", "Adam acts on the mean of two gradients, not on their sum", "update", "*", FORTY,
        patches=_half_gradients, only=OWN),
    Fault("muon-with-aspect", "tall matrices move by sqrt(rows / columns)", "update", "weights after a step: *", FORTY,
        _with_optimizers("Muon", "matrix"), only=OWN),
    Fault("polar-of-one-step", "every step of the orthogonalisation has the quintic's coefficients", "update",
        "Newton-Schulz: *", FORTY, parts.with_fields(newton_schulz=QUINTIC), only=OWN),
    Fault("polar-norm", "a matrix is divided by its norm, without the 2% of safety", "update", "Newton-Schulz: *",
        FORTY, lambda recipe: parts.with_class(recipe, newton_schulz_norm=(1.0, 1e-6)), only=OWN),
    Fault("momentum-reaches-its-end", "the momentum reaches 0.95 where the record stays short of it", "update",
        "schedule: momentum", FORTY, _momentum_at_its_end, only=OWN),
    Fault("momentum-does-not-fall", "the momentum stays high to the end", "update", "schedule: momentum", FORTY,
        parts.with_fields(momentum_cooldown=1), only=OWN),
    Fault("extension-counted", "rates fall over the extension too", "update", "schedule: embed", FORTY,
        parts.with_fields(extension=0), only=OWN),
)
# fmt: on
