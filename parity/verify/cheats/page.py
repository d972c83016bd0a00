"""The matrix cheat x rule as a page that stands alone."""

from pathlib import Path

import jinja2

from parity.verify.attempts import RULES as ATTEMPT_RULES
from parity.verify.cheats.cheat import Outcome
from parity.verify.rules import RULES
from parity.verify.verdict import DEPTHS

FOLDER = Path(__file__).parent
STYLE = FOLDER.parents[1] / "style.css"
KINDS = {
    "edit": "in the evidence",
    "program": "in the program",
    "train": "in how it is started",
    "attempt": "in the attempt",
}


def page(outcomes: list[Outcome]) -> str:
    """All outcomes, a row each; a column for every rule that is named by a cheat or failed."""
    known = {
        rule.id: DEPTHS.index(rule.depth) for rule in (*(rule for rule, _ in RULES.values()), *ATTEMPT_RULES.values())
    }
    named = dict.fromkeys(
        rule for planted in outcomes for rule in (*planted.cheat.rules, *planted.cheat.unjudged, *planted.failing)
    )
    marks = [planted.mark for planted in outcomes]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER), autoescape=True)
    return environment.get_template("page.html").render(
        outcomes=outcomes,
        kinds=KINDS,
        rules=sorted(named, key=lambda rule: (rule in ATTEMPT_RULES, known.get(rule, 0))),
        cheats=len({planted.cheat.name for planted in outcomes}),
        counts={mark: marks.count(mark) for mark in ("ok", "open", "WRONG")},
        style=STYLE.read_text(),
    )
