"""Tables for a terminal, of at most 100 columns; what is cut ends in an ellipsis."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from parity.frontier.comparison import Crossed, Effect
from parity.frontier.entry import UNITS, Entry
from parity.frontier.ledger import ADD
from parity.frontier.scores import final_loss
from parity.tables import counted

WIDTH = 100
EMPTY = f"the ledger has no entries yet: {ADD}"


def listing(entries: Sequence[Entry]) -> str:
    """One line an entry, oldest first."""
    if not entries:
        return EMPTY
    lines = [f"{'id':<52} {'backend':<8} {'track':<16} {'kind':<7}{'runs':>5}{'loss':>8}"]
    lines += [
        f"{_cut(entry.id, 52)} {entry.backend:<8} {_cut(entry.track, 16)} {entry.kind:<7}{len(entry.runs):>5}{final_loss(entry).mean:>8.4f}"
        for entry in entries
    ]
    return _fit(lines)


def shown(entry: Entry, row: dict[str, Any]) -> str:
    """One entry: whose it is, its result, its cost, what it added, and its verdict."""
    data, loss = entry.data, row["loss"]
    interval = (
        f"95% interval {loss['low']:.4f} to {loss['high']:.4f}, sd {loss['sd']:.4f}"
        if loss["sd"] is not None
        else "one seed: no interval"
    )
    lines = [
        entry.id,
        "-" * WIDTH,
        *_said(
            "by", f"{entry.author} ({entry.kind}), {entry.date}, {entry.recipe} in {entry.backend}, track {entry.track}"
        ),
        *_said("techniques", ", ".join(entry.techniques) or "none declared"),
        *_said("note", data["note"] or "none"),
        *_said("hardware", entry.hardware),
        *_said("val loss", f"{loss['mean']:.4f} nats per token, mean of {row['runs']} ({interval})"),
        *_said("at the end", _costs(row["cost"])),
        *_said(
            "target",
            f"passed: {_costs(row['target'])} (p {row['target']['p']:.2g})" if row["target"] else row["target_reason"],
        ),
        *_said("delta", row["delta"]["sentence"]),
        *([*_said("record", row["record_reason"])] if row["record"] else []),
        *_said("left out", "; ".join(row["delta"]["skipped"]) or "nothing"),
        *_said(
            "started",
            f"{counted(data['cost']['runs'], 'run')} in all, {data['cost']['tuning']} of them tuning, "
            f"{data['cost']['seconds']:.0f} s of training",
        ),
        *_said(
            "verdict",
            f"holds at depth {data['verdict']['depth']}, judged {data['verdict']['judged_utc']}, {data['verdict']['isolation']}",
        ),
        "-" * WIDTH,
        f"{'run':<34}{'seed':>12}{'val loss':>10}{'confirm':>10}{'s':>9}",
    ]
    for run in entry.runs:
        confirm = "" if run.confirm_loss is None else f"{run.confirm_loss:.4f}"
        lines.append(
            f"{_cut(run.name, 34)}{run.seed:>12}{run.val_loss:>10.4f}{confirm:>10}{run.evals[-1].seconds:>9.1f}"
        )
    return _fit(lines)


def scores(board: dict[str, Any]) -> str:
    """The ledger's scores by track: entries by loss, then what each added, then frontiers."""
    if not board["entries"]:
        return EMPTY
    lines = []
    for track in board["tracks"]:
        entries = sorted(
            (row for row in board["entries"] if row["track"] == track["name"]), key=lambda row: row["loss"]["mean"]
        )
        target = (
            "no target"
            if track["target"] is None
            else f"target {track['target']:g}, scored in {track['scored']} ('at target': mean {track['scored']} to pass it)"
        )
        lines += [
            f"{track['name']}: {target}",
            "-" * WIDTH,
            f"{'':2}{'title':<17}{'backend':<8}{'runs':>5}{'loss':>8} {'95% interval':<14}{'seconds':>8}{'FLOPs':>9}{'at target':>10}  delta",
        ]
        lines += [_score(row, track["scored"]) for row in entries]
        lines += [
            "",
            *(
                line
                for row in entries
                for line in _wrapped(f"{row['title']} ({row['backend']}): {row['delta']['sentence']}")
            ),
            "",
        ]
        for volume in track["hypervolume"]:
            at = f", {volume['hardware']}" if volume["hardware"] else ""
            value = "no reference" if volume["value"] is None else f"{volume['value']:.3f} nats x decades"
            lines.append(
                f"frontier in {volume['axis']}{at}: hypervolume {value}, {counted(volume['entries'], 'entry', 'entries')} on it"
            )
        lines.append("")
    lines.append("* a record when it came; seconds are comparable within one class of hardware only")
    return _fit(lines)


def ablation_table(found: Iterable[Effect], skipped: Sequence[str]) -> str:
    """The effect of techniques."""
    lines = [
        f"{'technique':<30}{'loss, nats':>11} {'95% interval':<20}{'p (Holm)':>9}  {'seconds':<8}{'95% interval':<16}"
    ]
    for one in found:
        seconds = "" if one.seconds is None else f"x {one.seconds:.3f} [{one.seconds_low:.3f}, {one.seconds_high:.3f}]"
        lines.append(
            f"{_cut(one.technique, 30)}{one.loss:>+11.4f} [{one.low:+.4f}, {one.high:+.4f}]   {one.p_holm:>8.2g}  {seconds}"
        )
        turns = "" if one.seconds is None else ", made in turns with it"
        lines += _wrapped(
            f"{'':4}{one.with_it} against {one.without}{turns}{'' if one.p_holm < 0.05 else ': inside the noise'}"
        )
        lines += _wrapped(f"{'':4}seconds: {one.seconds_reason}") if one.seconds_reason else []
    return _fit([*lines, *(line for reason in skipped for line in _wrapped(f"left out: {reason}"))])


def cross_table(found: Iterable[Crossed]) -> str:
    """One recipe in two backends."""
    lines = []
    for one in found:
        lines += [
            *_wrapped(f"{one.first} against {one.second}"),
            *_wrapped(
                f"  loss: {one.loss:+.5f} nats, 90% interval [{one.low:+.5f}, {one.high:+.5f}]: "
                f"{'equal' if one.equal else 'NOT shown to be equal'} within {one.margin:g} (p {one.p:.2g})"
            ),
        ]
        seconds = (
            one.seconds_reason
            if one.seconds is None
            else f"x {one.seconds:.3f}, 95% interval [{one.seconds_low:.3f}, {one.seconds_high:.3f}], over pairs made in turns"
        )
        lines += _wrapped(f"  seconds: {seconds}")
    return _fit(lines)


def _score(row: dict[str, Any], scored: str | None) -> str:
    loss = row["loss"]
    interval = f"{loss['low']:.4f}-{loss['high']:.4f}" if loss["low"] is not None else "one seed"
    flops = "" if row["cost"]["flops"] is None else f"{row['cost']['flops']:.3g}"
    at = (
        f"{row['target'][scored]:,.{1 if scored == 'seconds' else 0}f}"
        if row["target"] and scored and row["target"][scored] is not None
        else "-"
    )
    return (
        f"{'* ' if row['record'] else '  '}{_cut(row['title'], 16)} {row['backend']:<8}{row['runs']:>5}{loss['mean']:>8.4f} {interval:<14}"
        f"{row['cost']['seconds']:>8.1f}{flops:>9}{at:>10}  {row['delta']['verdict']}"
    )


def _costs(costs: dict[str, Any]) -> str:
    return ", ".join(f"{costs[axis]:,.6g} {unit}" for axis, unit in UNITS.items() if costs[axis] is not None)


def _said(name: str, text: str, indent: int = 12) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{name:<{indent}}",
        subsequent_indent=" " * indent,
        max_lines=20,
        break_on_hyphens=False,
    ) or [name]


def _wrapped(text: str) -> list[str]:
    """A sentence over several lines, all but the first further in; ids stay whole."""
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, max_lines=20, break_on_hyphens=False)


def _cut(text: str, width: int) -> str:
    """A text of a column's width, cut visibly where it is longer."""
    return f"{text if len(text) <= width else text[: width - 1] + '…':<{width}}"


def _fit(lines: Iterable[str]) -> str:
    """Lines of at most 100 columns that cannot steer a terminal."""
    return "\n".join("".join(char if char.isprintable() else "?" for char in line)[:WIDTH].rstrip() for line in lines)
