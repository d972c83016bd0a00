"""Run directories made to harm: each gets one sentence and exit code 1 or 2, in seconds and in little memory."""

import io
import json
import os
import signal
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.verify.command import main
from parity.verify.evidence import open_run

MOST_S, MOST_BYTES = 10, 1_500_000_000
TERABYTE = 1 << 40
Harm = Callable[[Path], object]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(target: str) -> Harm:
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    other = path.with_name(path.name + ".other")
    path.symlink_to(other)
    other.symlink_to(path)


def bound_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(TERABYTE)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("nothing")


KINDS: dict[str, Harm] = {
    "pipe": pipe,
    "endless": link("/dev/zero"),
    "stdin": link("/dev/stdin"),
    "loop": loop,
    "dangling": link("nothing"),
    "outside": link("/etc/passwd"),
    "socket": bound_socket,
    "folder": folder,
    "sparse": sparse,
    "empty": Path.touch,
}
READ_FIRST = ("run.json", "log.jsonl", "source.zip")
KEPT = ("weights.safetensors", "checkpoints/step-000030", "checkpoints/step-000030/checkpoint.json")


def replace(path: Path, harm: Harm) -> None:
    """Puts something else where a file or folder is."""
    if path.is_dir():
        path.rename(path.with_name("moved-" + path.name))
    else:
        path.unlink(missing_ok=True)
    harm(path)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails for more than MOST_S seconds, a wait for ever included, and for more than MOST_BYTES of memory."""

    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {MOST_S} s")

    status = Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        assert int(peak.split()[1]) * 1024 < MOST_BYTES


def judged(path: Path, capsys: pytest.CaptureFixture, *options: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    capsys.readouterr()
    with bounded():
        code = main([str(path), "--depth", "log", "--no-write", *options])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out and printed.err.count("\n") <= 1 + str(path).count("\n")
    return code, printed.err + printed.out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READ_FIRST)
def test_another_kind_of_file_where_evidence_belongs(copied, capsys, name, kind):
    path = copied("torchref").path
    replace(path / name, KINDS[kind])
    code, printed = judged(path, capsys)
    assert code in (1, 2) and (name in "".join(printed.split()) or "log.form" in printed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sparse", "empty")])
def test_a_lock_that_is_no_file_is_refused_at_once(copied, capsys, kind):
    path = copied("torchref").path
    replace(path / ".lock", KINDS[kind])
    code, printed = judged(path, capsys)
    assert code == 2 and ".lock" in printed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", KEPT)
def test_another_kind_of_file_where_weights_and_checkpoints_belong(copied, commands, capsys, name, kind):
    path = copied("torchref").path
    replace(path / name, KINDS[kind])
    if name == KEPT[0]:
        with bounded(), pytest.raises(InputError, match=name):
            _ = open_run(path).final_weights
    else:
        code, printed = judged(path, capsys, "--depth", "data", "--data-dir", str(commands.data))
        assert code in (1, 2) and "step-000030" in "".join(printed.split())


def _write_zip(path: Path, members: list[tuple[str, bytes]], how: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members:
            archive.writestr(name, data)


def bomb(run: Path) -> None:
    _write_zip(run / "source.zip", [("a.py", bytes(200 << 20))])


def bomb_in_a_bomb(run: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.py", bytes(100 << 20))
    _write_zip(run / "source.zip", [(f"{i}.py", inner.getvalue()) for i in range(900)])


def lzma_with_a_large_dictionary(run: Path) -> None:
    _write_zip(run / "source.zip", [("a.py", b"pass\n" * 100)], zipfile.ZIP_LZMA)
    data = bytearray((run / "source.zip").read_bytes())
    at = data.index(b"\x09\x04\x05\x00") + 5  # the properties of LZMA, of which four bytes are the dictionary's size
    data[at : at + 4] = struct.pack("<I", 3 << 30)
    (run / "source.zip").write_bytes(data)


def many_members(run: Path) -> None:
    _write_zip(run / "source.zip", [(f"{i}.py", b"") for i in range(30_000)], zipfile.ZIP_STORED)


def names_outside(run: Path) -> None:
    _write_zip(run / "source.zip", [("../../up.py", b""), ("/etc/x.py", b""), ("a\nb.py", b"")])


def deep_json(run: Path) -> None:
    (run / "run.json").write_text("[" * 1_000_000)


def wide_json(run: Path) -> None:
    (run / "run.json").write_text("[" + "[]," * 1_300_000 + "[]]")


def large_json(run: Path) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(values | {"note": "x" * (100 << 20)}))


def one_long_line(run: Path) -> None:
    with open(run / "log.jsonl", "wb") as file:
        file.write(b'{"n":1,"event":"' + b"a" * (300 << 20))


def many_events(run: Path) -> None:
    line = json.dumps({"n": 2, "event": "sample", "clock_s": 1.0, "time_s": 1.0, "text": "x" * 100_000, "prev": ""})
    with open(run / "log.jsonl", "ab") as file:
        for _ in range(1000):
            file.write(line.encode() + b"\n")


def no_unicode(run: Path) -> None:
    (run / "log.jsonl").write_bytes(b'{"n":1,"event":"\xff\xfe"}\n')


def many_neighbours(run: Path) -> None:
    for i in range(3000):
        (run.parent / f"beside-{i}").touch()
    (run.parent / "beside").mkdir()
    os.mkfifo(run.parent / "beside" / "log.jsonl")
    (run / "source.zip").unlink()


def odd_names(run: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b"x" * 255, b"-rf", b"RUN.JSON"):
        (run / os.fsdecode(name)).touch()
    (run / "source.zip").unlink()


def hard_link(run: Path) -> None:
    (run / "run.json").unlink()
    os.link(run / "log.jsonl", run / "run.json")


def twin_of_itself(run: Path) -> None:
    (run.parent / "again").symlink_to(run)
    (run / "inside").symlink_to(run.parent)
    (run / "source.zip").unlink()


HARMS = (
    *(bomb, bomb_in_a_bomb, lzma_with_a_large_dictionary, many_members, names_outside, deep_json, wide_json),
    *(large_json, one_long_line, many_events, no_unicode, many_neighbours, odd_names, hard_link, twin_of_itself),
)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_directory_made_to_harm(copied, capsys, harm: Harm):
    path = copied("torchref").path
    harm(path)
    code, printed = judged(path, capsys)
    assert code in (1, 2) and printed.strip()


def many_files(run: Path) -> None:
    for i in range(11_000):
        (run / "checkpoints" / "step-000030" / f"f{i}").touch()


def deep_folders(run: Path) -> None:
    inner = run / "checkpoints" / "step-000030"
    for _ in range(40):
        inner /= "d" * 20
        inner.mkdir()
    os.mkfifo(inner / "p")


def linked_folder(run: Path) -> None:
    folder = run / "checkpoints"
    folder.rename(run.parent / "elsewhere")
    folder.symlink_to(run.parent / "elsewhere")


@pytest.mark.parametrize("harm", [many_files, deep_folders, linked_folder], ids=lambda harm: harm.__name__)
def test_a_checkpoint_made_to_harm(copied, commands, capsys, harm: Harm):
    path = copied("torchref").path
    harm(path)
    code, _ = judged(path, capsys, "--depth", "data", "--data-dir", str(commands.data))
    assert code in (1, 2)


def test_names_that_no_folder_can_have(capsys):
    for name in ("x" * 5000, "a/" * 3000, "new\nline", "\udcff"):
        assert main([name, "--depth", "log"]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_run_whose_own_name_is_odd(copied, capsys):
    path = copied("torchref").path
    odd = path.rename(path.with_name(os.fsdecode(b"a\nb\xff\x1b[2J")))
    assert judged(odd, capsys)[0] == 0
    (odd / "log.jsonl").unlink()
    code, printed = judged(odd, capsys)
    assert code == 2 and "\x1b" not in printed


def test_a_verdict_is_not_written_through_what_lies_there(copied, tmp_path):
    path, kept = copied("torchref").path, tmp_path / "kept"
    kept.write_text("kept")
    (path / "verdict.json").symlink_to(kept)
    assert main([str(path), "--depth", "log"]) == 0
    assert kept.read_text() == "kept" and json.loads((path / "verdict.json").read_text())["status"] == "holds"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoints/step-000030", "checkpoints/step-000060"])
@pytest.mark.parametrize("kind", ["pipe", "outside", "sparse", "folder"])
def test_the_default_depth_is_no_more_patient(copied, commands, capsys, name, kind):
    path = copied("torchref").path
    replace(path / name, KINDS[kind])
    begin_s = time.monotonic()
    assert main([str(path), "--data-dir", str(commands.data), "--device", "cpu", "--no-write"]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err and time.monotonic() - begin_s < 120
