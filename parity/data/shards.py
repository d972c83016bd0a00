"""Token shards in the public speedrun's format.

A shard is 256 little-endian int32 of header (magic 20240520, version 1, number of tokens, zeros) and then that many
little-endian uint16 tokens. A document starts with the end-of-text token.
"""

from pathlib import Path

import numpy as np

from parity.errors import InputError
from parity.formats.files import atomic_file

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2
# Tokens checked at a time in a whole shard: 2 MiB.
CHUNK_TOKENS = 1 << 20


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Writes uint16 tokens (n,) as a shard, whole or not at all. Raises InputError where it cannot be written."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise TypeError(f"a shard is one row of uint16 tokens, not {tokens.dtype} of shape {tokens.shape}")
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic_file(Path(path)) as file:
        file.write(header.tobytes())
        for start in range(0, len(tokens), CHUNK_TOKENS):
            file.write(tokens[start : start + CHUNK_TOKENS].astype("<u2", copy=False).tobytes())


def open_shard(path: Path) -> np.memmap:
    """Maps a shard's tokens, uint16 (n,), read-only; nothing but the header is read.

    Raises InputError for a file that is missing, empty, of another format or version, or not exactly as long as its
    header says.
    """
    path = Path(path)
    remedy = "delete it and prepare the slice again"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: expected a token shard, found: {error.strerror}; {remedy}") from error
    if size < HEADER_BYTES:
        actual = "an empty file" if size == 0 else f"only {size:,} bytes"
        raise InputError(f"{path}: expected a shard with a header of {HEADER_BYTES:,} bytes, found {actual}; {remedy}")
    magic, version, tokens = (int(value) for value in np.frombuffer(header, "<i4", 3))
    if magic != MAGIC:
        raise InputError(f"{path}: expected a token shard (magic number {MAGIC}), found magic number {magic}; {remedy}")
    if version != VERSION:
        raise InputError(f"{path}: expected shard version {VERSION}, found version {version}; {remedy}")
    if tokens <= 0:
        raise InputError(
            f"{path}: expected a shard with at least one token, found a header that says {tokens}; {remedy}"
        )
    expected = HEADER_BYTES + TOKEN_BYTES * tokens
    if size != expected:
        raise InputError(
            f"{path}: expected {expected:,} bytes for the {tokens:,} tokens of its header, found {size:,} bytes; "
            f"{remedy}"
        )
    try:
        return np.memmap(path, "<u2", "r", HEADER_BYTES, (tokens,))
    except OSError as error:  # some network file systems cannot
        raise InputError(
            f"{path}: cannot be mapped into memory ({error.strerror}); copy the slice to another file system, and name "
            "its folder with --data-dir"
        ) from error


def check_tokens(tokens: np.ndarray, vocab_size: int, path: Path | str, first: int = 0) -> None:
    """Raises InputError unless every token is below `vocab_size`; checks them in chunks.

    `path` and `first`, the position of tokens[0] in that shard, are for the message.
    """
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        if len(chunk) and int(chunk.max()) >= vocab_size:
            where = int(np.argmax(chunk >= vocab_size))
            raise InputError(
                f"{path}: expected tokens below the vocabulary's size {vocab_size:,}, found token "
                f"{int(chunk[where]):,} at position {first + start + where:,}; delete the shard and "
                "prepare the slice again, or use the vocabulary that it was prepared with"
            )
