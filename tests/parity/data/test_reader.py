import threading
import time

import numpy as np
import pytest

from parity.data.shards import open_shard
from parity.data.stream import Reader, Segment, read_span, span_digest, spans
from parity.errors import InputError

PLAN = [Segment(5, 12, 3), Segment(4, 24, 6)]
LENGTHS = [70, 200]
SHARDS = np.split(np.arange(270, dtype=np.uint16), [70])


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("data-reader")]


def test_it_gives_every_batch_in_order_with_the_digest_of_the_global_batch():
    with Reader(SHARDS, spans(LENGTHS, PLAN), rank=1, ranks=2) as reader:
        batches = list(reader)
    expected = list(spans(LENGTHS, PLAN))
    assert [batch.span for batch in batches] == expected and [batch.step for batch in batches] == list(range(9))
    for batch, span in zip(batches, expected, strict=True):
        inputs_BT, targets_BT = read_span(SHARDS, span, 1, 2)
        assert np.array_equal(batch.inputs, inputs_BT) and np.array_equal(batch.targets, targets_BT)
        assert batch.digest == span_digest(SHARDS, span)


def test_what_put_returns_arrives_and_put_runs_in_the_thread():
    def put(inputs_BT, targets_BT):
        return threading.current_thread().name, inputs_BT.sum() + targets_BT.sum()

    with Reader(SHARDS, spans(LENGTHS, PLAN), put=put) as reader:
        batch = next(reader)
    assert batch.inputs.startswith("data-reader") and batch.targets == sum(range(12)) + sum(range(1, 13))


def test_it_reads_ahead_as_far_as_asked_and_no_farther():
    loaded = []
    with Reader(SHARDS, spans(LENGTHS, PLAN), put=lambda *arrays: loaded.append(1) or arrays, prefetch=2) as reader:
        deadline_s = time.monotonic() + 5
        while len(loaded) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.001)
        time.sleep(0.05)
        # Two wait, and the thread has the third.
        assert len(loaded) == 3
        next(reader)


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_close_ends_the_thread_wherever_the_consumer_stopped(taken):
    reader = Reader(SHARDS, spans(LENGTHS, PLAN))
    for _ in range(taken):
        next(reader)
    reader.close()
    reader.close()
    assert not readers() and list(reader) == []


def test_what_goes_wrong_in_the_thread_is_raised_after_the_good_batches_again_and_again():
    def put(inputs_BT, targets_BT):
        if inputs_BT[0, 0] == 24:
            raise ValueError("no room on the device")
        return inputs_BT, targets_BT

    with Reader(SHARDS, spans(LENGTHS, PLAN), put=put) as reader:
        assert [next(reader).step, next(reader).step] == [0, 1]
        for _ in range(2):
            with pytest.raises(ValueError, match="no room on the device"):
                next(reader)
    assert not readers()


def test_a_token_above_the_vocabulary_ends_the_stream_with_its_file_and_position(make_shard):
    path = make_shard([0] * 17 + [50] + [0] * 30)
    shards = [open_shard(path)]
    with Reader(shards, spans([48], [Segment(3, 8, 4)]), vocab_size=50) as reader:
        assert next(reader).step == 0
        with pytest.raises(InputError, match=f"{path}.*found token 50 at position 17"):
            list(reader)


def test_a_batch_that_does_not_divide_among_ranks_is_refused():
    with Reader(SHARDS, spans(LENGTHS, PLAN), ranks=5) as reader, pytest.raises(InputError, match="multiple of ranks"):
        next(reader)


def test_resumed_in_the_middle_it_gives_the_same_batches_as_in_one_go():
    with Reader(SHARDS, spans(LENGTHS, PLAN)) as reader:
        whole = [batch.digest for batch in reader]
    with Reader(SHARDS, spans(LENGTHS, PLAN, 4)) as reader:
        assert [batch.digest for batch in reader] == whole[4:]
