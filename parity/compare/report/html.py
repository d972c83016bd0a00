"""The report as a page that stands alone: tables, a chart of difference against step, a heat map level x parameter."""

import functools
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from parity.compare.faults.matrix import Caught
from parity.compare.observation import Result
from parity.compare.report.text import MARKS, NUMBERS
from parity.recipes import RECIPES, recipe_for

STYLE = """
:root { --ink: #1c2330; --soft: #667085; --line: #e3e7ee; --good: #1a7f4b; --bad: #c0362c; --mute: #9aa3b2; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2b3340; --good: #4cc38a; --bad: #ff7a6e; --mute: #667085; --back: #12161d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; color: var(--soft); }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; } tr.level td { font-weight: 600; padding-top: .7rem; }
.holds { color: var(--good); } .fails { color: var(--bad); } .not { color: var(--mute); }
.finding { border-left: 4px solid var(--bad); padding: .4rem 1rem; margin: 1rem 0; } .wide { overflow-x: auto; }
dl { display: grid; grid-template-columns: 7rem 1fr; gap: .2rem 1rem; margin: .5rem 0; } dt { color: var(--soft); } dd { margin: 0; }
.heat td, .heat th { padding: 0 .35rem; border: 0; font-size: 11px; white-space: nowrap; } .heat td.c { width: 4.2rem; height: 15px; text-align: center; }
code { font-size: 12px; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
"""
COLORS = {"losses": "#3b6fd4", "grad_norm": "#d4823b"}


def page(reports: dict[str, dict[str, Any]]) -> str:
    """The page of a comparison: {recipe: {"title", "results"}}."""
    return _page("Parity", "".join(_section(report["title"], report["results"]) for report in reports.values()))


def _section(title: str, results: Sequence[Result]) -> str:
    finding = next((result.finding for result in results if result.finding), None)
    parts = [f"<h2>{escape(title)}</h2>", _verdict(results)]
    if finding:
        apart = finding.difference
        rows = [
            ("place", finding.place),
            ("where", finding.where),
            ("how far", f"{finding.found:.3g}" + (f", {apart.ulps:.3g} ulps" if apart else "")),
            ("allowed", f"{finding.allowed:.3g} ({finding.basis})"),
            ("seen", finding.says),
            ("note", finding.note),
            *(("why", reason) for reason in finding.reasons),
        ]
        cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
        parts.append(
            f'<div class="finding"><b>Level {NUMBERS[finding.level]}, {escape(finding.level)}</b> '
            f"({escape(finding.line)})<dl>{cells}</dl></div>"
        )
    parts.append(_table(results))
    curves = next((result.curves for result in results if result.curves), None)
    if curves:
        parts.append("<h3>Relative difference at every step of the trajectory</h3>" + chart(curves))
    return "".join([*parts, "<h3>Part of the allowance used: level x parameter</h3>", heat_map(results)])


def _verdict(results: Sequence[Result]) -> str:
    counts = {status: sum(r.status == status for r in results) for status in MARKS}
    kind = "fails" if counts["fails"] else "not" if counts["not judged"] else "holds"
    words = {"holds": "hold", "fails": "fail", "not judged": "not judged"}
    said = ", ".join(f"{count} of {len(results)} levels {words[status]}" for status, count in counts.items() if count)
    return f'<p class="{kind}"><b>{said}</b></p>'


def _table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        kind = result.status.split()[0]
        reason = f": {escape(result.reason)}" if result.reason else ""
        rows.append(
            f'<tr class="level"><td colspan="5">{NUMBERS[result.level]} {escape(result.level)} '
            f'<span class="{kind}">{MARKS[result.status]}{reason}</span></td><td class="n">{result.seconds:.1f} s</td></tr>'
        )
        for line in result.lines:
            worst = escape(line.worst) if line.found or not line.holds else "-"
            rows.append(
                f'<tr><td class="{"holds" if line.holds else "fails"}">{escape(line.name)}</td><td class="n">{line.places}</td>'
                f"<td><code>{worst}</code></td><td class='n'>{_figure(line.found)}</td>"
                f"<td class='n'>{_figure(line.allowed)}</td><td>{escape(line.basis)}</td></tr>"
            )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("line", "places", "worst at", "found", "allowed", "where the allowance comes from")
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}"


def chart(curves: dict[str, list[float]]) -> str:
    """Relative differences against step, on a logarithmic scale."""
    width, height, left, bottom = 720, 240, 60, 30
    values = [x for curve in curves.values() for x in curve if x > 0]
    low = math.floor(math.log10(min(values, default=1e-16)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=1e-15))))
    steps = max(len(curve) for curve in curves.values())

    def x(step: int) -> float:
        return left + (width - left - 10) * step / max(1, steps - 1)

    def y(value: float) -> float:
        return 10 + (height - bottom - 10) * (high - math.log10(max(value, 10.0**low))) / (high - low)

    marks = range(low, high + 1, max(1, (high - low) // 5))
    lines = [
        f'<line x1="{left}" x2="{width - 10}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}" stroke="var(--line)"/>'
        f'<text x="{left - 8}" y="{y(10.0**e) + 4:.1f}" text-anchor="end">1e{e}</text>'
        for e in marks
    ]
    lines += [
        f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="middle">{step}</text>'
        for step in range(0, steps, max(1, steps // 10))
    ]
    for i, (name, curve) in enumerate(curves.items()):
        color = COLORS.get(name, "#888888")
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(curve))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        lines += [
            f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2" fill="{color}"/>' for step, value in enumerate(curve)
        ]
        lines.append(
            f'<text x="{width - 14}" y="{22 + 15 * i}" text-anchor="end" style="fill:{color}">{escape(name.replace("_", " "))}</text>'
        )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="difference against step">{"".join(lines)}</svg>'


def heat_map(results: Sequence[Result]) -> str:
    """A row for each parameter, a column for each level: the largest part of an allowance that a place of it uses."""
    judged = [result for result in results if any(map(_parameter, result.heat))]
    names = {name for result in judged for name in map(_parameter, result.heat) if name}
    weights = {name for name in names if name.endswith((".weight", ".bias"))}
    names = sorted(weights or names, key=_order)
    head = "".join(f"<th>{escape(result.level)}</th>" for result in judged)
    rows = []
    for name in names:
        cells = []
        for result in judged:
            used = [value for place, value in result.heat.items() if _belongs(_parameter(place), name)]
            cells.append(_cell(max(used)) if used else '<td class="c"></td>')
        rows.append(f"<tr><td><code>{escape(name)}</code></td>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="heat"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>' if names else ""
    )


def _parameter(place: str) -> str:
    """The canonical name, or the module, that a place is about; "" for none."""
    words = place.replace(":", " ").replace(",", " ").split()
    return next((word for word in words if word.split(".")[0] in _modules()), "")


@functools.cache
def _modules() -> frozenset[str]:
    """The first words of the canonical names of weights, of all recipes."""
    return frozenset(name.split(".")[0] for recipe in RECIPES for name in recipe_for(recipe, "tiny").parameters())


def _belongs(place: str, name: str) -> bool:
    """Whether a place is about a parameter: by its own name, or by that of its module."""
    return name in (place, f"{place}.weight", f"{place}.bias")


def _order(name: str) -> tuple:
    """What comes before the blocks, these, and what comes behind them."""
    parts = name.split(".")
    return (
        ["blocks", "norm_out", "head"].index(parts[0]) + 1 if parts[0] in ("blocks", "norm_out", "head") else 0,
        (int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1),
        name,
    )


def _cell(used: float) -> str:
    if used > 1:
        return f'<td class="c" style="background:#c0362c;color:#fff">{_short(used)}</td>'
    share = 0.0 if used <= 0 else max(0.0, 1 + math.log10(max(used, 1e-8)) / 8)  # 1e-8 of the allowance is white
    return f'<td class="c" style="background:rgba(26,127,75,{0.06 + 0.6 * share:.2f})">{_short(used)}</td>'


def _short(value: float) -> str:
    return "" if value == 0 else "inf" if math.isinf(value) else f"{value:.0e}"


def matrix_page(found: Sequence[Caught]) -> str:
    """The page of the matrix fault x level."""
    levels = list(NUMBERS)
    rows = []
    for caught in found:
        cells = []
        for level in levels:
            if level == caught.level:
                color = "#1a7f4b" if caught.right else "#c0362c"
                cells.append(f'<td class="c" style="background:{color};color:#fff">{_short(caught.margin)}</td>')
            else:
                before = caught.level is None or levels.index(level) < levels.index(caught.level)
                cells.append(f'<td class="c">{"&middot;" if before else ""}</td>')
        where = f"{caught.line}: {caught.place}" if caught.level else "missed"
        named = "yes" if caught.named else "no"
        rows.append(
            f"<tr><td><code>{escape(caught.fault)}</code></td><td>{caught.backend}</td><td>{caught.recipe}</td>"
            f"{''.join(cells)}<td><code>{escape(where)}</code></td><td>{named}</td></tr>"
        )
    head = "".join(f"<th>{escape(name)}</th>" for name in ("fault", "in", "recipe", *levels, "caught at", "named"))
    right = sum(caught.right for caught in found)
    return _page(
        "Faults x levels",
        f"<p><b>{right} of {len(found)}</b> plantings caught at the level and place that must see them. "
        "Numbers: how far beyond the allowance.</p>"
        f'<div class="wide"><table class="heat"><tr>{head}</tr>{"".join(rows)}</table></div>',
    )


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>\n"
    )
