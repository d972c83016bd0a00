"""The first page: what the record is, the frontier, all attempts, progress, deltas, attribution, and the public history."""

from collections import Counter
from typing import Any

from parity.frontier.site import columns, matrices, records, summary
from parity.frontier.site.figures import AXIS_NAMES, anything, cost, loss, part, probability, saved
from parity.frontier.site.markup import UNKNOWN, chart, embedded, name, table, text
from parity.frontier.site.markup import page as whole_page

SCRIPTS = (
    "state.js",
    "figures.js",
    "ticks.js",
    "legend.js",
    "chart.js",
    "board.js",
    "records.js",
    "frontier.js",
    "progress.js",
    "delta.js",
    "index.js",
    "plotly-basic.min.js",
)
SECTIONS = (
    ("frontier", "Frontier"),
    ("records", "Attempts"),
    ("progress", "Progress"),
    ("deltas", "Deltas"),
    ("attribution", "Attribution"),
    ("history", "Public history"),
)
THEME = '<button type="button" id="theme" class="js-only" aria-pressed="false">dark</button>'


def page(board: dict[str, Any]) -> str:
    """The document with its data."""
    links = "".join(f'<a href="#{anchor}">{said}</a>' for anchor, said in SECTIONS)
    if matrices.present(board):
        links += '<a href="matrices.html">Cheats and parity</a>'
    parts = [_frontier(board), _records(board), _progress(board), _deltas(board), _attribution(board), _history(board)]
    body = f"""<a class="skip" href="#main">Skip to the content</a>
<header><div class="bar"><nav aria-label="Sections">{links}</nav>{THEME}</div>
{summary.first_screen(board)}</header>
<main id="main" tabindex="-1">
<noscript><p class="notice">Charts, filters and sorting need JavaScript; every figure is in the tables below without it.</p></noscript>
{"".join(parts)}
</main>
<footer><p>jaxrun {text(board["version"])}, written {text(board["generated_utc"])}. This page is made of files alone: it asks nothing of the
network. Charts: plotly.js (MIT licence).</p></footer>"""
    return whole_page("Efficiency frontier · jaxrun", body, SCRIPTS, end=embedded("data", columns.data(board)))


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}" tabindex="-1">{title}</h2>{content}</section>\n'


def _choice(key: str, label: str, options: list[tuple[str, str]]) -> str:
    said = "".join(f'<option value="{text(value)}">{text(shown)}</option>' for value, shown in options)
    return f'<label>{label} <select name="{key}">{said}</select></label>'


def _filters(board: dict[str, Any]) -> str:
    """The controls, which hold for every chart and the record table; the address of the page remembers them."""
    entries, reported = board["entries"], board["reported"]["records"]
    tracks = [(track["name"], track["name"]) for track in board["tracks"]]
    hardware = list(dict.fromkeys([*board["hardware"], *(one["hardware"] for one in reported if one["hardware"])]))

    def every(key: str, known: list[str]) -> list[tuple[str, str]]:
        return [("", f"all {key}"), *((one, one) for one in known)]

    choices = [
        _choice("track", "Track", tracks),
        _choice("axis", "Cost in", list(AXIS_NAMES.items())),
        _choice("backend", "Backend", every("backends", list(dict.fromkeys(entry["backend"] for entry in entries)))),
        _choice("kind", "Kind", every("kinds", list(dict.fromkeys(entry["kind"] for entry in entries)))),
        _choice("hardware", "Hardware", every("hardware", hardware)),
        _choice(
            "status", "Status", [("", "verified and reported"), ("verified", "verified"), ("reported", "reported")]
        ),
    ]
    return (
        f'<form id="filters" class="js-only" aria-label="Filters for all charts and the table">{"".join(choices)}'
        '<button type="reset">Clear filters</button><output id="count"></output></form>'
    )


def _frontier(board: dict[str, Any]) -> str:
    reported = board["reported"]
    triangles = f"Hollow triangles are {text(reported['note'])}." if reported["records"] else ""
    text_above = (
        "<p>Each mark is an attempt's final loss at its final cost; the line is the lowest loss that any verified attempt had reached at a cost. "
        "<strong>Down and to the left is better.</strong> Seconds compare only within one class of hardware, so each class has a colour "
        "and a line of its own there; on the other axes colours are backends and one line holds for all. "
        f"{triangles}</p>"
    )
    hint = (
        '<p class="hint js-only">Point at a mark, or move through the marks with the arrow keys, to see its figures and its whole curve; a '
        "click or Enter opens its page. Drag to zoom, or press + and −; 0 fits the results again.</p>"
    )
    label = "Efficiency frontier: final loss in nats per token against cost; lower is better on both. The record table below has the figures."
    below = (
        '<p><a href="frontier.html">The frontier as tables, point by point</a></p>'
        if board["frontiers"]
        else "<p>No frontier yet.</p>"
    )
    return _section(
        "frontier", "Frontier", f"{text_above}{_filters(board)}{chart('frontier-chart', label)}{hint}{below}"
    )


def _records(board: dict[str, Any]) -> str:
    said = (
        ""
        if board["entries"]
        else '<p class="notice">No attempt has been verified yet: rows are the public history.</p>'
    )
    more = '<p class="js-only"><button type="button" id="more" hidden></button></p>'
    return _section("records", "Attempts", f"{said}{records.table(board)}{more}")


def _progress(board: dict[str, Any]) -> str:
    label = "Progress: cost to reach the track's target against date; lower is better. The table below has the records."
    titles = summary.titles(board)
    rows = [
        (
            text(line["track"]),
            text(date),
            text(line["hardware"] or "any"),
            cost(value, line["scored"]),
            summary.link(titles, identifier),
        )
        for line in board["progress"]
        for date, value, identifier in line["points"]
    ]
    below = (
        table(("Track", "Date", "Hardware", "Record", "Attempt"), rows, "Records of each track by date", (3,))
        if rows
        else ""
    )
    return _section(
        "progress",
        "Progress over time",
        "<p>Cost to reach the track's target, by date: the line is the record, dots are all attempts that reach it. "
        "A record in seconds takes runs made in turns with those of the one before it, so a dot below the line need not be one. "
        f"<strong>Lower is better.</strong></p>{chart('progress-chart', label)}"
        + (f"<details><summary>The records as a table</summary>{below}</details>" if below else ""),
    )


def _deltas(board: dict[str, Any]) -> str:
    label = "Change that each attempt brought, with its 95% interval; left of zero is better. The record table has the figures."
    measures = _choice("measure", "Measure", [("loss", "loss at equal cost"), ("cost", "cost at equal loss")])
    pages = '<button type="button" id="newer">newer</button><button type="button" id="older">older</button><output id="shown"></output>'
    return _section(
        "deltas",
        "What each attempt added",
        "<p>Each attempt against the best one before it, with the 95% interval of the difference. <strong>Left of zero is better.</strong> "
        "Hollow circles are inside the noise, hollow squares were not judged.</p>"
        f'<form id="delta-form" class="js-only">{measures}{pages}</form>{chart("delta-chart", label)}',
    )


def _attribution(board: dict[str, Any]) -> str:
    captions = (("by_kind", "By kind of author"), ("by_backend", "By backend"), ("by_technique", "By technique"))
    found = []
    for key, caption in captions:
        rows = [
            (
                text(one["name"]),
                text(one["track"]),
                anything(one["entries"]),
                anything(one["records"]),
                saved(one["gain"]),
                part(one["share"]),
            )
            for one in board["attribution"][key]
        ]
        if rows:
            found.append(
                table(("Name", "Track", "Attempts", "Records", "Cost saved", "Share"), rows, caption, (2, 3, 4, 5))
            )
    about = (
        "<p>Who and what the gains came from: how much of the cost at the target their records saved, each against the record before it, and "
        "which share of all that was gained on the track that is.</p>"
    )
    return _section(
        "attribution",
        "Attribution",
        f'{about}<div class="side">{"".join(found)}</div>' if found else "<p>No attempt yet.</p>",
    )


def _history(board: dict[str, Any]) -> str:
    reported = board["reported"]
    if not reported["records"]:
        return _section("history", "Public history", "<p>None is shown here.</p>")
    rows = [_reported(record) for record in reversed(reported["records"])]
    head = (
        "Record",
        "Date",
        "Title, and how sure its gain is",
        "Hardware",
        "Seconds",
        "Runs",
        "Loss",
        "p",
        "Gain, s",
        "Gain, %",
        "Gain, nats",
        "Share",
    )
    below = table(
        head,
        rows,
        "Records of the public history; a gain is against the record before, a share is of all gains",
        range(4, 12),
        "history",
    )
    return _section(
        "history",
        "Public history",
        f'<p><strong class="reported-mark">△ {text(reported["note"])}.</strong> Source: {name(reported["source"])}. Never mixed '
        f"with the verified results: no frontier, record or attribution above counts any of it.</p>"
        f"<details><summary>{summary.public_records(reported['records'])} with their figures{_again(reported['records'])}</summary>"
        f"{below}</details>",
    )


def _again(records: list[dict[str, Any]]) -> str:
    """Which records have several rows."""
    times = Counter(record["n"] for record in records)
    said = ", ".join(f"record {number} was timed {count} times" for number, count in times.items() if count > 1)
    return f", in {len(records)} rows: {said}" if said else ""


def _reported(record: dict[str, Any]) -> tuple[str, ...]:
    spread = "" if record["loss_sd"] is None else f" <small>sd {record['loss_sd']:.4f}</small>"
    form = {"gain_seconds": ".1f", "gain_percent": ".1f", "gain_nats": ".4f"}
    gains = [
        UNKNOWN if record[key] is None else f"{record[key]:{digits}}".replace("-", "−") for key, digits in form.items()
    ]
    title = f"{text(record['title']) or UNKNOWN}<br><small>{text(record['sure'])}</small>"
    return (
        text(record["label"]),
        f"<time>{text(record['date'])}</time>",
        title,
        text(record["hardware"]),
        cost(record["seconds"], "seconds", unit=False),
        anything(record["runs"]),
        loss(record["loss_mean"]) + spread,
        probability(record["p"]).removeprefix("p "),
        *gains,
        part(record["share"]),
    )
