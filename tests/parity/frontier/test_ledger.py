"""The ledger: what it accepts, what it refuses, and what a check finds; on a real attempt, and on edited files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import SHAPE, around, fake, last_loss, promoted

from parity.errors import InputError, RunFailed
from parity.frontier import entry as entries
from parity.frontier import ledger
from parity.frontier.command import main
from parity.frontier.entry import digest
from parity.frontier.integrity import evidence_problems, problems_of, problems_of_ledger
from parity.frontier.submission import entry_of, hardware_class


def check(folder: Path) -> list[str]:
    return problems_of_ledger(ledger.load(folder), folder)


@pytest.fixture
def attempt(judged_attempt, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(judged_attempt, tmp_path / "mine"))


@pytest.fixture
def edited(ledger_dir, tmp_path) -> Callable[..., Path]:
    """A ledger whose one entry was changed by a function; `forged`: its digest is computed again."""

    def edit(change: Callable[[dict], None], forged: bool = False) -> Path:
        folder = Path(shutil.copytree(ledger_dir, tmp_path / "edited"))
        path = ledger.paths(folder)[0]
        data = json.loads(path.read_text())
        change(data)
        if forged:
            data["digest"] = digest(data)
        path.write_text(entries.text(data))
        return folder

    return edit


def test_an_entry_is_a_small_text_file_that_agrees_with_its_evidence(judged_attempt, ledger_dir):
    (path,) = ledger.paths(ledger_dir)
    assert path.stat().st_size < 60_000 and max(map(len, path.read_text().splitlines())) < 20_000
    entry = entries.read(path)
    assert (entry.title, entry.author, entry.track, entry.backend, entry.techniques) == (
        "mine",
        "Ada",
        "tiny",
        "torchref",
        ("small",),
    )
    assert entry.data["verdict"]["version"] == entry.runs[0].verdict["version"] != "unknown"
    assert entry.steps[-1] == 60 and {*entry.steps} <= {15, 30, 45, 60}  # those that the verifier computed again
    assert len(entry.runs) == 2 and entry.cost("tokens") == 60 * 512
    started = json.loads((judged_attempt / "verdict.json").read_text())["facts"]["started"]
    assert entry.cost("flops") == pytest.approx(started["flops"] / 2)
    assert [run.val_loss for run in entry.runs] == [
        last_loss(path) for path in sorted((judged_attempt / "runs/tiny").iterdir()) if path.is_dir()
    ]
    assert list(problems_of(entry)) == [] and check(ledger_dir) == [] and evidence_problems(judged_attempt, entry) == []
    assert str(judged_attempt.parent) not in path.read_text()  # no path of the machine that wrote it


def test_what_is_read_is_what_was_written(ledger_dir, tmp_path):
    entry = ledger.load(ledger_dir)[0]
    assert ledger.add(entry, tmp_path / "other").read_bytes() == ledger.paths(ledger_dir)[0].read_bytes()


def test_one_run_counts_once(judged_attempt, ledger_dir, tmp_path):
    folder = Path(shutil.copytree(ledger_dir, tmp_path / "ledger"))
    with pytest.raises(InputError, match="one run counts once"):
        ledger.add(entry_of(judged_attempt, title="again"), folder)
    entries.write(
        entry_of(judged_attempt, title="again"), folder / "tiny" / f"{entry_of(judged_attempt, title='again').id}.json"
    )
    assert any("one run counts once" in problem for problem in check(folder))


def test_an_attempt_without_verdict_is_refused(attempt):
    (attempt / "verdict.json").unlink()
    with pytest.raises(
        InputError, match="expected a verdict, found none: judge it with python -m parity.attempt judge"
    ):
        entry_of(attempt)


def change_verdict(attempt: Path, change: Callable[[dict], None]) -> None:
    data = json.loads((attempt / "verdict.json").read_text())
    change(data)
    (attempt / "verdict.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: v["runs"][1]["rules"][5].update(status="fails"), RunFailed, "its verdict fails"),
        (lambda v: v["runs"][0]["rules"][-1].update(status="not judged", required=True), RunFailed, "is incomplete"),
        (lambda v: v["runs"][0].update(rules=[]) or v["runs"][1].update(rules=[]), RunFailed, "is incomplete"),
        (lambda v: v.update(depth="probe"), InputError, "expected a verdict of depth replay or deeper, found probe"),
        (lambda v: v["runs"][0]["facts"].update(log_sha256="0" * 64), InputError, "found that of other logs"),
        (lambda v: v.update(schema="verdict.v9"), InputError, "expected schema verdict.v1"),
        (
            lambda v: v.pop("status"),
            InputError,
            r"expected a verdict, found something else \(the field status is missing\)",
        ),
        (lambda v: v.update(runs=[None]), InputError, r"found something else \(values of another kind\)"),
    ],
)
def test_a_verdict_that_does_not_hold_or_is_of_other_evidence_is_refused(attempt, change, error, message):
    change_verdict(attempt, change)
    with pytest.raises(error, match=message):
        entry_of(attempt)


def test_evidence_that_changed_since_its_verdict_is_refused(attempt):
    log = next(attempt.glob("runs/tiny/*/log.jsonl"))
    log.write_bytes(log.read_bytes().replace(b'"val_loss":2', b'"val_loss":1', 1))
    with pytest.raises(InputError, match="found that of other logs"):
        entry_of(attempt)


def test_a_single_run_is_an_entry_of_one_seed(copied, commands, tmp_path):
    run = copied("torchref").path
    result = commands.run("parity.verify", run, "--depth", "log", "--data-dir", commands.data)
    assert result.code == 0, result.out
    promoted(run)
    entry = entry_of(run, author="Ada", kind="person", techniques=("small",))
    assert entry.title == "muon" and entry.kind == "person" and list(problems_of(entry)) == []
    assert "--data-dir" not in entry.data["command"] and "--layers" in entry.data["command"]
    assert evidence_problems(run, entry) == []


def swap(data, *path, to):
    for name in path[:-1]:
        data = data[name]
    data[path[-1]] = to


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("runs", 0, "val_loss"), 1.5, "the verifier's 1.50000"),
        (("runs", 0, "seed"), 5, "do not have the seeds"),
        (("runs", 0, "evals", -1, 4), 1.5, "its last val loss is 1.5"),
        (("runs", 0, "evals", 2, 0), 15, "does not follow"),
        (("runs", 1, "evals", -1, 3), 1e6, "it trained 1000000.0 s in"),
        (("author",), "Eve", "author: the declaration says 'Ada'"),
        (("techniques",), [], "techniques: the declaration says"),
        (("declaration",), ["{}"], "declaration.json: expected schema declaration.v1"),
        (("source", "lines", 0), "# another", "its program is not the one"),
        (("cost", "runs"), 1, "its record comes to 2 runs"),
        (("hardware", "class"), "8 x NVIDIA H100 80GB HBM3", "class of hardware does not follow"),
        (("val_tokens",), 4096, "track tiny has 8,192 val tokens"),
        (("date",), "2026-01-01", "expected the id 2026-01-01-mine"),
        (("verdict", "rules"), [], "its verdict says holds, and attempt.alike does not"),
        (("runs", 0, "verdict", "rules"), [], "its verdict says holds, and "),
    ],
)
def test_an_edit_is_found_even_where_the_digest_was_computed_again(edited, path, to, message):
    folder = edited(lambda data: swap(data, *path, to=to), forged=True)
    assert any(message in problem for problem in check(folder)), check(folder)


def test_an_edit_by_hand_is_found_by_the_digest(edited):
    assert any("it was edited" in problem for problem in check(edited(lambda data: swap(data, "note", to="better"))))


def test_a_record_that_was_cut_is_found(edited):
    folder = edited(lambda data: swap(data, "record", to=[*data["record"][:-2], ""]), forged=True)
    assert any("its record" in problem or "another end" in problem for problem in check(folder))


def test_a_file_that_is_no_entry_is_a_sentence(ledger_dir, tmp_path):
    folder = Path(shutil.copytree(ledger_dir, tmp_path / "ledger"))
    path = ledger.paths(folder)[0]
    for text, message in (
        ("{", "expected one JSON object"),
        ("{}", "expected schema entry.v1"),
        ('{"schema": "entry.v1"}', "expected the field"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            check(folder)
    path.rename(folder / "tiny" / "readme.md")
    with pytest.raises(InputError, match="expected files named"):
        ledger.load(folder)
    with pytest.raises(InputError, match="expected the folder of a ledger"):
        ledger.load(tmp_path / "nowhere")


def test_two_results_merge_without_conflict_since_each_is_a_file_of_its_own(tmp_path):
    rng = np.random.default_rng(1)
    added = [fake(name, around(SHAPE, rng, 3), began_s=1.8e9 + i * 9000) for i, name in enumerate(("b", "a", "c"))]
    for entry in reversed(added):
        ledger.add(entry, tmp_path)
    assert [entry.title for entry in ledger.load(tmp_path)] == ["b", "a", "c"] and len(
        list((tmp_path / "pocket").iterdir())
    ) == 3
    assert ledger.by_name(added, "a") is added[1] and ledger.by_name(added, added[2].id) is added[2]
    with pytest.raises(InputError, match="found 3; it may be"):
        ledger.by_name(added, "2026")


def test_any_part_of_a_title_or_id_that_only_one_has_names_an_entry():
    added = [
        fake(title, began_s=1.8e9 + i * 9000)
        for i, title in enumerate(("muon", "muon, rate 0.03", "Half batch", "other 1", "other 2"))
    ]
    assert (
        ledger.by_name(added, "half") is added[2]
        and ledger.by_name(added, "rate 0.03") is added[1]
        and ledger.by_name(added, "muon") is added[0]
    )
    assert (
        ledger.by_name(added, added[3].id[-8:]) is added[3]
        and ledger.by_name(added, added[3].id[:-2] + "…") is added[3]
    )
    with pytest.raises(InputError, match=r"found 2; it may be \S+, \S+: name more"):
        ledger.by_name(added, "other")
    with pytest.raises(InputError, match=r"found none; known: \S+, \S+, \S+ and 2 more$"):
        ledger.by_name(added, "xyz")
    with pytest.raises(InputError, match=r"name an entry, such as .* and 2 more"):
        ledger.by_name(added, "")


def test_hardware_is_named_and_unknown_hardware_is_a_sentence():
    host = {"cpu": "AMD EPYC", "cores": 1}
    assert hardware_class([{"kind": "cpu", "platform": "cpu", "count": 1}], host) == "AMD EPYC, 1 core"
    assert (
        hardware_class([{"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 8}], host)
        == "8 x NVIDIA H100 80GB HBM3"
    )
    with pytest.raises(InputError, match="hardware: expected the kind and number"):
        hardware_class([], host)


@pytest.mark.slow
def test_an_attempt_goes_from_nothing_to_the_ledger_by_the_commands_alone(attempt, commands, tmp_path):
    (attempt / "verdict.json").unlink()
    result = commands.run("parity.attempt", "judge", attempt, "--data-dir", commands.data)
    assert result.code == 0, result.out
    result = commands.run("parity.frontier", "add", attempt, "--ledger", tmp_path / "ledger")
    assert result.code == 0 and "the first entry of track tiny" in result.out
    assert main(["check", "--ledger", str(tmp_path / "ledger")]) == 0
