"""The order in which a plan reads a slice's tokens, as pure functions, and a reader that prefetches it.

A global batch of n tokens at position p of a shard has the inputs tokens[p : p+n] and the targets tokens[p+1 : p+n+1],
both seen as rows of seq_len; then p += n. If p + n + 1 >= len(tokens) when a batch is asked for, the rest of the shard
is skipped and the next one starts at 0. Rank r of R reads the r-th of R equal consecutive parts of the batch. A plan
with a `max_len` is read by documents instead (documents.py).
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from parity.data.documents import DocumentIndex, DocumentSpan
from parity.data.shards import check_tokens
from parity.errors import InputError


@dataclass(frozen=True)
class Segment:
    """A part of a batch plan: `steps` steps, each on a global batch of `tokens` tokens in rows of `seq_len`.

    `max_len`: rows begin at documents' starts, each document cut to so many tokens; None for the stream of all tokens.
    """

    steps: int
    tokens: int
    seq_len: int
    max_len: int | None = None

    def to_json(self) -> dict[str, int]:
        """The fields that it has, as in run.json."""
        return {name: value for name, value in vars(self).items() if value is not None}


def tokens_after(plan: Sequence[Segment], steps: int) -> int:
    """Tokens trained on after so many steps of a plan."""
    total = 0
    for segment in plan:
        done = min(steps, segment.steps)
        total, steps = total + done * segment.tokens, steps - done
    return total


class Span(NamedTuple):
    """One step's global batch: `tokens` inputs from `position` of shard number `shard`, in rows of `seq_len`."""

    step: int
    shard: int
    position: int
    tokens: int
    seq_len: int


AnySpan = Span | DocumentSpan


class _BatchRange(NamedTuple):
    """Consecutive batches of one segment in one shard, the first at `position`."""

    first_step: int
    steps: int
    shard: int
    position: int
    segment: Segment


def _batch_ranges(shard_lengths: Sequence[int], plan: Sequence[Segment]) -> Iterator[_BatchRange]:
    """The plan shard by shard, by arithmetic instead of step by step; ends where the shards do."""
    step, shard, position = 0, 0, 0
    for segment in plan:
        remaining = segment.steps
        while remaining and shard < len(shard_lengths):
            # k batches fit if the last one has position + n + 1 < length.
            fitting = (shard_lengths[shard] - 2 - position) // segment.tokens
            if fitting <= 0:
                shard, position = shard + 1, 0
                continue
            steps = min(fitting, remaining)
            yield _BatchRange(step, steps, shard, position, segment)
            step, position, remaining = step + steps, position + steps * segment.tokens, remaining - steps


def check_plan(
    shard_lengths: Sequence[int], plan: Sequence[Segment], where: str, documents: DocumentIndex | None = None
) -> None:
    """Raises InputError unless the shards hold every batch of the plan; `where` names the slice for the message.

    `documents`: those of the shards, for a plan that reads by documents.
    """
    if len({segment.max_len is None for segment in plan}) > 1:
        raise InputError(
            "batch plan: expected all segments with a max_len or none, found both: read all text by documents, or none"
        )
    for segment in plan:
        if segment.max_len is not None and segment.max_len < 2:
            raise InputError(
                f"batch plan: expected documents of at least 2 tokens, an input and a target, found max_len "
                f"{segment.max_len}: choose a larger one"
            )
        if segment.steps < 0 or segment.tokens <= 0 or segment.seq_len <= 0 or segment.tokens % segment.seq_len:
            raise InputError(
                f"batch plan: expected segments of whole rows, found {segment.steps} steps of {segment.tokens:,} "
                f"tokens with seq_len {segment.seq_len:,}; make the tokens of a batch a multiple of seq_len"
            )
    steps = sum(segment.steps for segment in plan)
    if by_documents(plan):
        available = _documents(documents).steps(plan)
        if available < steps:
            raise InputError(
                f"{where}: expected enough documents for {steps:,} steps, found enough for {available:,} in "
                f"{len(shard_lengths)} shards of {sum(shard_lengths):,} tokens: plan fewer steps or smaller batches, "
                "cut documents later (--max-len), or prepare the slice with a larger --train-tokens where it has more"
            )
        return
    available = sum(batches.steps for batches in _batch_ranges(shard_lengths, plan))
    if available < steps:
        needed = sum(segment.steps * segment.tokens for segment in plan)
        raise InputError(
            f"{where}: expected enough train tokens for {steps:,} steps ({needed:,} tokens), found "
            f"{sum(shard_lengths):,} tokens in {len(shard_lengths)} shards, which last for {available:,} steps; plan "
            "fewer steps or smaller batches, or prepare the slice with a larger --train-tokens where it has more"
        )


def by_documents(plan: Sequence[Segment]) -> bool:
    """Whether a plan reads by documents, and not one stream."""
    return any(segment.max_len is not None for segment in plan)


def _documents(documents: DocumentIndex | None) -> DocumentIndex:
    if documents is None:
        raise TypeError("a plan that reads by documents needs those of the shards")
    return documents


def spans(
    shard_lengths: Sequence[int],
    plan: Sequence[Segment],
    start_step: int = 0,
    documents: DocumentIndex | None = None,
) -> Iterator[AnySpan]:
    """The global batches of a plan in order, from `start_step` on.

    Raises InputError, before it gives any, where the shards do not last for the plan.
    """
    check_plan(shard_lengths, plan, "train shards", documents)
    return available_spans(shard_lengths, plan, start_step, documents)


def available_spans(
    shard_lengths: Sequence[int],
    plan: Sequence[Segment],
    start_step: int = 0,
    documents: DocumentIndex | None = None,
) -> Iterator[AnySpan]:
    """As `spans`, for as long as the shards last."""
    if by_documents(plan):
        yield from _documents(documents).spans(plan, start_step)
        return
    for batches in _batch_ranges(shard_lengths, plan):
        tokens, seq_len = batches.segment.tokens, batches.segment.seq_len
        for i in range(max(0, start_step - batches.first_step), batches.steps):
            yield Span(batches.first_step + i, batches.shard, batches.position + i * tokens, tokens, seq_len)


def eval_spans(start: int, tokens: int, batch_tokens: int, seq_len: int) -> Iterator[Span]:
    """Consecutive batches that score exactly `tokens` targets, the first input at `start`; the last may be smaller.

    start + tokens + 1 tokens must exist. Raises InputError where `tokens` or `batch_tokens` is not whole rows.
    """
    for name, value in (("tokens to score", tokens), ("evaluation batch", batch_tokens)):
        if value <= 0 or seq_len <= 0 or value % seq_len:
            raise InputError(
                f"{name}: expected a multiple of seq_len {seq_len:,}, found {value:,}; change one of the two"
            )
    return (
        Span(i, 0, start + begin, min(batch_tokens, tokens - begin), seq_len)
        for i, begin in enumerate(range(0, tokens, batch_tokens))
    )


def rank_range(span: AnySpan, rank: int, ranks: int) -> tuple[int, int]:
    """A rank's inputs among those of the batch, start and stop. Raises InputError for a batch that does not divide."""
    if ranks < 1 or span.tokens % (ranks * span.seq_len):
        raise InputError(
            f"batch of {span.tokens:,} tokens: expected a multiple of ranks x seq_len = {ranks} x {span.seq_len:,}, "
            "found a remainder; change the batch's tokens, seq_len or the number of devices"
        )
    if not 0 <= rank < ranks:
        raise InputError(f"rank: expected 0 to {ranks - 1}, found {rank}; start one process for each rank")
    tokens = span.tokens // ranks
    return rank * tokens, (rank + 1) * tokens


def _window(shards: Sequence[np.ndarray], span: AnySpan, start: int, stop: int) -> np.ndarray:
    """The tokens of a batch's inputs start : stop and their targets: uint16 (stop - start + 1,), still mapped, or by
    documents (rows, seq_len + 1)."""
    if isinstance(span, DocumentSpan):
        return span.read(shards, start // span.seq_len, stop // span.seq_len)
    first, last = span.position + start, span.position + stop
    if not 0 <= span.shard < len(shards) or first < 0 or last + 1 > len(shards[span.shard]):
        lengths = ", ".join(f"{len(shard):,}" for shard in shards)
        raise InputError(
            f"step {span.step}: expected tokens {first:,} to {last + 1:,} in shard {span.shard}, found shards of "
            f"{lengths} tokens; use the shards that the plan was made for, or score fewer tokens"
        )
    return shards[span.shard][first : last + 1]


def _rows(window: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    # Plain arrays of their own: `astype` of a memory map would stay one by type.
    inputs, targets = np.array(window[..., :-1], np.int32), np.array(window[..., 1:], np.int32)
    return inputs.reshape(-1, seq_len), targets.reshape(-1, seq_len)


def read_span(
    shards: Sequence[np.ndarray], span: AnySpan, rank: int = 0, ranks: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A rank's inputs and targets, int32 (tokens / ranks / seq_len, seq_len) each, C-contiguous; copies only those."""
    return _rows(_window(shards, span, *rank_range(span, rank, ranks)), span.seq_len)


def _part(window: np.ndarray, start: int, stop: int, seq_len: int) -> np.ndarray:
    """The tokens of inputs start : stop of a window, and their targets."""
    return window[start : stop + 1] if window.ndim == 1 else window[start // seq_len : stop // seq_len]


def _digest(window: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(window, "<u2").data).hexdigest()


def span_digest(shards: Sequence[np.ndarray], span: AnySpan, rank: int = 0, ranks: int = 1) -> str:
    """SHA-256, hexadecimal, of a rank's inputs and the token after them as little-endian uint16; by default of all.

    By documents there is a token after each row.
    """
    return _digest(_window(shards, span, *rank_range(span, rank, ranks)))


class Batch(NamedTuple):
    """One step's data for this rank (whatever `put` returned), the digest of the global batch, and its span."""

    step: int
    inputs: Any
    targets: Any
    digest: str
    span: AnySpan


class Reader:
    """Iterates over the batches of `spans`, made ready ahead of time in a thread; use it as a context manager.

    At most `prefetch` batches wait. For each, the thread computes the digest, checks every token of the global batch
    against `vocab_size`, and hands the arrays to `put`; without `digests` it reads and checks only the rank's rows. Its
    errors are raised by `next`. `close` stops and joins the thread, also when batches are left.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        spans: Iterable[AnySpan],
        rank: int = 0,
        ranks: int = 1,
        vocab_size: int | None = None,
        put: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]] = lambda inputs, targets: (inputs, targets),
        prefetch: int = 2,
        digests: bool = True,
    ):
        self._shards, self._spans, self._rank, self._ranks = shards, iter(spans), rank, ranks
        self._vocab_size, self._put, self._digests = vocab_size, put, digests
        self._thread = ThreadPoolExecutor(1, "data-reader")
        self._batches: deque[Future[Batch]] = deque()
        for _ in range(1 + max(1, prefetch)):
            self._submit_next()

    def _submit_next(self) -> None:
        for span in islice(self._spans, 1):
            self._batches.append(self._thread.submit(self._load, span))

    def _load(self, span: AnySpan) -> Batch:
        start, stop = rank_range(span, self._rank, self._ranks)
        first, last = (0, span.tokens) if self._digests else (start, stop)
        window = np.array(_window(self._shards, span, first, last))
        if self._vocab_size is not None:
            path = getattr(self._shards[span.shard], "filename", None) or f"shard {span.shard}"
            if isinstance(span, Span):
                check_tokens(window, self._vocab_size, path, span.position + first)
            else:
                for pieces, row in zip(span.rows[first // span.seq_len :], window, strict=False):
                    check_tokens(row, self._vocab_size, path, pieces[0][0])
        own = _part(window, start - first, stop - first, span.seq_len)
        inputs, targets = self._put(*_rows(own, span.seq_len))
        return Batch(span.step, inputs, targets, _digest(window) if self._digests else "", span)

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> Batch:
        if not self._batches:
            raise StopIteration
        batch = self._batches[0].result()  # an error stays first, for the next call too
        self._batches.popleft()
        self._submit_next()
        return batch

    def close(self) -> None:
        """Stops the thread and waits for it to end; batches that were not taken are dropped."""
        self._batches.clear()
        self._spans = iter(())
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
