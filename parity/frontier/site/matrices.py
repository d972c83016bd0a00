"""The page of matrices: every planted cheat against the rules that found it, and parity between the backends."""

from typing import Any

from parity.frontier.site.figures import anything
from parity.frontier.site.markup import page as whole_page
from parity.frontier.site.markup import table, text

KINDS = {
    "edit": "in the evidence",
    "program": "in the program",
    "train": "in how it is started",
    "attempt": "in the attempt",
}
MOST_RULES = 2  # named beside a result
MARKS = {"F": "fails, as it must", "f": "fails too", "!": "must fail and does not", "?": "could not be judged"}


def present(board: dict[str, Any]) -> bool:
    """Whether there is a matrix to show."""
    return bool(_listed(board, "cheats") or _listed(board, "parity"))


def page(board: dict[str, Any]) -> str:
    """The document."""
    cheats, parity = _listed(board, "cheats"), _listed(board, "parity")
    body = (
        '<a class="skip" href="#main">Skip to the content</a><header><div class="bar"><nav aria-label="Pages">'
        '<a class="back" href="index.html">← Efficiency frontier</a></nav>'
        '<button type="button" id="theme" class="js-only" aria-pressed="false">dark</button></div>'
        '<h1>Cheats and parity</h1></header><main id="main" tabindex="-1">'
        f"{_cheats(cheats) if cheats else ''}{_parity(parity) if parity else ''}</main>"
    )
    return whole_page("Cheats and parity · jaxrun", body, ("state.js",))


def _listed(board: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A matrix as a list of objects; an object that holds one list is that list."""
    found = (board.get("matrices") or {}).get(key)
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else [found]
    return [one for one in found or [] if isinstance(one, dict)]


def _cheats(cheats: list[dict[str, Any]]) -> str:
    caught = sum(bool(one["right"]) and not one["open"] for one in cheats)
    still = sum(bool(one["open"]) for one in cheats)
    key = "".join(f'<li><b class="mark">{mark}</b> {said}</li>' for mark, said in MARKS.items())
    parts = [
        f"<h2>Cheats planted, and the rules that found them</h2><p>{len(cheats)} plantings of {len({one['cheat'] for one in cheats})} "
        f"cheats: {caught} caught by the named rules, {still} known to be open, {len(cheats) - caught - still} otherwise.</p>"
        f'<ul class="key">{key}</ul>'
    ]
    for kind in dict.fromkeys([*KINDS, *(one["kind"] for one in cheats)]):
        group = [one for one in cheats if one["kind"] == kind]
        if group:
            rules = sorted(
                {rule for one in group for key in ("expected", "failing", "not_judged") for rule in one[key]}
            )
            head = [
                "Cheat",
                "Result",
                "What it does, what was said",
                *(f'<span class="up">{text(rule)}</span>' for rule in rules),
            ]
            title = f"Cheats {KINDS.get(kind, kind)}"
            parts.append(
                f"<h3>{text(title)}</h3>{table(head, [_cheat(one, rules) for one in group], title, classes='matrix')}"
            )
    return "".join(parts)


def _cheat(one: dict[str, Any], rules: list[str]) -> tuple[str, ...]:
    result, tone = ("open", "unsure") if one["open"] else ("caught", "good") if one["right"] else ("WRONG", "bad")
    by = "" if one["open"] else _deciding(one)
    reasons = one["reasons"] if isinstance(one["reasons"], dict) else {"": one["reasons"]}
    said = "".join(f"<li>{text(rule)}: {text(reason)}</li>" for rule, reason in reasons.items() if reason)
    said = said and f"<details><summary>what was said</summary><ul>{said}</ul></details>"
    still = f"<br><em>open: {text(one['open'])}</em>" if one["open"] and not isinstance(one["open"], bool) else ""
    cells = [
        f'<b class="mark" title="{text(rule)}: {MARKS[mark]}">{mark}</b>' if (mark := _mark(one, rule)) else ""
        for rule in rules
    ]
    return (
        f"{text(one['cheat'])}<br><small>{text(one['backend'])}</small>",
        f'<span class="{tone}">{result}</span>{by}<br><small>{text(one["status"])} at {text(one["depth"])}</small>',
        f'<div class="said">{text(one["sentence"])}{still}{said}</div>',
        *cells,
    )


def _deciding(one: dict[str, Any]) -> str:
    """The rules that decided a result: those that had to fail and do, else those that fail, else those that could not be judged."""
    failing = [rule for rule in one["failing"] if rule in one["expected"]] or one["failing"]
    found = failing or (one["not_judged"] if one["status"] == "incomplete" else [])
    more = f" and {len(found) - MOST_RULES} more" if len(found) > MOST_RULES else ""
    named = ", ".join(f"<code>{text(rule).replace('.', '.<wbr>')}</code>" for rule in found[:MOST_RULES])
    return f"{' by' if failing else ':'} {named}{more}{'' if failing else ' not judged'}" if found else ""


def _mark(one: dict[str, Any], rule: str) -> str:
    expected, failing = rule in one["expected"], rule in one["failing"]
    if failing:
        return "F" if expected else "f"
    return "?" if rule in one["not_judged"] else "!" if expected and not (one["open"] or one["right"]) else ""


def _parity(rows: list[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(field for row in rows for field in row))
    numbers = [place for place, field in enumerate(fields) if any(type(row.get(field)) in (int, float) for row in rows)]
    return "<h2>Parity of the backends</h2>" + table(
        [text(field) for field in fields],
        [[anything(row.get(field)) for field in fields] for row in rows],
        "Parity of the backends",
        numbers,
    )
