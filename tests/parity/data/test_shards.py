import errno
import os
from pathlib import Path

import numpy as np
import pytest

from parity.data.shards import CHUNK_TOKENS, check_tokens, open_shard, write_shard
from parity.errors import InputError


def patch(path: Path, offset: int, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(4, "little", signed=True))


def test_a_written_shard_is_the_public_format_byte_for_byte(make_shard):
    data = make_shard([5, 65535, 0]).read_bytes()
    header = np.frombuffer(data[:1024], "<i4")
    assert list(header[:3]) == [20240520, 1, 3] and not header[3:].any()
    assert data[1024:] == bytes([5, 0, 255, 255, 0, 0])


def test_a_shard_is_mapped_read_only_and_gives_back_its_tokens(make_shard):
    tokens = open_shard(make_shard(range(1000)))
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and tokens.tolist() == list(range(1000))
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        (0, 20240519, "magic number 20240520.*found magic number 20240519"),
        (4, 2, "expected shard version 1, found version 2"),
        (8, 9, r"expected 1,042 bytes for the 9 tokens of its header, found 1,044 bytes"),
        (8, 11, r"expected 1,046 bytes.*found 1,044 bytes"),
        (8, 0, "at least one token, found a header that says 0"),
        (8, -10, "at least one token, found a header that says -10"),
    ],
    ids=["magic", "version", "longer than its header says", "shorter than its header says", "no tokens", "negative"],
)
def test_a_wrong_header_is_refused_with_what_was_expected_and_found(make_shard, offset, value, sentence):
    path = make_shard(range(10))
    patch(path, offset, value)
    with pytest.raises(InputError, match=f"{path}.*{sentence}.*prepare"):
        open_shard(path)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [(0, "found an empty file"), (1023, "found only 1,023 bytes"), (1043, "expected 1,044 bytes.*found 1,043 bytes")],
    ids=["empty", "within the header", "by one byte"],
)
def test_a_truncated_shard_is_refused(make_shard, size, sentence):
    path = make_shard(range(10))
    with open(path, "r+b") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=f"{path}.*{sentence}.*prepare"):
        open_shard(path)


def test_a_missing_shard_and_a_folder_in_its_place_are_refused(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(InputError, match=f"{path}.*expected a token shard, found.*prepare"):
            open_shard(path)


def test_a_token_above_the_vocabulary_is_found_where_it_stands_also_in_a_later_chunk(make_shard):
    tokens = np.zeros(CHUNK_TOKENS + 10, np.uint16)
    tokens[CHUNK_TOKENS + 3] = 4096
    path = make_shard(tokens)
    sentence = f"{path}: expected tokens below the vocabulary's size 4,096, found token 4,096 at position 1,048,579"
    with pytest.raises(InputError, match=sentence):
        check_tokens(open_shard(path), 4096, path)
    check_tokens(open_shard(path), 4097, path)


def test_a_failed_write_leaves_the_old_shard_and_no_temporary_file(make_shard, monkeypatch):
    path = make_shard([1, 2, 3])

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parity.formats.files.os.fsync", no_space)
    with pytest.raises(InputError, match=f"{path}: the disk is full.*free some space"):
        write_shard(path, np.array([4], np.uint16))
    assert open_shard(path).tolist() == [1, 2, 3] and [path] == list(path.parent.iterdir())


def test_a_file_system_that_cannot_map_files_is_one_sentence(make_shard, monkeypatch):
    def cannot(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    path = make_shard([1, 2, 3])
    monkeypatch.setattr(np, "memmap", cannot)
    with pytest.raises(InputError, match="cannot be mapped into memory .*; copy the slice to another file system"):
        open_shard(path)
