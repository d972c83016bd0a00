"""The slice `synthetic`: documents from a small Markov source of known entropy, made from a fixed key.

Each of the 511 words has four successors of its own with probabilities 32, 16, 10 and 5 in 64, and ends the document
with probability 1 in 64; end of text is followed by one of 16 words, all equally likely. So the stream, end-of-text
tokens and all, is one Markov chain, and its entropy rate, the best possible loss of any model, is known exactly.
"""

import functools
import math
from pathlib import Path

import numpy as np

from parity.data.builder import write_slice
from parity.data.manifest import Manifest
from parity.data.pinned import PINNED
from parity.data.tokenizer import WordTokenizer
from parity.progress import ProgressLine

VOCAB_SIZE = 512
END_OF_TEXT = VOCAB_SIZE - 1
SLOTS = 64
SUCCESSOR_SLOTS = (32, 16, 10, 5)
STARTS = 16
# The first shard is short so that even the smallest run crosses the end of one.
TRAIN_SHARD_TOKENS = (30_000, 650_000, 650_000, 670_000)
PART_TOKENS = 65_536
# One more for the last target, one more because the stream order asks for it where the part is read as a shard.
PART_SHARD_TOKENS = PART_TOKENS + 2
_KEYS = {"source": 1, "train": 2, "val": 3, "confirm": 4}


def _raw(key: int, count: int) -> np.ndarray:
    """Raw 64-bit words of a Philox generator: the one part of numpy's random numbers that is fixed for ever."""
    return np.random.Philox(key=key).random_raw(count)


@functools.cache
def slots() -> np.ndarray:
    """The source as a table (512, 64): row t holds the successors of token t, each in as many slots as it is likely."""
    # The least of eight draws: some words are much more common than others, as in a language.
    draws = iter((_raw(_KEYS["source"], 8 * 8192).reshape(-1, 8) % END_OF_TEXT).min(axis=1).tolist())
    table = np.empty((VOCAB_SIZE, SLOTS), np.uint16)
    for token in range(VOCAB_SIZE):
        counts = (SLOTS // STARTS,) * STARTS if token == END_OF_TEXT else SUCCESSOR_SLOTS
        successors: dict[int, None] = {}
        while len(successors) < len(counts):
            successors.setdefault(next(draws))
        row = np.repeat(list(successors), counts)
        table[token] = row if token == END_OF_TEXT else [*row, END_OF_TEXT]
    return table


def entropy_nats() -> float:
    """Entropy rate of the source in nats per token: each row's entropy, weighted by how often its token occurs.

    All words share one row entropy. Every word ends the document with probability 1/64, so 1 of 65 tokens is end of
    text.
    """
    word = -sum(n / SLOTS * math.log(n / SLOTS) for n in (*SUCCESSOR_SLOTS, 1))
    return (SLOTS * word + math.log(STARTS)) / (SLOTS + 1)


def sample(purpose: str, count: int) -> np.ndarray:
    """`count` tokens of the source, uint16, starting with end of text; the stream is fixed by `purpose`."""
    return sample_with_key(_KEYS[purpose], count)


def sample_with_key(key: int, count: int) -> np.ndarray:
    """As `sample`, for any key of the generator: text of the same source that is in no split."""
    # Rows are kept as offsets into the flat table, so that a step is one addition and one look-up.
    table = (slots().astype(np.int64) * SLOTS).ravel().tolist()
    choices = (_raw(key, count - 1) >> np.uint64(58)).tolist()
    state = END_OF_TEXT * SLOTS
    states = [state, *(state := table[state + choice] for choice in choices)]
    return (np.array(states) // SLOTS).astype(np.uint16)


def build(folder: Path, home: Path, train_tokens: int | None, progress: ProgressLine) -> Manifest:
    """Makes the slice in `folder`."""
    progress.note("making synthetic documents")
    tokenizer = WordTokenizer(VOCAB_SIZE)
    train = np.split(sample("train", sum(TRAIN_SHARD_TOKENS)), np.cumsum(TRAIN_SHARD_TOKENS)[:-1])
    parts = {split: [sample(split, PART_SHARD_TOKENS)] for split in ("val", "confirm")}
    return write_slice(
        folder,
        {"train": train, **parts},
        tokenizer.token_bytes(),
        PINNED["synthetic"],
        slice="synthetic",
        tokenizer="words",
        tokenizer_sha256=tokenizer.sha256,
        source="made by parity/data/synthetic.py from fixed keys of numpy's Philox generator",
        licence="Apache-2.0, as this project",
        entropy_nats=entropy_nats(),
    )
