"""Mistakes that people make when they port the techniques of records 41 to 58: pairs of heads, the key offset, several
targets, the head's untying, stages of rows, NorMuon, cautious decay."""

from parity.compare.faults import layers as parts
from parity.compare.faults.plant import MODELS, Change, Fault, by_backend, in_module
from parity.recipes.record_40 import Record40

FIFTY_EIGHT = ("record-58",)
PAIR, PAIRED_SCORES, OFFSET, SCORES = (
    *("attn: blocks.0.attn:q", "attn: blocks.0.attn:y"),
    *("attn: blocks.1.attn:k", "attn: blocks.1.attn:y"),
)
OWN = "the others have no such part"


def _pairs_of_neighbours(original):
    """Heads 0 and 1, 2 and 3 ... in pairs, in place of j and j + H / 2."""

    def pair_heads(x):
        H = x.shape[2]
        return original(x[:, :, [*range(0, H, 2), *range(1, H, 2)]])

    return pair_heads


def _table(change):
    """A patch of the tables of pairs: `change(tables of 2 T positions (T, 2, n), heads)` gives those of (T, H, n)."""

    def patched(original):
        def pair_tables(cos, sin, heads: int):
            return tuple(change(table.reshape(-1, 2, table.shape[-1]), heads) for table in (cos, sin))

        return pair_tables

    return in_module(MODELS, "pair_tables", change=patched)


def _by_row(table, heads: int):
    """2 t in the first half of the heads, 2 t + 1 in the second."""
    return table[:, [0] * (heads // 2) + [1] * (heads // 2)]


def _in_pairs(change):
    """A patch of attention in pairs alone: `change(original, q, k, v, scale, segments, n, block, most)`."""

    def patched(original):
        def window_attention(q, k, v, scale, segments, n, block, most):
            # tiny's four heads are two in pairs
            call = change if q.shape[2] == 2 else lambda original, *args: original(*args)
            return call(original, q, k, v, scale, segments, n, block, most)

        return window_attention

    return in_module(MODELS, "window_attention", change=patched)


def _rotated(change):
    """A patch of rotary: `change(original, x, cos, sin, scale)`."""
    return in_module(
        MODELS,
        "rotate_neighbours",
        change=lambda original: lambda x, cos, sin, scale=None: change(original, x, cos, sin, scale),
    )


def _apart(original, x, cos, sin, scale):
    """Channel i turns with i + K / 4, not with its neighbour."""
    half = x.shape[-1] // 2
    order = [channel for i in range(half // 2) for channel in (i, i + half // 2)] + [*range(half, 2 * half)]
    back = [order.index(channel) for channel in range(2 * half)]
    return original(x[..., order], cos, sin, scale)[..., back]


def _second_half(original, x, cos, sin, scale):
    half = x.shape[-1] // 2
    order = [*range(half, 2 * half), *range(half)]
    return original(x[..., order], cos, sin, scale)[..., order]


def _offset(change):
    return in_module(MODELS, "offset_keys", change=lambda original: lambda k, channels: change(original, k, channels))


def _cascading(original, k, channels):
    """The offset in place, from the first position on: each takes what the one before has taken."""
    first = k[:, [0] * k.shape[1]]
    return original(k, channels) + (original(first, channels) - original(k, channels)) * _moved(k, channels)


def _moved(k, channels):
    """1 in the channels that the offset moves, else 0, as numbers of the keys' kind."""
    zero = 0 * k[0, 0, 0]
    parts_ = [zero[first:end] + 1 if moved else zero[first:end] for first, end, moved in _ranges(k, channels)]
    if hasattr(k, "numpy"):
        import torch

        return torch.cat(parts_)
    import jax.numpy as jnp

    return jnp.concatenate(parts_)


def _ranges(k, channels):
    edges = sorted({0, k.shape[-1], *(edge for pair in channels for edge in pair)})
    inside = lambda i: any(first <= i < end for first, end in channels)  # noqa: E731
    return [(first, end, inside(first)) for first, end in zip(edges, edges[1:], strict=False)]


def _half(attribute: str, kind: str):
    """A patch of a module whose gate `attribute` is half of what it should be."""

    def change(original):
        def call(self, *args):
            gate = getattr(self, attribute)
            if gate is None:
                return original(self, *args)
            with parts.shadowed(self, attribute, lambda x: gate(x) / 2):
                return original(self, *args)

        return call

    return parts.forward((kind,), lambda backend: change)


def _without_factor(original):
    return lambda self, x, factor=None: original(self, x)


def _beyond_the_row(original):
    """Targets behind the row's end are the row's last, and count."""

    def shifted_targets(targets, weights, length=None):
        return original(targets, weights, targets.shape[1] + len(weights))

    return shifted_targets


def _targets_late(recipe):
    kind = type(recipe)
    late = recipe.plan[0].steps
    return parts.with_class(recipe, target_weights=lambda self, step: kind.target_weights(self, max(0, step - late)))


def _tied_mean(original):
    def tie(grads, *tied):
        summed = original(grads, *tied)
        if isinstance(summed, dict):
            return {name: (g + grads[name] * 0) / len(summed) for name, g in summed.items()}
        return [g / len(summed) for g in summed]

    return tie


def _decayed(backend: str, agrees) -> Change:
    """Cautious decay where `agrees(u p, strict)` holds."""

    def change(original):
        if backend == "torchref":
            import torch

            def add_cautious_decay(updates, weights, decay, strict=True):
                ps = [w.to(u.dtype) for u, w in zip(updates, weights, strict=True)]
                return [torch.where(agrees(u * p, strict), u + decay * p, u) for u, p in zip(updates, ps, strict=True)]

            return add_cautious_decay
        import jax
        import jax.numpy as jnp

        def jax_decay(decay, strict=True):
            right = original(decay, strict)

            def update(updates, state, params=None):
                def add(u, w):
                    rate = jnp.asarray(decay, u.dtype).reshape(-1).at[state.count].get(mode="clip")
                    p = w.astype(u.dtype)
                    return jnp.where(agrees(u * p, strict), u + rate * p, u)

                return jax.tree.map(add, updates, params), right.update(updates, state, params)[1]

            return right._replace(update=update)

        return jax_decay

    return change


def _optimizers(**groups: str):
    return lambda recipe: parts.with_class(recipe, optimizers=recipe.optimizers | groups)


def _decay_with_factor(recipe):
    kind = type(recipe)

    def cautious_decay(self, group: str, step: int) -> float:
        return kind.cautious_decay(self, group, step) * self.rate_factors.get(group, 1.0)

    return parts.with_class(recipe, cautious_decay=cautious_decay)


def _unscaled(original):
    """The equalizer's result without the norm that it had before."""

    def equalize(*args):
        result = original(*args)
        if isinstance(result, list):
            return [u * (u.shape[-1] ** 0.5 / 8) for u in result]

        def update(updates, state, params=None):
            equal, state = result.update(updates, state, params)
            return {name: u * (u.shape[-1] ** 0.5 / 8) for name, u in equal.items()}, state

        return result._replace(update=update)

    return equalize


def _part_late(recipe):
    kind = type(recipe)
    return parts.with_class(recipe, part=lambda self, step: kind.part(self, max(0, step - 1)))


def _drawn_apart(original):
    def initial_weights(recipe, seed):
        weights = original(recipe, seed)
        return weights | {"embed.weight": original(recipe, seed + 1)["embed.weight"]}

    return initial_weights


def _untied_never(recipe):
    return parts.with_class(recipe, tied_until=lambda self, group: self.steps if group == "head" else -1)


def _tied_never(recipe):
    return parts.with_class(recipe, tied_until=lambda self, group: -1)


# fmt: off
OF_RECORD_58 = (
    Fault("embedding-drawn-apart", "embedding and head do not begin alike", "init", "bytes: embed.weight",
        FIFTY_EIGHT, patches=in_module("parity.weights", "initial_weights", change=_drawn_apart), only=OWN),
    Fault("pairs-of-neighbours", "heads 0 and 1, 2 and 3 attend in pairs, not j and j + H / 2", "forward", PAIR,
        FIFTY_EIGHT, patches=in_module(MODELS, "pair_heads", change=_pairs_of_neighbours), only=OWN),
    Fault("pair-positions-by-row", "positions in pairs are those of rows, not of even and odd heads", "forward", PAIR,
        FIFTY_EIGHT, patches=_table(_by_row), only=OWN),
    Fault("pair-positions-alike", "both heads of a pair have the position 2 t", "forward", PAIR, FIFTY_EIGHT,
        patches=_table(lambda table, heads: table[:, [0] * heads]), only=OWN),
    Fault("pair-window-of-tokens", "the window of pairs counts tokens, not rows", "forward", PAIRED_SCORES,
        FIFTY_EIGHT, patches=_in_pairs(
            lambda original, q, k, v, scale, segments, n, block, most:
                original(q, k, v, scale, segments, 2 * n - 1, block, 2 * most)), only=OWN),
    Fault("pair-documents-shifted", "the documents of pairs begin one row late", "forward", PAIRED_SCORES,
        FIFTY_EIGHT, patches=_in_pairs(
            lambda original, q, k, v, scale, segments, n, block, most: original(
                q, k, v, scale, segments[:, [0, *range(segments.shape[1] - 1)]], n, block, most)), only=OWN),
    Fault("rotary-apart", "channel i turns with i + K / 4, not with its neighbour", "forward", PAIR, FIFTY_EIGHT,
        patches=_rotated(_apart), only=OWN),
    Fault("rotary-neighbours-sign", "neighbours turn the other way", "forward", PAIR, FIFTY_EIGHT,
        patches=_rotated(lambda original, x, cos, sin, scale: original(x, cos, -1 * sin, scale)), only=OWN),
    Fault("rotary-second-half", "the second half of the channels turns, not the first", "forward", PAIR, FIFTY_EIGHT,
        patches=_rotated(_second_half), only=OWN),
    Fault("offset-missing", "no channel of a key is that of the position before", "forward", OFFSET, FIFTY_EIGHT,
        patches=_offset(lambda original, k, channels: 1 * k), only=OWN),
    Fault("offset-cascades", "the key offset is taken from keys that were offset already", "forward", OFFSET,
        FIFTY_EIGHT, patches=_offset(_cascading), only=OWN),
    Fault("offset-of-standing-channels", "the key offset is of the channels that stand, not as published", "forward",
        OFFSET, FIFTY_EIGHT, parts.with_fields(offset_standing=True), only=OWN),
    Fault("offset-of-the-next-half", "the key offset leaves out the last channels", "forward", OFFSET, FIFTY_EIGHT,
        patches=_offset(lambda original, k, channels: original(k, channels[:1])), only=OWN),
    Fault("value-gate-once", "gates of value embeddings are a half at first, not 1", "forward", "attn: blocks.4.attn:v",
        FIFTY_EIGHT, patches=_half("value_gate", "Attention"), only=OWN),
    Fault("skip-gate-once", "the gate of the skip is a half at first, not 1", "forward", "stream: *", FIFTY_EIGHT,
        patches=_half("gate", "Skip"), only=OWN),
    Fault("skip-of-another-block", "the output of the block before is added", "forward", "stream: skip*", FIFTY_EIGHT,
        lambda recipe: parts.with_class(
            recipe, skip_layer=recipe.skip_layer - 1, long_window_layers=recipe.long_window_layers), only=OWN),
    Fault("backout-of-the-last", "the output of the last block is backed out", "forward", "stream: norm_out:in",
        FIFTY_EIGHT, lambda recipe: parts.with_class(recipe, backout_layer=recipe.layers - 1), only=OWN),
    Fault("factors-missing", "the scalars on matrices are left out", "forward", "attn: blocks.0.attn.qkv",
        FIFTY_EIGHT, patches=parts.forward(("Linear", "StackedLinear"), lambda backend: _without_factor), only=OWN),
    Fault("cap-not-shifted", "the softcap's sigmoid is of z, not of z + 5", "forward", "logits: logits", FIFTY_EIGHT,
        parts.with_fields(logit_shift=0.0), only=OWN),
    Fault("targets-one", "a position predicts the next token alone", "loss", "*", FIFTY_EIGHT,
        parts.with_fields(tokens_ahead=1), only=OWN),
    Fault("targets-beyond-the-row", "targets behind the row's end count, as its last", "loss", "*", FIFTY_EIGHT,
        patches=in_module("layers", "shifted_targets", change=_beyond_the_row), only=OWN),
    Fault("targets-one-stage-late", "the weights of targets are those of the stage before", "loss",
        "reduction: *", FIFTY_EIGHT, _targets_late, only=OWN),
    Fault("part-late", "the stages of rates and targets begin one step late", "update", "schedule: *", FIFTY_EIGHT,
        _part_late, only=OWN),
    Fault("rates-of-one-stage", "learning rates do not rise with the batches", "update", "schedule: *", FIFTY_EIGHT,
        parts.with_fields(rate_steps=(1.0, 1.0, 1.0)), only=OWN),
    Fault("down-factor", "the second matrix of the MLP moves as the first", "update", "schedule: down", FIFTY_EIGHT,
        lambda recipe: parts.with_class(recipe, rate_factors=recipe.rate_factors | {"down": 2.0}), only=OWN),
    Fault("decay-with-the-factor", "decay grows with the group's factor too", "update", "schedule: decay of *",
        FIFTY_EIGHT, _decay_with_factor, only=OWN),
    Fault("decay-everywhere", "decay is not cautious", "update", "*", FIFTY_EIGHT,
        patches=by_backend("optim", "add_cautious_decay",
            change=lambda backend: _decayed(backend, lambda up, strict: up == up)), only=OWN),
    Fault("decay-other-sign", "weights decay where the update disagrees with them", "update", "*", FIFTY_EIGHT,
        patches=by_backend("optim", "add_cautious_decay",
            change=lambda backend: _decayed(backend, lambda up, strict: up < 0)), only=OWN),
    Fault("equalizer-axis", "NorMuon has a number a row where the published one has one a column, and the other way",
        "update", "squares moment: *", FIFTY_EIGHT, _optimizers(matrix="NorMuonColumns", down="NorMuon"), only=OWN),
    Fault("equalizer-factor", "NorMuon averages over fewer steps", "update", "squares moment: *", FIFTY_EIGHT,
        parts.with_fields(equalizer=0.9), only=OWN),
    Fault("equalizer-not-rescaled", "NorMuon leaves another norm than the update had", "update",
        "weights after a step: *", FIFTY_EIGHT, patches=in_module("optim", "equalize", change=_unscaled), only=OWN),
    Fault("no-equalizer", "all matrices but the second of the MLP have Muon, not NorMuon", "update", "*", FIFTY_EIGHT,
        _optimizers(matrix="MuonUnscaled"), only=OWN),
    Fault("betas-alike", "all of Adam's groups have the same averaging factors", "update", "weights on the way: *",
        FIFTY_EIGHT, lambda recipe: parts.with_class(recipe, betas_of={}), only=OWN),
    Fault("head-tied-mean", "head and embedding share the mean of their gradients, not the sum", "update", "*",
        FIFTY_EIGHT, patches=in_module("optim", "tie", change=_tied_mean), only=OWN),
    Fault("head-never-tied", "head and embedding go their own ways from the first step", "update", "*", FIFTY_EIGHT,
        _tied_never, only=OWN),
    Fault("head-tied-to-the-end", "head and embedding are tied after two thirds too", "update",
        "weights on the way: *", FIFTY_EIGHT, _untied_never, only=OWN),
    Fault("momentum-short-of-its-end", "the momentum stays short of 0.95, as that of record 40", "update",
        "schedule: momentum", FIFTY_EIGHT,
        lambda recipe: parts.with_class(recipe, momentum_at=Record40.momentum_at), only=OWN),
)
# fmt: on
