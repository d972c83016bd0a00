"""The run log: what it writes, what it finds wrong, and what a crash leaves of it."""

import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from parity.errors import InputError
from parity.formats import chain_log, run_log, schemas
from parity.harness import runlog
from parity.harness.runlog import RunLog

STEP = {
    "loss": 3.25,
    "grad_norm": 1.5,
    "rates": {"embed": 0.1},
    "step_s": 0.5,
    "train_s": 1.0,
    "tokens": 4096,
    "batch": "ab" * 32,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def write(path: Path, steps: int = 5, **start) -> list[bytes]:
    with RunLog(path) as log:
        log.event("start", **start)
        for step in range(steps):
            log.event("step", step=step, **STEP)
    return lines_of(path)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def count(path: Path) -> int:
    """The number of lines of a log, every field of them checked."""
    return chain_log.scan(path, run_log.FORMAT, run_log.field_problem).lines


def chain_of(path: Path) -> chain_log.Chain:
    return chain_log.scan(path, run_log.FORMAT, run_log.problem)


def fault(path: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        list(runlog.read(path, **options))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# What is written


def test_events_come_back_with_their_number_kind_clocks_and_fields(path):
    before_s, before_clock_s = time.time(), time.perf_counter()
    write(path, 1, seed=7)
    start, step = runlog.read(path)
    assert (start["n"], start["event"], start["schema"], start["seed"]) == (1, "start", "log.v1", 7)
    assert (step["n"], step["event"], step["loss"], step["rates"]) == (2, "step", 3.25, {"embed": 0.1})
    assert before_s <= start["time_s"] <= step["time_s"] <= time.time()
    assert before_clock_s <= start["clock_s"] < step["clock_s"] <= time.perf_counter()


def test_utc_is_the_same_moment_as_time_s_in_milliseconds(path):
    from datetime import datetime

    write(path, 3)
    for event in runlog.read(path):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["utc"])
        assert 0 <= event["time_s"] - datetime.fromisoformat(event["utc"]).timestamp() < 0.001 + 1e-6


def test_prev_is_the_sha256_of_the_bytes_of_the_line_before_without_its_newline(path):
    lines = write(path)
    assert json.loads(lines[0])["prev"] == "0" * 64
    for before, line in zip(lines, lines[1:], strict=False):
        assert json.loads(line)["prev"] == hashlib.sha256(before[:-1]).hexdigest()


def test_a_line_is_compact_json_in_ascii_with_n_first_and_prev_last(path):
    with RunLog(path) as log:
        log.event("start", recipe="muön\n")
    (line,) = lines_of(path)
    assert line.isascii() and line.startswith(b'{"n":1,"event":"start",') and b'": ' not in line
    assert list(json.loads(line))[-1] == "prev" and json.loads(line)["recipe"] == "muön\n"


def test_numbers_that_are_not_finite_are_written_as_words_however_deep(path):
    with RunLog(path) as log:
        log.event("start", a=float("nan"), b={"c": [float("inf"), (1, -float("inf"))]}, d=np.float32("nan"), e=2.0)
    (event,) = runlog.read(path)
    assert (event["a"], event["b"], event["d"], event["e"]) == ("nan", {"c": ["inf", [1, "-inf"]]}, "nan", 2.0)


def test_numpy_scalars_and_paths_are_written_as_json_values(path):
    with RunLog(path) as log:
        log.event("start", a=np.float32(0.5), b=np.int64(3), c=np.array(2.5), d=Path("x/y"), e=np.bool_(True))
    (event,) = runlog.read(path)
    assert [event[key] for key in "abcde"] == [0.5, 3, 2.5, "x/y", True]


def test_an_array_is_refused_and_the_log_goes_on_as_if_it_had_not_been_tried(path):
    with RunLog(path) as log:
        log.event("start")
        with pytest.raises(TypeError, match="ndarray"):
            log.event("sample", text=np.zeros(3))
        log.event("sample", text="ok")
    assert count(path) == 2


@pytest.mark.parametrize("name", ["n", "event", "utc", "clock_s", "time_s", "prev"])
def test_a_field_that_the_log_itself_gives_is_refused(path, name):
    with RunLog(path) as log, pytest.raises(ValueError, match="the log itself"):
        log.event("start", **{name: 1})


def test_an_unknown_kind_is_refused_with_the_nearest_one(path):
    with RunLog(path) as log, pytest.raises(ValueError, match="did you mean step"):
        log.event("stepp")


def test_the_first_event_is_start_and_no_other_is(path):
    with RunLog(path) as log:
        with pytest.raises(ValueError, match="first event"):
            log.event("step", step=0, **STEP)
        log.event("start")
        with pytest.raises(ValueError, match="first event"):
            log.event("start")


def test_every_event_is_in_the_file_before_event_returns(path):
    log = RunLog(path)
    for count in range(1, 4):
        log.event("start") if count == 1 else log.event("sample", text="x")
        assert len(list(runlog.read(path))) == count == log.lines
    log.close()


def test_digest_is_that_of_the_last_line(path):
    log = RunLog(path)
    log.event("start")
    assert log.digest == hashlib.sha256(path.read_bytes()[:-1]).hexdigest()
    log.close()


def test_a_closed_log_takes_no_event_and_closes_twice(path):
    log = RunLog(path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.event("start")


def test_a_log_is_never_overwritten(path):
    before = write(path)
    with pytest.raises(InputError, match="never overwritten.*--resume"):
        RunLog(path)
    assert lines_of(path) == before


def test_patching_the_time_module_does_not_reach_the_log(path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    monkeypatch.setattr(time, "time", lambda: 2.0)
    write(path, 0)
    (event,) = runlog.read(path)
    assert event["clock_s"] != 1.0 and event["time_s"] > 1e9 and not event["utc"].startswith("1970")


def test_threads_that_share_a_log_leave_one_whole_chain(path):
    with RunLog(path) as log:
        log.event("start")
        threads = [
            threading.Thread(target=lambda: [log.event("sample", text="x" * 200) for _ in range(200)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert count(path) == 801


def test_append_goes_on_with_the_chain(path):
    write(path)
    with RunLog(path, chain_of(path)) as log:
        log.event("finish", totals={})
    assert [event["n"] for event in runlog.read(path)] == list(range(1, 8))


def test_a_torn_log_has_no_chain_to_continue(path):
    lines = write(path)
    path.write_bytes(b"".join(lines)[:-5])
    with pytest.raises(InputError, match="line 6.*--resume"):
        chain_of(path)


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


# The schema


def test_the_kinds_of_the_code_are_those_of_the_schema():
    schema = schemas.load("log.v1")
    assert tuple(schema["properties"]["event"]["enum"]) == run_log.KINDS
    assert [rule["if"]["properties"]["event"]["const"] for rule in schema["allOf"]] == list(run_log.KINDS)


EVENTS = {
    "start": {},
    "phase": {"name": "warm_up", "edge": "begin"},
    "step": {"step": 3, **STEP},
    "norms": {"step": 3, "weights": {"head": 1.0}, "grads": {"head": 0.5}, "updates": {"head": 0.1}},
    "eval": {"step": 3, "val_loss": 4.0, "bits_per_byte": 1.2, "tokens": 8192, "train_s": 1.0, "eval_s": 0.1},
    "checkpoint": {"step": 3, "path": "checkpoints/3", "digest": "0" * 64},
    "resume": {"step": 3, "checkpoint": "checkpoints/3"},
    "state": {"name": "before_warm_up", "digest": "0" * 64},
    "memory": {"host_bytes": 1},
    "sample": {"text": "The"},
    "interrupt": {"step": 3},
    "failure": {"reason": "loss is not finite", "step": 3},
    "torn_line_dropped": {"bytes": 3, "sha256": "0" * 64},
    "guard": {"step": 3, "changed": [], "events": [{"kind": "read", "what": "/x", "phase": "train"}]},
    "finish": {"totals": {"tokens_per_s": 6000}},
}


def test_every_kind_with_its_fields_is_valid_and_further_fields_are_allowed(path):
    with RunLog(path) as log:
        for kind, fields in EVENTS.items():
            log.event(kind, **fields, remark="more")
    assert tuple(EVENTS) == run_log.KINDS and count(path) == len(EVENTS)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in EVENTS for name in EVENTS[kind]])
def test_a_reader_names_file_line_kind_and_field_of_a_missing_or_wrong_one(path, kind, name):
    fields = {key: value for key, value in EVENTS[kind].items() if key != name}
    for bad in (fields, {**fields, name: [None]}):
        path.unlink(missing_ok=True)
        with RunLog(path) as log:
            log.event("start")
            log.event(kind, **bad)
        with pytest.raises(InputError, match=rf"log\.jsonl line 2: {kind}: .*{name}"):
            count(path)


def test_a_loss_that_is_not_finite_is_valid(path):
    with RunLog(path) as log:
        log.event("start")
        log.event("step", **{**STEP, "step": 0, "loss": float("nan"), "grad_norm": float("inf")})
    assert count(path) == 2


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
def test_a_full_disk_gives_a_sentence_that_says_what_to_do_and_leaves_a_valid_log(path, limit_bytes):
    messages = full_disk(path, limit_bytes, "stop")
    assert len(messages) == 2
    for message in messages:
        assert str(path) in message and "free some space" in message and f"--resume {path.parent}" in message
    assert f"its {count(path)} lines are safe" in messages[0]
    assert path.stat().st_size <= limit_bytes


def test_a_log_goes_on_once_a_full_disk_has_room_again(path):
    full_disk(path, 5000, "free")
    assert count(path) > 5 and list(runlog.read(path))[-1]["event"] == "failure"


def test_a_log_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(InputError, match="cannot be opened for writing"):
        RunLog(tmp_path / "missing" / "log.jsonl")


# What it costs


def test_an_event_costs_less_than_60_microseconds_and_100_000_lines_are_read_in_4_s(path):
    with RunLog(path) as log:
        log.event("start")
        costs_s = []
        for step in range(20_000):
            began_s = time.perf_counter()
            log.event("step", step=step, **STEP)
            costs_s.append(time.perf_counter() - began_s)
    began_s = time.process_time()
    assert sum(1 for _ in runlog.read(path)) == 20_001
    assert sorted(costs_s)[len(costs_s) // 2] < 60e-6
    assert time.process_time() - began_s < 4 * 20_000 / 100_000
