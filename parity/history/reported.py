"""The public history as others see it: a table for the terminal, JSON, the board's `reported` object, the tables of
docs/history.md.

All of it is marked as reported by others, not verified here. `python -m parity.history.reported docs/history.md`
brings the tables between that file's markers up to date.
"""

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parity.errors import InputError, run_command
from parity.history.band import leave_one_out
from parity.history.gains import ALPHA, Gain, gains, summary
from parity.history.records import HARDWARE, NOTE, History, Record, load, mean_curve, own_runs
from parity.history.reproduction import disagreements, reproductions

WIDTH = 100
CURVE_POINTS = 12
TITLE_WIDTH = 24
COLUMNS = (
    "record",
    "date",
    "title",
    "seconds",
    "gain, s",
    "gain, %",
    "share, %",
    "nats",
    "nats at equal time",
    "runs",
    "mean loss",
    "p",
    "how sure",
)
SHIFTS = (0.005, 0.01, 0.02)


def table(records: Sequence[Record] | None = None, history: History | None = None) -> str:
    """The ladder for a terminal, at most 100 columns: rows `records` (None: all)."""
    history = history or load()
    by_label = {gain.record: gain for gain in gains(history)}
    header = (
        f"{'#':>2} {'date':10} {'title':{TITLE_WIDTH}} {'seconds':>7} {'gain s':>6} {'%':>5} {'nats':>7} "
        f"{'runs':>4} {'p':>7} sure"
    )
    lines = [history.source, NOTE, header]
    for record in history.records if records is None else records:
        gain = by_label[record.label]
        title = record.title or "-"
        title = title if len(title) <= TITLE_WIDTH else title[: TITLE_WIDTH - 1] + "…"
        lines.append(
            f"{record.n:>2} {record.date} {title:{TITLE_WIDTH}} {record.seconds:>7.1f} {_show(gain.seconds, '.1f'):>6} "
            f"{_show(gain.percent, '.1f'):>5} {_signed(gain.nats):>7} {record.runs or '-':>4} "
            f"{_show(record.p, '.1g'):>7} "
            f"{gain.short}"
        )
    return "\n".join(lines)


def reported(history: History | None = None) -> dict[str, Any]:
    """The board's `reported` object: others' results, never mixed with verified ones."""
    history = history or load()
    return {
        "source": history.source,
        "note": NOTE,
        "records": [
            _board_row(record, gain, history) for record, gain in zip(history.records, gains(history), strict=True)
        ],
    }


def to_json(history: History | None = None) -> dict[str, Any]:
    """All that was found, as JSON values: records as reported, gains, how the figures came out again, disagreements,
    the summary."""
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
        "summary": asdict(summary(history)),
    }


def documented(history: History | None = None) -> dict[str, str]:
    """What docs/history.md says between its markers, by marker."""
    history = history or load()
    return {
        "history": _history_table(history),
        "summary": _summary_text(history),
        "disagreements": _disagreement_table(history),
        "bands": _bands_text(history),
    }


def brought_up_to_date(text: str, parts: dict[str, str]) -> str:
    """A document with every part between its markers `<!-- name -->` and `<!-- /name -->`. Raises InputError for a
    lacking marker."""
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)
        if found != 1:
            raise InputError(
                f"docs/history.md: expected <!-- {name} --> ... <!-- /{name} --> once, found it {found} times: "
                "put it back"
            )
    return text


def _board_row(record: Record, gain: Gain, history: History) -> dict[str, Any]:
    curve = [point for point in mean_curve(own_runs(record, history.runs)) if point[0]]
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
        "points": [[step, _round(seconds, 2), round(loss, 4)] for step, seconds, loss in _thinned(curve)],
    }


def _thinned(curve: list[Any]) -> list[Any]:
    """At most CURVE_POINTS of a curve's points, evenly, the first and the last among them."""
    if len(curve) <= CURVE_POINTS:
        return curve
    return [curve[round(i * (len(curve) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) + 0.0


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _signed(nats: float | None) -> str:
    return "-" if nats is None else f"{round(nats, 4) + 0.0:+.4f}"


def _history_table(history: History) -> str:
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for record, gain in zip(history.records, gains(history), strict=True):
        share = None if gain.share is None else 100 * gain.share
        cells = [
            record.label,
            record.date,
            record.title or "",
            f"{record.seconds:.1f}",
            _show(gain.seconds, ".1f"),
            _show(gain.percent, ".1f"),
            _show(share, ".1f"),
            _signed(gain.nats),
            _show(gain.nats_at_equal_time, "+.3f"),
            str(record.runs or "-"),
            _show(record.loss_mean, ".5f"),
            _show(record.p, ".3g"),
            gain.sure,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summary_text(history: History) -> str:
    s = summary(history)
    text = (
        f"- **Loss against the record before:** {s.loss_tests} of the {s.records} records can be tested. Lower "
        "at p < 0.01: "
        f"{s.loss_lower_single} one by one, {s.loss_lower} after Holm's correction; higher: "
        f"{s.loss_higher_single}, {s.loss_higher}.\n"
        f"- **Time against older logs:** {s.time_tests} can be tested; after the correction {s.time_faster} took less: "
        f"{s.time_beside[1]} of the {s.time_beside[0]} whose folder holds the older program, run again beside "
        f"it, and {s.time_logs[1]} of the "
        f"{s.time_logs[0]} whose older logs are of another session.\n"
        f"- **Below 3.28:** of {s.target_tests} p-values given, {s.target_single} are below 0.01, "
        f"{s.target_holm} after the correction; "
        f"not below: records {', '.join(r.label for r in history.records if r.p is not None and r.p >= ALPHA)}.\n"
        f"- **Drift:** the mean time of a record's own logs is {s.drift[0]:.1f}% to +{s.drift[1]:.1f}% off the "
        "seconds claimed."
    )
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ") for line in text.split("\n"))


def _disagreement_table(history: History) -> str:
    rows = [
        (record, result)
        for record, result in zip(history.records, reproductions(history), strict=True)
        if result.status in ("partly", "unexplained", "no runs")
    ]
    counts = {
        status: sum(result.status == status for result in reproductions(history))
        for status in ("agrees", "partly", "no runs", "unexplained", "no logs")
    }
    text = (
        f"{counts['agrees']} rows agree in every field, {counts['partly']} with the runs that are kept, "
        f"{counts['no runs']} have figures but no run kept, {counts['unexplained']} are unexplained, "
        f"{counts['no logs']} have no figures. {len(disagreements(history))} fields differ."
    )
    lines = [
        textwrap.fill(text, 120),
        "",
        "| record | kept | which | mean given | found | the missing average, nats | and seconds | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record, result in rows:
        found = result.found
        note = result.note if result.status == "partly" else result.sentence
        lines.append(
            f"| {record.label} | {found.runs if found else 0} of {record.runs} | {result.of} | "
            f"{_show(record.loss_mean, '.5f')} | "
            f"{_show(found.loss_mean if found else None, '.5f')} | {_show(result.missing_mean, '.4f')} | "
            f"{_show(result.missing_seconds, '.2f')} | {note} |"
        )
    return "\n".join(lines)


def _bands_text(history: History) -> str:
    alarms = leave_one_out(history=history)
    rows = [
        "| shift of the whole curve, nats | outside, of those tried | rate |",
        "|---|---|---|",
        f"| none | {alarms.outside} of {alarms.tried} | {alarms.outside / alarms.tried:.1%} |",
    ]
    for shift in SHIFTS:
        found = leave_one_out(shift, history=history)
        rows.append(f"| {shift:g} | {found.outside} of {found.tried} | {found.outside / found.tried:.1%} |")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    """Brings the tables of the document named up to date."""
    if len(argv) != 1:
        raise InputError(f"expected one document, docs/history.md, found {len(argv)}: name it")
    path = Path(argv[0])
    try:
        path.write_text(brought_up_to_date(path.read_text(encoding="utf-8"), documented()), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(
            f"{path}: expected docs/history.md, found nothing that can be read and written ({reason}): name it"
        ) from None
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
