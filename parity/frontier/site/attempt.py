"""The page of one attempt: what it reached, its curves, the verdict rule by rule, recipe, source, and how to reproduce it."""

from collections.abc import Sequence
from typing import Any

from parity.frontier.site import verdicts
from parity.frontier.site.columns import rounded
from parity.frontier.site.figures import (
    AXES,
    AXIS_NAMES,
    UNITS,
    anything,
    between,
    change,
    cost,
    counted,
    known,
    loss,
    minus,
    part,
    probability,
    spread,
)
from parity.frontier.site.markup import UNKNOWN, chart, embedded, facts, name, table, text
from parity.frontier.site.markup import page as whole_page
from parity.frontier.site.summary import link

SCRIPTS = ("plotly-basic.min.js", "state.js", "figures.js", "ticks.js", "legend.js", "chart.js", "attempt.js")
MOST_POINTS = 400  # of a run's training curve; more are averaged, which the page says
SECTIONS = (
    ("curves", "Curves"),
    ("result", "Result"),
    ("runs", "Runs"),
    ("verdict", "Verdict"),
    ("recipe", "Recipe"),
    ("source", "Source"),
    ("reproduce", "Reproduce"),
)


def page(
    entry: dict[str, Any], track: dict[str, Any] | None, titles: dict[str, str], beside: tuple[str | None, str | None]
) -> str:
    """The document. `titles`: those of all entries by id; `beside`: the ids of the attempts before and after this one."""
    before, after = (
        f'<a href="{text(one)}.html" rel="{kind}">{arrow}</a>' if one else ""
        for one, kind, arrow in zip(beside, ("prev", "next"), ("‹ earlier attempt", "later attempt ›"))
    )
    links = "".join(f'<a href="#{anchor}">{said}</a>' for anchor, said in SECTIONS)
    parts = [
        _curves(),
        _result(entry, titles),
        _runs(entry),
        verdicts.section(entry),
        _recipe(entry),
        _source(entry),
        _reproduce(entry),
    ]
    body = f"""<a class="skip" href="#main">Skip to the content</a>
<header><div class="bar"><nav aria-label="Pages"><a class="back" href="../index.html">← Efficiency frontier</a>{before}{after}</nav>
<button type="button" id="theme" class="js-only" aria-pressed="false">dark</button></div>
<h1>{name(entry["title"])}</h1>
<p class="lede">{_by(entry)}</p>
<p class="latest"><span class="tag {_tone(entry)}">{text(entry["delta"]["verdict"])}</span> {name(entry["delta"]["sentence"])}</p>
<nav class="within" aria-label="Sections">{links}</nav></header>
<main id="main" tabindex="-1">
{"".join(parts)}
</main>
<footer><p>jaxrun. Losses in nats per token; intervals are of 95%. This page asks nothing of the network.</p></footer>"""
    return whole_page(
        f"{entry['title']} · Efficiency frontier", body, SCRIPTS, up="../", end=embedded("data", _data(entry, track))
    )


def _by(entry: dict[str, Any]) -> str:
    runs = f"{entry['runs']} run{'' if entry['runs'] == 1 else 's'}"
    note = f"<br>{name(entry['note'])}" if entry["note"] else ""
    why = f": {name(entry['record_reason'])}" if entry.get("record_reason") else ""
    record = f" It was a record when it was added{why}." if entry["record"] else ""
    return (
        f"By {name(entry['author'])} ({text(entry['kind'])}), {text(entry['date'])}: {runs} of {name(entry['recipe'])} in "
        f"{text(entry['backend'])} on the track {text(entry['track'])}, on {name(entry['hardware'])}.{record}{note}"
    )


def _tone(entry: dict[str, Any]) -> str:
    return {"improves": "good", "worse": "bad"}.get(entry["delta"]["verdict"], "")


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}" tabindex="-1">{title}</h2>{content}</section>\n'


def _curves() -> str:
    axes = "".join(
        f'<option value="{axis}">{AXIS_NAMES[axis]}</option>' for axis in ("steps", "seconds", "tokens", "flops")
    )
    label = "Loss of every run of the attempt against its cost; lower is better. The tables below have the figures."
    return _section(
        "curves",
        "Curves of all runs",
        "<p>Thick: val loss at evaluations; thin: training loss. <strong>Lower and further left is better.</strong></p>"
        f'<form id="curve-form" class="js-only"><label>Cost in <select name="axis">{axes}</select></label>'
        '<label><input type="checkbox" name="train" checked> training loss</label>'
        '<label><input type="checkbox" name="end" checked> enlarge the end</label></form>'
        f"{chart('curves-chart', label)}",
    )


def _result(entry: dict[str, Any], titles: dict[str, str]) -> str:
    reached, target = entry["loss"], entry["target"]
    started = entry["everything_started"]
    goal = (
        (
            ", ".join(cost(target[axis], axis) for axis in AXES if known(target.get(axis)))
            + f", {probability(target['p'])}"
        )
        if target
        else (f"not reached or not judged: {name(entry['target_reason'] or 'no reason was given')}")
    )
    frontier = ", ".join(AXIS_NAMES.get(axis, text(axis)) for axis in entry["on_frontier"]) or "on no axis"
    pairs = [
        ("final val loss", f"{loss(reached['mean'])}{spread(reached['low'], reached['high'])} {_sd(reached['sd'])}"),
        ("confirm loss", loss(entry["confirm_loss"])),
        ("bits per byte", anything(entry["bits_per_byte"])),
        ("cost", ", ".join(cost(entry["cost"].get(axis), axis) for axis in AXES)),
        ("target", goal),
        ("seeds that reach it", part(entry["share"])),
        ("on the frontier today", frontier),
        ("techniques", ", ".join(name(one) for one in entry["techniques"]) or "none named"),
        (
            "everything started",
            f"{anything(started['runs'])} run{'' if started['runs'] == 1 else 's'}, {anything(started['tuning'])} for tuning: "
            f"{cost(started['seconds'], 'seconds')}, {cost(started['flops'], 'flops')}",
        ),
        ("verified at depth", text(entry["depth"])),
        ("isolation", anything(entry["isolation"])),
    ]
    return _section("result", "Result", facts(pairs) + _delta(entry["delta"], titles) + _pairs(entry["paired"], titles))


def _sd(sd: float | None) -> str:
    return f"<small>sd {sd:.4f}</small>" if known(sd) else "<small>no interval: one run</small>"


def _delta(delta: dict[str, Any], titles: dict[str, str]) -> str:
    """The delta in loss and in each cost, as a table."""
    rows = []
    for found in delta.get("losses") or filter(None, [delta["loss"]]):
        rows.append(
            (
                f"loss at equal {AXIS_NAMES.get(found['axis'], text(found['axis']))}",
                f"{change(found['change'])} nats",
                UNKNOWN,
                between(found["low"], found["high"]),
                probability(found["p"]),
                link(titles, found["against"], ""),
            )
        )
    for one in delta["costs"]:
        percent = minus(f"{one['percent']:+.1f}%") if known(one["percent"]) else UNKNOWN
        moved = minus(f"{one['change']:+,.4g} {UNITS[one['axis']]}") if known(one["change"]) else UNKNOWN
        rows.append(
            (
                f"{AXIS_NAMES.get(one['axis'], text(one['axis']))} at equal loss",
                moved,
                percent,
                between(one["low"], one["high"], "+,.4g"),
                probability(one["p"]),
                link(titles, one["against"], ""),
            )
        )
    skipped = "".join(f"<li>{name(reason)}</li>" for reason in delta.get("skipped") or ())
    below = (
        f"<details><summary>Why earlier attempts took no part</summary><ul>{skipped}</ul></details>" if skipped else ""
    )
    if not rows:
        return below
    caption = "What it changed; negative is better, p is that of no improvement"
    return (
        table(("Change in", "Change", "In per cent", "95% interval", "p", "Against"), rows, caption, (1, 2, 3, 4))
        + below
    )


def _pairs(paired: Sequence[dict[str, Any]], titles: dict[str, str]) -> str:
    rows = [
        (
            link(titles, one["with"], ""),
            minus(f"{one['seconds_change']:+.2f} s") if known(one["seconds_change"]) else UNKNOWN,
            between(one["low"], one["high"], "+.2f"),
            probability(one["p"]),
            anything(one["pairs"]),
        )
        for one in paired
    ]
    return (
        table(
            ("With", "Change in seconds", "95% interval", "p", "Pairs"),
            rows,
            "Measured in turns on one machine; negative is faster",
            (1, 2, 3, 4),
        )
        if rows
        else ""
    )


def _runs(entry: dict[str, Any]) -> str:
    rows = [
        (
            text(run["name"]),
            anything(run["seed"]),
            text(run["started_utc"]),
            loss(run["val_loss"]),
            loss(run["confirm_loss"]),
            cost(run["seconds"], "seconds"),
            verdicts.sign(run["verdict"]["status"]) + f" {text(run['verdict']['status'])}",
        )
        for run in entry["runs_detail"]
    ]
    head = ("Run", "Seed", "Started", "Val loss", "Confirm loss", "Seconds", "Verdict")
    return _section("runs", "Runs", table(head, rows, "Every run of the attempt", (1, 3, 4, 5)))


def _recipe(entry: dict[str, Any]) -> str:
    groups = (
        ("Recipe", "recipe_fields"),
        ("Declared beforehand", "declaration"),
        ("Versions", "versions"),
        ("Host", "host"),
    )
    found = [f"<h3>{title}</h3>{_pairs_or_text(entry[field])}" for title, field in groups if entry[field]]
    return _section(
        "recipe", "Recipe and circumstances", f'<div class="side">{"".join(f"<div>{one}</div>" for one in found)}</div>'
    )


def _pairs_or_text(value: dict[str, Any] | str) -> str:
    if isinstance(value, dict):
        return facts((text(key), anything(one)) for key, one in value.items())
    return f'<pre tabindex="0"><code>{text(value)}</code></pre>'


def _source(entry: dict[str, Any]) -> str:
    source = entry["source"]
    if not source:
        return _section(
            "source", "Source", f"<p>No code of its own: the recipe {name(entry['recipe'])} as the project has it.</p>"
        )
    lines = str(source["text"]).count("\n") + 1
    return _section(
        "source",
        "Source",
        f"<details open><summary>{name(source['file'])}, {counted(lines, 'line')}</summary>"
        f'<pre class="code" tabindex="0"><code>{text(source["text"])}</code></pre></details>',
    )


def _reproduce(entry: dict[str, Any]) -> str:
    commands = "".join(
        f'<li><pre tabindex="0"><code>{text(one)}</code></pre><button type="button" class="copy js-only">copy</button></li>'
        for one in entry["reproduce"]
    )
    return _section(
        "reproduce",
        "Reproduce",
        f'<ol class="commands">{commands}</ol>' if commands else "<p>No commands were given.</p>",
    )


def _data(entry: dict[str, Any], track: dict[str, Any] | None) -> dict[str, Any]:
    """The curves as columns: steps, tokens, FLOPs, seconds, losses; training: steps, losses, and how many steps a point averages."""
    runs = [
        {"name": run["name"], "seed": run["seed"], "evals": _columns(run["evals"], 5), **_training(run["train"])}
        for run in entry["runs_detail"]
    ]
    return {"axes": ("steps", "tokens", "flops", "seconds"), "target": track["target"] if track else None, "runs": runs}


def _columns(points: Sequence[Sequence[float | None]], width: int) -> list[list[float | None]]:
    return (
        [[rounded(value, 6) for value in column] for column in zip(*points)] if points else [[] for _ in range(width)]
    )


def _training(points: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """A training curve of at most MOST_POINTS points: each the mean of as many steps, at the last of them."""
    step = -(-len(points) // MOST_POINTS) or 1
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    losses = [[loss for _, loss in group if known(loss)] for group in groups]
    return {
        "train": [
            [group[-1][0] for group in groups],
            [rounded(sum(one) / len(one)) if one else None for one in losses],
        ],
        "averaged": step,
    }
