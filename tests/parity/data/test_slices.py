import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from parity.data.slices import data_home, open_slice, prepare, problems
from parity.errors import InputError


@pytest.fixture
def home(session_home, tmp_path):
    """A copy of the prepared slice that a test may spoil."""
    shutil.copytree(session_home / "synthetic", tmp_path / "synthetic")
    return tmp_path


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "parity.data", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def test_an_opened_slice_has_its_train_shards_and_parts(session_home):
    opened = open_slice("synthetic", session_home)
    assert opened.train_lengths == [30_000, 650_000, 650_000, 670_000]
    for name in ("val", "confirm"):
        shard, start, tokens = opened.part(name)
        assert isinstance(shard, np.memmap) and tokens == 65_536 and start + tokens + 1 <= len(shard)
    assert opened.token_bytes.shape == (512,) and opened.token_bytes[511] == 0 and opened.token_bytes[0] == 2
    with pytest.raises(InputError, match="part: expected one of the slice synthetic, found 'vla'; did you mean val"):
        opened.part("vla")


def test_opening_a_prepared_slice_takes_under_a_tenth_of_a_second(session_home):
    open_slice("synthetic", session_home)
    start_s = time.perf_counter()
    open_slice("synthetic", session_home)
    assert time.perf_counter() - start_s < 0.1


def test_the_data_folder_is_the_argument_or_the_environment_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXRUN_DATA", str(tmp_path))
    assert data_home() == tmp_path and data_home("here").name == "here"
    monkeypatch.delenv("JAXRUN_DATA")
    assert data_home().name == "jaxrun" and data_home().is_absolute()


def test_a_slice_that_is_not_here_is_refused_with_the_command_that_prepares_it(tmp_path):
    with pytest.raises(InputError, match=f"run python -m parity.data prepare news --data-dir {tmp_path}"):
        open_slice("news", tmp_path)


def test_an_unknown_slice_is_refused_with_the_nearest_name(tmp_path):
    for function in (open_slice, prepare, problems):
        with pytest.raises(InputError, match="found 'synthetc'; did you mean synthetic"):
            function("synthetc", tmp_path)


def test_a_manifest_that_names_a_missing_shard_is_refused(home):
    (home / "synthetic" / "train_000002.bin").unlink()
    with pytest.raises(InputError, match="train_000002.bin: expected a token shard, found: No such file"):
        open_slice("synthetic", home)


def test_a_shard_with_another_number_of_tokens_than_its_manifest_says_is_refused(home):
    folder = home / "synthetic"
    shutil.copy(folder / "train_000001.bin", folder / "train_000000.bin")
    with pytest.raises(InputError, match="train_000000.bin: expected 30,000 tokens as its manifest says, found 650"):
        open_slice("synthetic", home)


def test_a_part_that_does_not_fit_its_shard_is_refused(home):
    path = home / "synthetic" / "manifest.json"
    values = json.loads(path.read_text())
    values["parts"]["val"]["start"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="expected part val to end within the 65,538 tokens of val_000000.bin, found"):
        open_slice("synthetic", home)


def test_the_manifest_of_another_slice_is_refused(home):
    shutil.copytree(home / "synthetic", home / "news")
    with pytest.raises(InputError, match="expected the manifest of news, found that of synthetic"):
        open_slice("news", home)


@pytest.mark.parametrize("file", ["train_000003.bin", "val_000000.bin", "token_bytes.npy"])
def test_check_finds_one_changed_byte_and_prepare_repairs_it(home, file):
    path = home / "synthetic" / file
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    sentences = problems("synthetic", home)
    assert len(sentences) == 1 and str(path) in sentences[0] and "expected sha256" in sentences[0]
    assert command("check", "synthetic", "--data-dir", home).returncode == 1
    prepare("synthetic", home)
    assert problems("synthetic", home) == []


def test_check_finds_a_token_above_the_vocabulary(home):
    path = home / "synthetic" / "train_000000.bin"
    data = bytearray(path.read_bytes())
    data[1024:1026] = (512).to_bytes(2, "little")
    path.write_bytes(data)
    assert "found token 512 at position 0" in problems("synthetic", home)[0]


def test_check_finds_shards_that_are_not_the_pinned_ones_though_their_manifest_agrees(home):
    path = home / "synthetic" / "manifest.json"
    values = json.loads(path.read_text())
    values["shards"][0]["sha256"], real = "0" * 64, values["shards"][0]["sha256"]
    path.write_text(json.dumps(values))
    sentences = problems("synthetic", home)
    assert any(f"has sha256 {'0' * 64} instead of {real}" in problem for problem in sentences)


def test_two_builders_at_once_build_once(tmp_path):
    start = [sys.executable, "-m", "parity.data", "prepare", "synthetic", "--data-dir", str(tmp_path)]
    both = [subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(errors).count("making synthetic documents") == 1
    assert problems("synthetic", tmp_path) == []


def test_a_builder_waits_for_one_that_holds_the_lock_and_then_finds_the_slice(home, tmp_path):
    import filelock

    away = (home / "synthetic").rename(home / "away")
    with filelock.FileLock(home / "synthetic.lock"):
        start = [sys.executable, "-m", "parity.data", "prepare", "synthetic", "--data-dir", str(home)]
        other = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert "prepares synthetic" in other.stderr.readline()
        assert other.poll() is None
        away.rename(home / "synthetic")
    assert "making" not in other.communicate(timeout=120)[1] and other.returncode == 0
    assert sorted(path.name for path in home.iterdir()) == ["synthetic"]


def test_a_whole_slice_is_opened_while_another_process_holds_its_lock(home):
    with locked_by_another(home / "synthetic.lock"):
        assert prepare("synthetic", home).train_lengths == [30_000, 650_000, 650_000, 670_000]


def test_waiting_for_a_builder_has_an_end_and_names_its_process(home):
    (home / "synthetic" / "manifest.json").unlink()
    with locked_by_another(home / "synthetic.lock") as pid:
        ran = command("prepare", "synthetic", "--data-dir", home, JAXRUN_WAIT_S="0.5")
    assert ran.returncode == 2
    waiting, error = ran.stderr.splitlines()
    assert f"another process (pid {pid}) prepares synthetic in {home}: waiting for it, 0.5 s at most" in waiting
    assert f"(pid {pid}) still prepares synthetic in {home} after 0.5 s" in error
    assert command("prepare", "synthetic", "--data-dir", home, JAXRUN_WAIT_S="soon").returncode == 2


@contextlib.contextmanager
def locked_by_another(path):
    """A process that holds a slice's lock; its pid."""
    code = (
        "import sys; from pathlib import Path; from parity.formats.folder_lock import waited_for\n"
        "with waited_for(Path(sys.argv[1]), 'waits', 5, print): print('held', flush=True); sys.stdin.read()"
    )
    start = [sys.executable, "-c", code, str(path)]
    other = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        yield other.pid
    finally:
        other.communicate()


@pytest.mark.parametrize("file", ["train_000003.bin", "manifest.json", "token_bytes.npy"])
def test_a_damaged_slice_is_named_with_what_was_expected_before_it_is_made_again(home, file):
    path = home / "synthetic" / file
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    ran = command("prepare", "synthetic", "--data-dir", home)
    first, second = ran.stderr.splitlines()
    assert first.startswith(f"{path}: expected ") and first.endswith(": it is made again") and "found" in first
    assert second == "making synthetic documents" and ran.returncode == 0
    assert file == "manifest.json" or hashlib.sha256(data).hexdigest() in first


def test_what_a_killed_builder_left_is_cleared_and_the_slice_is_built(home):
    folder = home / "synthetic"
    (folder / "manifest.json").unlink()
    (folder / ".train_000001.bin.123.tmp").write_bytes(b"half")
    (folder / "train_000001.bin").unlink()
    prepare("synthetic", home)
    assert problems("synthetic", home) == [] and not list(folder.glob(".*"))


def test_a_file_that_may_not_be_so_large_is_one_sentence_and_what_was_there_before_stays(tmp_path):
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"sys.argv = ['data', 'prepare', 'synthetic', '--data-dir', {str(tmp_path)!r}];"
        "runpy.run_module('parity.data', run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "train_000001.bin: cannot be written (File too large)" in ran.stderr and "ulimit -f" in ran.stderr
    left = sorted(path.name for path in (tmp_path / "synthetic").iterdir())
    assert left == ["token_bytes.npy", "train_000000.bin"]
    prepare("synthetic", tmp_path)
    assert problems("synthetic", tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    ran = command("prepare", "synthetic", "--data-dir", tmp_path / "x")
    assert ran.returncode == 2 and "cannot be written" in ran.stderr and "--data-dir" in ran.stderr


def test_a_file_in_the_place_of_the_data_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    ran = command("prepare", "synthetic", "--data-dir", tmp_path / "x")
    assert ran.returncode == 2 and f"{tmp_path / 'x'}: cannot be written" in ran.stderr and "--data-dir" in ran.stderr


def test_list_shows_what_is_here(session_home):
    ran = command("list", JAXRUN_DATA=str(session_home))
    lines = {line.split()[0]: line for line in ran.stdout.splitlines()[2:]}
    assert ran.returncode == 0 and set(lines) == {"synthetic", "news", "fineweb10B"}
    assert " yes " in lines["synthetic"] and "2,000,000" in lines["synthetic"] and " no " in lines["fineweb10B"]


def test_check_is_0_for_a_whole_slice_and_2_for_one_that_is_not_here(session_home, tmp_path):
    assert command("check", "synthetic", "--data-dir", session_home).returncode == 0
    ran = command("check", "synthetic", "--data-dir", tmp_path)
    assert ran.returncode == 2 and "python -m parity.data prepare synthetic" in ran.stderr


def test_a_wrong_option_is_one_line_and_exit_code_2():
    ran = command("prepare", "news", "--train-token", "x")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and "invalid int value: 'x'" in ran.stderr


def test_the_commands_start_without_heavy_imports():
    script = (
        "import sys, parity.data.command, parity.data.slices, parity.data.stream;"
        "print([name for name in ('jax', 'torch', 'tiktoken', 'requests', 'huggingface_hub') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout.strip()
        == "[]"
    )
