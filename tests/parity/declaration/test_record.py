"""Declarations and records are read strictly: every fault is one sentence, and forgeries are refused."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parity.attempt.command import main
from parity.declaration import record as records
from parity.declaration.record import Record, read_declaration, read_record, runs_of, seeds_for
from parity.errors import InputError

MUTATIONS = 500
DIGESTS = {"program_sha256": "1" * 64, "declaration_sha256": "2" * 64}


def refused(read: Callable, path: Path, *message: str) -> None:
    with pytest.raises(InputError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and text.isprintable() and len(text) < 700
    for words in message:
        assert words in text


@pytest.fixture
def declaration(tmp_path, capsys) -> Path:
    """The declaration of a new attempt in PyTorch on track tiny, with two final runs."""
    assert main(["new", str(tmp_path / "new"), "--backend", "torch", "--track", "tiny", "--runs", "2"]) == 0
    capsys.readouterr()
    return tmp_path / "new" / "declaration.json"


def put(declaration: Path, **fields: object) -> None:
    """Puts other values into a declaration."""
    declaration.write_text(json.dumps(json.loads(declaration.read_text()) | fields))


@pytest.fixture
def record(tmp_path) -> Path:
    """A record with every kind of event but a torn line's."""
    record = Record(tmp_path / "attempt.jsonl")
    record.append("declared", **DIGESTS, seeds=[5, 6], runs=2, command=["python"], declaration={"author": "Ada"})
    for run, seed in (("runs/tiny/final-1-5", 5), ("runs/tiny/final-2-6", 6)):
        record.append("started", run=run, seed=seed, purpose="final", **DIGESTS)
        record.append("interrupted", run=run, exit_code=130, seconds=2.5, steps_made=3)
        record.append("resumed", run=run, fresh=False)
        record.append("ended", run=run, exit_code=0, seconds=7.5, steps_made=9, steps=9, val_loss=4.5, flops=9e9)
    record.append("stopped", reason="the budget is 3 runs")
    return record.path


def rechained(path: Path, change: Callable[[list[dict]], None]) -> None:
    """Changes the events of a record and makes a new chain, as a forger would."""
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(events)
    lines, prev = [], "0" * 64
    for number, event in enumerate(events, 1):
        lines.append(json.dumps(event | {"n": number, "prev": prev}).encode())
        prev = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(line + b"\n" for line in lines))


# Declarations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "robot"}, "kind must be one of"),
        ({"runs": 0}, "runs must be bigger than or equal to 1"),
        ({"runs": True}, "runs must be integer"),
        ({"runs": 10**4000}, "runs must be smaller"),
        ({"author": ""}, "author must be longer"),
        ({"autor": "x"}, "unknown field 'autor'; did you mean author?"),
        ({"schema": "declaration.v2"}, "expected schema declaration.v1, found 'declaration.v2'"),
        ({"techniques": ["a", 1]}, "techniques[1] must be string"),
        ({"claim": {}}, "claim: expected the field val_loss_below"),
        ({"claim": None}, "claim must be object"),
        ({"budget": {"runs": 1, "seconds": None, "flops": None}}, "budget.runs: expected at least runs, 2, found 1"),
        ({"budget": {"runs": None, "seconds": 0, "flops": None}}, "budget.seconds must be bigger than 0"),
        ({"budget": {"runs": None, "seconds": None, "flops": None, "steps": 1}}, "budget: unknown field 'steps'"),
        ({"track": "tinny"}, "unknown track 'tinny'; did you mean tiny?"),
        ({"recipe": "moun"}, "unknown recipe 'moun'; did you mean muon?"),
        ({"track": "medium"}, "no recipe yet"),
        ({"track": "optimizer", "recipe": "nanogpt"}, "track optimizer runs muon"),
        ({"backend": "flax"}, "backend must be one of"),
        ({"arguments": ["--name=x"]}, "expected no --name"),
        ({"arguments": "x"}, "arguments must be array"),
    ],
)
def test_wrong_declarations_are_one_sentence(declaration, change, message):
    put(declaration, **change)
    refused(read_declaration, declaration, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "text that is no JSON (line 1, column 1)"),
        (b"{", "text that is no JSON (line 1, column 2)"),
        (b"[]", "expected schema declaration.v1, found None"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"null", "expected schema declaration.v1, found None"),
        (b'{"runs": 1, "runs": 2}', "a name that comes twice"),
        (b'{"runs": NaN}', "NaN, which is no finite number"),
        (b'{"runs": 1e999}', "1e999"),
        (b"[" * 100_000, "nested more than 20 deep"),
        (b"[" * 30 + b"]" * 30, "nested more than 20 deep"),
        (b'{"author": "\\ud800"}', "surrogates not allowed"),
        (b"1" * 5000, "4300 digits"),
        (b" " * 1_000_001, "at most 1,000,000 bytes"),
    ],
)
def test_what_is_no_declaration_is_one_sentence(declaration, text, message):
    declaration.write_bytes(text)
    refused(read_declaration, declaration, message)


def test_a_declaration_that_is_missing_or_a_folder_is_one_sentence(tmp_path):
    refused(read_declaration, tmp_path / "none.json", "No such file")
    refused(read_declaration, tmp_path, "Is a directory")


def test_numbers_that_are_whole_come_as_integers(declaration):
    put(declaration, runs=2.0, claim={"val_loss_below": 4, "at_step": 10.0, "seconds": None})
    values = read_declaration(declaration)
    assert repr((values.runs, values.claim.at_step, values.claim.val_loss_below)) == "(2, 10, 4)"


# Records


def test_a_record_comes_back_as_it_was_written(record):
    events = read_record(record)
    assert [event["n"] for event in events] == list(range(1, 11)) and events[0]["schema"] == "attempt.v1"
    first, second = runs_of(events)
    assert (first.seed, first.seconds, first.steps_made, first.val_loss, first.live, first.settled) == (
        5,
        7.5,
        9,
        4.5,
        False,
        True,
    )
    assert second.run == "runs/tiny/final-2-6"
    Record(record).append("stopped", reason="again")
    assert len(read_record(record)) == 11


@pytest.mark.parametrize("number", range(1, 10))
def test_an_edit_of_any_line_but_the_last_shows_in_the_next(record, number):
    lines = record.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"utc":"20', b'"utc":"19', 1)
    record.write_bytes(b"".join(lines))
    refused(read_record, record, f"line {number + 1}: expected prev ")


def test_lines_that_are_cut_doubled_or_swapped_show(record):
    lines = record.read_bytes().splitlines(keepends=True)
    for changed in (
        lines[1:],
        lines[:3] + lines[4:],
        lines[:3] + lines[2:],
        [lines[0], lines[2], lines[1], *lines[3:]],
    ):
        record.write_bytes(b"".join(changed))
        refused(read_record, record, "expected line number")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[0].update(schema="attempt.v2"), "line 1: expected schema attempt.v1"),
        (lambda e: e[1].update(schema="attempt.v1"), "line 2: expected schema"),
        (lambda e: e[1].update(event="startet"), "unknown event 'startet'; did you mean started?"),
        (lambda e: e[1].update(event=[]), "unknown event []"),
        (lambda e: e[1].pop("seed"), "line 2: started: expected the field seed, found none"),
        (lambda e: e[1].update(run="../../x"), "run must match pattern"),
        (lambda e: e[1].update(run="runs/tiny/..\n"), "run must match pattern"),
        (lambda e: e[4].update(val_loss="low"), "val_loss must be number or null"),
        (lambda e: e[4].update(seconds=-1), "seconds must be bigger"),
        (lambda e: e[4].update(seconds=10**400), "whole number of more than 19 digits"),
        (lambda e: e[4].update(seconds=1e13), "seconds must be smaller"),
        (lambda e: e[0].update(seeds=[-1]), "seeds[0] must be bigger"),
        (lambda e: e[0].update(runs=10**9), "runs must be smaller"),
        (lambda e: e[3].update(time_s="now"), "time_s must be number"),
        (lambda e: e[3].update(run="runs/tiny/x"), "resumed: expected a run that was started"),
        (lambda e: e[5].update(run=e[1]["run"]), "started: expected a run that is new"),
        (lambda e: e[2].update(utc="now"), "utc must match pattern"),
    ],
)
def test_forged_records_are_checked_against_their_schema(record, change, message):
    rechained(record, change)
    refused(read_record, record, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\n", "line 1: expected one JSON object, found text that is no JSON"),
        (b"[1]\n", "expected one JSON object, found list"),
        (b"{" + b" " * 1_000_001, "lines of 1,000,000 bytes"),
        (b"[" * 50_000 + b"\n", "nested more than 20 deep"),
        (b"\xff\n", "no text in UTF-8"),
        (b'{"n": 1', "its writing was cut off"),
    ],
)
def test_what_is_no_record_is_one_sentence(record, text, message):
    record.write_bytes(text)
    refused(read_record, record, message)


def test_the_number_of_lines_is_bounded(record, monkeypatch):
    monkeypatch.setattr(records, "FORMAT", replace(records.FORMAT, max_lines=9))
    refused(read_record, record, "line 10: expected at most")


def test_a_torn_line_is_dropped_by_the_next_that_writes_and_that_is_an_event(record):
    whole = record.read_bytes()
    record.write_bytes(whole + b'{"n":11,"event":"sto')
    refused(read_record, record, "line 11", "run " + str(record.parent), "drops it")
    assert Record(record).events[-1]["event"] == "torn_line_dropped"
    assert read_record(record)[-1]["bytes"] == 20 and record.read_bytes().startswith(whole)


def test_a_full_disk_leaves_the_record_as_it_was(record, monkeypatch):
    before = record.read_bytes()
    writer = Record(record)

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="cannot be written .No space left on device.; its 10 lines are safe"):
            writer.append("stopped", reason="x")
    assert record.read_bytes() == before
    writer.append("stopped", reason="x")
    assert len(read_record(record)) == 11


# Seeds


def test_seeds_follow_from_the_digests_and_from_nothing_else():
    seeds = seeds_for("a" * 64, "b" * 64, 1000)
    assert seeds[:3] == seeds_for("a" * 64, "b" * 64, 3) == [2018570864, 1651765613, 764936144]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 2**31 for seed in seeds) and max(seeds) > 2**30
    assert not set(seeds[:9]) & {*seeds_for("b" * 64, "a" * 64, 9), *seeds_for("a" * 63 + "c", "b" * 64, 9)}


def test_reading_records_needs_neither_the_harness_nor_a_backend():
    code = (
        "import sys, parity.declaration.record; "
        "print(*{m.split('.')[0] for m in sys.modules} & {'jax', 'torch', 'jaxrun', 'torchref'}, "
        "*(m for m in sys.modules if m.startswith('parity.harness')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Whatever is done to the bytes


def mutated(text: bytes, random: random.Random) -> bytes:
    """Damaged or invented bytes, in one of several ways."""
    at, length = random.randrange(len(text)), random.randrange(1, 30)
    numbers = [match.span() for match in re.finditer(rb"-?\d+(?:\.\d+)?|null|true|false|\"[^\"]*\"", text)]
    start, end = random.choice(numbers)
    values = (
        b"-1",
        b"0",
        b"1e999",
        b"1e308",
        b"NaN",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"9" * 400,
        b'"\\ud800"',
        b'"\\u0000"',
        b'""',
        b"[[[[]]]]",
        b'"' + b"x" * 300 + b'"',
    )
    return random.choice(
        [
            lambda: text[:at] + bytes([text[at] ^ (1 << random.randrange(8))]) + text[at + 1 :],
            lambda: text[:at] + random.randbytes(length) + text[at:],
            lambda: text[:at] + text[at + length :],
            lambda: text[:at],
            lambda: text[:at] + text[max(0, at - length) :],
            lambda: text[:start] + random.choice(values) + text[end:],
            lambda: text[:start] + random.choice(values) + text[end:],
            lambda: text[:at] + b"[" * 10 ** random.randrange(6) + text[at:],
        ]
    )()


def survives(read: Callable, path: Path, texts: list[bytes]) -> int:
    """How many of the texts are refused, each in one sentence; any other exception is not caught."""
    count = 0
    for text in texts:
        path.write_bytes(text)
        try:
            read(path)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            count += 1
    return count


@pytest.mark.parametrize("count", [MUTATIONS, pytest.param(20_000, marks=pytest.mark.slow)])
def test_declarations_that_are_mutated_are_read_or_refused(declaration, count):
    random_, text = random.Random(0), declaration.read_bytes()
    assert survives(read_declaration, declaration, [mutated(text, random_) for _ in range(count)]) > count // 2


@pytest.mark.parametrize("count", [MUTATIONS, pytest.param(20_000, marks=pytest.mark.slow)])
def test_records_that_are_mutated_are_refused(record, count):
    random_, text = random.Random(1), record.read_bytes()
    texts = [mutated(text, random_) for _ in range(count)]
    last = text.splitlines(keepends=True)[-1]
    whole = [t for t in texts if t != text and t.startswith(text[: -len(last)])]  # nothing follows the last line
    assert survives(read_record, record, texts) >= count - len(whole) - texts.count(text)


def test_records_with_a_new_chain_are_read_or_refused(record):
    random_ = random.Random(2)
    lines = [json.loads(line) for line in record.read_bytes().splitlines()]
    count = 0
    for _ in range(MUTATIONS):
        record.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

        def change(events: list[dict]) -> None:
            event = random_.choice(events)
            event[random_.choice(list(event))] = random_.choice(
                [None, -1, 0, 1e308, 10**400, "", "x", [], {}, True, [[1]], {"a": "\ud800"}]
            )

        rechained(record, change)
        try:
            runs_of(read_record(record))
        except InputError as error:
            assert "\n" not in str(error)
            count += 1
    assert count > MUTATIONS // 3
