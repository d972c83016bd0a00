"""The record table: every verified attempt and every reported record, a row each, newest first."""

from typing import Any

from parity.frontier.site.figures import between, change, cost, loss, minus, spread
from parity.frontier.site.markup import UNKNOWN, name, text

COLUMNS = (
    ("number", "No.", "n"),
    ("date", "Date", ""),
    ("title", "Attempt", ""),
    ("loss", "Loss ± 95%", "n"),
    ("cost", "Seconds", "n"),
    ("target", "To target", "n"),
    ("delta", "Change in loss", "n"),
    ("backend", "Backend", ""),
    ("kind", "Kind", ""),
    ("hardware", "Hardware", ""),
    ("status", "Status", ""),
)
SIGNS = {"improves": "▼", "inside the noise": "≈", "worse": "▲", "first": "●"}


def table(board: dict[str, Any]) -> str:
    """The table with its sortable heads. Rows: entries from the last to the first, then reported records likewise."""
    heads = "".join(
        f'<th scope="col" data-column="{column}"{" aria-sort=descending" if column == "date" else ""}'
        f'{" class=n" if kind else ""}><button type="button">{said}</button></th>'
        for column, said, kind in COLUMNS
    )
    entries = [_entry(number, entry) for number, entry in enumerate(board["entries"], 1)]
    reported = [_reported(record) for record in board["reported"]["records"]]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Record table"><table class="records" id="records-table">'
        "<caption><span>Loss in nats per token, and cost: lower is better in every column. Change in loss: against the best attempt "
        f"before it at equal cost, with its 95% interval.</span></caption><thead><tr>{heads}</tr></thead>\n<tbody>"
        f"{chr(10).join(entries[::-1] + reported[::-1])}</tbody></table></div>"
    )


def _entry(number: int, entry: dict[str, Any]) -> str:
    target = entry["target"]
    reached = (
        cost(target["seconds"], "seconds", unit=False)
        if target
        else f'<span class="none" title="{text(entry["target_reason"])}">–</span>'
    )
    # End tags that HTML lets one leave out are left out, and the style knows columns of numbers: rows are much smaller.
    return (
        f'<tr><td>{number}<td>{text(entry["date"])}<th scope=row><a href="attempt/{text(entry["id"])}.html">'
        f"{text(entry['title'])}</a> <small>{name(entry['author'])} · {text(entry['track'])}</small><td>{loss(entry['loss']['mean'])}"
        f"{spread(entry['loss']['low'], entry['loss']['high'])}<td>{cost(entry['cost']['seconds'], 'seconds', unit=False)}"
        f"<td>{reached}<td>{_delta(entry['delta'])}<td>{text(entry['backend'])}<td>{text(entry['kind'])}<td>{text(entry['hardware'])}"
        "<td>verified"
    )


def _delta(delta: dict[str, Any]) -> str:
    sign, found = SIGNS.get(delta["verdict"], ""), delta["loss"]
    if not found:
        return f"<small>{sign} {text(delta['verdict'])}</small>"
    return f"{sign} {change(found['change'])} <small>{between(found['low'], found['high'], '+.3f')} {text(delta['verdict'])}</small>"


def _reported(record: dict[str, Any]) -> str:
    faster = "" if record["gain_seconds"] is None else minus(f" <small>{-record['gain_seconds']:+.1f} s</small>")
    gain = f"{UNKNOWN if record['gain_nats'] is None else change(-record['gain_nats'])}{faster}"
    mean, seconds = loss(record["loss_mean"]), cost(record["seconds"], "seconds", unit=False)
    title = record["title"] or f"record {record['label']}"
    return (
        f"<tr class=reported><td>{text(record['label'])}<td>{text(record['date'])}<th scope=row>{text(title)} "
        f"<small>public history</small><td>{mean}<td>{seconds}<td>{seconds}<td>{gain}<td>{UNKNOWN}<td>{UNKNOWN}"
        f"<td>{text(record['hardware'])}<td>reported"
    )
