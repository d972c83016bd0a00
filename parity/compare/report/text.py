"""The report on a terminal, in 100 columns, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.compare.judge import EXACT
from parity.compare.levels import LEVELS
from parity.compare.matrix import Caught
from parity.compare.observation import Finding, Line, Result
from parity.tables import RULE, cut, labelled

NUMBERS = {name: i for i, name in enumerate(LEVELS, 1)}
MARKS = {"holds": "ok", "fails": "FAILS", "not judged": "not judged"}
JSON_KEYS = {  # of attributes that have another name in the JSON report
    "location": "place",
    "at_location": "in_place",
    "count": "places",
    "measured": "found",
    "relative": "found",
    "message": "says",
}


def text(title: str, results: Sequence[Result]) -> str:
    """One table: a row for each level, below it one for each of its lines; at the end the finding."""
    rows = [
        cut(title),
        f"  {'line':21} {'n':>4}  {'worst at':27} {'found':>7} {'allowed':>7}  allowance from",
        RULE,
    ]
    for result in results:
        about = f"{NUMBERS[result.level]:>2} {result.level}: {MARKS[result.status]}"
        rows.append(cut(f"{about}, {result.reason}" if result.reason else f"{about} ({result.seconds:.1f} s)"))
        rows += map(_row, result.lines)
    findings = [line for result in results if result.finding for line in _finding(result.finding)]
    return "\n".join([*rows, RULE, *(findings or [_verdict(results)])])


def _row(line: Line) -> str:
    basis = "to the last bit" if line.basis == EXACT else line.basis
    return (
        f"{' ' if line.holds else '!'} {cut(line.name, 21):21} {line.count:>4}  {cut(worst(line), 27):27} "
        f"{_number(line.measured):>7} {_number(line.allowed):>7}  {cut(basis, 25)}"
    ).rstrip()


def worst(line: Line) -> str:
    """The worst location of a line; "-" where nothing differs."""
    return line.worst if line.measured or not line.holds else "-"


def _finding(finding: Finding) -> list[str]:
    heading = f"FAILS at level {NUMBERS[finding.level]}, {finding.level} ({finding.line})"
    return [heading, *labelled(finding_fields(finding), label_width=7)]


def finding_fields(finding: Finding) -> list[tuple[str, str]]:
    """The labelled paragraphs of a finding."""
    apart, ulps, cosine = finding.difference, "", ""
    if apart:
        ulps = f", {apart.ulps:.3g} ulps at the worst place"
    if apart and apart.cosine is not None and apart.norms:
        cosine = f"cosine {apart.cosine:.6f}, norms {apart.norms[0]:.6g} and {apart.norms[1]:.6g}"
    fields = [
        ("place", finding.location),
        ("where", finding.where),
        ("how far", f"{finding.measured:.3g}{ulps}; allowed {finding.allowed:.3g} ({finding.basis})"),
        ("seen", finding.message),
        ("", cosine),
        ("note", finding.note),
        *(("why", reason) for reason in finding.reasons),
    ]
    return [(label, value) for label, value in fields if value]


def _verdict(results: Sequence[Result]) -> str:
    judged = [r.level for r in results if r.status == "holds"]
    missing = len(results) - len(judged)
    if not missing:
        return f"HOLDS at all {len(judged)} levels asked for"
    also = f"; to ask for those alone: --levels {','.join(judged)}" if judged else ""
    return cut(f"holds at {len(judged)} levels, {missing} NOT JUDGED{also}")


def _number(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-" if math.isnan(value) else "inf"
    return f"{value:.1e}"


def matrix_text(rows: Sequence[Caught]) -> str:
    """The matrix: a row for each fault and recipe, a column for each level; "." quiet, "X" caught, blank not run."""
    columns = {name: "L" if i == 10 else str(i) for name, i in NUMBERS.items()}
    lines = [f"{'fault':28} {'recipe':7} {'  '.join(columns.values())}   {'margin jax':>10} {'torch':>8}  named"]
    lines.append(RULE)
    groups: dict[tuple[str, str], list[Caught]] = {}
    for caught in rows:
        groups.setdefault((caught.fault, caught.recipe), []).append(caught)
    for (fault, recipe), group in groups.items():
        margins = {caught.backend: _number(caught.margin) for caught in group}
        named = "yes" if all(caught.named for caught in group) else "no"
        if not all(caught.correct for caught in group):
            named += " MISSED" if any(caught.level is None for caught in group) else " WRONG PLACE"
        lines.append(
            f"{cut(fault, 28):28} {recipe:7} {'  '.join(_mark(group, level) for level in NUMBERS)}   "
            f"{margins.get('jaxrun', '-'):>10} {margins.get('torchref', '-'):>8}  {named}"
        )
    correct, named = sum(caught.correct for caught in rows), sum(caught.named for caught in rows)
    counts = f"{len({caught.fault for caught in rows})} faults, {len(rows)} plantings"
    lines += [RULE, " ".join(f"{column} {name}" for name, column in columns.items())]
    return "\n".join([*lines, f"{counts}: {correct} caught at the level and place that must see them, {named} named"])


def _mark(group: Sequence[Caught], level: str) -> str:
    """A cell of the matrix: whether a level caught a fault in all backends, in some, in none, or was not reached."""
    catching = [caught.level for caught in group]
    if level in catching:
        return "X" if set(catching) == {level} else "x"
    return "." if any(name is None or NUMBERS[name] > NUMBERS[level] for name in catching) else " "


def to_json(value: Any) -> str:
    """Anything of a report as JSON; infinities and paths as text."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            names = [field.name for field in dataclasses.fields(x)]
            return {JSON_KEYS.get(name, name): plain(getattr(x, name)) for name in names}
        if isinstance(x, dict):
            return {str(key): plain(item) for key, item in x.items()}
        if isinstance(x, list | tuple):
            return [plain(item) for item in x]
        return str(x) if isinstance(x, Path) or isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(plain(value), indent=1)
