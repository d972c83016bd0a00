"""Damaged run logs: what a reader reports, and what a resume repairs."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from run_logs import STEP, count, fault, lines_of, write

from parity.errors import InputError
from parity.harness import runlog
from parity.harness.runlog import RunLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


# What a reader finds


def test_an_edit_of_any_line_but_the_last_is_found_at_the_line_after_it(path):
    lines = write(path)
    for index in range(1, len(lines) - 1):
        path.write_bytes(b"".join([*lines[:index], lines[index].replace(b"3.25", b"3.24"), *lines[index + 1 :]]))
        message = fault(path)
        assert f"line {index + 2}: expected prev" in message and f"line {index + 1} was edited" in message


def test_every_flipped_byte_before_the_last_line_is_found(path):
    data = b"".join(lines := write(path, 2))
    for position in range(len(data) - len(lines[-1])):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        fault(path)


@pytest.mark.parametrize("cut", range(5))
def test_a_line_cut_out_is_found_where_it_was(path, cut):
    lines = write(path)
    path.write_bytes(b"".join(lines[:cut] + lines[cut + 1 :]))
    assert f"line {cut + 1}: expected line number {cut + 1}, found {cut + 2}" in fault(path)


def test_two_lines_in_each_others_place_are_found_at_the_first(path):
    lines = write(path)
    lines[2], lines[4] = lines[4], lines[2]
    path.write_bytes(b"".join(lines))
    assert "line 3: expected line number 3, found 5" in fault(path)


def test_lines_of_another_run_are_found_at_the_first_of_them(path, tmp_path):
    mine, other = write(path, seed=1), write(tmp_path / "other.jsonl", seed=2)
    path.write_bytes(b"".join(mine[:3] + other[3:]))
    assert "line 4: expected prev" in fault(path)


def test_two_logs_end_to_end_are_found_at_the_second_start(path):
    lines = write(path)
    path.write_bytes(b"".join(lines + lines))
    assert "line 7: expected line number 7, found 1" in fault(path)


def test_a_line_added_is_found(path):
    lines = write(path)
    path.write_bytes(b"".join(lines[:3] + [lines[2]] + lines[3:]))
    assert "line 4: expected line number 4, found 3" in fault(path)


def test_an_edit_with_the_chain_repaired_up_to_one_line_is_found_at_the_next(path):
    lines = write(path)
    lines[2] = lines[2].replace(b"3.25", b"3.24")
    old = json.loads(lines[3])["prev"].encode()
    lines[3] = lines[3].replace(old, hashlib.sha256(lines[2][:-1]).hexdigest().encode())
    path.write_bytes(b"".join(lines))
    assert "line 5: expected prev" in fault(path)


def chained(path: Path, *events: dict) -> None:
    prev, lines = "0" * 64, []
    for number, event in enumerate(events, 1):
        line = json.dumps(
            {"n": number, "clock_s": 1.0, "time_s": 2.0, "utc": "2026-01-02T03:04:05.678Z", **event, "prev": prev}
        )
        lines.append(line)
        prev = hashlib.sha256(line.encode()).hexdigest()
    path.write_text("".join(line + "\n" for line in lines))


def test_an_unknown_schema_version_is_refused(path):
    chained(path, {"event": "start", "schema": "log.v2"})
    assert "expected schema log.v1 on line 1 and nowhere else, found 'log.v2'" in fault(path)


def test_an_unknown_kind_in_a_file_is_refused(path):
    chained(path, {"event": "start", "schema": "log.v1"}, {"event": "epoch"})
    assert "line 2: unknown event 'epoch'" in fault(path)


def test_a_log_that_does_not_begin_with_start_is_refused(path):
    chained(path, {"event": "sample", "text": ""})
    assert "line 1: expected `start`" in fault(path)


def test_a_second_start_is_refused(path):
    chained(path, {"event": "start", "schema": "log.v1"}, {"event": "start", "schema": "log.v1"})
    assert "line 2: expected `start` on line 1 and nowhere else" in fault(path)


@pytest.mark.parametrize("clock", [None, "1.0", True])
def test_a_clock_reading_that_is_no_number_is_refused(path, clock):
    chained(path, {"event": "start", "schema": "log.v1", "clock_s": clock})
    assert "line 1: expected clock_s in seconds" in fault(path)


@pytest.mark.parametrize("line", [b"NaN", b"[1]", b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_line_that_is_no_json_object_is_refused_by_its_number(path, line):
    lines = write(path)
    path.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    assert "line 3: expected" in fault(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_does_not_have_is_refused_even_in_a_whole_chain(path, number):
    chained(path, {"event": "start", "schema": "log.v1"}, {"event": "step", **STEP, "step": 0, "loss": number})
    assert "line 2: expected one JSON object" in fault(path)


def test_a_missing_log_and_a_directory_in_its_place_are_refused(path, tmp_path):
    assert "cannot be read" in fault(path)
    assert "cannot be read" in fault(tmp_path)


def test_an_empty_log_has_no_events(path):
    RunLog(path).close()
    assert list(runlog.read(path)) == []


# What a crash leaves


def test_a_log_cut_at_any_byte_of_its_last_line_is_resumed_and_says_what_was_dropped(path):
    lines = write(path, 2)
    whole = b"".join(lines[:-1])
    for size in range(1, len(lines[-1])):
        path.write_bytes(whole + lines[-1][:size])
        with RunLog.resume(path) as log:
            log.event("resume", step=1, checkpoint="checkpoints/1")
        assert path.read_bytes().startswith(whole) and count(path) == 4
        dropped = list(runlog.read(path))[2]
        torn = hashlib.sha256(lines[-1][:size]).hexdigest()
        assert (dropped["event"], dropped["bytes"], dropped["sha256"]) == ("torn_line_dropped", size, torn)


def test_a_last_line_that_ends_but_cannot_be_parsed_counts_as_torn(path):
    lines = write(path)
    for torn in (b'{"n":7,\x00\x00\n', b"5\n", b"\n"):
        path.write_bytes(b"".join(lines) + torn)
        RunLog.resume(path).close()
        assert list(runlog.read(path))[-1]["event"] == "torn_line_dropped"


def test_a_torn_line_longer_than_the_event_of_its_drop_leaves_nothing_behind(path):
    lines = write(path)
    path.write_bytes(b"".join(lines) + b'{"n":7,' + b"x" * 10_000)
    RunLog.resume(path).close()
    assert count(path) == 7


def test_resume_of_a_whole_log_adds_nothing(path):
    before = write(path)
    RunLog.resume(path).close()
    assert lines_of(path) == before


def test_resume_refuses_an_edit_and_leaves_the_file_as_it_was(path):
    lines = write(path)
    lines[2] = lines[2].replace(b"3.25", b"3.24")
    path.write_bytes(before := b"".join(lines) + b'{"n":7')
    with pytest.raises(InputError, match="line 4: expected prev"):
        RunLog.resume(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b'{"n":1,"event"'])
def test_resume_refuses_a_log_without_a_whole_line(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError, match="no whole line.*start a new run"):
        RunLog.resume(path)


def test_a_reader_may_leave_a_torn_line_out_and_without_that_says_how_to_repair_it(path):
    lines = write(path)
    path.write_bytes(b"".join(lines)[:-5])
    assert len(list(runlog.read(path, tolerate_torn=True))) == 5
    assert "line 6: expected one JSON object that ends in a newline" in (message := fault(path))
    assert f"--resume {path.parent}" in message


def test_a_crash_while_the_torn_line_is_dropped_leaves_a_log_that_resumes(path, monkeypatch):
    lines = write(path)
    torn = b'{"n":7,' + b"x" * 5_000
    path.write_bytes(b"".join(lines) + torn)
    RunLog.resume(path).close()
    repaired = path.read_bytes()
    drop = repaired[len(b"".join(lines)) :]
    for written in range(0, len(drop) + 1, 7):
        path.write_bytes(b"".join(lines) + drop[:written] + torn[written:])
        RunLog.resume(path).close()
        assert list(runlog.read(path))[6]["event"] == "torn_line_dropped" and count(path) >= 7


WRITER = """
import os, sys
from parity.harness.runlog import RunLog
path = sys.argv[1]
log = RunLog.resume(path) if os.path.exists(path) else RunLog(path)
if log.lines == 0:
    log.event("start")
print("ready", flush=True)
while True:
    log.event("sample", text="x" * 3000)
    os.write(1, b"%d\\n" % log.lines)
"""


def test_kill_9_at_random_moments_loses_no_event_that_was_written(path):
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        try:
            assert child.stdout.readline() == b"ready\n"
            threading.Timer(random.uniform(0.002, 0.05), child.kill).start()
            output = child.stdout.read().split(b"\n")
        finally:
            child.kill()
            child.wait()
        last_reported = int(output[-2]) if len(output) > 1 else 1
        RunLog.resume(path).close()
        assert count(path) >= last_reported
    assert count(path) > 20


class Struck(Exception):
    pass


def test_an_exception_out_of_a_signal_handler_at_any_moment_of_event_keeps_the_chain_whole(path):
    def strike(*_):
        raise Struck

    old = signal.signal(signal.SIGALRM, strike)
    log, struck = RunLog(path), 0
    log.event("start")
    try:
        while struck < 300:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 60e-6))
                for _ in range(50):
                    log.event("sample", text="x")
            except Struck:
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    log.close()
    assert count(path) == log.lines


FULL_DISK = """
import resource, sys
from parity.errors import InputError
from parity.harness.runlog import RunLog
log = RunLog(sys.argv[1])
log.event("start")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for _ in range(2):
    try:
        while True:
            log.event("sample", text="x" * 300)
    except InputError as error:
        print(error)
if sys.argv[3] == "free":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.event("failure", reason="the disk was full", step=None)
    log.close()
"""


def full_disk(path: Path, limit_bytes: int, then: str) -> list[str]:
    command = [sys.executable, "-c", FULL_DISK, str(path), str(limit_bytes), then]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("limit_bytes", [4096, 5000, 5555])
def test_a_limit_on_the_size_of_files_gives_a_sentence_that_says_what_to_do_and_leaves_a_valid_log(path, limit_bytes):
    messages = full_disk(path, limit_bytes, "stop")
    assert len(messages) == 2
    for message in messages:
        assert str(path) in message and "ulimit -f" in message and f"--resume {path.parent}" in message
    assert f"its {count(path)} lines are safe" in messages[0]
    assert path.stat().st_size <= limit_bytes


def test_a_log_goes_on_once_a_full_disk_has_room_again(path):
    full_disk(path, 5000, "free")
    assert count(path) > 5 and list(runlog.read(path))[-1]["event"] == "failure"


def test_a_log_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(InputError, match="cannot be opened for writing"):
        RunLog(tmp_path / "missing" / "log.jsonl")
