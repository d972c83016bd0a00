"""The order of the data by nothing else than its rules, batch by batch: what the reader's order is held against."""

from collections.abc import Iterator, Sequence

import numpy as np

from parity.data.documents import DocumentSpan, Piece
from parity.data.stream import AnySpan, Segment, Span


def plain_spans(
    shards: Sequence[np.ndarray], plan: Sequence[Segment], end_of_text: int | None = None
) -> Iterator[AnySpan]:
    """The batches of a plan in order, for as long as the shards last."""
    shard = at = step = 0  # `at`: the next token, or the number of the next document
    starts: dict[int, list[int]] = {}
    for segment in plan:
        for _ in range(segment.steps):
            if segment.max_len is None:
                while shard < len(shards) and at + segment.tokens + 1 >= len(shards[shard]):
                    shard, at = shard + 1, 0
                if shard == len(shards):
                    return
                yield Span(step, shard, at, segment.tokens, segment.seq_len)
                at += segment.tokens
            else:
                batch = None
                while shard < len(shards):
                    if shard not in starts:
                        starts[shard] = np.flatnonzero(np.asarray(shards[shard]) == end_of_text).tolist()
                    if (batch := _rows(starts[shard], len(shards[shard]), at, segment)) is not None:
                        break
                    shard, at = shard + 1, 0
                if batch is None:
                    return
                rows, at = batch
                yield DocumentSpan(step, shard, segment.tokens, segment.seq_len, rows)
            step += 1


def plain_tokens(shards: Sequence[np.ndarray], span: AnySpan) -> np.ndarray:
    """The tokens of a batch and those after it: uint16 (tokens + 1,), or by documents (rows, row length + 1)."""
    shard = shards[span.shard]
    if isinstance(span, DocumentSpan):
        return np.stack([np.concatenate([shard[at : at + count] for at, count in pieces]) for pieces in span.rows])
    return np.asarray(shard[span.position : span.position + span.tokens + 1])


def _rows(
    starts: list[int], size: int, first: int, segment: Segment
) -> tuple[tuple[tuple[Piece, ...], ...], int] | None:
    """The rows of a batch from document `first` on, and the document after them; None where the shard ends before."""
    rows, document = [], first
    for _ in range(segment.tokens // segment.seq_len):
        pieces, missing = [], segment.seq_len + 1
        while missing:
            if document == len(starts):
                return None
            end = starts[document + 1] if document + 1 < len(starts) else size
            count = min(end - starts[document], segment.max_len or 0, missing)
            pieces.append((starts[document], count))
            missing, document = missing - count, document + 1
        rows.append(tuple(pieces))
    return tuple(rows), document
