"""Entries, scores and comparisons as tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from parity.frontier.comparison import Crossed, Effect
from parity.frontier.entry import UNITS, Entry
from parity.frontier.ledger import ADD
from parity.frontier.scores import final_loss
from parity.tables import RULE, counted, fit, labelled, number, paragraph, table

EMPTY = f"the ledger has no entries yet: {ADD}"


def entry_list(entries: Sequence[Entry]) -> str:
    """One line for each entry, oldest first."""
    columns = [("id", "<52"), ("backend", "<8"), ("track", "<16"), ("kind", "<7"), ("runs", ">4"), ("loss", ">7")]
    rows = [
        (entry.id, entry.backend, entry.track, entry.kind, len(entry.runs), f"{final_loss(entry).mean:.4f}")
        for entry in entries
    ]
    return fit(table(columns, rows)) if entries else EMPTY


def entry_page(entry: Entry, row: dict[str, Any]) -> str:
    """One entry, with its row of the board: author, result, cost, what it added, and its verdict."""
    data, loss, target = entry.data, row["loss"], row["target"]
    cost, verdict = data["cost"], data["verdict"]
    runs = counted(cost["runs"], "run")
    interval = "one seed: no interval"
    if loss["sd"] is not None:
        interval = f"95% interval {loss['low']:.4f} to {loss['high']:.4f}, sd {loss['sd']:.4f}"
    author = f"{entry.author} ({entry.kind}), {entry.date}, {entry.recipe} in {entry.backend}, track {entry.track}"
    fields = {
        "by": author,
        "techniques": ", ".join(entry.techniques) or "none declared",
        "note": data["note"] or "none",
        "hardware": entry.hardware,
        "val loss": f"{loss['mean']:.4f} nats per token, mean of {row['runs']} ({interval})",
        "at the end": _costs(row["cost"]),
        "target": f"passed: {_costs(target)} (p {target['p']:.2g})" if target else row["target_reason"],
        "delta": row["delta"]["sentence"],
        **({"record": row["record_reason"]} if row["record"] else {}),
        "left out": "; ".join(row["delta"]["skipped"]) or "nothing",
        "started": f"{runs} in all, {cost['tuning']} of them tuning, {cost['seconds']:.0f} s of training",
        "evaluations": f"{len(entry.steps)} of {max(len(run.evals) for run in entry.runs)} computed again by the "
        "verifier; the others are reported and carry nothing",
        "verdict": f"holds at depth {verdict['depth']}, judged {verdict['judged_utc']}, {verdict['isolation']}",
    }
    lines = [entry.id, RULE, *labelled(fields.items(), indent=0)]
    columns = [("run", "<34"), ("seed", ">11"), ("val loss", ">9"), ("confirm", ">9"), ("s", ">8")]
    rows = [
        (
            run.name,
            run.seed,
            f"{run.val_loss:.4f}",
            number(run.confirm_loss, ".4f", ""),
            f"{run.evals[-1].seconds:.1f}",
        )
        for run in entry.runs
    ]
    return fit([*lines, RULE, *table(columns, rows)])


def scores(board: dict[str, Any]) -> str:
    """The ledger's scores by track: entries by loss, then what each added, then frontiers."""
    if not board["entries"]:
        return EMPTY
    lines = []
    for track in board["tracks"]:
        entries = [row for row in board["entries"] if row["track"] == track["name"]]
        entries.sort(key=lambda row: row["loss"]["mean"])
        target, scored = "no target", track["scored"]
        if track["target"] is not None:
            target = f"target {track['target']:g}, scored in {scored} ('at target': mean {scored} to pass it)"
        lines += [f"{track['name']}: {target}", RULE, *_score_table(entries, scored), ""]
        for row in entries:
            lines += _indented(f"{row['title']} ({row['backend']}): {row['delta']['sentence']}")
        lines.append("")
        for volume in track["hypervolume"]:
            hardware = f", {volume['hardware']}" if volume["hardware"] else ""
            value = "no reference" if volume["value"] is None else f"{volume['value']:.3f} nats x decades"
            on_it = counted(volume["entries"], "entry", "entries")
            lines.append(f"frontier in {volume['axis']}{hardware}: hypervolume {value}, {on_it} on it")
        lines.append("")
    lines.append("* a record when it was added; seconds are comparable within one class of hardware only")
    return fit(lines)


def _score_table(entries: Sequence[dict[str, Any]], scored: str | None) -> list[str]:
    columns = [("", "<1"), ("title", "<16"), ("backend", "<8"), ("runs", ">4"), ("loss", ">7"), ("95% interval", "<13")]
    columns += [("seconds", ">8"), ("FLOPs", ">8"), ("at target", ">9"), ("delta", "<17")]
    rows = []
    for row in entries:
        loss, cost = row["loss"], row["cost"]
        at_target = row["target"][scored] if row["target"] and scored else None
        rows.append(
            (
                "*" if row["record"] else "",
                row["title"],
                row["backend"],
                row["runs"],
                f"{loss['mean']:.4f}",
                "one seed" if loss["low"] is None else f"{loss['low']:.4f}-{loss['high']:.4f}",
                f"{cost['seconds']:.1f}",
                number(cost["flops"], ".3g", ""),
                number(at_target, ",.1f" if scored == "seconds" else ",.0f"),
                row["delta"]["verdict"],
            )
        )
    return table(columns, rows)


def ablation_table(effects: Iterable[Effect], skipped: Sequence[str]) -> str:
    """The effect of techniques."""
    effects = list(effects)
    columns = [("technique", "<30"), ("loss, nats", ">10"), ("95% interval", "<20"), ("p (Holm)", ">8")]
    columns += [("seconds", "<7"), ("95% interval", "<16")]
    rows = [
        (
            effect.technique,
            f"{effect.loss:+.4f}",
            f"[{effect.low:+.4f}, {effect.high:+.4f}]",
            f"{effect.p_holm:.2g}",
            "" if effect.seconds is None else f"x {effect.seconds:.3f}",
            "" if effect.seconds is None else f"[{effect.seconds_low:.3f}, {effect.seconds_high:.3f}]",
        )
        for effect in effects
    ]
    head, *body = table(columns, rows)
    lines = [head]
    for line, effect in zip(body, effects, strict=True):
        interleaved = "" if effect.seconds is None else ", interleaved with it"
        noise = "" if effect.p_holm < 0.05 else ": inside the noise"
        lines += [line, *_indented(f"    {effect.with_it} against {effect.without}{interleaved}{noise}")]
        lines += _indented(f"    seconds: {effect.seconds_reason}") if effect.seconds_reason else []
    return fit([*lines, *(line for reason in skipped for line in _indented(f"left out: {reason}"))])


def cross_table(comparisons: Iterable[Crossed]) -> str:
    """One recipe in two backends."""
    lines = []
    for crossed in comparisons:
        equal = "equal" if crossed.equal else "NOT shown to be equal"
        seconds = crossed.seconds_reason
        if crossed.seconds is not None:
            interval = f"[{crossed.seconds_low:.3f}, {crossed.seconds_high:.3f}]"
            seconds = f"x {crossed.seconds:.3f}, 95% interval {interval}, over interleaved pairs"
        lines += [
            *_indented(f"{crossed.first} against {crossed.second}"),
            *_indented(
                f"  loss: {crossed.loss:+.5f} nats, 90% interval [{crossed.low:+.5f}, {crossed.high:+.5f}]: {equal} "
                f"within {crossed.margin:g} (p {crossed.p:.2g})"
            ),
            *_indented(f"  seconds: {seconds}"),
        ]
    return fit(lines)


def _costs(costs: dict[str, Any]) -> str:
    return ", ".join(f"{costs[axis]:,.6g} {unit}" for axis, unit in UNITS.items() if costs[axis] is not None)


def _indented(text: str) -> list[str]:
    """A sentence over several lines, the rest further in than the first."""
    indent = " " * (len(text) - len(text.lstrip()))
    return paragraph(text.lstrip(), indent, indent + " " * 4)
