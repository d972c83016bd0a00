"""Level 1: what a program is given to read, for every rank, across shard ends, and after a resume in the middle."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from parity.compare.case import Case
from parity.compare.observation import Seen
from parity.compare.side import Side
from parity.data import stream
from parity.data.shards import open_shard, write_shard

RANKS = (1, 2, 4, 8)
MOST_STEPS = 256  # of a long plan: its beginning, and the batches next to shard ends
BEYOND = (1, 2, 3, 0, 1)  # tokens that a made shard has beyond a whole number of batches: around the rule for its end


def data(side: Side, case: Case) -> Iterator[Seen]:
    """Digests of every batch as the program received it, read by the harness' own reader, held against plain slicing."""
    plan, train, lengths = case.recipe.plan, case.slice.train, case.slice.train_lengths
    steps = list(plain_spans(lengths, plan))
    chosen = _chosen(steps)
    yield Seen("train", "number of steps", str(len(list(stream.spans(lengths, plan)))), expected=str(len(steps)))
    found = list(stream.spans(lengths, plan))
    yield from _compared(
        side, case, "train", train, [found[i] for i in chosen if i < len(found)], [steps[i] for i in chosen]
    )
    middle = len(steps) // 2
    resumed, later = list(stream.spans(lengths, plan, middle)), [i for i in chosen if i >= middle]
    resumed_there = [resumed[i - middle] for i in later if i - middle < len(resumed)]
    yield from _compared(side, case, "resumed in the middle", train, resumed_there, [steps[i] for i in later])
    tokens = 8 * case.recipe.context
    shards = _made_shards(case, tokens)
    many = [stream.Segment(10 * len(shards), tokens, case.recipe.context)]
    ends = [len(shard) for shard in shards]
    yield from _compared(
        side, case, "across shard ends", shards, list(stream.spans_there(ends, many)), list(plain_spans(ends, many))
    )
    shard, start, _ = case.slice.part("val")
    spans = list(stream.eval_spans(start, case.track.val_tokens, tokens, case.recipe.context))
    count = case.track.val_tokens // tokens
    expected = [stream.Span(i, 0, start + i * tokens, tokens, case.recipe.context) for i in range(count)]
    yield from _compared(side, case, "val", [shard], spans[:count], expected, ranks=(1,))


def plain_spans(lengths: Sequence[int], plan: Sequence[stream.Segment]) -> Iterator[stream.Span]:
    """The canonical reference's order, batch by batch and by nothing else than its rule."""
    step = shard = position = 0
    for segment in plan:
        for _ in range(segment.steps):
            while shard < len(lengths) and position + segment.tokens + 1 >= lengths[shard]:
                shard, position = shard + 1, 0
            if shard == len(lengths):
                return
            yield stream.Span(step, shard, position, segment.tokens, segment.seq_len)
            step, position = step + 1, position + segment.tokens


def _compared(
    side: Side,
    case: Case,
    line: str,
    shards: Sequence[np.ndarray],
    spans: list[stream.Span],
    expected: list[stream.Span],
    ranks: tuple[int, ...] = RANKS,
) -> Iterator[Seen]:
    """What each rank's program is given for each span, and what it must be given."""
    for count in ranks:
        if any(span.tokens % (count * span.seq_len) for span in expected):
            continue  # so many ranks cannot share these batches
        for rank in range(count):
            found = _read(side, case, shards, spans, rank, count)
            for plain, (span, digest) in itertools.zip_longest(expected, found, fillvalue=(None, "no batch")):
                if plain == (None, "no batch"):
                    yield Seen(line, f"batch {span.step}, behind the last", digest, expected="no batch")
                    continue
                part = plain.tokens // count
                window = np.asarray(shards[plain.shard][plain.position + rank * part :][: part + 1], np.int32)
                right = _digest([x.reshape(-1, plain.seq_len) for x in (window[:-1], window[1:])])
                place = f"step {plain.step}" + (f", rank {rank} of {count}" if count > 1 else "")
                yield Seen(line if count == 1 else f"{line}, by rank", place, digest, expected=right)


def _made_shards(case: Case, tokens: int) -> list[np.ndarray]:
    random = np.random.Generator(np.random.Philox(key=case.seed))
    shards = []
    for i, beyond in enumerate(BEYOND):
        path = case.folder / f"edge-{case.seed}-{tokens}-{i}.bin"
        values = random.integers(0, case.recipe.tokenizer_size, 3 * tokens + beyond).astype(np.uint16)
        if not path.exists():
            write_shard(path, values)
        shards.append(open_shard(path))
    return shards


def _read(
    side: Side, case: Case, shards: Sequence[np.ndarray], spans: Iterable[stream.Span], rank: int, ranks: int
) -> Iterator[tuple[stream.Span, str]]:
    """Each span, and a digest of what the program holds of this rank's part once it is placed."""
    program = side.program(case.recipe)
    fetch = program.fetch
    with stream.Reader(
        shards,
        spans,
        rank,
        ranks,
        case.recipe.tokenizer_size,
        place=lambda *batch: (side.put_global_batch(case.recipe, batch), None),
    ) as reader:
        for batch in reader:
            yield batch.span, _digest([fetch(part) for part in batch.inputs])


def _digest(parts: list[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part, np.int32)
        total.update(str(array.shape).encode() + array.tobytes())
    return total.hexdigest()[:16]


def _chosen(spans: list[stream.Span]) -> list[int]:
    """The numbers of all steps of a short plan; of a long one the first, the last and those at shard ends."""
    if len(spans) <= MOST_STEPS:
        return list(range(len(spans)))
    ends = {i for i in range(1, len(spans)) if spans[i].shard != spans[i - 1].shard}
    return sorted({*range(MOST_STEPS), len(spans) - 1, *ends, *(i - 1 for i in ends)})
