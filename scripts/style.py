"""Lint, format and type findings by package, held against recorded numbers that may only fall.

    python scripts/style.py             # exit code 1: more findings than recorded, or a file is not formatted
    python scripts/style.py --record    # lower the recorded numbers to today's

`tests/findings.json` holds the numbers by path. A finding counts for the longest path that its file is below; a file
below none of them must have no findings. pyproject.toml configures `ruff` and `pyright`.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "findings.json"
Counts = dict[str, dict[str, int]]  # tool -> path -> number


class Finding(NamedTuple):
    """A finding of a tool, with the file's path from the root of the repository."""

    tool: str
    path: str
    text: str


def run(*command: str) -> str:
    """The output of a Python module. A linter's exit code 1 means findings; everything else is an error."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"python -m {' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def relative(path: str) -> str:
    return Path(path).resolve().relative_to(ROOT).as_posix()


def ruff_findings() -> list[Finding]:
    return [
        Finding("ruff", relative(row["filename"]), f"line {row['location']['row']}: {row['code']} {row['message']}")
        for row in json.loads(run("ruff", "check", "--output-format", "json", "."))
    ]


def type_findings() -> list[Finding]:
    rows = json.loads(run("pyright", "--pythonpath", sys.executable, "--outputjson"))["generalDiagnostics"]
    return [
        Finding("pyright", relative(row["file"]), f"line {row['range']['start']['line'] + 1}: {row['message']}")
        for row in rows
        if row["severity"] == "error"
    ]


def unformatted() -> list[str]:
    """The files that `ruff format` would change."""
    lines = run("ruff", "format", "--check", ".").splitlines()
    return [line.removeprefix("Would reformat: ") for line in lines if line.startswith("Would reformat: ")]


def row_of(path: str, rows: dict[str, int]) -> str | None:
    """The longest recorded path that a file is below, if any."""
    return max((row for row in rows if path == row or path.startswith(row + "/")), key=len, default=None)


def problems(findings: list[Finding], recorded: Counts) -> list[str]:
    """One paragraph for every path that has more findings than recorded."""
    texts = []
    for tool in sorted({finding.tool for finding in findings}):
        rows = recorded.get(tool, {})
        groups: dict[str | None, list[Finding]] = {}
        for finding in findings:
            if finding.tool == tool:
                groups.setdefault(row_of(finding.path, rows), []).append(finding)
        for row, group in groups.items():
            allowed = 0 if row is None else rows[row]
            if len(group) > allowed:
                listed = "\n".join(f"  {finding.path}: {finding.text}" for finding in group)
                where = "files without a recorded number" if row is None else row
                texts.append(f"{tool}, {where}: expected at most {allowed} findings, found {len(group)}: fix\n{listed}")
    return texts


def lowered(findings: list[Finding], recorded: Counts) -> Counts:
    """The recorded numbers, each lowered to that of today."""
    counts: Counts = {}
    for tool, rows in recorded.items():
        today = Counter(row_of(finding.path, rows) for finding in findings if finding.tool == tool)
        counts[tool] = {row: min(today[row], rows[row]) for row in sorted(rows)}
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="lower the recorded numbers to today's")
    options = parser.parse_args()
    recorded = json.loads(RECORDED.read_text())
    findings = ruff_findings() + type_findings()
    if options.record:
        RECORDED.write_text(json.dumps(lowered(findings, recorded), indent=2) + "\n")
    texts = problems(findings, recorded) + [f"{path}: not formatted: ruff format {path}" for path in unformatted()]
    print("\n".join(texts) or f"{len(findings)} findings, none more than recorded")
    return 1 if texts else 0


if __name__ == "__main__":
    sys.exit(main())
