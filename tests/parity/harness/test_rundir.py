"""The run directory: made once, locked while live, and never half written."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.formats.files import DISK_FULL
from parity.harness import rundir

RUN = {
    "schema": "run.v1",
    "track": "tiny",
    "recipe": {"name": "muon", "fields": {"layers": 4}},
    "seed": 0,
    "backend": "jaxrun",
    "precision": "float32",
    "created_utc": "2026-01-02T03:04:05Z",
    "command": ["python", "-m", "jaxrun.train"],
    "devices": [{"kind": "cpu", "platform": "cpu", "count": 1}],
    "host": {"cpu": "a cpu", "cores": 2, "memory_bytes": 8_000_000_000, "os": "Linux", "python": "3.12.1"},
    "versions": {"numpy": "2.4.6"},
    "slice": {"name": "synthetic", "digest": "ab" * 32},
    "source_sha256": "cd" * 32,
    "environment": {"OMP_NUM_THREADS": "2"},
    "plan": [{"steps": 60, "tokens": 1024, "seq_len": 64}],
    "val_tokens": 8192,
    "checkpoints": [0, 20, 40, 60],
    "flops": None,
}


@pytest.fixture
def run(tmp_path):
    with rundir.create(tmp_path, "tiny", "first") as made:
        yield made


# Making and opening


def test_create_makes_track_and_name_under_the_root_and_gives_its_places(tmp_path):
    with rundir.create(tmp_path / "runs", "tiny", "first") as run:
        assert run.path == tmp_path / "runs" / "tiny" / "first" and run.checkpoints.is_dir()
        places = (run.run_json, run.log, run.weights, run.source, run.curve, run.verdict)
        assert [place.name for place in places] == [
            "run.json",
            "log.jsonl",
            "weights.safetensors",
            "source.zip",
            "curve.png",
            "verdict.json",
        ]


def test_a_run_that_exists_is_not_made_again_and_the_message_offers_resume_and_name(run, tmp_path):
    with pytest.raises(InputError, match=f"{run.path} exists: .*--resume {run.path}.*--name"):
        rundir.create(tmp_path, "tiny", "first")


def test_without_a_name_the_default_is_taken_with_a_number_where_it_exists(tmp_path):
    names = []
    for _ in range(3):
        with rundir.create(tmp_path, "tiny", None, default="muon-jaxrun-s0-20260102-030405") as run:
            names.append(run.path.name.removeprefix("muon-jaxrun-s0-20260102-030405"))
    assert names == ["", "-2", "-3"]


def test_the_default_name_has_recipe_backend_seed_and_date():
    assert re.fullmatch(r"muon-jaxrun-s7-20\d{6}-\d{6}", rundir.default_name("muon", "jaxrun", 7))


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/abs", ".hidden"])
def test_a_name_that_is_no_plain_directory_name_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="--name"):
        rundir.create(tmp_path / "runs", "tiny", name)
    assert not (tmp_path / "runs").exists()


def test_a_root_that_cannot_hold_directories_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        rundir.create(tmp_path / "file", "tiny", "first")


NOT_WRITABLE = """
import os, sys, tempfile
from parity.errors import InputError
from parity.harness import rundir
if os.getuid() == 0:
    os.setuid(65534)
try:
    rundir.create(sys.argv[1], "tiny", "first")
except InputError as error:
    print(error)
"""


def test_a_root_that_the_user_may_not_write_to_is_refused(tmp_path):
    """The file system's own answer, from a process without root's rights, on a directory that it can reach."""
    closed = Path("/usr")
    if not closed.is_dir() or (os.getuid() != 0 and os.access(closed, os.W_OK)):
        pytest.skip("no directory that is closed to this user")
    code = f"import filelock, fastjsonschema\n{NOT_WRITABLE}"
    done = subprocess.run([sys.executable, "-c", code, str(closed)], capture_output=True, text=True, check=False)
    assert "cannot be made (Permission denied): choose a --runs directory" in done.stdout, done.stderr


def test_open_existing_refuses_what_is_missing_a_file_or_has_no_run_json(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, found in (("missing", "nothing"), ("file", "a file"), ("empty", "expected run.json in it, found none")):
        with pytest.raises(InputError, match=f"{name} is not a run directory: .*{found}"):
            rundir.open_existing(tmp_path / name)


def test_open_existing_reads_a_live_run_without_its_lock(run):
    run.write_run_json(RUN)
    assert rundir.open_existing(run.path).read_run_json() == RUN


# Before a run begins


def leftovers(path: Path) -> None:
    """What kill -9 leaves before the log has a line."""
    (path / "checkpoints").mkdir(parents=True)
    for name in (".lock", "source.zip", "run.json", ".run.json.12.tmp"):
        (path / name).write_text("half")
    (path / ".lock.pid").write_text("4194300")
    (path / "log.jsonl").write_text('{"n":1,"event":"sta')


def test_what_is_left_of_a_run_that_never_began_is_made_anew(tmp_path):
    leftovers(tmp_path / "tiny" / "first")
    with rundir.create(tmp_path, "tiny", "first") as run:
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", ".lock.pid", "checkpoints"]
    with rundir.create(tmp_path, "tiny", "first") as run:
        pass
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "checkpoints/step-000000/state", "weights.safetensors", ".own.12.tmp/mine"]
)
def test_a_directory_with_anything_else_in_it_is_left_alone(tmp_path, name):
    path = tmp_path / "tiny" / "first"
    leftovers(path)
    (path / "run.json").unlink()
    (path / name).parent.mkdir(exist_ok=True, parents=True)
    (path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is no run directory: .* found one without run.json: remove it, or .*--name"):
        rundir.create(tmp_path, "tiny", "first")
    assert sorted(tmp_path.rglob("*")) == before and (path / name).read_text() == "mine"


def test_a_run_whose_log_has_a_line_is_left_alone(tmp_path):
    path = tmp_path / "tiny" / "first"
    leftovers(path)
    (path / "log.jsonl").write_text('{"n":1}\n')
    with pytest.raises(InputError, match="exists: continue it with --resume"):
        rundir.create(tmp_path, "tiny", "first")
    assert (path / "run.json").read_text() == "half"


def test_resuming_what_is_left_of_a_run_that_never_began_says_to_start_it_again(tmp_path):
    leftovers(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match="only what a process made before: start the run with its --name again"):
        rundir.open_existing(tmp_path)


def test_discarding_removes_what_this_process_made_and_nothing_that_was_there(tmp_path):
    run = rundir.create(tmp_path / "runs", "tiny", "first")
    run.source.write_text("zip")
    run.discard()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    rundir.create(tmp_path / "runs", "tiny", "first").discard()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    leftovers(tmp_path / "runs/tiny/first")
    run = rundir.create(tmp_path / "runs", "tiny", "first")
    (run.path / "notes.txt").write_text("mine")
    run.discard()
    assert (run.path / "notes.txt").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("call", ["OPEN", "WRITE"])
def test_a_directory_that_cannot_be_written_is_not_left_there(tmp_path, shim, number, call):
    code = NOT_WRITABLE.replace("os.setuid(65534)", "pass")
    below = tmp_path / "tiny/first/" if call == "OPEN" else tmp_path
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | shim(BELOW=below, **{call: number}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert os.strerror(number) in done.stdout and ("free some space" in done.stdout) == (number in DISK_FULL)
    assert list(tmp_path.iterdir()) == []


# The lock

HOLDER = """
import sys
from parity.harness import rundir
run = rundir.open_existing(sys.argv[1], lock=True)
print("locked", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"locked\n"
    return child


def test_a_run_locked_by_another_process_is_refused_with_its_pid_until_that_process_ends(run):
    run.write_run_json(RUN)
    run.release()
    child = holder(run.path)
    try:
        for _ in range(2):
            with pytest.raises(InputError, match=rf"is locked by a live run \(pid {child.pid}\)"):
                rundir.open_existing(run.path, lock=True)
    finally:
        child.communicate(b"")
    rundir.open_existing(run.path, lock=True).release()


def test_kill_9_of_the_holder_frees_the_lock(run):
    run.write_run_json(RUN)
    run.release()
    child = holder(run.path)
    child.kill()
    child.communicate()
    rundir.open_existing(run.path, lock=True).release()


def test_a_run_is_locked_from_its_creation_on_in_its_own_process_too(run):
    run.write_run_json(RUN)
    with pytest.raises(InputError, match=rf"locked by a live run \(pid {os.getpid()}\)"):
        rundir.open_existing(run.path, lock=True)


# run.json


def test_run_json_comes_back_as_it_was_written_and_leaves_no_other_file(run):
    run.write_run_json(RUN)
    run.write_run_json({**RUN, "flops": {"step": 1.5e9}, "remark": "further fields are allowed"})
    assert run.read_run_json()["flops"] == {"step": 1.5e9}
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", ".lock.pid", "checkpoints", "run.json"]


@pytest.mark.parametrize("name", list(RUN))
def test_a_field_of_run_json_that_is_missing_is_refused_by_its_name_on_both_sides(run, name):
    lacking = {key: value for key, value in RUN.items() if key != name}
    with pytest.raises(ValueError, match=name):
        run.write_run_json(lacking)
    assert not run.run_json.exists()
    run.run_json.write_text(json.dumps(lacking))
    with pytest.raises(InputError, match=rf"run\.json.*{name}"):
        run.read_run_json()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("seed", -1),
        ("seed", "0"),
        ("precision", "float16"),
        ("created_utc", "yesterday"),
        ("command", []),
        ("plan", []),
        ("slice", {"name": "news", "digest": "12"}),
        ("devices", []),
        ("environment", {"A": 1}),
        ("flops", "many"),
    ],
)
def test_a_field_of_run_json_that_is_wrong_is_refused_by_its_name(run, name, bad):
    with pytest.raises(ValueError, match=f"run.json: .*{name}"):
        run.write_run_json({**RUN, name: bad})


@pytest.mark.parametrize("version", ["run.v2", None, 1])
def test_an_unknown_version_of_run_json_is_refused(run, version):
    run.run_json.write_text(json.dumps({**RUN, "schema": version}))
    with pytest.raises(InputError, match=f"expected schema run.v1, found {version!r}"):
        run.read_run_json()


@pytest.mark.parametrize("data", [b"", b'{"schema": "run.v1", "tr', b"\xff\x00", b"{}\n{}"])
def test_a_torn_run_json_is_refused(run, data):
    run.run_json.write_bytes(data)
    with pytest.raises(InputError, match=r"run\.json: expected .*it is torn or was changed"):
        run.read_run_json()
