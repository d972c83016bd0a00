"""The public history for others: a table for the terminal, JSON, the board's `reported` object, and the tables of
docs/appendix/history.md.

All of it is marked as reported by others, not verified here. `python -m parity.history.reported
docs/appendix/history.md` updates the tables between that page's markers.
"""

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parity import tables
from parity.errors import InputError, run_command
from parity.history.band import leave_one_out
from parity.history.gains import ALPHA, Gain, gains, summary
from parity.history.records import HARDWARE, NOTE, History, Record, load, mean_curve, own_runs
from parity.history.reproduction import disagreements, reproductions
from parity.tables import number

PAGE = "docs/appendix/history.md"
CURVE_POINTS = 12
SHIFTS = (0.0, 0.005, 0.01, 0.02)
TERMINAL_COLUMNS = (
    ("#", ">2"),
    ("date", "<10"),
    ("title", "<24"),
    ("seconds", ">7"),
    ("gain s", ">6"),
    ("%", ">5"),
    ("nats", ">7"),
    ("runs", ">4"),
    ("p", ">7"),
    ("sure", "<9"),
)
SUMMARY = (
    "- **Loss against the record before:** {loss_tests} of the {records} records can be tested. "
    "Lower at p < 0.01: {loss_lower_single} one by one, {loss_lower} after Holm's correction; "
    "higher: {loss_higher_single}, {loss_higher}.",
    "- **Time against older logs:** {time_tests} can be tested; after the correction {time_faster} took less: "
    "{time_beside[1]} of the {time_beside[0]} whose folder holds the older program, run again beside it, and "
    "{time_logs[1]} of the {time_logs[0]} whose older logs are of another session.",
    "- **Below 3.28:** of {target_tests} reported p-values, {target_single} are below 0.01, {target_holm} after the "
    "correction; not below: records {not_below}.",
    "- **Drift:** the mean time of a record's own logs is {drift[0]:.1f}% to +{drift[1]:.1f}% off the seconds claimed.",
)


def table(history: History | None = None) -> str:
    """The ladder for a terminal."""
    history = history or load()
    rows = [
        (
            record.n,
            record.date,
            record.title or "-",
            f"{record.seconds:.1f}",
            number(gain.seconds, ".1f"),
            number(gain.percent, ".1f"),
            number(gain.nats, "+z.4f"),
            record.runs or "-",
            number(record.p, ".1g"),
            gain.short,
        )
        for record, gain in zip(history.records, gains(history), strict=True)
    ]
    return tables.fit([history.source, NOTE, *tables.table(TERMINAL_COLUMNS, rows)])


def reported(history: History | None = None) -> dict[str, Any]:
    """The board's `reported` object: others' results, never mixed with verified ones."""
    history = history or load()
    rows = zip(history.records, gains(history), strict=True)
    return {
        "source": history.source,
        "note": NOTE,
        "records": [_board_row(record, gain, history) for record, gain in rows],
    }


def to_json(history: History | None = None) -> dict[str, Any]:
    """All results as JSON values: records as reported, gains, reproductions, disagreements, the summary."""
    history = history or load()
    return {
        "source": history.source,
        "note": NOTE,
        "records": [
            {**asdict(record), "steps": list(record.steps), "gain": asdict(gain)}
            for record, gain in zip(history.records, gains(history), strict=True)
        ],
        "reproduction": [asdict(result) for result in reproductions(history)],
        "disagreements": [asdict(row) for row in disagreements(history)],
        "summary": summary(history),
    }


def documented(history: History | None = None) -> dict[str, str]:
    """The sections between the page's markers, by marker."""
    history = history or load()
    return {
        "history": _history_table(history),
        "summary": _summary_text(history),
        "disagreements": _disagreement_table(history),
        "bands": _bands_table(history),
    }


def updated(text: str, sections: dict[str, str]) -> str:
    """A document with each section between its markers `<!-- name -->` and `<!-- /name -->`.

    Raises InputError for a missing marker.
    """
    for name, section in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, section=section: f"{match[1]}{section}\n{match[2]}", text)
        if count != 1:
            raise InputError(
                f"{PAGE}: expected <!-- {name} --> ... <!-- /{name} --> once, found it {count} times: put it back"
            )
    return text


def _board_row(record: Record, gain: Gain, history: History) -> dict[str, Any]:
    curve = [point for point in mean_curve(own_runs(record, history.runs)) if point[0]]
    if len(curve) > CURVE_POINTS:  # evenly, the first and the last among them
        curve = [curve[round(i * (len(curve) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return {
        "n": record.n,
        "label": record.label,
        "date": record.date,
        "title": record.title,
        "hardware": HARDWARE,
        "seconds": record.seconds,
        "runs": record.runs,
        "loss_mean": record.loss_mean,
        "loss_sd": record.loss_std,
        "p": record.p,
        "gain_seconds": _round(gain.seconds, 2),
        "gain_percent": _round(gain.percent, 3),
        "gain_nats": _round(gain.nats, 5),
        "share": _round(gain.share, 5),
        "sure": gain.sure,
        "points": [[step, _round(seconds, 2), round(loss, 4)] for step, seconds, loss in curve],
    }


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) + 0.0


def _markdown(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table of columns that are separated by "|"."""
    titles = [title.strip() for title in columns.split("|")]
    header, *body = [f"| {' | '.join(map(str, cells))} |" for cells in (titles, *rows)]
    return [header, "|" + "---|" * len(titles), *body]


def _history_table(history: History) -> str:
    columns = (
        "record | date | title | seconds | gain, s | gain, % | share, % | nats | nats at equal time | runs | mean loss "
        "| p | how sure"
    )
    rows = [
        (
            record.label,
            record.date,
            record.title or "",
            f"{record.seconds:.1f}",
            number(gain.seconds, ".1f"),
            number(gain.percent, ".1f"),
            number(None if gain.share is None else 100 * gain.share, ".1f"),
            number(gain.nats, "+z.4f"),
            number(gain.nats_at_equal_time, "+.3f"),
            record.runs or "-",
            number(record.loss_mean, ".5f"),
            number(record.p, ".3g"),
            gain.sure,
        )
        for record, gain in zip(history.records, gains(history), strict=True)
    ]
    return "\n".join(_markdown(columns, rows))


def _summary_text(history: History) -> str:
    not_below = ", ".join(record.label for record in history.records if record.p is not None and record.p >= ALPHA)
    values = summary(history) | {"not_below": not_below}
    return "\n".join(textwrap.fill(line.format(**values), 120, subsequent_indent="  ") for line in SUMMARY)


def _disagreement_table(history: History) -> str:
    results = reproductions(history)
    counts = Counter(result.status for result in results)
    text = (
        f"{counts['agrees']} rows agree in every field, {counts['partly']} with the archived runs, "
        f"{counts['no runs']} have figures but no archived run, {counts['unexplained']} are unexplained, "
        f"{counts['no logs']} have no figures. {len(disagreements(history))} fields differ."
    )
    columns = "record | archived | which | reported mean | mean | the missing average, nats | and seconds | note"
    rows = [
        (
            record.label,
            f"{result.found.runs if result.found else 0} of {record.runs}",
            result.of,
            number(record.loss_mean, ".5f"),
            number(result.found.loss_mean if result.found else None, ".5f"),
            number(result.missing_mean, ".4f"),
            number(result.missing_seconds, ".2f"),
            result.note if result.status == "partly" else result.sentence,
        )
        for record, result in zip(history.records, results, strict=True)
        if result.status not in ("agrees", "no logs")
    ]
    return "\n".join([textwrap.fill(text, 120), "", *_markdown(columns, rows)])


def _bands_table(history: History) -> str:
    rows = []
    for shift in SHIFTS:
        result = leave_one_out(shift, history=history)
        rate = f"{result.outside / result.tried:.1%}"
        rows.append((f"{shift:g}" if shift else "none", f"{result.outside} of {result.tried}", rate))
    return "\n".join(_markdown("shift of the whole curve, nats | outside, of those tried | rate", rows))


def main(argv: Sequence[str]) -> int:
    """Updates the tables of the given document."""
    if len(argv) != 1:
        raise InputError(f"expected one document, {PAGE}, found {len(argv)}: name it")
    path = Path(argv[0])
    try:
        path.write_text(updated(path.read_text(encoding="utf-8"), documented()), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{path}: expected {PAGE}, found nothing that can be read and written ({reason}): name it"
        ) from None
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
