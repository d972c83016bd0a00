"""The slice `fineweb10B`: FineWeb in GPT-2's tokens, as the public speedrun reads it, from the Hugging Face hub."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from parity.data.assets import MERGES, fetch_into
from parity.data.builder import describe, save_token_bytes
from parity.data.hub import hub_fetch
from parity.data.manifest import FILE_NAME, Manifest, Part, ShardInfo
from parity.data.shards import TOKEN_BYTES
from parity.data.tokenizer import BytePairTokenizer
from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.progress import ProgressLine


@dataclass(frozen=True)
class Source:
    """The repository of the shards, and which (start, tokens) of the val shard are val and confirm."""

    repository: str = "kjj0/fineweb10B-gpt2"
    train_shards: int = 103
    shard_tokens: int = 100_000_000
    val: tuple[int, int] = (0, 10_485_760)
    confirm: tuple[int, int] = (50_000_000, 10_485_760)
    # At most one batch is lost at the end of a shard; the public one has 524,288 tokens.
    lost_tokens: int = 524_288

    def files(self, train_tokens: int) -> list[tuple[str, str]]:
        """The (split, file) that hold so many train tokens of a plan. Raises InputError where there are fewer."""
        most = self.train_shards * self.shard_tokens
        if not 0 < train_tokens <= most:
            raise InputError(
                f"fineweb10B: expected a plan of 1 to {most:,} train tokens, which is all, found {train_tokens:,}; "
                "plan fewer steps or smaller batches, or ask for fewer with --train-tokens"
            )
        shards = min(math.ceil(train_tokens / (self.shard_tokens - self.lost_tokens)), self.train_shards)
        train = [("train", f"fineweb_train_{number:06d}.bin") for number in range(1, shards + 1)]
        return [("val", "fineweb_val_000000.bin"), *train]


def build(
    folder: Path, home: Path, train_tokens: int | None, progress: ProgressLine, source: Source = Source()
) -> Manifest:
    """Downloads the val shard and the train shards for `train_tokens` (default: one shard) into `folder`.

    The manifest is saved after every shard, so that what was downloaded stays pinned after an interruption.
    """
    path = folder / FILE_NAME
    manifest = Manifest.load(path) if path.exists() else None
    merges = fetch_into(folder, MERGES, home, progress)
    tokenizer = BytePairTokenizer(merges.decode("utf-8"), len_vocabulary(merges))
    token_bytes = tokenizer.token_bytes()
    token_bytes_sha256 = save_token_bytes(folder, token_bytes)
    files = source.files(train_tokens or 1)
    if missing := sum(not (folder / name).exists() for _, name in files):
        size_mb = missing * TOKEN_BYTES * source.shard_tokens / 1e6
        progress.note(f"downloading {missing} of {len(files)} shards, {size_mb:,.0f} MB, into {folder}")
    for number, (split, name) in enumerate(files, 1):
        pinned = _pinned(manifest, name)
        if pinned and (folder / name).exists():
            if (actual := sha256_file(folder / name)) != pinned.sha256:
                raise InputError(
                    f"{folder / name}: expected sha256 {pinned.sha256}, pinned when it was first downloaded, found "
                    f"{actual}: delete the file and run the command again"
                )
            progress.step("checking shards", number, len(files), "shards")
            continue
        progress.note(f"shard {number} of {len(files)}: {name}")
        _download(folder, name, source, pinned, progress)
        if pinned:
            continue
        info = describe(folder / name, split, tokenizer.end_of_text, token_bytes)
        if manifest is None:
            manifest = _first_manifest(info, source, tokenizer, token_bytes_sha256)
        else:
            shards = sorted((*manifest.shards, info), key=lambda shard: (shard.split == "train", shard.file))
            manifest = dataclasses.replace(manifest, shards=tuple(shards))
        manifest.save(path)
    return Manifest.load(path)


def len_vocabulary(merges: bytes) -> int:
    """The size of the whole vocabulary: 256 bytes, the merges, end of text."""
    return 256 + sum(1 for line in merges.splitlines()[1:] if line) + 1


def _pinned(manifest: Manifest | None, file: str) -> ShardInfo | None:
    return next((shard for shard in manifest.shards if shard.file == file), None) if manifest else None


def _download(folder: Path, file: str, source: Source, pinned: ShardInfo | None, progress: ProgressLine) -> None:
    """Downloads a shard, unless somebody copied it into the folder before it was pinned."""
    path = folder / file
    if pinned is None and path.exists():
        return
    hub_fetch(source.repository, file, path, progress)
    if pinned and (actual := sha256_file(path)) != pinned.sha256:
        differing = path.replace(path.with_name(f"{file}.differs"))
        raise InputError(
            f"{path}: expected sha256 {pinned.sha256}, as when it was first downloaded, found {actual} on the hub now; "
            f"the new file is {differing.name}: find out why it changed, and only if the new one is right remove the "
            "slice's folder and prepare it again"
        )


def _first_manifest(val: ShardInfo, source: Source, tokenizer: BytePairTokenizer, token_bytes_sha256: str) -> Manifest:
    """The manifest of the val shard alone. Raises InputError if the evaluated tokens do not fit into it."""
    parts = {"val": Part(val.file, *source.val), "confirm": Part(val.file, *source.confirm)}
    needed = max(part.start + part.tokens + 1 for part in parts.values())
    if val.tokens < needed:
        raise InputError(
            f"{val.file}: expected at least {needed:,} tokens for val and confirm, found {val.tokens:,}; delete it and "
            "prepare the slice again"
        )
    return Manifest(
        slice="fineweb10B",
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        tokenizer="gpt2",
        tokenizer_sha256=tokenizer.sha256,
        token_bytes_sha256=token_bytes_sha256,
        source=f"the data set {source.repository} on the Hugging Face hub: FineWeb, sample 10BT, in GPT-2's tokens",
        licence="ODC-By 1.0 (FineWeb), and Common Crawl's terms of use",
        shards=(val,),
        parts=parts,
    )
