"""Evaluation: the mean of per-token losses over a fixed part of a slice, summed in float64."""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from parity.data.slices import Slice
from parity.data.stream import Reader, eval_spans
from parity.errors import InputError
from parity.program import Program


class Evaluation(NamedTuple):
    """`val_loss` in nats per token; `bits_per_byte` of the text that the scored tokens stand for; how many were scored;
    `batches`: sha256 over the digests of the batches, in order."""

    val_loss: float
    bits_per_byte: float | None
    tokens: int
    batches: str


def evaluate(
    program: Program,
    state: Any,
    slice_: Slice,
    part: str,
    tokens: int,
    batch_tokens: int,
    seq_len: int,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Scores the first `tokens` targets of a part ("val" or "confirm"), in order, `batch_tokens` at a time.

    The next batch is dispatched before the losses of the last are read; `progress` is called for each batch.

    Raises InputError where the part is too short.
    """
    shard, start, available = slice_.part(part)
    check_length(slice_, part, tokens, available)
    token_bytes = slice_.token_bytes

    def put(inputs_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[Any, int]:
        return program.put_global_batch(inputs_BT, targets_BT), int(token_bytes[targets_BT].sum(dtype=np.int64))

    total, size_bytes, digests = 0.0, 0, hashlib.sha256()
    spans = eval_spans(start, tokens, batch_tokens, seq_len)
    with Reader([shard], spans, vocab_size=slice_.manifest.vocab_size, put=put) as reader:
        pending = None
        for batch in reader:
            losses, pending = pending, program.token_losses(state, batch.inputs)
            total += _sum(program, losses)
            size_bytes += batch.targets
            digests.update(batch.digest.encode())
            progress()
        total += _sum(program, pending)
    bits_per_byte = total / math.log(2) / size_bytes if size_bytes else None
    return Evaluation(total / tokens, bits_per_byte, tokens, digests.hexdigest())


def check_length(slice_: Slice, part: str, tokens: int, available: int) -> None:
    """Raises InputError where a part holds fewer tokens than are to be scored."""
    if tokens > available:
        raise InputError(
            f"slice {slice_.manifest.slice}: expected {tokens:,} {part} tokens to score, found "
            f"{available:,}: prepare the slice again"
        )


def largest_batch(tokens: int, most: int, seq_len: int, devices: int) -> int:
    """The largest batch of at most `most` tokens that divides `tokens` and gives every device the same whole rows."""
    unit = seq_len * devices
    units = tokens // unit
    return max((n * unit for n in range(1, units + 1) if units % n == 0 and n * unit <= most), default=unit)


def _sum(program: Program, losses: Any) -> float:
    return 0.0 if losses is None else float(np.sum(program.fetch(losses), dtype=np.float64))
