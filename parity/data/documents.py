"""The data order `documents`: every row begins at a document's start (records 26 and 29).

A document starts with the end-of-text token and ends before the next one. Rows are made one after the other. Each takes
documents from the next one on, every one cut to its first `max_len` tokens, until it has seq_len + 1 tokens, the last
document cut to fit: its inputs are the first seq_len of these, its targets the last seq_len. What was cut is not read
again. A batch lies in one shard; where the documents left do not last for all its rows, they are dropped, and the next
shard begins at its first document.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from parity.errors import InputError

if TYPE_CHECKING:
    from parity.data.stream import Segment

Piece = tuple[int, int]  # of a shard: the position of its first token, and how many


class DocumentSpan(NamedTuple):
    """One step's global batch: `tokens` inputs in rows of `seq_len`, each row in pieces of shard number `shard`."""

    step: int
    shard: int
    tokens: int
    seq_len: int
    rows: tuple[tuple[Piece, ...], ...]

    def read(self, shards: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """The tokens of rows first : last, uint16 (rows, seq_len + 1)."""
        shard, rows = shards[self.shard], self.rows[first:last]
        return np.stack([np.concatenate([shard[at : at + count] for at, count in pieces]) for pieces in rows])


class _Documents:
    """The documents of a shard: where they start, and the tokens before each when all are cut to a length."""

    def __init__(self, tokens: np.ndarray, end_of_text: int):
        self.starts = np.flatnonzero(np.asarray(tokens) == end_of_text)
        self.lengths = np.diff(self.starts, append=len(tokens))
        self._before: dict[int, np.ndarray] = {}

    def before(self, max_len: int) -> np.ndarray:
        """(documents + 1,): the tokens of all documents before each, cut to `max_len`."""
        if max_len not in self._before:
            self._before[max_len] = np.concatenate([[0], np.cumsum(np.minimum(self.lengths, max_len))])
        return self._before[max_len]

    def batch(self, first: int, segment: "Segment") -> list[int] | None:
        """The first document of each row of a batch, and the one after the last row's; None where they do not last."""
        before, firsts = self.before(segment.max_len or 0), [first]
        for _ in range(segment.tokens // segment.seq_len):
            after = int(np.searchsorted(before, before[firsts[-1]] + segment.seq_len + 1))
            if after >= len(before):
                return None
            firsts.append(after)
        return firsts

    def pieces(self, first: int, after: int, segment: "Segment") -> tuple[Piece, ...]:
        """A row of documents first : after."""
        before = self.before(segment.max_len or 0)
        counts = np.diff(before[first : after + 1])
        counts[-1] -= before[after] - before[first] - (segment.seq_len + 1)
        return tuple(zip(self.starts[first:after].tolist(), counts.tolist(), strict=True))


class DocumentIndex:
    """The documents of a slice's train shards; each shard is read once, when it is first asked for."""

    def __init__(self, shards: Sequence[np.ndarray], end_of_text: int):
        self.shards, self.end_of_text = shards, end_of_text
        self._documents: dict[int, _Documents] = {}

    def spans(self, plan: Sequence["Segment"], start_step: int = 0) -> Iterator[DocumentSpan]:
        """The batches of a plan in order, from `start_step` on, for as long as the documents last.

        Raises InputError for a shard without documents.
        """
        for step, (shard, firsts, segment) in enumerate(self._batches(plan)):
            if step >= start_step:
                documents, pairs = self._of(shard), zip(firsts, firsts[1:], strict=False)
                rows = tuple(documents.pieces(first, after, segment) for first, after in pairs)
                yield DocumentSpan(step, shard, segment.tokens, segment.seq_len, rows)

    def steps(self, plan: Sequence["Segment"]) -> int:
        """How many steps of a plan the documents last for."""
        return sum(1 for _ in self._batches(plan))

    def _batches(self, plan: Sequence["Segment"]) -> Iterator[tuple[int, list[int], "Segment"]]:
        shard = first = 0
        for segment in plan:
            for _ in range(segment.steps):
                firsts = None
                while shard < len(self.shards) and (firsts := self._of(shard).batch(first, segment)) is None:
                    shard, first = shard + 1, 0
                if firsts is None:
                    return
                yield shard, firsts, segment
                first = firsts[-1]

    def _of(self, shard: int) -> _Documents:
        if shard not in self._documents:
            documents = self._documents[shard] = _Documents(self.shards[shard], self.end_of_text)
            if not len(documents.starts):
                path = getattr(self.shards[shard], "filename", None) or f"train shard {shard}"
                raise InputError(
                    f"{path}: expected documents that start with token {self.end_of_text}, found none: prepare a slice "
                    "with document starts, or choose a recipe that reads its text as one stream"
                )
        return self._documents[shard]
