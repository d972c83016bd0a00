"""HTML as text: what is escaped where, and the frame that every page has.

Names, notes and sources come from strangers: each goes through `text`, `name` or `embedded` before it is part of a page.
"""

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing but the site's own scripts and styles; the plotting library adds styles while it runs."""
GENERATOR = '<meta name="generator" content="jaxrun frontier">'
UNKNOWN = '<span class="none" title="not known">–</span>'


def text(value: Any) -> str:
    """A value as text of a page or an attribute in double quotes; None is empty."""
    return "" if value is None else escape(str(value))


def name(value: Any) -> str:
    """A stranger's text inside a sentence: its writing direction stays its own."""
    return f"<bdi>{text(value)}</bdi>"


def plain(value: Any) -> Any:
    """JSON values with None in place of numbers that are not finite, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def compact(value: Any) -> str:
    """JSON that is also safe inside a script element: no `<`, `>` or `&`, and no line ends that JavaScript counts."""
    found = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return found


def embedded(identifier: str, value: Any) -> str:
    """A data block that a script of the page reads."""
    return f'<script type="application/json" id="{text(identifier)}">{compact(value)}</script>'


def page(title: str, body: str, scripts: Sequence[str] = (), up: str = "", end: str = "") -> str:
    """A whole document. `up`: the way from the page to the site's root; `end`: what follows the content, such as data."""
    loaded = "".join(f'<script defer src="{up}assets/{one}"></script>\n' for one in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
{GENERATOR}
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{up}assets/style.css">
<script src="{up}assets/theme.js"></script>
{loaded}</head>
<body>
{body}
{end}
</body>
</html>
"""


def table(
    head: Iterable[str], rows: Iterable[Sequence[str]], caption: str, numbers: Sequence[int] = (), classes: str = ""
) -> str:
    """A table in a box that scrolls sideways by itself; cells and heads are HTML, `numbers` are columns aligned to the right.

    The first cell of a row is its head.
    """
    kinds = dict.fromkeys(numbers, ' class="n"')
    heads = "".join(f'<th scope="col"{kinds.get(place, "")}>{one}</th>' for place, one in enumerate(head))
    lines = []
    for row in rows:
        cells = (f"<td{kinds.get(place, '')}>{cell}</td>" for place, cell in enumerate(row) if place)
        lines.append(f'<tr><th scope="row">{row[0]}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table class="{classes}">'
        f"<caption><span>{text(caption)}</span></caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of what and its value; both are HTML."""
    return (
        '<dl class="facts">' + "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in pairs) + "</dl>"
    )


def chart(identifier: str, label: str, legend: bool = True) -> str:
    """The place of a chart with its tools and legend; `label` says in words what it shows."""
    tools = "".join(
        f'<button type="button" data-zoom="{zoom}" aria-label="{said}">{sign}</button>'
        for zoom, said, sign in (
            ("in", "zoom in", "+"),
            ("out", "zoom out", "−"),
            ("reset", "fit the results", "fit"),
            ("all", "show everything", "all"),
        )
    )
    below = f'<div class="legend" id="{identifier}-legend"></div>' if legend else ""
    return (
        f'<div class="figure"><div class="tools" data-for="{identifier}">{tools}</div>{below}'
        f'<div class="chart" id="{identifier}" tabindex="0" role="group" aria-roledescription="chart" aria-label="{text(label)}"></div>'
        f'<p class="note" id="{identifier}-note" role="status"></p></div>'
    )
