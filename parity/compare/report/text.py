"""The report on a terminal, in 100 columns, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from parity.compare.faults.matrix import Caught
from parity.compare.levels import LEVELS
from parity.compare.observation import Finding, Line, Result

WIDTH = 100
NUMBERS = {name: i for i, name in enumerate(LEVELS, 1)}
MARKS = {"holds": "ok", "fails": "FAILS", "not judged": "not judged"}


def text(title: str, results: Sequence[Result]) -> str:
    """One table: a row for each level, below it one for each of its lines; at the end the finding."""
    rows = [
        _cut(title, WIDTH),
        f"  {'line':21} {'n':>4}  {'worst at':27} {'found':>7} {'allowed':>7}  allowance from".rstrip(),
        "-" * WIDTH,
    ]
    for result in results:
        about = f"{NUMBERS[result.level]:>2} {result.level}: {MARKS[result.status]}"
        rows.append(_cut(f"{about}, {result.reason}" if result.reason else f"{about} ({result.seconds:.1f} s)", WIDTH))
        rows += [_row(line) for line in result.lines]
    findings = [line for result in results if result.finding for line in _finding(result.finding)]
    return "\n".join([*rows, "-" * WIDTH, *(findings or [_verdict(results)])])


def _row(line: Line) -> str:
    mark = " " if line.holds else "!"
    basis = "to the last bit" if line.basis == "equal to the last bit" else line.basis
    worst = line.worst if line.found or not line.holds else "-"
    return (
        f"{mark} {_cut(line.name, 21):21} {line.places:>4}  {_cut(worst, 27):27} {_number(line.found):>7} "
        f"{_number(line.allowed):>7}  {_cut(basis, 25)}"
    ).rstrip()


def _finding(finding: Finding) -> list[str]:
    lines = [
        f"FAILS at level {NUMBERS[finding.level]}, {finding.level} ({finding.line})",
        *_field("place", finding.place),
    ]
    if finding.where:
        lines += _field("where", finding.where)
    apart = finding.difference
    ulps = f", {apart.ulps:.3g} ulps at the worst place" if apart else ""
    lines += _field("how far", f"{finding.found:.3g}{ulps}; allowed {finding.allowed:.3g} ({finding.basis})")
    lines += _field("seen", finding.says)
    if apart and apart.cosine is not None:
        lines += _field("", f"cosine {apart.cosine:.6f}, norms {apart.norms[0]:.6g} and {apart.norms[1]:.6g}")
    for label, note in [("note", finding.note)] * bool(finding.note) + [("why", reason) for reason in finding.reasons]:
        lines += _field(label, note)
    return lines


def _field(label: str, value: str) -> list[str]:
    """A labelled paragraph."""
    lines, room = [], WIDTH - 11
    words = value.split()
    while words:
        line = words.pop(0)
        while words and len(line) + 1 + len(words[0]) <= room:
            line += " " + words.pop(0)
        lines.append(line[:room])
    return [f"  {label if i == 0 else '':8} {line}" for i, line in enumerate(lines)]


def _verdict(results: Sequence[Result]) -> str:
    judged = [r for r in results if r.status == "holds"]
    missing = [r for r in results if r.status == "not judged"]
    if not missing:
        return f"HOLDS at all {len(judged)} levels asked for"
    names = ",".join(r.level for r in judged)
    also = f"; to ask for those alone: --levels {names}" if names else ""
    return _cut(f"holds at {len(judged)} levels, {len(missing)} NOT JUDGED{also}", WIDTH)


def _number(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-" if math.isnan(value) else "inf"
    return f"{value:.1e}"


def _cut(value: str, width: int) -> str:
    return value if len(value) <= width else value[: width - 2] + ".."


def matrix_text(found: Sequence[Caught]) -> str:
    """The matrix: a row for each fault and recipe, a column for each level; "." quiet, "X" caught, blank not run."""
    levels = list(LEVELS)
    head = "  ".join(f"{i:>1}" if i < 10 else "L" for i in range(1, len(levels) + 1))
    rows = [f"{'fault':28} {'recipe':7} {head}   {'margin jax':>10} {'torch':>8}  named", "-" * WIDTH]
    for (fault, recipe), group in _grouped(found).items():
        cells = []
        for level in levels:
            caught = {c.backend for c in group if c.level == level}
            run = any(c.level is None or levels.index(c.level) > levels.index(level) for c in group)
            cells.append("X" if len(caught) == len(group) else "x" if caught else "." if run else " ")
        margins = {c.backend: c.margin for c in group}
        wrong = (
            "" if all(c.right for c in group) else " MISSED" if any(c.level is None for c in group) else " WRONG PLACE"
        )
        rows.append(
            f"{_cut(fault, 28):28} {recipe:7} {'  '.join(cells)}   {_number(margins.get('jaxrun', math.nan)):>10} "
            f"{_number(margins.get('torchref', math.nan)):>8}  {'yes' if all(c.named for c in group) else 'no'}{wrong}"
        )
    right, named = sum(c.right for c in found), sum(c.named for c in found)
    levels_line = " ".join(f"{'L' if n == 10 else n} {name}" for name, n in NUMBERS.items())
    counts = f"{len({c.fault for c in found})} faults, {len(found)} plantings"
    return "\n".join(
        [
            *rows,
            "-" * WIDTH,
            levels_line,
            f"{counts}: {right} caught at the level and place that must see them, {named} named",
        ]
    )


def _grouped(found: Sequence[Caught]) -> dict[tuple[str, str], list[Caught]]:
    groups: dict[tuple[str, str], list[Caught]] = {}
    for caught in found:
        groups.setdefault((caught.fault, caught.recipe), []).append(caught)
    return groups


def to_json(value: Any) -> str:
    """Anything of a report as JSON; infinities as text."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {field.name: plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
        if isinstance(x, dict):
            return {str(key): plain(item) for key, item in x.items()}
        if isinstance(x, list | tuple):
            return [plain(item) for item in x]
        return str(x) if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(plain(value), indent=1)
