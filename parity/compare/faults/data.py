"""Mistakes in the order of the data and in the initial weights.

`place` is a pattern for "line: place" of the finding; a fault must be caught at its level, the earliest that can see
it.
"""

import numpy as np

from parity.compare.faults.plant import Fault, in_module
from parity.compare.faults.programs import PROGRAM_PATCHES

NANOGPT, MUON, RECORDS = ("nanogpt",), ("muon",), ("record-11", "record-21")

STREAM = "parity.data.stream"


def _one(module: str, name: str, change):
    return in_module(module, name, change=change)


def _program(name):
    return lambda backend: PROGRAM_PATCHES[name][backend]


def _shards(longer):
    """The rule for a shard's end as if every shard were longer."""
    return _one(
        STREAM, "_batch_ranges", lambda original: lambda lengths, plan: original([n + longer for n in lengths], plan)
    )


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
        put, self._put = (
            self._put,
            lambda inputs, targets: put(
                np.ascontiguousarray(inputs[rank::ranks]), np.ascontiguousarray(targets[rank::ranks])
            ),
        )
        try:
            return original(self, span)
        finally:
            self._rank, self._ranks, self._put = rank, ranks, put

    return load


def _one_token_late(original):
    return lambda shards, span, start, stop: original(shards, span, start + 1, stop + 1)


def _from_the_start(original):
    return lambda lengths, plan, start_step=0, documents=None: original(lengths, plan, documents=documents)


def _one_row_late(original):
    return lambda start, tokens, batch, seq_len: original(start + seq_len, tokens, batch, seq_len)


# fmt: off
DATA = [
    Fault("data-shifted", "batches begin one token late", "data", "train: step 0",
        patches=_one(STREAM, "_window", _one_token_late)),
    Fault("data-shard-end", "a shard ends where p + n + 1 > its length, not >=", "data", "across shard ends: *",
        patches=_shards(1)),
    Fault("data-last-batch-dropped", "the last batch of every shard is dropped", "data", "train: step 28",
        patches=_one(STREAM, "_batch_ranges", _dropped_batches)),
    Fault("data-second-shard-late", "every shard but the first begins at its second token", "data", "train: step 29",
        patches=_one(STREAM, "_batch_ranges", _later_shards)),
    Fault("data-ranks-interleaved", "ranks take interleaved rows, not consecutive parts", "data",
        "train, by rank: step 0, rank 0 of 2", patches=_one(STREAM, "Reader._load", _interleaved)),
    Fault("data-resume-from-start", "a resumed run reads the data from the beginning", "data",
        "resumed in the middle: step 30", patches=_one(STREAM, "available_spans", _from_the_start)),
    Fault("data-val-late", "the val tokens begin one row late", "data", "val: step 0",
        patches=_one(STREAM, "eval_spans", _one_row_late)),
    Fault("data-targets-are-inputs", "targets are the inputs themselves, not the next tokens", "data",
        "train: step 0",
        patches=_one(STREAM, "_rows", lambda original: lambda window, seq_len: (original(window, seq_len)[0],) * 2)),
]
# fmt: on


def _weights(change):
    return _one(
        "parity.weights",
        "initial_weights",
        lambda original: (
            lambda recipe, seed: {name: change(recipe, name, w) for name, w in original(recipe, seed).items()}
        ),
    )


def _variance_as_deviation(recipe, name, w):
    return w * (0.33 / recipe.dim) ** 0.5 if name.startswith("blocks") and w.ndim == 2 else w


def _next_seed(original):
    return lambda recipe, seed: original(recipe, seed + 1)


# fmt: off
INIT = [
    Fault("init-residual-unscaled", "residual projections are not scaled by 1 / sqrt(2 L)", "init",
        "bytes: *proj.weight", NANOGPT,
        patches=_weights(lambda recipe, name, w: w * (2 * recipe.layers) ** 0.5 if name.endswith("proj.weight") else w),
        only="the others start these at zero"),
    Fault("init-variance-as-std", "0.33 / fan-in is taken for a standard deviation", "init",
        "bytes: blocks.0.attn.q.weight", MUON, patches=_weights(_variance_as_deviation),
        only="the others give no variance"),
    Fault("init-next-seed", "weights are drawn with the next seed", "init", "bytes: embed.weight",
        patches=_one("parity.weights", "initial_weights", _next_seed)),
    Fault("init-exported-in-bfloat16", "exported weights have been rounded to bfloat16", "init",
        "bytes: embed.weight", patches=_program("export-bfloat16")),
    Fault("init-squares-transposed", "square matrices are exported transposed", "init",
        "bytes: blocks.0.attn.*|bytes: positions.weight", patches=_program("export-transposed")),
]
# fmt: on
