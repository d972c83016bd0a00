"""The command `python -m parity.frontier`: what it prints, what it refuses, and its exit codes."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest

from parity.compare.matrix import Caught
from parity.compare.report.text import to_json
from parity.errors import InputError
from parity.frontier import ledger
from parity.frontier.command import COMMANDS, main
from parity.history import reported

HERE = str(Path(__file__).parent)
DOCS = Path(__file__).parents[3] / "docs" / "frontier.md"


@pytest.fixture
def run(capsys):
    """Runs a command; its exit code, output and error."""

    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


def test_entries_are_listed_shown_scored_and_checked(run, ledger_dir):
    (entry,) = ledger.load(ledger_dir)
    assert entry.id in run("list", "--ledger", ledger_dir)[1]
    code, out, _ = run("show", "mine", "--ledger", ledger_dir)
    assert code == 0 and "Ada (person)" in out and "track tiny has no target" in out
    assert run("show", "mine", "--ledger", ledger_dir, "--file", "program.py")[1] == "\n".join(
        entry.data["source"]["lines"]
    )
    assert json.loads(run("show", "mine", "--ledger", ledger_dir, "--json")[1]) == entry.data
    assert "hypervolume" in run("score", "--ledger", ledger_dir)[1]
    assert json.loads(run("score", "--ledger", ledger_dir, "--json")[1])["entries"][0]["id"] == entry.id
    assert run("check", "--ledger", ledger_dir)[:2] == (0, "1 entry holds\n")
    assert json.loads(run("check", "--ledger", ledger_dir, "--json")[1]) == {"entries": 1, "problems": []}


def test_an_entry_is_derived_from_its_evidence_again(run, ledger_dir, judged_attempt, tmp_path):
    assert run("check", "mine", "--evidence", judged_attempt, "--ledger", ledger_dir)[0] == 0
    other = Path(shutil.copytree(judged_attempt, tmp_path / "mine"))
    verdict = other / "verdict.json"
    verdict.write_text(verdict.read_text().replace('"isolation": "none"', '"isolation": "much"'))
    code, out, _ = run("check", "mine", "--evidence", other, "--ledger", ledger_dir)
    assert code == 1 and "runs is not what" in out
    code, out, _ = run("check", "half batch", "--evidence", judged_attempt)
    assert code == 1 and f"it was not made from {judged_attempt}, which gives " in out and out.count("\n") == 1


def test_an_edited_ledger_is_used_for_nothing(run, ledger_dir, judged_attempt, tmp_path):
    folder = Path(shutil.copytree(ledger_dir, tmp_path / "ledger"))
    path = ledger.paths(folder)[0]
    path.write_text(path.read_text().replace('"author": "Ada"', '"author": "Eve"'))
    for command in (
        ["list"],
        ["score"],
        ["show", "mine"],
        ["site", tmp_path / "site"],
        ["plot", tmp_path / "a.svg"],
        ["ablate"],
        ["cross"],
    ):
        code, _, error = run(*command, "--ledger", folder)
        assert code == 2 and str(path) in error and "restore it" in error and error.count("\n") == 1
    assert run("add", judged_attempt, "--ledger", folder)[0] == 2
    code, out, _ = run("check", "--ledger", folder)
    assert code == 1 and all(
        line.startswith(f"{path}: ") and line.endswith("restore it, with git for example") for line in out.splitlines()
    )


def test_a_site_and_a_report_are_written(run, ledger_dir, judged_attempt, tmp_path):
    (entry,) = ledger.load(ledger_dir)
    code, out, _ = run("site", tmp_path / "site", "--ledger", ledger_dir)
    assert code == 0 and "1 verified entry, and 92 records reported by others" in out
    assert (tmp_path / "site" / "attempt" / f"{entry.id}.html").is_file()
    assert "not verified here" in (tmp_path / "site" / "index.html").read_text()
    code, out, _ = run("report", judged_attempt, "--out", tmp_path / "report")
    assert code == 0 and Path(out.strip()).is_file()
    code, out, _ = run(
        "report", judged_attempt, "--out", tmp_path / "beside", "--ledger", ledger.PROJECT_LEDGER, "--json"
    )
    assert code == 0 and Path(json.loads(out)["page"]).stem == json.loads(out)["id"] == entry.id
    assert len(list((tmp_path / "beside" / "attempt").iterdir())) == 1 + len(ledger.paths(ledger.PROJECT_LEDGER))
    code, out, _ = run("plot", tmp_path / "a.svg", "--track", "tiny", "--ledger", ledger_dir, "--json")
    assert code == 0 and json.loads(out)["entries"] == 1 and Path(json.loads(out)["picture"]).is_file()


def test_the_projects_own_ledger_holds_and_its_site_needs_no_arguments(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = run("site")
    assert code == 0, error
    assert (tmp_path / "site" / "index.html").is_file() and run("check")[0] == 0
    assert sum(path.stat().st_size for path in ledger.paths(ledger.PROJECT_LEDGER)) < 5_000_000


@pytest.mark.parametrize("old", [False, True])
def test_the_site_shows_what_the_comparison_of_faults_wrote(run, ledger_dir, tmp_path, old):
    rows = [
        Caught("norm-axis", "jaxrun", "muon", "forward", "forward", "stream", "norm_in", math.inf, True, True),
        Caught("rotary-sign", "torchref", "muon", "forward", None),
    ]
    path = tmp_path / "faults.json"
    path.write_text(to_json(rows if old else {"options": {"faults": True}, "caught": rows}))
    assert run("site", tmp_path / "site", "--ledger", ledger_dir, "--parity", path)[0] == 0
    page = (tmp_path / "site" / "matrices.html").read_text()
    assert "Parity of the backends" in page and "norm-axis" in page and "rotary-sign" in page


@pytest.mark.parametrize(
    "content", ["{", "3", "[3]", "{}", '{"caught": 3}', '{"caught": [3]}', '{"recipes": {"muon": []}, "exit_code": 0}']
)
def test_the_site_refuses_another_report_as_the_matrix_of_parity(run, ledger_dir, tmp_path, content):
    (tmp_path / "faults.json").write_text(content)
    code, _, error = run("site", tmp_path / "s", "--ledger", ledger_dir, "--parity", tmp_path / "faults.json")
    assert code == 2 and "expected the output of python -m parity.compare --faults --json FILE" in error
    assert error.count("\n") == 1 and not (tmp_path / "s").exists()


def test_the_public_history_is_printed_as_reported_by_others(run):
    code, out, _ = run("history")
    assert code == 0 and "not verified here" in out and max(map(len, out.splitlines())) <= 100
    assert json.loads(run("history", "--json")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ad"], "unknown command 'ad' of python -m parity.frontier; did you mean add?"),
        (["add"], "expected RUN|ATTEMPT after python -m parity.frontier add, found none"),
        (["add", HERE], f"{HERE}: it is neither a run (no run.json in it) nor an attempt (no declaration.json)"),
        (["report", HERE], f"{HERE}: it is neither a run"),
        (["report"], "expected RUN|ATTEMPT after"),
        (["show"], "name an entry, such as 20"),
        (["show", "muon"], "it may be 20"),
        (["score", "extra"], "unexpected 'extra' after python -m parity.frontier score"),
        (["cross", "--margin", "abc"], "--margin: expected a number, found 'abc'"),
        (["score", "--track", "nope"], "known: pocket, pocket-optimizer, small, optimizer, tiny"),
        (["add", "nowhere"], "expected an attempt's folder or a run directory, found nothing"),
        (["list", "--ledger", "nowhere"], "expected the folder of a ledger, found nothing"),
        (["show", "nothing"], "nothing: expected the id of one entry, found none"),
        (["check", "an-id"], "expected --evidence DIR with an id"),
        (["score", "--track", "pocketed"], "unknown track 'pocketed'; did you mean pocket?"),
        (["cross", "a"], "expected two entries, one of each backend, found 1"),
        (["band", "nowhere"], "expected a run directory, found nothing"),
        (["site", "x", "--cheats", "nowhere.json"], "expected the output of python -m parity.verify --cheats --json"),
        (["plot", "x.pdf"], "expected a name that ends in .svg or .png"),
        (["plot", "--axis", "money"], "invalid choice"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    code, _, error = run(*arguments)
    assert code == 2 and message in error and error.count("\n") == 1, error


def test_the_histories_tables_need_a_document(tmp_path):
    with pytest.raises(InputError, match="expected docs/appendix/history.md, found nothing that can be read"):
        reported.main([str(tmp_path / "missing.md")])


def test_the_study_in_the_docs_is_what_the_command_beside_it_prints(run):
    text = DOCS.read_text()
    command = re.search(r'^python -m parity\.frontier (ablate .*")$', text, re.MULTILINE)
    result = json.loads(run(*shlex.split(command[1]), "--json")[1])
    assert len(result["effects"]) == 3 and not result["skipped"]
    for effect in result["effects"]:
        assert (
            f"{effect['loss']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}] | {effect['p_holm']:.2g} |" in text
        ), effect


def test_help_lists_every_command(run):
    _, out, _ = run("--help")
    assert all(f"  {name} " in out for name in COMMANDS)


def test_an_empty_ledger_says_how_to_fill_it(run, tmp_path):
    assert run("score", "--track", "small")[1].startswith(
        "track small has no entries yet: python -m parity.frontier add"
    )
    for command in ("list", "score", "check"):
        code, out, _ = run(command, "--ledger", tmp_path)
        assert code == 0 and "python -m parity.frontier add RUN|ATTEMPT" in out
