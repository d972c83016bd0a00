"""The verdict: every rule holds, fails or was not judged, with the evidence, and what follows for the whole."""

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from parity.formats.files import atomic_file
from parity.tables import RULE, fit, paragraph

SCHEMA = "verdict.v1"
DEPTHS = ("log", "data", "probe", "recompute", "replay", "cross")
"""From the cheapest on; each includes those before it. The depth of a rule is its cost class."""
Status = Literal["holds", "fails", "not judged"]
MARKS = {"holds": "holds", "fails": "FAILS", "not judged": "?"}
EXIT_CODES = {"holds": 0, "fails": 1, "incomplete": 2}


@dataclass(frozen=True)
class Rule:
    """One thing that must be so: `sentence` says what, `depth` how much it costs to check."""

    id: str
    depth: str
    sentence: str


@dataclass(frozen=True)
class Judgement:
    """The result of one rule. `evidence`: JSON values, figures before words."""

    rule: str
    status: Status
    reason: str
    seconds: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """On a run or an attempt. `facts` say how it was judged (isolation, seed of the random picks, version); that on an
    attempt has those on its `runs`. A rule of `required` that was not judged leaves the verdict incomplete; the others
    only add information."""

    subject: str
    depth: str
    judgements: tuple[Judgement, ...]
    required: frozenset[str]
    facts: dict[str, Any]
    runs: tuple["Verdict", ...] = ()

    @property
    def status(self) -> Literal["holds", "fails", "incomplete"]:
        """Fails where a rule fails; else incomplete where a required one was not judged; else holds."""
        statuses = {j.rule: j.status for j in self.judgements}
        of_runs = [run.status for run in self.runs]
        if "fails" in statuses.values() or "fails" in of_runs:
            return "fails"
        if any(statuses.get(rule, "not judged") == "not judged" for rule in self.required) or "incomplete" in of_runs:
            return "incomplete"
        return "holds"

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def failing(self) -> list[str]:
        """The rules that fail, in order."""
        return [j.rule for j in self.judgements if j.status == "fails"]

    def of(self, rule: str) -> Judgement | None:
        """The judgement of one rule; None where it was not asked for."""
        return next((j for j in self.judgements if j.rule == rule), None)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        rules = [
            {
                "id": j.rule,
                "status": j.status,
                "required": j.rule in self.required,
                "reason": j.reason,
                "seconds": round(j.seconds, 3),
                "evidence": j.evidence,
            }
            for j in self.judgements
        ]
        return _finite(
            {
                "schema": SCHEMA,
                "subject": self.subject,
                "status": self.status,
                "depth": self.depth,
                "judged_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "facts": self.facts,
                "rules": rules,
                **({"runs": [run.to_json() for run in self.runs]} if self.runs else {}),
            }
        )

    def write(self, path: Path) -> None:
        """Writes verdict.json, whole or not at all; InputError where it cannot be written."""
        with atomic_file(path) as file:
            file.write((json.dumps(self.to_json(), indent=1, default=str) + "\n").encode())

    def table(self) -> str:
        """A table that fits 100 columns, and the conclusion."""
        lines = [f"{self.subject}, depth {self.depth}", RULE]
        for j in self.judgements:
            lines += paragraph(j.reason, f"{MARKS[j.status]:<6} {j.rule:<22} ", " " * 30)
        lines.append(RULE)
        if "isolation" in self.facts:
            lines.append(f"isolation: {self.facts['isolation']}")
        if "compiled" in self.facts:
            lines.append(f"compiled: {self.facts['compiled']}")
        return fit([*lines, *paragraph(self.conclusion())])

    def conclusion(self) -> str:
        """One sentence: what the verdict is and why."""
        if self.status == "fails":
            failing = self.failing() or [
                f"{run.subject}: {', '.join(run.failing())}" for run in self.runs if run.status == "fails"
            ]
            return f"FAILS: {', '.join(failing)}"
        if self.status == "incomplete":
            missing = [j.rule for j in self.judgements if j.rule in self.required and j.status != "holds"]
            missing += [rule for rule in sorted(self.required) if self.of(rule) is None]
            missing += [run.subject for run in self.runs if run.status == "incomplete"]
            return f"INCOMPLETE: {', '.join(missing)} could not be judged, and must be"
        runs = f" and all {len(self.runs)} runs" if self.runs else ""
        return f"HOLDS: {sum(j.status == 'holds' for j in self.judgements)} rules{runs} at depth {self.depth}"


def _finite(value: Any) -> Any:
    """The same JSON values, with numbers that are not finite as words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
