"""Runs where the surroundings are not as on a laptop: file systems, limits, names, homes; nothing is left behind."""

import errno
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.harness.train import train
from parity.program_source import program_source

NO_HOME = {"HOME": "/dev/null", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": "/dev/null/x", "JAX_COMPILATION_CACHE_DIR": ""}


@pytest.fixture
def arguments(commands, tmp_path):
    """Arguments of a run of four steps."""
    return lambda backend, *more: commands.small(
        backend, tmp_path / "runs", "r", "--steps", "4", "--samples", "0", *more
    )


def limited(size_bytes: int):
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def test_a_run_on_a_clusters_file_system_with_no_home(commands, arguments, shim, tmp_path):
    """Without flock, where folders cannot be synced, the data is read-only and no cache or configuration is written."""
    cluster = shim(FLOCK=errno.ENOSYS, SYNC=errno.EINVAL, BELOW=commands.data, OPEN=errno.EROFS) | NO_HOME
    done = commands.run(*arguments("torchref"), env=cluster)
    assert (done.code, done.err) == (0, "") and "\n  building " in done.out
    folder = tmp_path / "runs/tiny/r"
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert 0 < json.loads((folder / "run.json").read_text())["build_s"] < 60
    done = commands.run(*arguments("torchref"), env=cluster)
    assert done.code == 2 and "exists: continue it with --resume" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_killed_run_without_flock_is_resumed(commands, arguments, shim, tmp_path, number):
    cluster = shim(FLOCK=number)
    process = commands.start(*arguments("torchref", "--steps", "400", "--val-every", "10"), env=cluster)
    for line in process.stdout:
        if " 10/400  val" in line:
            break
    folder = tmp_path / "runs/tiny/r"
    done = commands.run("torchref.train", "--resume", folder, env=cluster)
    assert f"is locked by a live run (pid {process.pid})" in done.err
    process.kill()
    process.communicate()
    process = commands.start("torchref.train", "--resume", folder, "--data-dir", commands.data, env=cluster)
    assert any("compiling" in process.stdout.readline() for _ in range(2))  # the first says what is lost
    process.kill()
    process.communicate()


UNKNOWN_USER = """
import os, pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
"""


@pytest.fixture
def unknown_user(commands, tmp_path):
    """The environment of a user whom the system does not know, as in a container: without a home."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(UNKNOWN_USER)
    return {"PYTHONPATH": f"{tmp_path / 'site'}:{commands.env['PYTHONPATH']}", "JAX_COMPILATION_CACHE_DIR": ""}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["not-writable", "none"])
def test_without_a_home_nothing_of_libraries_is_printed(commands, arguments, unknown_user, kind):
    done = commands.run(*arguments("jaxrun"), env=unknown_user if kind == "none" else NO_HOME)
    assert (done.code, done.err) == (0, "")


def test_slices_need_a_home_or_a_folder(commands, tmp_path, unknown_user):
    done = commands.run("parity.data", "prepare", "synthetic", env=unknown_user, cwd=tmp_path)
    assert done.code == 2 and "set HOME, or JAXRUN_DATA" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.slow
def test_a_new_folder_for_temporary_files_is_no_finding_of_the_guard(commands, arguments, tmp_path):
    """PyTorch makes a cache in it with the first optimizer, as in a job of a cluster that has a TMPDIR of its own."""
    (tmp_path / "new").mkdir()
    done = commands.run(*arguments("torchref"), env={"TMPDIR": str(tmp_path / "new")})
    assert (done.code, done.err) == (0, "")
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/r/log.jsonl").read_text().splitlines()]
    assert {len(event["events"]) for event in events if event["event"] == "guard"} == {0}


def test_a_working_directory_that_is_gone_is_one_sentence(commands):
    code = (
        "import os, sys, tempfile; os.chdir(tempfile.mkdtemp()); os.rmdir(os.getcwd()); from parity.start import start"
    )
    code += "; sys.exit(start('parity.data.command'))"
    done = subprocess.run([sys.executable, "-c", code], env=commands.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: the working directory is gone")


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize(
    ("size_bytes", "file"),
    [(100_000, "source.zip"), pytest.param(900_000, "checkpoints/step-000000", marks=pytest.mark.slow)],
)
def test_a_limit_on_the_size_of_files_is_one_sentence(commands, arguments, tmp_path, backend, size_bytes, file):
    done = commands.run(*arguments(backend, "--dim", "256"), preexec_fn=limited(size_bytes))
    (line,) = done.err.splitlines()
    path = tmp_path / "runs/tiny/r"
    assert done.code == 2 and line.startswith(f"error: {path / file}: cannot be written (File too large)")
    assert "ulimit -f" in line and "free some space" not in line
    if file == "source.zip":
        assert list(tmp_path.iterdir()) == []  # not even the folder `runs`
    else:
        assert sorted(path.name for path in path.iterdir()) == ["checkpoints", "log.jsonl", "run.json", "source.zip"]
        assert list((path / "checkpoints").iterdir()) == []


BYTES = os.fsdecode(b"caf\xe9")
ODD = {
    "runs": ["--runs", f"{BYTES}/runs"],
    "runs-by-a-link": ["--runs=link/runs"],
    "data": ["--data-dir", BYTES],
    "data-by-a-link": ["--data-dir=link"],
    "name": [f"--name={BYTES}"],
    "program": ["--program", f"{BYTES}/program.py"],
    "resume": ["--resume", f"{BYTES}/run"],
}


@pytest.mark.parametrize("name", [*ODD, "working-directory", "TMPDIR", "JAXRUN_DATA"])
def test_a_path_that_is_no_text_is_refused_before_anything_is_made(commands, tmp_path, name):
    folder = Path(tmp_path, BYTES)
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    command = ["torchref.train", "--track", "tiny", "--data-dir", commands.data, *ODD.get(name, [])]
    env = {name: str(folder)} if name.isupper() else {}
    done = commands.run(*command, cwd=folder if name == "working-directory" else tmp_path, env=env)
    (line,) = done.err.splitlines()
    assert done.code == 2 and "expected a path in UTF-8, found bytes that are not" in line
    assert sorted(tmp_path.rglob("*")) == sorted([folder, tmp_path / "link"])


@pytest.mark.parametrize("name", ["modèle.py", ".hidden.py", "new\nline.py", "program.txt"])
def test_a_program_whose_name_run_json_cannot_have_is_refused(arguments, tmp_path, name):
    program = tmp_path / name
    program.write_text(program_source("torchref", "muon"))
    with pytest.raises(InputError, match=f"--program {tmp_path}.*(?s:.)*rename it"):
        train("torchref", list(map(str, arguments("torchref", "--program", program)[1:])))
    assert list(tmp_path.iterdir()) == [program]


def test_foreign_files_in_the_packages_folder_change_nothing(commands, arguments, tmp_path):
    """A copy of this project with what macOS and editors leave: its run is verified by the project without them."""
    root, copy = Path(__file__).parents[3], tmp_path / "copy"
    copy.mkdir()
    for package in ("parity", "torchref"):
        subprocess.run(["cp", "-r", root / package, copy], check=True)
        for name in ("._model.py", "model copy.py", "model.py~"):
            (copy / package / name).write_bytes(b"\0\xff")
        (copy / package / ".#model.py").symlink_to("me@host.1:2")
        (copy / package / os.fsdecode(b"m\xff.py")).write_bytes(b"")
    done = commands.run(*arguments("torchref"), env={"PYTHONPATH": str(copy)}, cwd=copy)
    assert (done.code, done.err) == (0, "")
    run = tmp_path / "runs/tiny/r"
    for path in (root, copy):
        done = commands.run("parity.verify", run, "--depth", "log", env={"PYTHONPATH": str(path)}, cwd=tmp_path)
        assert done.code == 0, done.out


def test_no_folder_for_temporary_files_is_one_sentence(tmp_path):
    code = (
        "import sys, tempfile; from parity.errors import run_command; from parity.harness import setup\n"
        "tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']\n"
        "sys.exit(run_command(lambda: setup.watch(setup.Request('torchref', setup.Options(), None, None, 0), None)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "set TMPDIR to one" in done.stderr
