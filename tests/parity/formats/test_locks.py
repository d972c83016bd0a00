"""Locks on file systems with and without flock: taken, refused with who holds them, and free after any end."""

import errno
import json
import os
import re
import socket
import subprocess
import sys

import pytest

from parity.errors import InputError
from parity.formats.folder_lock import Holder, _host, holder, locked

HOLD = """
import sys
from pathlib import Path
from parity.errors import InputError
from parity.formats.folder_lock import holder, locked
folder = Path(sys.argv[1])
print("before", holder(folder), flush=True)
try:
    with locked(folder, "a live run", "wait"):
        print("locked", flush=True)
        sys.stdin.read()
except InputError as error:
    print(error)
"""
WITHOUT = {"flock": {}, "no-system-call": {"FLOCK": errno.ENOSYS}, "not-supported": {"FLOCK": errno.ENOTSUP}}
WITHOUT |= {"no-locks": {"FLOCK": errno.ENOLCK}, "no-links": {"FLOCK": errno.EOPNOTSUPP, "LINK": errno.EPERM}}


@pytest.fixture(params=list(WITHOUT))
def start(request, shim, tmp_path):
    """Starts a process that wants the lock of the folder, on one kind of file system; its first two lines."""
    processes = []

    def start():
        environment = os.environ | shim(**WITHOUT[request.param])
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        return process, process.stdout.readline().strip(), process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_is_refused_with_its_holder_and_free_after_its_end_and_leaves_nothing(start, tmp_path):
    first, before, line = start()
    assert (before, line) == ("before None", "locked")
    _, before, line = start()
    assert before == f"before {first.pid}"
    assert line == f"{tmp_path} is locked by a live run (pid {first.pid}): wait"
    first.communicate("")
    assert os.listdir(tmp_path) == []
    assert start()[2] == "locked"


def test_a_lock_of_a_killed_process_is_free_though_nobody_has_waited_for_it(start, tmp_path):
    first, _, line = start()
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # still a zombie
    second, before, line = start()
    assert (before, line) == ("before None", "locked")
    second.communicate("")
    assert os.listdir(tmp_path) == []


RECORD = {"pid": os.getpid(), "host": "", "start": "", "since": "2026-01-02T03:04:05Z", "soft": True}


def of_a_later_process(folder):
    """The pid is alive, and belongs to another process by now."""
    (folder / ".lock.pid").write_text(json.dumps(RECORD | {"start": "0-1"}))


def of_an_older_version(folder):
    (folder / ".lock").write_text(f"999999\n{socket.gethostname()}\n")
    (folder / ".lock.pid").write_text("4194300")


def of_a_soft_lock_of_a_dead_process(folder):
    (folder / ".lock.pid").write_text(json.dumps(RECORD | {"pid": 4194300, "host": _host()}))


@pytest.mark.parametrize("leave", [of_a_later_process, of_an_older_version, of_a_soft_lock_of_a_dead_process])
def test_what_others_left_comes_free(start, tmp_path, leave):
    leave(tmp_path)
    process, before, line = start()
    assert (before, line) == ("before None", "locked")
    process.communicate("")
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_names_host_pid_time_and_the_file_to_remove(start, tmp_path):
    record = tmp_path / ".lock.pid"
    record.write_text(json.dumps(RECORD | {"host": "node7", "pid": 12}))
    whom = f"12 on node7, since 2026-01-02T03:04:05Z; if no such process is left, remove {record}"
    _, before, line = start()
    assert before == f"before {whom}" and f"(pid {whom})" in line
    record.unlink()
    assert start()[2] == "locked"


KINDS = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "link": lambda path: os.symlink("elsewhere", path),
    "link-to-a-file": lambda path: os.symlink(__file__, path),
}


@pytest.mark.parametrize("name", [".lock", ".lock.pid"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_in_the_place_of_a_lock_is_refused_at_once(tmp_path, name, kind):
    KINDS[kind](tmp_path / name)
    expected = rf"{re.escape(str(tmp_path / name))}: expected the file of a lock, found"
    with pytest.raises(InputError, match=expected), locked(tmp_path, "a live run", "wait"):
        raise AssertionError
    assert os.listdir(tmp_path) == [name]
    if name == ".lock.pid":
        assert holder(tmp_path) is None
    else:
        with pytest.raises(InputError, match="remove it|expected a plain file"):
            holder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"pid": -1}', '{"pid": 1, "soft": 2}', "x" * 5000])
def test_a_record_that_says_nothing_stops_nobody_where_there_is_flock(tmp_path, text):
    (tmp_path / ".lock.pid").write_text(text)
    with locked(tmp_path, "a live run", "wait"):
        assert holder(tmp_path) == str(os.getpid())
    assert os.listdir(tmp_path) == []


def test_a_record_that_says_nothing_is_named_where_there_is_no_flock(shim, tmp_path):
    (tmp_path / ".lock.pid").write_text("{")
    done = subprocess.run(
        [sys.executable, "-c", HOLD, tmp_path],
        env=os.environ | shim(FLOCK=errno.ENOSYS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"(pid unknown; if no such process is left, remove {tmp_path / '.lock.pid'})" in done.stdout


def test_who_has_ended_is_known_on_this_machine_only():
    assert not Holder(os.getpid(), _host()).ended and Holder(4194300, _host()).ended
    assert not Holder(4194300, "node7").ended and not Holder(0).ended


RACE = """
import os, random, sys, time
from pathlib import Path
from parity.formats import folder_lock
folder_lock.POLL_S = 0.002
here, end, rounds = Path(sys.argv[1]), time.monotonic() + 1, 0
while time.monotonic() < end:
    with folder_lock.waited_for(here / "x.lock", "works", 30, lambda text: None):
        (here / "inside").touch(exist_ok=False)  # fails where two are inside
        time.sleep(random.random() / 1000)
        (here / "inside").unlink()
        if random.random() < 0.05:
            os.kill(os.getpid(), 9)
    rounds += 1
print(rounds)
"""


@pytest.mark.parametrize("kind", ["flock", "no-system-call", "no-links"])
def test_of_processes_that_race_for_a_lock_and_are_killed_never_two_have_it(shim, tmp_path, kind):
    command = [sys.executable, "-c", RACE, tmp_path]
    environment = os.environ | shim(**WITHOUT[kind])
    racers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for racer in racers:
        assert racer.communicate(timeout=60)[1] == "" and racer.returncode in (0, -9)
