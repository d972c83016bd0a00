"""A real attempt, judged, and a ledger with it."""

import json
from pathlib import Path

import pytest
from fakes import promoted

from parity.frontier import ledger
from parity.frontier.submission import entry_of

MODEL = ("--layers", "1", "--dim", "32", "--head-dim", "16", "--context", "32", "--batch-tokens", "512")
PLAN = ("--steps", "60", "--val-every", "15", "--final-val-every", "15", "--samples", "0")


@pytest.fixture(scope="session")
def judged_attempt(commands, tmp_path_factory) -> Path:
    """An attempt of two short runs in PyTorch, judged."""
    folder = tmp_path_factory.mktemp("attempts") / "mine"
    options = ("--backend", "torch", "--track", "tiny", "--runs", "2", "--author", "Ada")
    assert commands.run("parity.attempt", "new", folder, *options).code == 0
    path = folder / "declaration.json"
    program = folder / "program.py"  # seconds of a compiler have no part in what is tested here
    program.write_text(program.read_text().replace(", compile=can_compile(chosen)", ""))
    changes = {"arguments": [*MODEL, *PLAN], "techniques": ["small"], "note": "a note"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    result = commands.run("parity.attempt", "run", folder, "--data-dir", commands.data)
    assert result.code == 0, result.err
    result = commands.run("parity.attempt", "judge", folder, "--data-dir", commands.data, "--depth", "log")
    assert result.code == 0, result.out + result.err
    promoted(folder)
    return folder


@pytest.fixture(scope="session")
def ledger_dir(judged_attempt, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ledgers") / "ledger"
    ledger.add(entry_of(judged_attempt), folder)
    return folder
