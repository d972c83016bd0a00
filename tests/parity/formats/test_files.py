"""Files and folders that are whole or absent, whatever stops their writer."""

import os
import shutil
import subprocess
import sys

import pytest

from parity.errors import InputError
from parity.formats import files

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from parity.errors import InputError
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


def test_a_full_disk_leaves_the_old_file_no_part_of_a_new_one_and_a_sentence_each(tmp_path):
    (tmp_path / "run.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert len(messages) == 3 and all("the disk is full" in message and "free" in message for message in messages)
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
