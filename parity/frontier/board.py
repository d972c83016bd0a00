"""Everything that follows from a ledger, as plain JSON values: what `score --json` prints and the site shows."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from parity import statistics
from parity.frontier import scores
from parity.frontier.delta import Delta, delta, paired_seconds, records
from parity.frontier.entry import AXES, Entry
from parity.track import TRACKS, track_for

Fronts = dict[tuple[str, str, str | None], list[scores.FrontierPoint]]


def board(
    entries: Sequence[Entry], reported: dict[str, Any] | None = None, matrices: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The board of entries in the order of time; docs/frontier.md defines its values. Losses are nats per token."""
    reasons, fronts = records(entries), scores.frontiers(entries)
    axes: dict[str, list[str]] = {entry.id: [] for entry in entries}
    for (_, axis, _), front in fronts.items():
        for identifier in {point.entry: None for point in front}:
            if axis not in axes[identifier]:
                axes[identifier].append(axis)
    return {
        "generated_utc": _utc(datetime.now(UTC).timestamp()),
        "version": _version(),
        "tracks": [_track(name, fronts) for name in TRACKS if any(entry.track == name for entry in entries)],
        "hardware": sorted({entry.hardware for entry in entries}),
        "entries": [
            _entry(entry, delta(entry, entries[:i]), reasons, axes[entry.id]) for i, entry in enumerate(entries)
        ],
        "frontiers": [
            {
                "track": track,
                "axis": axis,
                "hardware": hardware,
                "points": [[point.cost, point.loss, point.entry] for point in front],
            }
            for (track, axis, hardware), front in fronts.items()
        ],
        "progress": progress(entries, reasons),
        "attribution": attribution(entries, reasons),
        "reported": reported,
        "matrices": matrices or {"cheats": None, "parity": None},
    }


def pages(entries: Sequence[Entry], board: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The pages of all entries of a board, one at a time."""
    return (page(entry, row, entries) for entry, row in zip(entries, board["entries"], strict=True))


def page(entry: Entry, row: dict[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """The content of one entry's page: its row of the board, and all of the entry's own evidence."""
    data = entry.data
    return row | {
        "runs_detail": [
            {
                "name": run.name,
                "seed": run.seed,
                "started_utc": _utc(run.began_s),
                "verified": sorted(run.verified()),
                "evals": [[point.steps, point.tokens, point.flops, point.seconds, point.loss] for point in run.evals],
                "train": run.train,
                "val_loss": run.val_loss,
                "confirm_loss": run.confirm_loss,
                "seconds": run.evals[-1].seconds,
                "verdict": _verdict(run.verdict),
            }
            for run in entry.runs
        ],
        "attempt_rules": _verdict(data["verdict"])["rules"] if data["declaration"] is not None else [],
        "declaration": data["declaration"] and "\n".join(data["declaration"]),
        "recipe_fields": data["fields"],
        "versions": data["versions"],
        "host": data["hardware"]["host"],
        "source": data["source"] and {"file": data["source"]["file"], "text": "\n".join(data["source"]["lines"])},
        "reproduce": reproduce(entry),
        "everything_started": data["cost"],
        "paired": _paired(entry, entries),
    }


def reproduce(entry: Entry) -> list[str]:
    """The commands that repeat its runs: of an attempt, with the same program and declaration, hence the same seeds."""
    if entry.data["declaration"] is None:
        return [f"{' '.join(entry.data['command'])} --name again", f"python -m parity.verify runs/{entry.track}/again"]
    name = entry.data["source"]["file"]
    return [
        f"mkdir again; python -m parity.frontier show {entry.id} --file {name} > again/{name}",
        f"python -m parity.frontier show {entry.id} --file declaration.json > again/declaration.json",
        "python -m parity.attempt run again",
        "python -m parity.attempt judge again",
    ]


def progress(entries: Sequence[Entry], reasons: dict[str, str]) -> list[dict[str, Any]]:
    """Records over time: by track and, for seconds, class of hardware, each new record's cost at the target."""
    lines: dict[tuple[str, str | None], list[list[Any]]] = {}
    for entry in entries:
        if entry.id in reasons:
            key = entry.track, entry.hardware if track_for(entry.track).scored == "seconds" else None
            lines.setdefault(key, []).append([entry.date, scores.scored_cost(entry), entry.id])
    return [
        {"track": track, "scored": track_for(track).scored, "hardware": hardware, "points": points}
        for (track, hardware), points in lines.items()
    ]


def attribution(entries: Sequence[Entry], reasons: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The entries, records and gains of each kind of author, backend and declared technique. A gain is the logarithm of
    the cost at the target that a record took off the record before it; its share is of the track's whole gain.

    A record's gain is given whole to its kind and backend, and to each technique that it declares and the record before
    did not.
    """
    by_id = {entry.id: entry for entry in entries}
    gains: dict[str, float] = {}
    new_techniques: dict[str, set[str]] = {}
    track_gains: dict[str, float] = {}
    for line in progress(entries, reasons):
        cost_before, techniques_before = None, set()
        for _, cost, name in line["points"]:
            gains[name] = math.log(cost_before / cost) if cost_before else 0.0
            new_techniques[name] = set(by_id[name].techniques) - techniques_before
            cost_before, techniques_before = cost, set(by_id[name].techniques)
            track_gains[line["track"]] = track_gains.get(line["track"], 0.0) + gains[name]

    def view(names: Callable[[Entry], Iterable[str]], gains_of: Callable[[Entry, str], float]) -> list[dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for entry in entries:
            for name in names(entry):
                first = {"track": entry.track, "name": name, "entries": 0, "records": 0, "gain": 0.0}
                first |= {"unit": f"ln {track_for(entry.track).scored} at the target", "share": None}
                row = rows.setdefault((entry.track, name), first)
                row["entries"] += 1
                row["records"] += entry.id in reasons
                row["gain"] += gains_of(entry, name)
        for row in rows.values():
            whole = track_gains.get(row["track"])
            row["share"] = row["gain"] / whole if whole else None
        return sorted(rows.values(), key=lambda row: (row["track"], -row["gain"], row["name"]))

    def gain(entry: Entry, name: str) -> float:
        return gains.get(entry.id, 0.0)

    def gain_if_new(entry: Entry, name: str) -> float:
        return gain(entry, name) if name in new_techniques.get(entry.id, ()) else 0.0

    return {
        "by_kind": view(lambda entry: [entry.kind], gain),
        "by_backend": view(lambda entry: [entry.backend], gain),
        "by_technique": view(lambda entry: entry.techniques, gain_if_new),
    }


def _entry(entry: Entry, change: Delta, reasons: dict[str, str], axes: list[str]) -> dict[str, Any]:
    loss, (target, reason), data = scores.final_loss(entry), scores.target_of(entry), entry.data
    points = [
        [step, *(entry.cost(axis, step) for axis in ("tokens", "flops", "seconds")), mean]
        for step, mean in zip(entry.steps, entry.mean_losses, strict=True)
    ]
    plain = ("id", "title", "track", "author", "kind", "backend", "recipe", "techniques", "note")
    return {
        **{field: data[field] for field in plain},
        "hardware": entry.hardware,
        "date": entry.date,
        "runs": len(entry.runs),
        "depth": data["verdict"]["depth"],
        "isolation": data["verdict"]["isolation"],
        "loss": {"mean": loss.mean, "sd": loss.sd, "low": loss.low, "high": loss.high},
        "bits_per_byte": scores.bits_per_byte(entry),
        "confirm_loss": scores.mean_if_known([run.confirm_loss for run in entry.runs]),
        "cost": {axis: entry.cost(axis) for axis in AXES},
        "steps_counted": "own" if entry.own_count else "single",
        "points": points,
        "share": scores.fraction_at_target(entry),
        "target": target and {**target.costs, "p": target.p},
        "target_reason": reason,
        "delta": delta_json(change, track_for(entry.track).scored),
        "record": entry.id in reasons,
        "record_reason": reasons.get(entry.id, ""),
        "on_frontier": axes,
    }


def delta_json(change: Delta, scored: str | None) -> dict[str, Any]:
    """A delta as plain JSON values; `loss` is the change on the scored axis, or on the first that could be compared."""
    order = [scored, "flops", "tokens", "steps"]
    losses = sorted(change.losses, key=lambda loss: order.index(loss.axis) if loss.axis in order else len(order))
    plain = [vars(loss) for loss in losses]
    return {
        "sentence": change.sentence,
        "verdict": change.verdict,
        "p": change.p,
        "loss": plain[0] if plain else None,
        "losses": plain,
        "costs": [vars(cost) for cost in change.costs],
        "skipped": list(change.skipped),
    }


def _track(name: str, fronts: Fronts) -> dict[str, Any]:
    track = TRACKS[name]
    return {
        "name": name,
        "purpose": track.purpose,
        "slice": track.slice,
        "val_tokens": track.val_tokens,
        "target": track.target,
        "scored": track.scored,
        "hypervolume": [
            {
                "axis": axis,
                "hardware": hardware,
                "value": scores.hypervolume(front, track, axis),
                "entries": len({point.entry for point in front}),
            }
            for (front_track, axis, hardware), front in fronts.items()
            if front_track == name
        ],
    }


def _verdict(verdict: dict[str, Any]) -> dict[str, Any]:
    rules = [[rule, status, reason] for rule, status, _, reason in verdict["rules"]]
    return {"status": verdict["status"], "depth": verdict["depth"], "rules": rules}


def _paired(entry: Entry, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Seconds of whole runs compared with those of every entry that was interleaved with it."""
    rows = []
    for other in entries:
        seconds, their_seconds, _ = paired_seconds(entry, other, entry.steps[-1], other.steps[-1])
        if other.id == entry.id or not seconds:
            continue
        test = statistics.paired(seconds, their_seconds)
        low, high = test.interval
        row = {"with": other.id, "seconds_change": test.mean, "low": low, "high": high, "p": test.p}
        rows.append(row | {"pairs": len(seconds)})
    return rows


def _utc(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _version() -> str:
    try:
        return metadata.version("jaxrun")
    except metadata.PackageNotFoundError:
        return "unknown"
