"""The matrix cheat x rule as a page that stands alone."""

from html import escape

from parity.verify.attempts import RULES as ATTEMPT_RULES
from parity.verify.cheats.cheat import Outcome
from parity.verify.rules import RULES
from parity.verify.verdict import DEPTHS

STYLE = """
:root { --ink: #1c2330; --soft: #667085; --line: #e3e7ee; --good: #1a7f4b; --bad: #c0362c; --back: #ffffff; --hit: #2f6fd6; --may: #c9d8f3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2b3340; --good: #4cc38a; --bad: #ff7a6e;
  --back: #12161d; --hit: #6ea3f7; --may: #2b3a55; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto; max-width: 110rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 12px; }
td, th { padding: .15rem .35rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { vertical-align: bottom; } thead th.r { padding: 0; height: 10rem; } thead th.r div { writing-mode: vertical-rl; transform: rotate(180deg); }
td.c { text-align: center; min-width: 1.1rem; } td.hit { background: var(--hit); color: var(--back); } td.may { background: var(--may); }
.ok { color: var(--good); } .wrong { color: var(--bad); } .open { color: var(--soft); } .key td { border: 0; }
"""
KINDS = {
    "edit": "in the evidence",
    "program": "in the program",
    "train": "in how it is started",
    "attempt": "in the attempt",
}


def page(found: list[Outcome]) -> str:
    """All outcomes, a row each; a column for every rule that is named by a cheat or failed."""
    depths = {
        rule.id: DEPTHS.index(rule.depth) for rule in (*(rule for rule, _ in RULES.values()), *ATTEMPT_RULES.values())
    }
    named = dict.fromkeys(rule for one in found for rule in (*one.cheat.rules, *one.cheat.unjudged, *one.failing))
    rules = sorted(named, key=lambda rule: (rule in ATTEMPT_RULES, depths.get(rule, 0)))
    head = "".join(f'<th class="r"><div>{escape(rule)}</div></th>' for rule in rules)
    caught = sum(one.right and not one.cheat.open for one in found)
    still = sum(bool(one.cheat.open) for one in found)
    parts = [
        f"<h1>Cheats planted, and the rules that found them</h1><p>{len(found)} plantings of "
        f"{len({one.cheat.name for one in found})} cheats: {caught} caught by the named rules and no others, {still} known to be open, "
        f"{len(found) - caught - still} otherwise.</p>",
        '<table class="key"><tr><td class="c hit">F</td><td>fails, as it must</td><td class="c may">f</td><td>fails too, and may</td>'
        '<td class="c">?</td><td>could not be judged: the verdict is incomplete</td></tr></table>',
    ]
    for kind, title in KINDS.items():
        rows = "".join(_row(one, rules) for one in found if one.cheat.kind == kind)
        if rows:
            parts.append(
                f"<h2>Cheats {title}</h2><div class='wide'><table><thead><tr><th>cheat</th><th></th><th>backend</th>{head}</tr>"
                f"</thead>{rows}</table></div>"
            )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cheats and rules</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _row(one: Outcome, rules: list[str]) -> str:
    kind = "wrong" if not one.right else "open" if one.cheat.open else "ok"
    word = {"wrong": "WRONG", "open": "open", "ok": "caught"}[kind]
    title = escape(one.cheat.sentence + (f" - open: {one.cheat.open}" if one.cheat.open else ""))
    cells = "".join(_cell(one, rule) for rule in rules)
    return (
        f'<tr><td title="{title}"><b>{escape(one.cheat.name)}</b> {escape(one.cheat.sentence)}</td><td class="{kind}">{word}</td>'
        f"<td>{one.backend}</td>{cells}</tr>"
    )


def _cell(one: Outcome, rule: str) -> str:
    reason = escape(one.reasons.get(rule, ""))
    if rule in one.failing:
        must = rule in one.cheat.rules
        return f'<td class="c {"hit" if must else "may"}" title="{reason}">{"F" if must else "f"}</td>'
    return f'<td class="c" title="{reason}">{"?" if rule in one.unjudged else ""}</td>'
