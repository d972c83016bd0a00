"""Verdicts as a table: a row a rule, a column a run."""

from typing import Any

from parity.frontier.site.markup import table, text

SIGNS = {"holds": ("✓", "good"), "fails": ("✗", "bad")}


def sign(status: str) -> str:
    """A status as a sign that is read out as the word."""
    mark, tone = SIGNS.get(status, ("?", "unsure"))
    return f'<span class="sign {tone}" role="img" aria-label="{text(status)}">{mark}</span>'


def section(entry: dict[str, Any]) -> str:
    """The attempt's own rules and those of its runs."""
    parts = []
    if entry["attempt_rules"]:
        rows = [
            (text(rule), f"{sign(status)} {text(status)}", text(reason))
            for rule, status, reason in entry["attempt_rules"]
        ]
        parts.append(table(("Rule", "Verdict", "Reason"), rows, "Rules of the attempt", classes="verdict"))
    if any(run["verdict"]["rules"] for run in entry["runs_detail"]):
        parts.append(_of_runs(entry["runs_detail"]))
    key = "".join(
        f"<li>{sign(status)} {said}</li>"
        for status, said in (("holds", "holds"), ("fails", "fails"), ("not judged", "not judged"))
    )
    return (
        f'<section aria-labelledby="verdict"><h2 id="verdict" tabindex="-1">Verdict, rule by rule</h2><ul class="key">{key}</ul>'
        f"{''.join(parts) or '<p>No rule was judged.</p>'}</section>\n"
    )


def _of_runs(runs: list[dict[str, Any]]) -> str:
    found = [{rule: (status, reason) for rule, status, reason in run["verdict"]["rules"]} for run in runs]
    rules = list(dict.fromkeys(rule for one in found for rule in one))
    heads = [f'<abbr title="{text(run["name"])}">{text(run["seed"])}</abbr>' for run in runs]
    rows = []
    for rule in rules:
        said = [one.get(rule) for one in found]
        rows.append((text(rule), *(sign(one[0]) if one else "" for one in said), _reasons(said, runs)))
    caption = "Rules of the runs, a column a seed"
    return table(("Rule", *heads, "Reason"), rows, caption, classes="verdict signs")


def _reasons(said: list[tuple[str, str] | None], runs: list[dict[str, Any]]) -> str:
    """The reason where all runs have one; else the first, and each run's folded below."""
    given = [(run["seed"], one[1]) for run, one in zip(runs, said) if one and one[1]]
    different = dict.fromkeys(reason for _, reason in given)
    if len(different) < 2:
        return "".join(text(reason) for reason in different)
    listed = "".join(f"<br>seed {text(seed)}: {text(reason)}" for seed, reason in given)
    return f"<details><summary>{text(next(iter(different)))} <small>and other runs</small></summary><small>{listed[4:]}</small></details>"
