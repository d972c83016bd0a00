"""Level 1: the batches that a program receives, for every rank, across shard ends, and after a resume in the middle."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.data import stream
from parity.data.documents import DocumentIndex
from parity.data.plain import plain_spans, plain_tokens
from parity.data.shards import open_shard, write_shard

RANKS = (1, 2, 4, 8)
MOST_STEPS = 256  # of a long plan: its beginning, and the batches next to shard ends
EXTRA_TOKENS = (1, 2, 3, 0, 1)  # of a synthetic shard beyond a whole number of batches: around the rule for its end
DOCUMENT_STARTS = 1 / 24  # of the tokens of a synthetic shard
Spans = list[stream.AnySpan]


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Digests of every batch as the program received it from the harness' own reader, against plain slicing."""
    plan, train, lengths = case.recipe.plan, case.slice.train, case.slice.train_lengths
    by_documents = stream.by_documents(plan)
    documents, end_of_text = case.slice.documents, case.slice.manifest.end_of_text
    expected = list(plain_spans(train, plan, end_of_text))
    actual = list(stream.spans(lengths, plan, documents=documents))
    yield Observation("train", "number of steps", str(len(actual)), expected=str(len(expected)))
    middle, steps = len(expected) // 2, _observed_steps(expected)
    resumed = list(stream.spans(lengths, plan, middle, documents))
    later = [i for i in steps if i >= middle]
    yield from _batches(program, "train", train, _at(actual, steps), _at(expected, steps))
    actual = _at(resumed, [i - middle for i in later])
    yield from _batches(program, "resumed in the middle", train, actual, _at(expected, later))

    tokens = 8 * case.recipe.context
    shards = _synthetic_shards(case, tokens, end_of_text if by_documents else None)
    ends = [len(shard) for shard in shards]
    plan = [stream.Segment(10 * len(shards), tokens, case.recipe.context, plan[0].max_len)]
    expected = list(plain_spans(shards, plan, end_of_text))
    actual = list(stream.available_spans(ends, plan, documents=DocumentIndex(shards, end_of_text)))
    yield from _batches(program, "across shard ends", shards, actual, expected)

    shard, start, _ = case.slice.part("val")
    length = case.recipe.eval_context
    tokens = length * max(n for n in range(1, 9) if case.track.val_tokens % (n * length) == 0)
    count = case.track.val_tokens // tokens
    scored: Spans = [*stream.eval_spans(start, case.track.val_tokens, tokens, length)]
    plain: Spans = [stream.Span(i, 0, start + i * tokens, tokens, length) for i in range(count)]
    yield from _batches(program, "val", [shard], scored[:count], plain, ranks=(1,))


def _observed_steps(spans: Spans) -> list[int]:
    """All steps of a short plan; of a long one the first, the last and those at shard ends."""
    if len(spans) <= MOST_STEPS:
        return list(range(len(spans)))
    ends = {i for i in range(1, len(spans)) if spans[i].shard != spans[i - 1].shard}
    return sorted({*range(MOST_STEPS), len(spans) - 1, *ends, *(i - 1 for i in ends)})


def _at(spans: Spans, steps: list[int]) -> Spans:
    return [spans[i] for i in steps if i < len(spans)]


def _batches(
    program: Guarded,
    line: str,
    shards: Sequence[np.ndarray],
    actual: Spans,
    expected: Spans,
    ranks: tuple[int, ...] = RANKS,
) -> Iterator[Observation]:
    """The batch that each rank's program receives for each span, and the batch that it must receive."""
    for count in ranks:
        if any(span.tokens % (count * span.seq_len) for span in expected):
            continue  # so many ranks cannot share these batches
        for rank in range(count):
            received = _received(program, shards, actual, rank, count)
            for span, batch in itertools.zip_longest(expected, received):
                if span is None:
                    yield Observation(line, f"batch {batch[0]}, behind the last", batch[1], expected="no batch")
                    continue
                digest = _digest(_expected_rows(shards, span, rank, count))
                yield Observation(
                    line if count == 1 else f"{line}, by rank",
                    f"step {span.step}" if count == 1 else f"step {span.step}, rank {rank} of {count}",
                    batch[1] if batch else "no batch",
                    expected=digest,
                )


def _received(
    program: Guarded, shards: Sequence[np.ndarray], spans: Spans, rank: int, ranks: int
) -> Iterator[tuple[int, str]]:
    """Each step, and a digest of this rank's rows of its batch as the program holds them on its devices."""

    def put(inputs_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[Any, None]:
        return program.put((inputs_BT, targets_BT)), None

    with stream.Reader(shards, spans, rank, ranks, program.recipe.tokenizer_size, put=put) as reader:
        for batch in reader:
            yield batch.span.step, _digest([program.fetch(array) for array in batch.inputs])


def _expected_rows(shards: Sequence[np.ndarray], span: stream.AnySpan, rank: int, ranks: int) -> list[np.ndarray]:
    """Inputs and targets of a rank, by plain slicing."""
    tokens, own = plain_tokens(shards, span), span.tokens // ranks
    first, count = (rank * own, own + 1) if tokens.ndim == 1 else (rank * own // span.seq_len, own // span.seq_len)
    part = tokens[first : first + count]
    return [x.reshape(-1, span.seq_len) for x in (part[..., :-1], part[..., 1:])]


def _synthetic_shards(case: Case, tokens: int, end_of_text: int | None) -> list[np.ndarray]:
    """Shards of random tokens, with documents where there is a token that starts them."""
    random = np.random.Generator(np.random.Philox(key=case.seed))
    shards = []
    for i, extra in enumerate(EXTRA_TOKENS):
        path = case.folder / f"edge-{case.seed}-{tokens}-{i}{'-documents' if end_of_text is not None else ''}.bin"
        values = random.integers(0, case.recipe.tokenizer_size, 3 * tokens + extra).astype(np.uint16)
        if end_of_text is not None:
            values[random.random(len(values)) < DOCUMENT_STARTS] = end_of_text
        if not path.exists():
            write_shard(path, values)
        shards.append(open_shard(path))
    return shards


def _digest(arrays: list) -> str:
    total = hashlib.sha256()
    for array in (np.ascontiguousarray(array, np.int32) for array in arrays):
        total.update(str(array.shape).encode() + array.tobytes())
    return total.hexdigest()[:16]
