"""The known slices: how they are prepared, opened and checked, and their folder."""

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parity.cli import check_text, environment_seconds, user_cache
from parity.data.assets import FOLDER as ASSETS
from parity.data.builder import TOKEN_BYTES_FILE, pin_differences
from parity.data.documents import DocumentIndex
from parity.data.manifest import FILE_NAME, Manifest, Part
from parity.data.pinned import PINNED
from parity.data.shards import check_tokens, open_shard
from parity.data.tokenizer import BytePairTokenizer, WordTokenizer, load_tokenizer
from parity.errors import InputError, nearest
from parity.formats.files import cannot_write, remove_temporary, sha256_file
from parity.formats.folder_lock import waited_for
from parity.progress import ProgressLine

DATA_VARIABLE = "JAXRUN_DATA"
WAIT_VARIABLE, WAIT_S = "JAXRUN_WAIT_S", 3600.0  # for another process that prepares the slice

# Name, sentence. The module of a slice has `build`, and is only imported to prepare it.
SLICES = {
    "synthetic": "documents from a small Markov source of known entropy, made here in a second: for tests",
    "news": "3,600 English news articles, 3.4M tokens of a vocabulary of 4,096, built here from a 10 MB download",
    "fineweb10B": "web text, up to 10.3B GPT-2 tokens, 200 MB a shard from the Hugging Face hub: the public track's",
}
_MODULES = {name: f"parity.data.{name}" for name in SLICES} | {"fineweb10B": "parity.data.fineweb"}


def data_home(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the slices: `data_dir`, or the environment's JAXRUN_DATA, or the user's cache folder.

    Raises InputError where it is below a home that the system does not know.
    """
    chosen = data_dir or os.environ.get(DATA_VARIABLE) or user_cache() or "~"
    folder = os.path.expanduser(chosen)
    if folder.startswith("~"):
        raise InputError(
            f"{chosen}: expected a home folder of this user for the slices, found none: set HOME, or {DATA_VARIABLE} "
            "to a folder"
        )
    return Path(folder)


def prepare_command(name: str, data_dir: str | Path | None = None) -> str:
    """The command that prepares a slice."""
    return f"python -m parity.data prepare {name}" + (f" --data-dir {data_dir}" if data_dir else "")


@dataclass(frozen=True)
class Slice:
    """An opened slice: its manifest, and its train shards in order, each mapped, uint16 (tokens,)."""

    directory: Path
    manifest: Manifest
    train: list[np.memmap]

    @property
    def name(self) -> str:
        """The slice's name."""
        return self.manifest.slice

    @property
    def train_lengths(self) -> list[int]:
        """The number of tokens of each train shard, in order."""
        return [len(shard) for shard in self.train]

    @functools.cached_property
    def documents(self) -> DocumentIndex:
        """The documents of the train shards, read when they are first asked for."""
        return DocumentIndex(self.train, self.manifest.end_of_text)

    def part(self, name: str) -> tuple[np.memmap, int, int]:
        """Where "val" or "confirm" is: its shard, the first input's position, and how many tokens can be scored.

        The shard holds at least start + tokens + 1 tokens. Raises InputError for another name, or a bad shard.
        """
        if name in self._parts:
            return self._parts[name]
        if name not in self.manifest.parts:
            raise InputError(
                f"part: expected one of the slice {self.name}, found {name!r}; {nearest(name, self.manifest.parts)}"
            )
        part = self.manifest.parts[name]
        shard = _open(self.directory, self.manifest, part.file)
        _check_part(self.directory, name, part, len(shard))
        self._parts[name] = shard, part.start, part.tokens
        return self._parts[name]

    @functools.cached_property
    def _parts(self) -> dict[str, tuple[np.memmap, int, int]]:
        """The parts that were opened, by name."""
        return {}

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """How many bytes of UTF-8 text each token stands for, uint16 (vocab_size,); 0 for end of text."""
        return _load_token_bytes(self.directory, self.manifest)

    def tokenizer(self) -> BytePairTokenizer | WordTokenizer:
        """The tokenizer: encode(text), decode(ids), end_of_text. Raises InputError where its file is another."""
        tokenizer = load_tokenizer(self.manifest.tokenizer, self.manifest.vocab_size, self.directory)
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise InputError(
                f"{self.directory}: expected a tokenizer with sha256 {self.manifest.tokenizer_sha256}, found "
                f"{tokenizer.sha256}; run {prepare_command(self.name)} again"
            )
        return tokenizer


def _known(name: str) -> None:
    if name not in SLICES:
        raise InputError(f"slice: expected the name of one, found {name!r}; {nearest(name, SLICES)}")


def _open(directory: Path, manifest: Manifest, file: str) -> np.memmap:
    tokens, info = open_shard(directory / file), manifest.shard(file)
    if len(tokens) != info.tokens:
        raise InputError(
            f"{directory / file}: expected {info.tokens:,} tokens as its manifest says, found {len(tokens):,}; delete "
            f"it and run {prepare_command(manifest.slice)}"
        )
    return tokens


def _check_part(directory: Path, name: str, part: Part, tokens: int) -> None:
    if part.start + part.tokens + 1 > tokens:
        raise InputError(
            f"{directory / FILE_NAME}: expected part {name} to end within the {tokens:,} tokens of {part.file}, found "
            f"{part.tokens:,} tokens from {part.start:,}; prepare the slice again"
        )


def _load_token_bytes(directory: Path, manifest: Manifest) -> np.ndarray:
    path = directory / TOKEN_BYTES_FILE
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: expected the bytes of each token, found: {error}; run {prepare_command(manifest.slice)}"
        ) from error
    if table.dtype != np.uint16 or table.shape != (manifest.vocab_size,):
        raise InputError(
            f"{path}: expected uint16 of shape ({manifest.vocab_size},), found {table.dtype} of shape {table.shape}; "
            f"run {prepare_command(manifest.slice)}"
        )
    return table


def _load(name: str, data_dir: str | Path | None) -> tuple[Path, Manifest]:
    """A prepared slice's folder and manifest."""
    _known(name)
    directory = data_home(data_dir) / name
    path = directory / FILE_NAME
    if not path.exists():
        raise InputError(f"{path}: expected the slice {name}, found none; run {prepare_command(name, data_dir)}")
    manifest = Manifest.load(path)
    if manifest.slice != name:
        raise InputError(
            f"{path}: expected the manifest of {name}, found that of {manifest.slice}; move it to its own folder, and "
            f"run {prepare_command(name, data_dir)}"
        )
    return directory, manifest


def open_slice(name: str, data_dir: str | Path | None = None) -> Slice:
    """Opens a prepared slice: every shard's header and size are checked, nothing else is read, no network is used.

    Raises InputError, with the command that prepares it, where it is missing, and for any bad file.
    """
    directory, manifest = _load(name, data_dir)
    mapped = {info.file: _open(directory, manifest, info.file) for info in manifest.shards}
    for part_name, part in manifest.parts.items():
        _check_part(directory, part_name, part, manifest.shard(part.file).tokens)
    return Slice(directory, manifest, [mapped[info.file] for info in manifest.train])


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    train_tokens: int | None = None,
    progress: ProgressLine | None = None,
) -> Slice:
    """Opens a slice, prepared first unless it is here, whole and as pinned; at most one process builds it at a time.

    A whole slice is opened without a lock and without writing anything. `train_tokens` is how many a plan needs, for a
    slice that is downloaded shard by shard. Raises InputError for an unknown name, and where the machine is offline,
    the disk is full, a digest differs, or another process holds the slice for longer than JAXRUN_WAIT_S.
    """
    _known(name)
    progress = progress or ProgressLine(silent=True)
    wait_s = environment_seconds(WAIT_VARIABLE, WAIT_S)
    home = data_home(data_dir)
    directory = home / name
    check_text(directory, "the data folder")
    damage = _damage(name, data_dir, train_tokens, progress)
    if damage == "":
        return open_slice(name, data_dir)
    if damage and name in PINNED:
        progress.note(f"{damage}: it is made again")
    lock = waited_for(home / f"{name}.lock", f"prepares {name} in {home}", wait_s, progress.note)
    with _folders(directory, home / ASSETS), lock as waited:
        # another process may have made it meanwhile; the digests of shards that are downloaded are read once
        if (waited or name in PINNED) and _damage(name, data_dir, train_tokens, progress) == "":
            return open_slice(name, data_dir)
        remove_temporary(directory)
        importlib.import_module(_MODULES[name]).build(directory, home, train_tokens, progress)
    return open_slice(name, data_dir)


@contextmanager
def _folders(directory: Path, assets: Path) -> Iterator[None]:
    """The folders of a slice; those that stay empty are removed. Raises InputError where they cannot be made."""
    missing = [folder for folder in (assets, directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(directory.parent, error) from error
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _damage(name: str, data_dir: str | Path | None, train_tokens: int | None, progress: ProgressLine) -> str | None:
    """What is wrong with the slice that is here, as far as a plan needs it: "" if nothing is, None if it is not all
    here."""
    if not (data_home(data_dir) / name / FILE_NAME).exists():
        return None
    try:
        directory, manifest = _load(name, data_dir)
    except InputError:
        return f"{data_home(data_dir) / name / FILE_NAME}: expected the manifest of {name}, found a damaged one"
    files = known = {shard.file for shard in manifest.shards}
    if name in PINNED:
        progress = ProgressLine(silent=True)
    else:
        files = {file for _, file in importlib.import_module(_MODULES[name]).Source().files(train_tokens or 1)}
        if not all(file in known and (directory / file).exists() for file in files):
            return None
    used = replace(manifest, shards=tuple(shard for shard in manifest.shards if shard.file in files))
    return next(_findings(name, directory, used, progress), "")


def problems(name: str, data_dir: str | Path | None = None, progress: ProgressLine | None = None) -> list[str]:
    """What is wrong with a prepared slice, a sentence each: every digest and every token is checked.

    Raises InputError where it cannot be judged: not prepared, or no valid manifest.
    """
    directory, manifest = _load(name, data_dir)
    again = f"delete it and run {prepare_command(name, data_dir)}"
    found = _findings(name, directory, manifest, progress or ProgressLine(silent=True))
    return [f"{finding}; {again}" for finding in found]


def _findings(name: str, directory: Path, manifest: Manifest, progress: ProgressLine) -> Iterator[str]:
    """What is wrong with a slice's files, a clause each."""
    yield from (f"{directory / FILE_NAME}: {clause}" for clause in _unpinned(name, manifest))
    sizes = [info.size_bytes for info in manifest.shards]
    for number, info in enumerate(manifest.shards, 1):
        path = directory / info.file
        try:
            check_tokens(_open(directory, manifest, info.file), manifest.vocab_size, path)
            if (actual := sha256_file(path)) != info.sha256:
                yield f"{path}: expected sha256 {info.sha256}, found {actual}"
        except InputError as error:
            yield _finding(error)
        progress.step("checking", sum(sizes[:number]) / 1e6, sum(sizes) / 1e6, "MB")
    try:
        for part_name, part in manifest.parts.items():
            _check_part(directory, part_name, part, manifest.shard(part.file).tokens)
        opened = Slice(directory, manifest, [])
        opened.tokenizer()
        _ = opened.token_bytes
        if (actual := sha256_file(directory / TOKEN_BYTES_FILE)) != manifest.token_bytes_sha256:
            yield f"{directory / TOKEN_BYTES_FILE}: expected sha256 {manifest.token_bytes_sha256}, found {actual}"
    except InputError as error:
        yield _finding(error)


def _finding(error: InputError) -> str:
    """What an error says is wrong, without what to do about it."""
    return str(error).rpartition("; ")[0] or str(error)


def _unpinned(name: str, manifest: Manifest) -> list[str]:
    return pin_differences(manifest, PINNED[name]) if name in PINNED else []
