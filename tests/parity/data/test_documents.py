"""The order by documents against a second implementation, token by token from its description, and against the plain
rule that verifier and comparer use."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.data.documents import DocumentIndex, DocumentSpan
from parity.data.plain import plain_spans
from parity.data.stream import Reader, Segment, check_plan, read_span, span_digest, spans
from parity.errors import InputError

END = 0


def shard_of(lengths: list[int], before: int = 0, first: int = 1) -> np.ndarray:
    """Documents of these lengths, all other tokens different; `before` tokens belong to no document."""
    tokens, number = [], first
    for length in [before, *lengths]:
        tokens += range(number, number + length)
        if tokens and length and len(tokens) > before:
            tokens[-length] = END
        number += length
    return np.array(tokens, np.uint16)


def naive_batches(shards, plan):
    """Rows of (inputs, targets) lists, batch by batch, until the shards end."""
    waiting = []
    for shard in shards:
        documents = []
        for token in shard.tolist():
            if token == END:
                documents.append([])
            if documents:
                documents[-1].append(token)
        waiting.append(documents)
    documents = waiting.pop(0)
    for segment in plan:
        for _ in range(segment.steps):
            while True:
                left, rows = list(documents), []
                while len(rows) < segment.tokens // segment.seq_len:
                    row = []
                    while left and len(row) < segment.seq_len + 1:
                        row += left.pop(0)[: segment.max_len]
                    rows.append(row[: segment.seq_len + 1])
                if all(len(row) == segment.seq_len + 1 for row in rows):
                    break
                if not waiting:
                    return
                documents = waiting.pop(0)
            documents = left
            yield [(row[:-1], row[1:]) for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_batches_are_those_of_the_description(data):
    lengths = st.lists(st.integers(1, 12), min_size=1, max_size=30)
    shards = [shard_of(data.draw(lengths), data.draw(st.integers(0, 3))) for _ in range(data.draw(st.integers(1, 3)))]
    shards = [shard for shard in shards if (shard == END).any()]
    plan = [
        Segment(data.draw(st.integers(0, 4)), rows * seq_len, seq_len, data.draw(st.integers(2, 14)))
        for rows, seq_len in data.draw(
            st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=3)
        )
    ]
    expected, index = list(naive_batches(shards, plan)), DocumentIndex(shards, END)
    batches = list(index.spans(plan))
    assert batches == list(plain_spans(shards, plan, END)) and index.steps(plan) == len(batches)
    read = [[x.tolist() for x in read_span(shards, span)] for span in batches]
    assert read == [[[list(part) for part in side] for side in zip(*rows, strict=True)] for rows in expected]
    start = data.draw(st.integers(0, len(batches)))
    assert list(index.spans(plan, start)) == batches[start:]


def test_a_row_takes_cut_documents_until_it_is_full_and_the_rest_is_not_read_again():
    shard = shard_of([3, 9, 2, 4, 5, 6])
    (span,) = DocumentIndex([shard], END).spans([Segment(1, 10, 5, 4)])
    assert span == DocumentSpan(0, 0, 10, 5, (((0, 3), (3, 3)), ((12, 2), (14, 4))))
    inputs, targets = read_span([shard], span)
    assert inputs.tolist() == [[0, 2, 3, 0, 5], [0, 14, 0, 16, 17]]
    assert targets.tolist() == [[2, 3, 0, 5, 6], [14, 0, 16, 17, 18]]
    assert span_digest([shard], span) == hashlib.sha256(span.read([shard], 0, 2).astype("<u2").tobytes()).hexdigest()


def test_a_batch_lies_in_one_shard_and_the_next_shard_begins_at_its_first_document():
    shards = [shard_of([6, 6, 6]), shard_of([6, 6, 6, 6], before=2)]
    batches = list(DocumentIndex(shards, END).spans([Segment(5, 10, 5, 6)]))
    assert [(span.shard, span.rows[0][0][0]) for span in batches] == [(0, 0), (1, 2), (1, 14)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_any_number_of_ranks_that_divides_the_rows_reads_the_same_rows_with_and_without_digests(ranks):
    random = np.random.default_rng(3)
    shards = [shard_of(random.integers(1, 40, 60).tolist()) for _ in range(2)]
    plan, index = [Segment(9, 8 * 6, 6, 7), Segment(9, 8 * 12, 12, 30)], DocumentIndex(shards, END)
    lengths = [len(shard) for shard in shards]
    whole = [(span, read_span(shards, span)) for span in index.spans(plan)]
    assert len({span.shard for span, _ in whole}) == 2
    for rank in range(ranks):
        for digests in (True, False):
            part = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
            with Reader(shards, index.spans(plan), rank, ranks, 60_000, digests=digests) as reader:
                for batch, (span, (inputs, targets)) in zip(reader, whole, strict=True):
                    assert np.array_equal(batch.inputs, inputs[part]) and np.array_equal(batch.targets, targets[part])
                    assert batch.digest == (span_digest(shards, span) if digests else "")
    with (
        pytest.raises(InputError, match="expected a multiple of ranks x seq_len = 3 x 6"),
        Reader(shards, index.spans(plan), 0, 3) as reader,
    ):
        next(reader)
    assert list(spans(lengths, plan[:1], 4, index)) == [span for span, _ in whole[4:9]]


def test_a_token_outside_the_vocabulary_is_named_by_its_shard():
    shard = shard_of([5, 5])
    expected = "shard 0: expected tokens below the vocabulary's size 8, found token 8"
    reader = Reader([shard], DocumentIndex([shard], END).spans([Segment(1, 6, 3, 5)]), vocab_size=8)
    with reader, pytest.raises(InputError, match=expected):
        next(reader)


def test_a_plan_that_runs_out_of_documents_is_refused_before_the_first_step():
    shards = [shard_of([6, 6, 6]), shard_of([6, 6])]
    lengths, index = [len(shard) for shard in shards], DocumentIndex(shards, END)
    check_plan(lengths, [Segment(2, 10, 5, 6)], "slice x", index)
    with pytest.raises(InputError, match="slice x: expected enough documents for 3 steps, found enough for 2 in 2 sha"):
        check_plan(lengths, [Segment(3, 10, 5, 6)], "slice x", index)


def test_a_shard_without_documents_and_documents_that_hold_no_target_are_refused():
    index = DocumentIndex([np.arange(1, 30, dtype=np.uint16)], END)
    with pytest.raises(InputError, match="train shard 0: expected documents that start with token 0, found none"):
        check_plan([29], [Segment(1, 10, 5, 6)], "slice x", index)
    with pytest.raises(InputError, match="documents of at least 2 tokens, an input and a target, found max_len 1"):
        check_plan([29], [Segment(1, 10, 5, 1)], "slice x", index)
    with pytest.raises(InputError, match="all segments with a max_len or none, found both"):
        check_plan([29], [Segment(1, 10, 5, 6), Segment(1, 10, 5)], "slice x", index)


def test_as_many_shards_are_prepared_as_the_cut_documents_take(monkeypatch):
    from parity.harness import setup
    from parity.recipes import recipe_for
    from parity.track import track_for

    shard = np.where(np.arange(90_000) % 30 == 0, 511, 7).astype(np.uint16)  # 3,000 documents
    asked = []

    class Enough(Exception):
        """Stands for what is checked once the slice is opened."""

    class Prepared:
        manifest = property(lambda self: (_ for _ in ()).throw(Enough))

        def __init__(self, tokens):
            self.train = [shard] * (1 + tokens // 90_000)
            self.train_lengths = [len(shard) for shard in self.train]
            self.documents = DocumentIndex(self.train, 511)

    def prepare(name, data_dir, train_tokens, progress):
        asked.append(train_tokens)
        return Prepared(train_tokens)

    monkeypatch.setattr(setup.slices, "prepare", prepare)
    recipe = dataclasses.replace(recipe_for("record-40", "tiny"), max_len=10)  # a third of each document
    with pytest.raises(Enough):
        setup.open_slice(track_for("tiny"), recipe, None)
    assert asked == [60 * 1024 + 1, 90_001, 180_001]  # 60 steps take 6,240 documents
