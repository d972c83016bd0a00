"""The command: new folders, output, refusals. The trainer is a fake."""

import dataclasses
import json
import sys
from types import ModuleType

import pytest

from parity import user_program
from parity.attempt.command import main
from parity.attempt.runner import run
from parity.declaration.record import read_declaration
from parity.recipes import recipe_for
from parity.verify.verdict import Judgement, Verdict


@pytest.mark.parametrize(
    ("backend", "track", "recipe", "file", "framework"),
    [
        ("jax", "pocket", "muon", "program.py", "jaxrun"),
        ("jaxrun", "tiny", "nanogpt", "program.py", "jaxrun"),
        ("torch", "pocket", "nanogpt", "program.py", "torchref"),
        ("torchref", "small", "muon", "program.py", "torchref"),
        ("jax", "pocket-optimizer", "muon", "optimizer.py", "jaxrun"),
        ("torch", "optimizer", "muon", "optimizer.py", "torchref"),
    ],
)
def test_new_makes_a_folder_with_three_files(tmp_path, capsys, backend, track, recipe, file, framework):
    options = ["--backend", backend, "--track", track, "--from", recipe, "--author", "Ada", "--kind", "agent"]
    assert main(["new", str(tmp_path / "a"), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        ["declaration.json", file, f"test_{file}"]
    )
    declared = read_declaration(tmp_path / "a" / "declaration.json")
    assert (declared.backend, declared.track, declared.recipe, declared.file, declared.author, declared.kind) == (
        framework,
        track,
        recipe,
        file,
        "Ada",
        "agent",
    )
    assert declared.claim.val_loss_below == {
        "pocket": 4.65,
        "pocket-optimizer": 4.65,
        "small": 3.28,
        "optimizer": 3.28,
    }.get(track)
    assert f"parity.attempt run {tmp_path / 'a'} --tune" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("recipe", ["muon", "nanogpt"])
def test_a_field_that_the_file_gives_is_what_runs(tmp_path, backend, recipe):
    main(["new", str(tmp_path / "a"), "--backend", backend, "--track", "tiny", "--from", recipe])
    path, name = tmp_path / "a" / "program.py", '    name: ClassVar[str] = "mine"\n'
    source = path.read_text()
    assert name in source
    path.write_text(source.replace(name, f"{name}    steps: int = 30\n    extra: float = 0.5\n"))
    base = dataclasses.replace(recipe_for(recipe, "tiny"), steps=40, val_every=10)
    mine = user_program.make_recipe(user_program.load(path), base)
    assert (mine.steps, mine.val_every, mine.extra) == (30, 10, 0.5)
    assert dataclasses.replace(base, steps=30) == type(base)(
        **{f.name: getattr(mine, f.name) for f in dataclasses.fields(base)}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "pocketed"], "unknown track 'pocketed'; did you mean pocket?"),
        (["--backend", "flax"], "unknown backend 'flax'; did you mean jax?"),
        (["--from", "moun"], "unknown recipe 'moun'; did you mean muon?"),
        (["--from", "nanogpt", "--track", "optimizer"], "track optimizer runs muon"),
        (["--track", "medium"], "has a public history but no recipe yet"),
        (["--runs", "0"], "--runs: expected 1 to 1000, found 0"),
        (["--author", "a" * 300], "author must be shorter than or equal to 200 characters"),
        (["--kind", "cat"], "invalid choice"),
    ],
)
def test_new_refuses_unknown_names(tmp_path, capsys, options, message):
    assert main(["new", str(tmp_path / "a"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_new_leaves_a_folder_with_files_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["new", str(tmp_path)]) == 2 and "expected a new or an empty folder" in capsys.readouterr().err
    assert (
        main(["new", str(tmp_path / "mine")]) == 2 and "expected a folder that can be made" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["nwe", "x"], "unknown command 'nwe' of python -m parity.attempt; did you mean new?"),
        (["run"], "expected the folder of an attempt, found none: python -m parity.attempt run DIR"),
        (["run", "nowhere"], "nowhere: expected the folder of an attempt"),
        (["show", "nowhere"], "expected the declaration of an attempt"),
        (["run", "x", "--seed", "3"], "expected --tune with it"),
        (["run", "x", "--tune", "--again"], "--tune declares no seeds"),
        (["run", "x", "--tune", "--seed", "-1"], "expected 0 or more"),
    ],
)
def test_wrong_command_lines_are_one_sentence(capsys, arguments, message):
    assert main(arguments) == (2 if message else 0)
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == bool(message)
    assert arguments or "judge" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "arguments: unknown option --stepz of python -m torchref.train: did you mean --steps?"),
        (["--steps", "x"], "declaration.json: arguments: --steps: expected a whole number, found 'x'"),
        (["--head-dim", "7"], "arguments: recipe muon: --head-dim must be"),
        (["--seed=3"], "arguments: expected no --seed"),
        (["--data_dir", "x"], "arguments: expected no --data_dir"),
        (["--resume", "x"], "expected no --resume"),
        (["--help"], "expected no --help"),
        (["a\0b"], "found NUL in"),
    ],
)
def test_arguments_are_checked_before_seeds_are_declared(attempt, trainer, capsys, arguments, message):
    attempt.change(arguments=arguments)
    assert attempt.run() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (attempt.folder / "attempt.jsonl").exists()


def test_json_output_is_json(attempt, trainer, capsys):
    trainer.codes = [0, 1]
    assert attempt.run("--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [*attempt.kinds, "overview"] and lines[:-1] == attempt.events
    assert [run["state"] for run in lines[-1]["runs"]] == ["done", "failed"]
    trainer.codes = [2]
    (attempt.folder / "program.py").write_text("other = 1\n")
    assert attempt.run("--json", "--again") == 2
    assert "cannot make this run: error: so it is (" in capsys.readouterr().err
    assert main(["show", str(attempt.folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["declared"]) == 2
    assert main(["new", str(attempt.folder / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "program.py"


def test_show_lists_every_run_on_at_most_100_columns(attempt, trainer, capsys):
    assert main(["show", str(attempt.folder)]) == 0 and "no seeds declared yet" in capsys.readouterr().out
    attempt.change(runs=9, author="\x1b[2J\u202eada", budget={"runs": 11, "seconds": 1e9, "flops": 1e30})
    trainer.codes = [0, 0, 1, 130]
    attempt.run("--tune", "--seed", 2**63 - 1)
    attempt.run()
    capsys.readouterr()
    assert main(["show", str(attempt.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and all(line.isprintable() for line in lines)
    table = "\n".join(lines)
    assert all(run["run"].split("/")[-1] in table for run in attempt.events if run["event"] == "started")
    assert [line.split()[-1] for line in lines if line.startswith("final-")] == ["done", "failed", "interrupted"]
    assert "4 runs" in table and "budget 1.00e+30" in table


def test_a_run_at_work_is_shown_with_its_progress(attempt, trainer, capsys):
    trainer.before.append(lambda: main(["show", str(attempt.folder)]))
    run((attempt.folder,), say=lambda text: None)
    first = capsys.readouterr().out.splitlines()
    assert any(line.startswith("final-1-") and line.endswith("at work") for line in first)


def test_judge_prints_and_writes_the_verdict(attempt, monkeypatch, capsys):
    chosen = {}

    def judge_attempt(folder, **options):
        chosen.update(options, folder=folder)
        options["say"]("looking")
        one = Verdict("final-1", options["depth"], (Judgement("chain", "holds", "whole"),), frozenset(["chain"]), {})
        return Verdict(
            "attempt",
            options["depth"],
            (Judgement("seeds", "fails", "one is missing"),),
            frozenset(["seeds"]),
            {},
            (one,),
        )

    module = ModuleType("parity.verify.attempts")
    module.judge_attempt = judge_attempt
    monkeypatch.setitem(sys.modules, "parity.verify.attempts", module)
    assert main(["judge", str(attempt.folder), "--depth", "log", "--trust-code", "--baseline", "b"]) == 1
    output = capsys.readouterr().out
    assert "looking" not in output and output.index("final-1, depth log") < output.index("FAILS: seeds")
    assert (
        chosen["trust_code"]
        and chosen["depth"] == "log"
        and chosen["baseline"].name == "b"
        and chosen["data_dir"] is None
    )
    assert main(["judge", str(attempt.folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "fails"
    assert json.loads((attempt.folder / "verdict.json").read_text())["runs"][0]["subject"] == "final-1"
