"""The stream order against a second implementation, written plainly from its description."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.data.stream import (
    Segment,
    check_plan,
    eval_spans,
    rank_range,
    read_span,
    span_digest,
    spans,
    tokens_after,
)
from parity.errors import InputError


def naive_batches(shards, plan):
    """Walks the stream one batch at a time; StopIteration of the shards becomes "out"."""
    waiting = iter(shards)
    tokens, position = next(waiting), 0
    for segment in plan:
        for _ in range(segment.steps):
            while position + segment.tokens + 1 >= len(tokens):
                tokens, position = next(waiting, None), 0
                if tokens is None:
                    yield "out"
                    return
            inputs = [int(token) for token in tokens[position : position + segment.tokens]]
            targets = [int(token) for token in tokens[position + 1 : position + segment.tokens + 1]]
            yield inputs, targets, segment.seq_len
            position += segment.tokens


segments = st.builds(
    lambda steps, rows, seq_len: Segment(steps, rows * seq_len, seq_len),
    st.integers(0, 6),
    st.integers(1, 6),
    st.integers(1, 4),
)
streams = st.tuples(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.lists(segments, min_size=1, max_size=4))


def shards_of(lengths):
    # No token is like another, so that a wrong position cannot go unseen.
    return np.split(np.arange(sum(lengths), dtype=np.uint16), np.cumsum(lengths)[:-1])


@settings(max_examples=400, deadline=None)
@given(streams)
def test_the_stream_is_that_of_the_description_or_is_refused_before_the_first_step(stream):
    lengths, plan = stream
    shards = shards_of(lengths)
    expected = list(naive_batches(shards, plan))
    if "out" in expected:
        with pytest.raises(InputError, match="found .* which last for"):
            spans(lengths, plan)
        return
    batches = [read_span(shards, span) for span in spans(lengths, plan)]
    assert len(batches) == len(expected)
    for (inputs_BT, targets_BT), (inputs, targets, seq_len) in zip(batches, expected, strict=True):
        assert inputs_BT.ravel().tolist() == inputs and targets_BT.ravel().tolist() == targets
        assert inputs_BT.shape == targets_BT.shape == (len(inputs) // seq_len, seq_len)


def test_tokens_are_counted_by_the_batch_sizes_of_the_plan():
    plan = (Segment(2, 64, 32), Segment(3, 128, 32), Segment(1, 32, 16))
    assert [tokens_after(plan, steps) for steps in range(7)] == [0, 64, 128, 256, 384, 512, 544]


@settings(max_examples=200, deadline=None)
@given(streams, st.data())
def test_starting_in_the_middle_gives_the_rest_of_the_same_stream(stream, data):
    lengths, plan = stream
    try:
        whole = list(spans(lengths, plan))
    except InputError:
        return
    start = data.draw(st.integers(0, len(whole) + 1))
    assert list(spans(lengths, plan, start)) == whole[start:]
    assert [span.step for span in whole] == list(range(len(whole)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 20))
def test_any_number_of_ranks_that_divides_the_batch_gives_the_same_batch(ranks, rows, seq_len, position):
    n = ranks * rows * seq_len
    shards = shards_of([position + n + 2])
    (span,) = eval_spans(position, n, n, seq_len)
    parts = [read_span(shards, span, rank, ranks) for rank in range(ranks)]
    inputs_BT, targets_BT = read_span(shards, span)
    assert np.array_equal(np.concatenate([part[0] for part in parts]), inputs_BT)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), targets_BT)


def test_a_batch_that_ends_on_the_last_token_but_one_is_skipped_as_the_description_says():
    # p + n + 1 >= len skips: with n = 4, 5 tokens are one too few, and 6 are enough.
    plan = [Segment(1, 4, 2)]
    assert [span.shard for span in spans([5, 6], plan)] == [1]
    assert [span.shard for span in spans([6, 6], plan)] == [0]


def test_a_plan_that_wants_one_step_too_many_is_refused_with_what_is_needed_and_there():
    check_plan([10, 10], [Segment(4, 4, 2)], "slice x")
    sentence = (
        "slice x: expected enough train tokens for 5 steps .20 tokens., found 20 tokens in 2 shards, which last for 4"
    )
    with pytest.raises(InputError, match=sentence):
        check_plan([10, 10], [Segment(5, 4, 2)], "slice x")


@pytest.mark.parametrize("segment", [Segment(1, 5, 2), Segment(1, 0, 2), Segment(-1, 4, 2), Segment(1, 4, 0)])
def test_a_plan_of_broken_rows_is_refused(segment):
    with pytest.raises(InputError, match="batch plan: expected segments of whole rows"):
        check_plan([100], [segment], "slice x")


def test_ranks_that_do_not_divide_the_batch_into_rows_are_refused():
    (span,) = spans([100], [Segment(1, 12, 3)])
    assert rank_range(span, 1, 4) == (3, 6)
    with pytest.raises(InputError, match="of 12 tokens: expected a multiple of ranks x seq_len = 3 x 3,.*devices"):
        rank_range(span, 0, 3)
    with pytest.raises(InputError, match="rank: expected 0 to 3, found 4"):
        rank_range(span, 4, 4)


def test_reading_beyond_a_shard_is_refused():
    shards = shards_of([10])
    (span,) = eval_spans(6, 4, 4, 2)
    with pytest.raises(InputError, match="expected tokens 6 to 11 in shard 0, found shards of 10 tokens"):
        read_span(shards, span)


def test_arrays_are_plain_contiguous_int32(session_home):
    from parity.data.slices import open_slice

    shards = open_slice("synthetic", session_home).train
    (span,) = spans([len(shards[0])], [Segment(1, 256, 64)])
    for array in read_span(shards, span, 1, 2):
        assert type(array) is np.ndarray and array.dtype == np.int32 and array.flags.c_contiguous
        assert array.shape == (2, 64)


def test_a_digest_is_the_sha256_of_the_tokens_as_little_endian_uint16():
    shards = shards_of([7, 700])
    (span,) = spans([7, 700], [Segment(1, 12, 3)])
    assert span_digest(shards, span) == hashlib.sha256(shards[1][:13].astype("<u2").tobytes()).hexdigest()
    assert span_digest(shards, span, 1, 2) == hashlib.sha256(shards[1][6:13].astype("<u2").tobytes()).hexdigest()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_evaluation_scores_exactly_the_tokens_asked_for_each_once_in_order(start, rows, batch_rows, seq_len):
    tokens = rows * seq_len
    shards = shards_of([start + tokens + 1])
    batches = [read_span(shards, span) for span in eval_spans(start, tokens, batch_rows * seq_len, seq_len)]
    targets = np.concatenate([targets_BT.ravel() for _, targets_BT in batches])
    assert targets.tolist() == list(range(start + 1, start + tokens + 1))
    assert all(len(inputs_BT) == batch_rows for inputs_BT, _ in batches[:-1])


@pytest.mark.parametrize(("tokens", "batch"), [(10, 8), (8, 10), (0, 8), (8, 0)])
def test_evaluation_of_broken_rows_is_refused(tokens, batch):
    with pytest.raises(InputError, match="expected a multiple of seq_len 4"):
        eval_spans(0, tokens, batch, 4)


def test_the_public_plan_of_19_380_steps_fits_102_shards_and_starts_anywhere_at_once():
    lengths, plan = [100_000_000] * 102, [Segment(19_380, 524_288, 1024)]
    start_s = time.perf_counter()
    last = list(spans(lengths, plan, 19_379))
    assert time.perf_counter() - start_s < 0.05
    assert (last[0].step, last[0].shard, last[0].position) == (19_379, 101, 189 * 524_288)
    with pytest.raises(InputError):
        spans(lengths, [Segment(19_381, 524_288, 1024)])
