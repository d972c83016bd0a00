"""Text to tokens and back: prefixes of GPT-2's merges through tiktoken, and the synthetic slice's words."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats.files import sha256_bytes

# How GPT-2 cuts text into pieces before it merges bytes within each.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"
MERGES_FILE = "vocab.bpe"


def byte_pair_tokens(merges: str) -> list[bytes]:
    """The bytes of every token in the order of its id, from the text of GPT-2's `vocab.bpe`.

    The file writes a byte as its Latin-1 character where that is visible, and the others, in order, as the characters
    from U+0100 on. The first 256 ids are the bytes in the order visible, others; each merge adds the next id.
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = [bytes([byte]) for byte in visible + others]
    lines = merges.split("\n")[1:]
    return tokens + [bytes(byte_of[char] for char in line if char != " ") for line in lines if line]


class BytePairTokenizer:
    """GPT-2's tokenizer cut to `vocab_size`: the merges of rank below vocab_size - 1, and the last id as end of text.

    Any prefix of the merges is a valid byte-pair encoding. Raises InputError where the merges are too few.
    """

    def __init__(self, merges: str, vocab_size: int):
        tokens = byte_pair_tokens(merges)
        if not 257 <= vocab_size <= len(tokens) + 1:
            raise InputError(
                f"tokenizer: expected a vocabulary of 257 to {len(tokens) + 1:,}, found {vocab_size:,}; "
                "use a size in that range"
            )
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1
        self._tokens = tokens[: vocab_size - 1]

    @property
    def sha256(self) -> str:
        """SHA-256, hexadecimal, of the pattern and of every token's bytes in the order of its id."""
        return sha256_bytes("\n".join([PATTERN, *(token.hex() for token in self._tokens)]).encode())

    @functools.cached_property
    def _encoding(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            f"gpt2-{self.vocab_size}",
            pat_str=PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(self._tokens)},
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.vocab_size,
        )

    def token_bytes(self) -> np.ndarray:
        """How many bytes of UTF-8 text each token stands for, uint16 (vocab_size,); 0 for end of text."""
        return np.array([len(token) for token in self._tokens] + [0], np.uint16)

    def encode(self, text: str) -> list[int]:
        """The tokens of ordinary text; what looks like the end-of-text mark is text too."""
        return self._encoding.encode_ordinary(text)

    def encode_documents(self, texts: Iterable[str], threads: int, batch: int = 128) -> Iterator[list[int]]:
        """As `encode`, of many texts, some at a time."""
        texts = list(texts)
        for start in range(0, len(texts), batch):
            yield from self._encoding.encode_ordinary_batch(texts[start : start + batch], num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no whole UTF-8 character become U+FFFD."""
        return self._encoding.decode([int(token) for token in ids], errors="replace")


class WordTokenizer:
    """The synthetic slice's: a token is the decimal number of its id, and words are separated by spaces."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1

    @property
    def sha256(self) -> str:
        """SHA-256, hexadecimal, of the words."""
        return sha256_bytes(" ".join(str(token) for token in range(self.vocab_size)).encode())

    def token_bytes(self) -> np.ndarray:
        """2 for every token, uint16 (vocab_size,), and 0 for end of text: a convention, since there is no text."""
        return np.array([2] * (self.vocab_size - 1) + [0], np.uint16)

    def encode(self, text: str) -> list[int]:
        """The tokens of words. Raises InputError for a word that is no number below the vocabulary's size."""
        for word in text.split():
            if not (word.isascii() and word.isdigit() and int(word) < self.vocab_size):
                raise InputError(
                    f"text for the synthetic slice: expected numbers from 0 to {self.vocab_size - 1} separated by "
                    f"spaces, found {word!r}; write only such numbers"
                )
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of tokens."""
        return " ".join(str(int(token)) for token in ids)


def load_tokenizer(name: str, vocab_size: int, folder: Path) -> BytePairTokenizer | WordTokenizer:
    """The tokenizer that a manifest names. Raises InputError where its file is missing or its name unknown."""
    if name == "words":
        return WordTokenizer(vocab_size)
    if name != "gpt2":
        raise InputError(f"{folder}: expected tokenizer gpt2 or words, found {name}; prepare the slice again")
    try:
        merges = (folder / MERGES_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder / MERGES_FILE}: expected GPT-2's merges, found: {error}; run python -m parity.data prepare "
            f"{folder.name}"
        ) from error
    return BytePairTokenizer(merges, vocab_size)
