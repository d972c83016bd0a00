"""The manifest that pins a slice: every file with its size and SHA-256, its source, and its tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.formats import schemas
from parity.formats.files import sha256_bytes, write_file

SCHEMA, SCHEMA_VERSION = "manifest.v1", 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class ShardInfo:
    """One shard: `size_bytes` of the file, and the tokens, documents and UTF-8 bytes of text in it."""

    file: str
    split: str
    sha256: str
    size_bytes: int
    tokens: int
    documents: int
    text_bytes: int | None


class Part(NamedTuple):
    """The tokens of a shard that evaluation reads: `tokens` inputs from `start`, and one more as the last target."""

    file: str
    start: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """The content of a slice.

    `vocab_size` is the tokenizer's; `entropy_nats`, per token, is known only for `synthetic`.
    """

    slice: str
    vocab_size: int
    end_of_text: int
    tokenizer: str
    tokenizer_sha256: str
    token_bytes_sha256: str
    source: str
    licence: str
    shards: tuple[ShardInfo, ...]
    parts: Mapping[str, Part]
    entropy_nats: float | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def train(self) -> tuple[ShardInfo, ...]:
        """The train shards, in the order in which they are read."""
        return tuple(shard for shard in self.shards if shard.split == "train")

    def shard(self, file: str) -> ShardInfo:
        """The entry of one file. Raises InputError for an unknown file."""
        for shard in self.shards:
            if shard.file == file:
                return shard
        known = ", ".join(shard.file for shard in self.shards)
        raise InputError(
            f"manifest of {self.slice}: expected an entry for shard {file}, found only {known}; prepare the slice again"
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        values = dict(vars(self))
        values["shards"] = [dict(vars(shard)) for shard in self.shards]
        values["parts"] = {name: part._asdict() for name, part in self.parts.items()}
        return values

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the canonical JSON (sorted keys, no spaces): it names this slice's exact content."""
        return sha256_bytes(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode())

    def used(self, train_shards: int) -> "Manifest":
        """The manifest with its first train shards only: the same after more of them were prepared."""
        used = {shard.file for shard in self.train[:train_shards]}
        return replace(self, shards=tuple(s for s in self.shards if s.split != "train" or s.file in used))

    def save(self, path: Path) -> None:
        """Writes the manifest as JSON, whole or not at all. Raises InputError where it cannot be written."""
        write_file(Path(path), (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @staticmethod
    def load(path: Path) -> "Manifest":
        """Reads and validates a manifest. Raises InputError for a missing, damaged or unknown one."""
        remedy = f"delete it and prepare the slice again: python -m parity.data prepare {Path(path).parent.name}"
        values = schemas.read(Path(path), SCHEMA, "the manifest of a slice", remedy)
        values["shards"] = tuple(ShardInfo(**shard) for shard in values["shards"])
        values["parts"] = {name: Part(**part) for name, part in values["parts"].items()}
        return Manifest(**values)
