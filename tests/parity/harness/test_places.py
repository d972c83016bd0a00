"""Where a run may read, write and find compilers; and what the guard records of everything else."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest

from parity.harness.guard import Guard, large_variables
from parity.harness.places import OF_PROCESS, Places, is_package, is_worker
from parity.user_program import load

SITE = sysconfig.get_paths()["purelib"]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    for part in ("compiled", "tmp"):
        (tmp_path / "scratch" / part).mkdir(parents=True)
    return tmp_path / "scratch"


@pytest.fixture
def places(tmp_path: Path, scratch: Path) -> Places:
    (tmp_path / "run").mkdir()
    return Places([tmp_path / "program.py"], [tmp_path / "run"], scratch)


def test_a_run_writes_in_its_own_places_only(places, tmp_path, scratch):
    for path in (tmp_path / "run/log.jsonl", scratch / "tmp/x", Path("/dev/null")):
        assert places.may_write(str(path), own=True)
    for path in ("/dev/shm/x", "/sys/x", "/proc/self/mem", f"{SITE}/x.pyc", "/usr/x", str(tmp_path / "program.py")):
        assert not places.may_write(path, own=True) and not places.may_write(path, own=False)


def test_a_new_users_cache_may_be_made_with_the_folders_on_the_way_to_it(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    places = Places([], [])
    with Guard(tmp_path / "data", places) as guard:
        (home / ".cache/jaxrun/x").mkdir(parents=True)
        (home / ".cache/other").mkdir()
        (home / ".cache/file").write_bytes(b"")
    events = [event["what"].removeprefix("os.mkdir ") for event in guard.collect()["events"]]
    assert events == [f"{home}/.cache/other", f"{home}/.cache/file"]


def test_only_packages_write_what_they_compile(places, scratch):
    path = str(scratch / "compiled/torchinductor/ab/c.so")
    assert places.may_write(path, own=False) and not places.may_write(path, own=True)
    assert places.may_load(path, own=False) and not places.may_load(str(scratch / "tmp/c.so"), own=False)


def test_memory_of_processes_and_of_the_machine_is_no_place_to_read(places):
    me = os.getpid()
    for path in (f"/proc/{me}/status", f"/proc/{me}/task/{me}/stat", "/proc/cpuinfo", "/sys/devices/system/cpu"):
        assert places.may_read(path, __file__)
    for path in (
        f"/proc/{me}/mem",
        f"/proc/{os.getppid()}/environ",
        "/proc/1/status",
        "/dev/shm/x",
        "/dev/shm",
        "/dev",
    ):
        assert not places.may_read(path, __file__)
    assert not OF_PROCESS.fullmatch(f"/proc/{me}/map_files/x")


def test_of_data_in_the_systems_folders_a_megabyte_is_read(places, tmp_path, monkeypatch):
    monkeypatch.setattr("parity.harness.places.SYSTEM", (str(tmp_path / "etc"),))
    (tmp_path / "etc").mkdir()
    for name, size in (("small", 1000), ("large", 1 << 20)):
        (tmp_path / "etc" / name).write_bytes(bytes(size))
    assert places.may_read(str(tmp_path / "etc/small"), __file__)
    assert not places.may_read(str(tmp_path / "etc/large"), __file__)


def test_a_package_reads_its_own_files_and_anyone_reads_code(places):
    data = np.__file__.replace("__init__.py", "data.bin")
    assert places.may_read(data, np.__file__) and places.may_read(np.__file__, __file__)


@pytest.mark.parametrize(
    "words",
    [
        ["python3", "-c", "pass"],
        [sys.executable, "-c", "import program; program.train()"],
        [sys.executable, "train.py"],
        ["g++", "-wrapper", "python3,train.py"],
        ["g++", "-B/home/me", "x.cpp"],
        ["g++", "-specs=/home/me/specs"],
        ["g++", "-fplugin=/home/me/helper.so"],
        ["g++", "@options"],
        ["sh", "-c", "g++ --version"],
        ["true"],
    ],
)
def test_another_program_is_no_compiler(places, words):
    assert places.compiler(words[0], words, None, None) is None


def test_a_compiler_is_known_by_where_it_is_and_not_by_its_name(places, tmp_path, scratch):
    gcc = scratch / "tmp" / "gcc"
    gcc.write_text("#!/bin/sh\n")
    gcc.chmod(0o700)
    assert places.compiler(str(gcc), [str(gcc), "--version"], None, None) is None
    assert places.compiler("gcc", ["gcc", "x.c"], None, {"PATH": str(gcc.parent)}) is None
    linked = scratch / "tmp" / "g++"
    linked.symlink_to(gcc)
    assert places.compiler("./g++", ["./g++", "x.c"], str(linked.parent), None) is None


@pytest.mark.skipif(not os.path.exists("/usr/bin/g++"), reason="no compiler here")
def test_the_systems_compiler_compiles_what_is_the_runs_own(places, tmp_path, scratch):
    source, foreign = scratch / "compiled" / "a.cpp", tmp_path / "helper.cpp"
    source.touch(), foreign.touch()
    words = ["g++", str(source), "-O3", "-shared", "-o", str(scratch / "compiled" / "a.so")]
    assert places.compiler("g++", words, None, None)
    assert not places.compiler("g++", ["g++", str(foreign), "-o", str(scratch / "compiled/a.so")], None, None)
    assert not places.compiler("g++", ["g++", str(source), "-o", "/dev/shm/a.so"], None, None)
    assert not places.compiler("g++", words, None, {**os.environ, "LD_PRELOAD": "/home/me/helper.so"})


def test_pytorchs_own_pythons_are_known(places, scratch):
    library = scratch / "compiled" / "probe.so"
    imports = 'import sys\nif sys.platform != "linux":\n    import torch  # noqa\nfrom ctypes import cdll'
    probe = f'\n{imports}\ncdll.LoadLibrary("{library}")\n'
    assert places.compiler(sys.executable, [sys.executable, "-c", probe], None, None)
    for text in (
        probe + "import os\n",
        probe.replace(str(scratch), "/home/me"),
        probe.replace("cdll\n", "cdll; x()\n"),
    ):
        assert not places.compiler(sys.executable, [sys.executable, "-c", text], None, None)
    worker = f"{SITE}/torch/_inductor/compile_worker/__main__.py"
    assert is_worker([sys.executable, worker, "--workers=2"])
    assert not is_worker([sys.executable, "/home/me/torch/_inductor/compile_worker/__main__.py"])


def test_whose_code_it_is():
    assert is_package(np.__file__) and is_package(str(Path(sys.modules["parity"].__file__ or "")))
    assert is_package(os.__file__) is None and is_package("<string>") is None
    assert is_package("/home/me/program.py") is False


COMMANDS = ("jaxrun", "torchref", "parity")
TRIES = {
    "write": ("write", "open('/dev/shm/guarded', 'w').close(); os.unlink('/dev/shm/guarded')"),
    "rename": ("write", "open(t, 'w').close(); os.rename(t, os.path.dirname(t) + '/../../renamed')"),
    "symlink": ("write", "os.symlink('nothing', '/dev/shm/guarded'); os.unlink('/dev/shm/guarded')"),
    "read": ("read", "open(f'/proc/{os.getppid()}/status').read()"),
    "memfd": ("read", "global kept; kept = os.memfd_create('x'); os.ftruncate(kept, 99); kept = mmap.mmap(kept, 99)"),
    "process": ("process", "subprocess.run(['true'])"),
    "fork": ("process", "os._exit(0) if os.fork() == 0 else os.wait()"),
    "ctypes": ("native", "ctypes.CDLL(None)"),
    "thread": ("native", "k = threading.Thread(target=ctypes.CDLL, args=(None,)); k.start(); k.join()"),
    "name": ("native", "exec(compile('x = 1', np.__file__, 'exec'))"),
    "socket": ("network", "socket.socket(socket.AF_UNIX).close()"),
    "address": ("native", "ctypes.c_long.from_address(id(t))"),
    "code": (
        "native",
        "global kept; f = open(t, 'w+b'); f.write(bytes(99)); f.flush(); kept = mmap.mmap(f.fileno(), 99, prot=5)",
    ),
}
HONEST = """
    open(t, 'w').write('notes')
    os.replace(t, t + '.txt')
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(folder + '/a/b')
        open(folder + '/a/b/c', 'w').close()
    open('/proc/self/status').read(), open('/proc/meminfo').read(), os.urandom(3), open(os.__file__).read()
    np.save(t, np.zeros(3)), np.load(t + '.npy'), np.arange(3).ctypes.data
    mmap.mmap(-1, 4096).close()
    exec(compile('x = 1', '<own>', 'exec')), eval('1 + 1')
"""


def recorded(tmp_path: Path, scratch: Path, places: Places, monkeypatch: pytest.MonkeyPatch, lines: str) -> list[dict]:
    """What a guard records of a program's lines; `t` is a file of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes, mmap, os, socket, subprocess, tempfile, threading\nimport numpy as np\n\ndef build(recipe):\n"
        f"    t = os.path.join(tempfile.gettempdir(), 'x')\n    {lines.strip()}\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "tmp"))
    guard = Guard(tmp_path / "data", places)
    with guard:
        load(program, "guarded_program").build(None)
        events = guard.collect()["events"]
    subprocess.run(["true"], check=True)  # nothing is recorded any more
    assert [event for event in guard.collect()["events"] if not is_of_another_test(event)] == []
    return [event for event in events if not is_of_another_test(event)]


def is_of_another_test(event: dict) -> bool:
    """Whether an event is a training that a fixture of another test has started in this process."""
    return event["what"].startswith("a child: ") and any(f" -m {name}." in event["what"] for name in COMMANDS)


@pytest.mark.skipif(sys.platform != "linux", reason="places of Linux")
@pytest.mark.parametrize("name", TRIES)
def test_what_reaches_beyond_the_places_of_a_run_is_an_event(tmp_path, scratch, places, monkeypatch, name):
    kind, lines = TRIES[name]
    assert kind in {event["kind"] for event in recorded(tmp_path, scratch, places, monkeypatch, lines)}


def test_an_environment_as_large_as_a_model_is_an_event(tmp_path, places, monkeypatch):
    assert list(large_variables({"PATH": "x" * 10_000})) == []
    monkeypatch.setenv("RESULTS", "x" * 140_000)
    assert "environment" in Guard(tmp_path / "data", places).collect()["events"][0]["what"]


def test_what_stays_within_them_is_none(tmp_path, scratch, places, monkeypatch):
    assert recorded(tmp_path, scratch, places, monkeypatch, HONEST) == []
