"""Lint, format and types: no package has more findings than are recorded for it."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import style  # noqa: E402

RECORDED = json.loads(style.RECORDED.read_text())


def test_every_file_is_formatted():
    assert style.unformatted() == [], "run: ruff format ."


@pytest.mark.parametrize("findings", [style.ruff_findings, style.type_findings])
def test_no_package_has_more_findings_than_recorded(findings):
    problems = style.problems(findings(), RECORDED)
    assert not problems, "\n".join(problems)


def test_a_new_finding_fails_and_a_fixed_one_lowers_the_number():
    recorded = {"ruff": {"parity": 1, "parity/data": 1}}
    found = [style.Finding("ruff", path, "line 1: E501") for path in ("parity/data/stream.py", "parity/track.py")]
    assert style.problems(found, recorded) == []
    assert len(style.problems([*found, found[0]], recorded)) == 1
    assert len(style.problems([style.Finding("ruff", "scripts/x.py", "")], recorded)) == 1
    assert style.lowered(found[1:], recorded) == {"ruff": {"parity": 1, "parity/data": 0}}
