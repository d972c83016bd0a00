"""Files and folders that are whole or absent, whatever stops their writer."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from parity.errors import InputError, run_command
from parity.formats import files

TOO_LARGE = """
import resource, signal, sys
from pathlib import Path
from parity.errors import InputError, run_command
from parity.formats import files, source_zip
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
def attempt(act):
    try:
        act()
    except InputError as error:
        print(error)
here = Path(sys.argv[1])
def directory():
    with files.atomic_folder(here / "checkpoint") as made:
        (made / "small").write_bytes(b"x" * 900)
        (made / "large").write_bytes(b"x" * 5000)
attempt(lambda: files.write_file(here / "run.json", b"x" * 5000))
attempt(lambda: source_zip.pack(here / "source.zip", [Path(files.__file__).parent], []))
attempt(directory)
"""


def test_a_limit_on_the_size_of_files_leaves_the_old_file_no_part_of_a_new_one_and_a_sentence_each(tmp_path):
    (tmp_path / "run.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", TOO_LARGE, tmp_path], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert len(messages) == 3 and all("(File too large)" in message and "ulimit -f" in message for message in messages)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "old"


# Folders that appear whole


def test_an_atomic_folder_is_there_only_after_its_block(tmp_path):
    path = tmp_path / "checkpoints" / "20"
    with files.atomic_folder(path) as made:
        (made / "deep").mkdir()
        (made / "deep" / "file").write_text("whole")
        assert made.parent == path.parent and not path.exists()
    assert (path / "deep" / "file").read_text() == "whole" and os.listdir(path.parent) == ["20"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, FileNotFoundError])
def test_an_atomic_folder_whose_block_fails_is_gone_and_the_error_is_the_blocks_own(tmp_path, error):
    with pytest.raises(error), files.atomic_folder(tmp_path / "20") as made:
        (made / "file").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_atomic_folder_never_overwrites(tmp_path):
    (tmp_path / "20").mkdir()
    with pytest.raises(InputError, match="exists"), files.atomic_folder(tmp_path / "20"):
        raise AssertionError("the block ran")


KILLED = """
import os, signal, sys
from parity.formats import files, source_zip
with files.atomic_folder(sys.argv[1]) as made:
    (made / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_atomic_folder_whose_process_was_killed_is_not_there_and_can_be_made_again(tmp_path):
    path = tmp_path / "20"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert not path.exists()
    with files.atomic_folder(path) as made:
        assert os.listdir(made) == []
    assert os.listdir(tmp_path) == ["20"]


def test_free_bytes_is_that_of_the_nearest_directory_that_exists(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert abs(files.free_bytes(tmp_path / "not" / "there") - free) < free / 2


# File systems as clusters have them

WRITES = """
import errno, sys
from pathlib import Path
from parity.errors import InputError, run_command
from parity.formats import chain_log, files
from parity.formats.run_log import FORMAT
from parity.declaration.record import Record
here = Path(sys.argv[1])
def folder():
    with files.atomic_folder(here / "checkpoint") as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("whole")
def log():
    with chain_log.ChainLog(here / "log.jsonl", FORMAT) as made:
        made.append("start", {})
acts = {"file": lambda: files.write_file(here / "file", b"whole"), "folder": folder, "log": log,
        "record": lambda: Record(here / "attempt.jsonl").append("stopped", reason="a test") and 0}
codes = {name: run_command(act) for name, act in acts.items()}
print(codes)
"""


def writes(folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", WRITES, folder], env=os.environ | environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_written_all_the_same(shim, tmp_path, number):
    done = writes(tmp_path, **shim(SYNC=number))
    assert done.stdout == "{'file': 0, 'folder': 0, 'log': 0, 'record': 0}\n" and done.stderr == ""
    assert sorted(os.listdir(tmp_path)) == ["attempt.jsonl", "checkpoint", "file", "log.jsonl"]
    assert (tmp_path / "file").read_text() == (tmp_path / "checkpoint/inner/file").read_text() == "whole"


def test_a_disk_that_fails_while_a_folder_is_synced_is_an_error(shim, tmp_path):
    assert writes(tmp_path, **shim(SYNC=errno.EIO)).stderr.count("check the disk and its connection") == 4


@pytest.mark.parametrize("call", ["OPEN", "WRITE"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "remount it for writing"),
        (errno.EACCES, "check the permissions of its folder"),
        (errno.EFBIG, "raise the limit on the size of files (ulimit -f)"),
        (errno.EIO, "check the disk and its connection"),
        (errno.ESTALE, "check the network file system"),
    ],
)
def test_every_writer_says_what_to_do_by_the_systems_reason_and_leaves_nothing(shim, tmp_path, call, number, words):
    done = writes(tmp_path, **shim(BELOW=tmp_path, **{call: number}))
    assert done.stdout == "{'file': 2, 'folder': 2, 'log': 2, 'record': 2}\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all(words in line and os.strerror(number) in line for line in lines), done.stderr
    assert ("free some space" in done.stderr) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert set(os.listdir(tmp_path)) <= {"log.jsonl", "attempt.jsonl"}


def test_room_that_a_file_system_does_not_tell_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    assert files.free_bytes(tmp_path) > 1 << 60


def test_an_error_of_the_system_that_nobody_explained_is_the_users_and_a_missing_file_is_ours(capsys):
    def fails(number: int) -> int:
        raise OSError(number, os.strerror(number), "a/file")

    assert run_command(lambda: fails(errno.EMFILE)) == 2 and run_command(lambda: fails(errno.ENOENT)) == 3
    assert "a/file: cannot be read or written (Too many open files): raise the limit" in capsys.readouterr().err
