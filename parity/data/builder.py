"""Common to the builders of slices: the folder's files, and a shard's entry in the manifest."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from parity.data.manifest import FILE_NAME, Manifest, Part, ShardInfo
from parity.data.shards import CHUNK_TOKENS, check_tokens, open_shard, write_shard
from parity.errors import InputError
from parity.formats.files import sha256_bytes, sha256_file, write_file

TOKEN_BYTES_FILE = "token_bytes.npy"
# The evaluated tokens are whole rows of any usual length.
PART_MULTIPLE = 1024


def save_token_bytes(folder: Path, token_bytes: np.ndarray) -> str:
    """Writes the table of bytes per token and returns the file's SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, token_bytes, allow_pickle=False)
    write_file(folder / TOKEN_BYTES_FILE, buffer.getvalue())
    return sha256_bytes(buffer.getvalue())


def describe(path: Path, split: str, end_of_text: int, token_bytes: np.ndarray, sha256: str | None = None) -> ShardInfo:
    """A shard's entry in the manifest, counted from the file. Raises InputError for a bad shard."""
    tokens = open_shard(path)
    check_tokens(tokens, len(token_bytes), path)
    documents = text_bytes = 0
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        documents += int(np.count_nonzero(chunk == end_of_text))
        text_bytes += int(token_bytes[chunk].sum(dtype=np.int64))
    return ShardInfo(
        file=path.name,
        split=split,
        sha256=sha256 or sha256_file(path),
        size_bytes=path.stat().st_size,
        tokens=len(tokens),
        documents=documents,
        text_bytes=text_bytes,
    )


def whole_part(shard: ShardInfo) -> Part:
    """All of a shard that can be scored in rows of 1,024 tokens, with one token left for the last target."""
    return Part(shard.file, 0, (shard.tokens - 1) // PART_MULTIPLE * PART_MULTIPLE)


def write_slice(
    folder: Path,
    splits: dict[str, list[np.ndarray]],
    token_bytes: np.ndarray,
    pinned: dict[str, str],
    **described: Any,
) -> Manifest:
    """Writes a slice that is built here: its shards (uint16), its table of bytes per token, and last its manifest.

    `splits` has the shards of train, val and confirm; `pinned` the SHA-256 that every shard must have; `described` the
    other fields of the manifest. Raises InputError where a digest differs, and then leaves no manifest.
    """
    (folder / FILE_NAME).unlink(missing_ok=True)
    token_bytes_sha256 = save_token_bytes(folder, token_bytes)
    end_of_text = len(token_bytes) - 1
    infos = []
    for split, shards in splits.items():
        for number, tokens in enumerate(shards):
            path = folder / f"{split}_{number:06d}.bin"
            write_shard(path, tokens)
            infos.append(describe(path, split, end_of_text, token_bytes))
    manifest = Manifest(
        vocab_size=len(token_bytes),
        end_of_text=end_of_text,
        token_bytes_sha256=token_bytes_sha256,
        shards=tuple(infos),
        parts={info.split: whole_part(info) for info in infos if info.split != "train"},
        **described,
    )
    differing = pin_differences(manifest, pinned)
    if differing:
        raise InputError(
            f"{folder}: expected the shards pinned in parity/data/pinned.py, found that {differing[0]}; use the "
            "versions in constraints.txt (numpy, tiktoken), and report it if they differ with those"
        )
    manifest.save(folder / FILE_NAME)
    return manifest


def pin_differences(manifest: Manifest, pinned: dict[str, str]) -> list[str]:
    """How a manifest's shards differ from the pinned ones: a clause for each."""
    digests = {shard.file: shard.sha256 for shard in manifest.shards}
    clauses = [
        f"{file} has sha256 {digests.get(file)} instead of {sha}"
        for file, sha in pinned.items()
        if digests.get(file) != sha
    ]
    return clauses + [f"{file} is not among the pinned" for file in digests if file not in pinned]
