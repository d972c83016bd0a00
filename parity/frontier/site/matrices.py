"""The matrices: every planted cheat against the rules that detected it, and parity between the backends."""

from typing import Any

KINDS = {
    "edit": "in the evidence",
    "program": "in the program",
    "train": "in how it is started",
    "attempt": "in the attempt",
}
MARKS = {"F": "fails, as it must", "f": "fails too", "!": "must fail and does not", "?": "could not be judged"}


def rows(board: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of a matrix, "cheats" or "parity"; an object that holds one list is that list."""
    matrix = (board.get("matrices") or {}).get(name)
    if isinstance(matrix, dict):
        lists = [value for value in matrix.values() if isinstance(value, list)]
        matrix = lists[0] if len(lists) == 1 else [matrix]
    return [row for row in matrix or [] if isinstance(row, dict)]


def cheats(board: dict[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the cheats: how many were caught, and a table for each kind; None without cheats."""
    plantings = rows(board, "cheats")
    if not plantings:
        return None
    still_open = sum(bool(row["open"]) for row in plantings)
    caught = sum(bool(row["right"]) and not row["open"] for row in plantings)
    kinds = dict.fromkeys([*KINDS, *(row["kind"] for row in plantings)])
    by_kind = {kind: [row for row in plantings if row["kind"] == kind] for kind in kinds}
    return {
        "plantings": len(plantings),
        "cheats": len({row["cheat"] for row in plantings}),
        "caught": caught,
        "open": still_open,
        "otherwise": len(plantings) - caught - still_open,
        "tables": [_table(kind, group) for kind, group in by_kind.items() if group],
    }


def parity(board: dict[str, Any]) -> dict[str, Any] | None:
    """The parity matrix: its fields, which of them are numbers, and its rows; None without rows."""
    results = rows(board, "parity")
    fields = list(dict.fromkeys(field for row in results for field in row))
    numbers = [i for i, field in enumerate(fields) if any(type(row.get(field)) in (int, float) for row in results)]
    return {"fields": fields, "numbers": numbers, "rows": results} if results else None


def _table(kind: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    rules = sorted({rule for row in group for key in ("expected", "failing", "not_judged") for rule in row[key]})
    return {"title": f"Cheats {KINDS.get(kind, kind)}", "rules": rules, "rows": [_cheat(row, rules) for row in group]}


def _cheat(row: dict[str, Any], rules: list[str]) -> dict[str, Any]:
    result, tone = ("open", "unsure") if row["open"] else ("caught", "good") if row["right"] else ("WRONG", "bad")
    reasons = row["reasons"] if isinstance(row["reasons"], dict) else {"": row["reasons"]}
    return row | {
        "result": result,
        "tone": tone,
        "deciding": [] if row["open"] else deciding(row),
        "open_reason": "" if isinstance(row["open"], bool) else row["open"],
        "reasons": {rule: reason for rule, reason in reasons.items() if reason},
        "marks": [_mark(row, rule) for rule in rules],
    }


def deciding(row: dict[str, Any]) -> list[str]:
    """The rules that decided a result: those expected to fail that do, else those that fail, else those not judged."""
    failing = [rule for rule in row["failing"] if rule in row["expected"]] or row["failing"]
    return failing or (row["not_judged"] if row["status"] == "incomplete" else [])


def _mark(row: dict[str, Any], rule: str) -> str:
    expected, failing = rule in row["expected"], rule in row["failing"]
    if failing:
        return "F" if expected else "f"
    return "?" if rule in row["not_judged"] else "!" if expected and not (row["open"] or row["right"]) else ""
