"""The command: what it makes, prints and refuses. Runs are made by a fake trainer."""

import dataclasses
import json
import sys
from types import ModuleType

import pytest

from parity import user_program
from parity.attempt.command import main
from parity.attempt.record import read_declaration
from parity.attempt.runner import run
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
    found = read_declaration(tmp_path / "a" / "declaration.json")
    assert (found.backend, found.track, found.recipe, found.file, found.author, found.kind) == (
        framework,
        track,
        recipe,
        file,
        "Ada",
        "agent",
    )
    assert found.claim.val_loss_below == {
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
    made = user_program.make_recipe(user_program.load(path), base)
    assert (made.steps, made.val_every, made.extra) == (30, 10, 0.5)
    assert dataclasses.replace(base, steps=30) == type(base)(
        **{f.name: getattr(made, f.name) for f in dataclasses.fields(base)}
    )


@pytest.mark.parametrize(
    ("options", "told"),
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
def test_new_refuses_what_it_does_not_know(tmp_path, capsys, options, told):
    assert main(["new", str(tmp_path / "a"), *options]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_new_leaves_a_folder_with_files_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["new", str(tmp_path)]) == 2 and "expected a new or an empty folder" in capsys.readouterr().err
    assert (
        main(["new", str(tmp_path / "mine")]) == 2 and "expected a folder that can be made" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_wrong_command_lines_are_one_sentence(capsys, arguments, told):
    assert main(arguments) == (2 if told else 0)
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == bool(told)
    assert arguments or "judge" in said.out


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_arguments_are_looked_at_before_seeds_are_declared(made, trainer, capsys, arguments, told):
    made.change(arguments=arguments)
    assert made.run() == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not (made.folder / "attempt.jsonl").exists()


def test_json_output_is_json(made, trainer, capsys):
    trainer.codes = [0, 1]
    assert made.run("--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [*made.kinds, "overview"] and lines[:-1] == made.events
    assert [run["state"] for run in lines[-1]["runs"]] == ["done", "failed"]
    trainer.codes = [2]
    (made.folder / "program.py").write_text("other = 1\n")
    assert made.run("--json", "--again") == 2
    assert "cannot make this run: error: so it is (" in capsys.readouterr().err
    assert main(["show", str(made.folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["declared"]) == 2
    assert main(["new", str(made.folder / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "program.py"


def test_show_lists_every_run_on_at_most_100_columns(made, trainer, capsys):
    assert main(["show", str(made.folder)]) == 0 and "no seeds declared yet" in capsys.readouterr().out
    made.change(runs=9, author="\x1b[2J\u202eada", budget={"runs": 11, "seconds": 1e9, "flops": 1e30})
    trainer.codes = [0, 0, 1, 130]
    made.run("--tune", "--seed", 2**63 - 1)
    made.run()
    capsys.readouterr()
    assert main(["show", str(made.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and all(line.isprintable() for line in lines)
    table = "\n".join(lines)
    assert all(run["run"].split("/")[-1] in table for run in made.events if run["event"] == "started")
    assert [line.split()[-1] for line in lines if line.startswith("final-")] == ["done", "failed", "interrupted"]
    assert "4 runs" in table and "budget 1.00e+30" in table


def test_a_run_at_work_is_shown_with_what_its_log_says(made, trainer, capsys):
    trainer.before.append(lambda: main(["show", str(made.folder)]))
    run((made.folder,), say=lambda text: None)
    first = capsys.readouterr().out.splitlines()
    assert any(line.startswith("final-1-") and line.endswith("at work") for line in first)


def test_judge_prints_and_writes_the_verdict(made, monkeypatch, capsys):
    asked = {}

    def judge_attempt(folder, **options):
        asked.update(options, folder=folder)
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
    assert main(["judge", str(made.folder), "--depth", "log", "--trust-code", "--baseline", "b"]) == 1
    said = capsys.readouterr().out
    assert "looking" not in said and said.index("final-1, depth log") < said.index("FAILS: seeds")
    assert (
        asked["trust_code"] and asked["depth"] == "log" and asked["baseline"].name == "b" and asked["data_dir"] is None
    )
    assert main(["judge", str(made.folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "fails"
    assert json.loads((made.folder / "verdict.json").read_text())["runs"][0]["subject"] == "final-1"
