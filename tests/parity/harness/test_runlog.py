"""The run log: what it writes, its schema, and what it costs."""

import hashlib
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from run_logs import STEP, chain_of, count, lines_of, write

from parity.errors import InputError
from parity.formats import run_log, schemas
from parity.harness import runlog
from parity.harness.runlog import RunLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


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
    for number in range(1, 4):
        log.event("start") if number == 1 else log.event("sample", text="x")
        assert len(list(runlog.read(path))) == number == log.lines
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
