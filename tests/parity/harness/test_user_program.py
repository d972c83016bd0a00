"""User programs of one file: trained like a recipe, and a faulty one explained in a sentence."""

import json
from pathlib import Path

import pytest

from parity.program_source import program_source

TEMPLATE = program_source("torchref", "muon")


def test_a_program_of_ones_own_is_trained_and_answers_in_json(commands, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TEMPLATE)
    done = commands.run(
        *commands.small("torchref", tmp_path / "runs", "own", "--program", file, "--steps", "4", "--json")
    )
    assert done.code == 0, done.err
    output = json.loads(done.out)
    assert output["totals"]["steps"] == 4 and Path(output["run"]).name == "own"
    run = json.loads((Path(output["run"]) / "run.json").read_text())
    assert (
        run["recipe"]["name"] == "mine"
        and run["program"]["base"]["name"] == "muon"
        and run["program"]["file"] == "mine.py"
    )


def test_what_lies_compiled_beside_the_source_is_not_what_runs(tmp_path):
    import importlib.util
    import py_compile
    import sys

    from parity import user_program

    path = tmp_path / "lying.py"
    path.write_text("def build(recipe):\n    return 'other'\n")
    compiled = importlib.util.cache_from_source(str(path))
    py_compile.compile(str(path), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.write_text("def build(recipe):\n    return 'source'\n")
    assert user_program.load(path).build(None) == "source"
    sys.path.insert(0, str(tmp_path))
    try:
        assert user_program.load_function("lying:build", "--optimizer")(None) == "source"
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (None, [], "expected a Python file with a function build(recipe), found none there"),
        ("x = 1\n", [], "expected a function build(recipe) that returns a program, found none"),
        ("x = 1 +\n", [], "its import raised SyntaxError"),
        ("def build(recipe, **options):\n    return 1\n", [], "found int without init"),
        (
            "def make_recipe(base):\n    return 1\ndef build(recipe, **options):\n    return 1\n",
            [],
            "make_recipe expected to return",
        ),
        (TEMPLATE, ["--optimizer", "mine:make"], "--optimizer and --program exclude each other"),
        (TEMPLATE, ["--track", "pocket-optimizer"], "fixes data, batch and architecture"),
    ],
)
def test_what_is_wrong_with_a_program_is_said_in_one_sentence(commands, tmp_path, capsys, text, arguments, sentence):
    from parity.harness.train import main

    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    track = [] if "--track" in arguments else ["--track", "tiny"]
    code = main(
        "torchref",
        [
            *track,
            "--data-dir",
            str(commands.data),
            "--runs",
            str(tmp_path / "runs"),
            "--program",
            str(file),
            *arguments,
        ],
    )
    message = capsys.readouterr().err
    assert code == 2 and sentence in message and message.count("\n") == 1 and not (tmp_path / "runs").exists()
