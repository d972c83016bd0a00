"""The manifest that pins a slice: every file with its size and SHA-256, where it is from, and how it was tokenised."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.formats.files import replacing, sha256_bytes

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
SCHEMA_PATH = Path(__file__).parents[1] / "formats" / "schemas" / "manifest.v1.json"


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
    """The window of a shard that evaluation reads: `tokens` inputs from `start`, and one more token as last target."""

    file: str
    start: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """What a slice is. `vocab_size` is the tokenizer's; `entropy_nats`, per token, is known only of `synthetic`."""

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
        """The entry of one file. Raises InputError where there is none."""
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
        """The manifest with its first train shards only: the same whether or not more of them were prepared since."""
        kept = {shard.file for shard in self.train[:train_shards]}
        return replace(self, shards=tuple(s for s in self.shards if s.split != "train" or s.file in kept))

    def save(self, path: Path) -> None:
        """Writes the manifest as JSON, whole or not at all. Raises InputError where it cannot be written."""
        with replacing(Path(path)) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())

    @staticmethod
    def load(path: Path) -> "Manifest":
        """Reads and validates a manifest. Raises InputError for one missing, unreadable, of another version or form."""
        path = Path(path)
        mend = f"prepare the slice again: python -m parity.data prepare {path.parent.name}"
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: expected the manifest of a slice, found: {error.strerror}; {mend}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected JSON, found something else ({error}); delete it and {mend}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path}: expected a manifest of version {SCHEMA_VERSION}, found version {version}; delete it, {mend}"
            )
        reason = _invalid(values)
        if reason:
            reason = reason if len(reason) <= 300 else reason[:297] + "..."
            raise InputError(f"{path}: expected a manifest as {SCHEMA_PATH.name} describes it, found: {reason}; {mend}")
        values["shards"] = tuple(ShardInfo(**shard) for shard in values["shards"])
        values["parts"] = {name: Part(**part) for name, part in values["parts"].items()}
        return Manifest(**values)


@functools.cache
def _validator() -> Any:
    import fastjsonschema

    return fastjsonschema.compile(json.loads(SCHEMA_PATH.read_text()))


def _invalid(values: Any) -> str | None:
    import fastjsonschema

    try:
        _validator()(values)
    except fastjsonschema.JsonSchemaValueException as error:
        return error.message
    return None
