"""The slice `news`: English news articles, deduplicated, in a vocabulary of 4,096 from GPT-2's first merges."""

import csv
import io
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from parity.data.assets import ARTICLES, MERGES, fetch, fetch_into
from parity.data.builder import write_slice
from parity.data.manifest import Manifest
from parity.data.pinned import PINNED
from parity.data.tokenizer import BytePairTokenizer
from parity.errors import InputError
from parity.formats.files import sha256_bytes
from parity.progress import ProgressLine

VOCAB_SIZE = 4096
DOI = "10.7910/DVN/GMFCTR"
CSV_MEMBER = "NewsArticles.csv"
CSV_SHA256 = "1f70ad5730756d01b9d0be7b3f8433102ea3ec46f8ee82a52485f3772f83b3fe"
MIN_CHARACTERS = 201
GRAM_WORDS = 13
# An article that shares more of its 13-word sequences than this with longer ones counts as a copy.
MAX_SHARED = 0.2
VAL_FRACTION = CONFIRM_FRACTION = 0.05
SHARD_TOKENS = 1_000_000


def read_articles(archive: bytes) -> list[str]:
    """The texts longer than 200 characters, without exact copies, in the order of their digest."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        data = members.read(CSV_MEMBER)
    if sha256_bytes(data) != CSV_SHA256:
        raise InputError(
            f"{CSV_MEMBER}: expected sha256 {CSV_SHA256}, found {sha256_bytes(data)}; delete {ARTICLES.file} in the "
            "cache's assets folder and run the command again"
        )
    # One article is longer than csv's default limit for a field.
    csv.field_size_limit(1 << 24)
    rows = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))
    texts = {row["text"] for row in rows if len(row["text"]) >= MIN_CHARACTERS}
    return sorted(texts, key=_digest)


def _digest(text: str) -> str:
    return sha256_bytes(text.encode("utf-8"))


def _grams(text: str, word_ids: dict[bytes, int]) -> np.ndarray:
    """The distinct 13-word sequences of a text as 64-bit numbers; a word is a run of ASCII letters and digits."""
    # ASCII only: what Unicode calls a letter depends on the version of Python.
    words = re.findall(rb"[a-z0-9]+", text.encode("utf-8").lower()) or [b""]
    ids = np.array([word_ids.setdefault(word, len(word_ids) + 1) for word in words], np.uint64)
    size = min(GRAM_WORDS, len(ids))
    factors = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, size + 1)], np.uint64)
    return np.unique(np.lib.stride_tricks.sliding_window_view(ids, size) @ factors)


def drop_near_copies(texts: Iterable[str]) -> list[str]:
    """The texts without those that share over a fifth of their 13-word sequences with longer texts; the order is kept.

    From the longest to the shortest, so that an article that a longer one contains is dropped too.
    """
    texts = list(texts)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), _digest(texts[i])))
    word_ids: dict[bytes, int] = {}
    grams = [_grams(texts[i], word_ids) for i in order]
    owner = np.repeat(np.arange(len(grams)), [len(each) for each in grams])
    # The first text, in that order, that has a sequence owns it; all others share it.
    _, first, inverse = np.unique(np.concatenate(grams), return_index=True, return_inverse=True)
    shared = np.bincount(owner, weights=owner[first][inverse] < owner, minlength=len(grams))
    originals = {i for i, each, count in zip(order, grams, shared, strict=True) if count <= MAX_SHARED * len(each)}
    return [text for i, text in enumerate(texts) if i in originals]


def split_of(text: str) -> str:
    """The split of an article, by its digest alone: about 5% val, 5% confirm, the rest train."""
    fraction = int(_digest(text)[:8], 16) / 2**32
    return "val" if fraction < VAL_FRACTION else "confirm" if fraction < VAL_FRACTION + CONFIRM_FRACTION else "train"


def _tokenize(texts: list[str], tokenizer: BytePairTokenizer, progress: ProgressLine) -> dict[str, np.ndarray]:
    streams: dict[str, list[np.ndarray]] = {"train": [], "val": [], "confirm": []}
    total = sum(len(text) for text in texts)
    done = 0
    for text, ids in zip(texts, tokenizer.encode_documents(texts, threads=os.cpu_count() or 1), strict=True):
        streams[split_of(text)].append(np.array([tokenizer.end_of_text, *ids], np.uint16))
        done += len(text)
        progress.step("tokenising", done / 1e6, total / 1e6, "M characters")
    return {split: np.concatenate(stream) for split, stream in streams.items()}


def build(folder: Path, home: Path, train_tokens: int | None, progress: ProgressLine) -> Manifest:
    """Makes the slice in `folder`, from assets under `home`, which are downloaded once."""
    merges = fetch_into(folder, MERGES, home, progress)
    archive = fetch(ARTICLES, home, progress)
    tokenizer = BytePairTokenizer(merges.decode("utf-8"), VOCAB_SIZE)
    articles = read_articles(archive)
    texts = drop_near_copies(articles)
    progress.note(f"{len(texts):,} of {len(articles):,} articles left after near copies were dropped")
    tokens = _tokenize(texts, tokenizer, progress)
    train = np.split(tokens["train"], range(SHARD_TOKENS, len(tokens["train"]), SHARD_TOKENS))
    return write_slice(
        folder,
        {"train": train, "val": [tokens["val"]], "confirm": [tokens["confirm"]]},
        tokenizer.token_bytes(),
        PINNED["news"],
        slice="news",
        tokenizer="gpt2",
        tokenizer_sha256=tokenizer.sha256,
        source=f"News Articles, Harvard Dataverse, doi:{DOI}; member {ARTICLES.member} of {ARTICLES.requirement}",
        licence=f"not stated in the package: see the terms at doi:{DOI}; the articles stay their publishers'",
    )
