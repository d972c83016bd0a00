"""The reader of shards."""

import hashlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.interleaved import timed
from bench.options import Options

BATCH_TOKENS, STEPS, VOCABULARY = 524_288, 180, 50_257
READERS: dict[str, dict[str, Any]] = {
    "one process": {},
    "one of 8, the first": {"ranks": 8},
    "one of 8, another": {"rank": 1, "ranks": 8, "digests": False},
}


def loader(options: Options) -> dict[str, Any]:
    """Tokens/s from shards of 100M tokens in the page cache, in rows of 1,024: of one process that reads whole batches,
    and of one of 8 that reads its rows of them."""
    import numpy as np

    from parity.data.shards import open_shard, write_shard
    from parity.data.stream import Reader, Segment, spans

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.bin"
        write_shard(path, np.random.default_rng(0).integers(0, VOCABULARY, 100_000_000).astype(np.uint16))
        shard = open_shard(path)
        np.asarray(shard).max()  # reads it into the page cache
        plan = [Segment(STEPS, BATCH_TOKENS, 1024)]

        def read(arguments):
            with Reader([shard], spans([len(shard)], plan), vocab_size=VOCABULARY, **arguments) as reader:
                assert sum(1 for _ in reader) == STEPS

        for name, arguments in READERS.items():
            seconds = [timed(lambda arguments=arguments: read(arguments)) for _ in range(options.turns)]
            figures[name] = {"tokens_per_s": round(STEPS * BATCH_TOKENS / statistics.median(seconds))}
        data = np.asarray(shard[: BATCH_TOKENS + 1]).tobytes()
        seconds = [timed(lambda: hashlib.sha256(data).hexdigest()) for _ in range(50)]
        figures["sha256 alone"] = {"tokens_per_s": round(50 * BATCH_TOKENS / sum(seconds))}
    return figures
