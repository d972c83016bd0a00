"""Level 1: what a program is given to read, for every rank, across shard ends, and after a resume in the middle."""

import hashlib
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
    """Digests of every batch as the program received it, read by the harness' own reader."""
    plan, train = case.recipe.plan, case.slice.train
    lengths = case.slice.train_lengths
    chosen = _chosen(list(stream.spans(lengths, plan)))
    for ranks in RANKS:
        if any(span.tokens % (ranks * span.seq_len) for span in chosen):
            continue
        for rank in range(ranks):
            line = "train" if ranks == 1 else "train, by rank"
            for span, digest in _read(side, case, train, chosen, rank, ranks):
                yield Seen(line, f"step {span.step}" + (f", rank {rank} of {ranks}" if ranks > 1 else ""), digest)
    yield Seen("train", "number of steps", str(len(list(stream.spans(lengths, plan)))), expected=str(case.recipe.steps))
    middle = case.recipe.steps // 2
    resumed = _chosen(list(stream.spans(lengths, plan, middle)))
    for i, (span, digest) in enumerate(_read(side, case, train, resumed, 0, 1)):
        yield Seen("resumed in the middle", f"step {middle + i}", f"{span.step} {digest}")
    yield from _shard_ends(side, case)
    shard, start, _ = case.slice.part("val")
    for span, digest in _read(side, case, [shard], stream.eval_spans(start, case.track.val_tokens, 8 * case.recipe.context,
                                                                     case.recipe.context), 0, 1):
        yield Seen("val", f"batch {span.step}", digest)


def _shard_ends(side: Side, case: Case) -> Iterator[Seen]:
    """Made shards whose ends lie at, before and behind the last token that a batch needs."""
    seq_len = case.recipe.context
    tokens = 2 * seq_len
    shards = _made_shards(case, tokens)
    lengths = [len(shard) for shard in shards]
    spans = stream.spans_there(lengths, [stream.Segment(10 * len(lengths), tokens, seq_len)])
    for span, digest in _read(side, case, shards, spans, 0, 1):
        yield Seen("across shard ends", f"batch {span.step}", f"shard {span.shard} position {span.position} {digest}")


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


def _read(side: Side, case: Case, shards: Sequence[np.ndarray], spans: Iterable[stream.Span], rank: int,
          ranks: int) -> Iterator[tuple[stream.Span, str]]:
    """Each span, and a digest of what the program holds of this rank's part once it is placed."""
    program = side.program(case.recipe)
    fetch = program.fetch if hasattr(program, "fetch") else np.asarray
    with stream.Reader(shards, spans, rank, ranks, case.recipe.tokenizer_size,
                       place=lambda *batch: (side.place(case.recipe, batch), None)) as reader:
        for batch in reader:
            yield batch.span, _digest([side.call(fetch, part) for part in batch.inputs])


def _digest(parts: list[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part, np.int32)
        total.update(str(array.shape).encode() + array.tobytes())
    return total.hexdigest()[:16]


def _chosen(spans: list[stream.Span]) -> list[stream.Span]:
    """All steps of a short plan; of a long one the first and those at shard ends."""
    if len(spans) <= MOST_STEPS:
        return spans
    ends = {i for i in range(1, len(spans)) if spans[i].shard != spans[i - 1].shard}
    kept = sorted({*range(MOST_STEPS), len(spans) - 1, *ends, *(i - 1 for i in ends)})
    return [spans[i] for i in kept]
