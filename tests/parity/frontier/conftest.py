"""A real attempt, judged, and a ledger that has it."""

import json
from pathlib import Path

import pytest
from fakes import promoted

from parity.frontier import ledger
from parity.frontier.submission import entry_of

SMALL = (
    "--layers",
    "1",
    "--dim",
    "32",
    "--head-dim",
    "16",
    "--context",
    "32",
    "--batch-tokens",
    "512",
    "--steps",
    "60",
    "--val-every",
    "15",
    "--final-val-every",
    "15",
    "--samples",
    "0",
)


@pytest.fixture(scope="session")
def original(commands, tmp_path_factory) -> Path:
    """An attempt of two short runs in PyTorch, judged."""
    folder = tmp_path_factory.mktemp("attempts") / "mine"
    assert (
        commands.run(
            "parity.attempt", "new", folder, "--backend", "torch", "--track", "tiny", "--runs", "2", "--author", "Ada"
        ).code
        == 0
    )
    path = folder / "declaration.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"arguments": SMALL, "techniques": ["small"], "note": "a note"})
    )
    said = commands.run("parity.attempt", "run", folder, "--data-dir", commands.data)
    assert said.code == 0, said.err
    said = commands.run("parity.attempt", "judge", folder, "--data-dir", commands.data, "--depth", "log")
    assert said.code == 0, said.out + said.err
    promoted(folder)
    return folder


@pytest.fixture(scope="session")
def kept(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ledgers") / "ledger"
    ledger.add(entry_of(original), folder)
    return folder
