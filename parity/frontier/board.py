"""Everything that a ledger comes to, as plain JSON values: what `score --json` prints and the site shows."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from parity import statistics
from parity.frontier import delta as deltas
from parity.frontier import scores
from parity.frontier.delta import Delta
from parity.frontier.entry import AXES, Entry
from parity.track import TRACKS, track_for


def board(
    entries: Sequence[Entry], reported: dict[str, Any] | None = None, matrices: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The board of entries in the order of time; docs/frontier.md describes its figures. Losses are nats per token."""
    found = [deltas.delta(entry, entries[:i]) for i, entry in enumerate(entries)]
    records, fronts = deltas.records(entries), scores.frontiers(entries)
    on: dict[str, list[str]] = {}
    for (_, axis, _), front in fronts.items():
        for point in front:
            if axis not in on.setdefault(point.entry, []):
                on[point.entry].append(axis)
    return {
        "generated_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "version": _version(),
        "tracks": [_track(name, fronts) for name in TRACKS if any(entry.track == name for entry in entries)],
        "hardware": sorted({entry.hardware for entry in entries}),
        "entries": [_entry(entry, change, records, on.get(entry.id, [])) for entry, change in zip(entries, found)],
        "frontiers": [
            {
                "track": track,
                "axis": axis,
                "hardware": hardware,
                "points": [[point.cost, point.loss, point.entry] for point in front],
            }
            for (track, axis, hardware), front in fronts.items()
        ],
        "progress": progress(entries, records),
        "attribution": attribution(entries, records),
        "reported": reported,
        "matrices": matrices or {"cheats": None, "parity": None},
    }


def page(entry: Entry, shown: dict[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """What one entry's page shows: `shown` of the board, and all of the entry's own evidence. `entries`: of its track."""
    data = entry.data
    return shown | {
        "runs_detail": [
            {
                "name": run.name,
                "seed": run.seed,
                "started_utc": f"{datetime.fromtimestamp(run.began_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
                "evals": [[p.steps, p.tokens, p.flops, p.seconds, p.loss] for p in run.evals],
                "train": run.train,
                "val_loss": run.val_loss,
                "confirm_loss": run.confirm_loss,
                "seconds": run.evals[-1].seconds,
                "verdict": _rules(run.verdict),
            }
            for run in entry.runs
        ],
        "attempt_rules": _rules(data["verdict"])["rules"] if data["declaration"] is not None else [],
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
    """The commands that make the same runs again: of an attempt, with the same program and declaration, hence the same seeds."""
    if entry.data["declaration"] is None:
        return [f"{' '.join(entry.data['command'])} --name again", f"python -m parity.verify runs/{entry.track}/again"]
    name = entry.data["source"]["file"]
    return [
        f"mkdir again; python -m parity.frontier show {entry.id} --file {name} > again/{name}",
        f"python -m parity.frontier show {entry.id} --file declaration.json > again/declaration.json",
        "python -m parity.attempt run again",
        "python -m parity.attempt judge again",
    ]


def progress(entries: Sequence[Entry], records: dict[str, str]) -> list[dict[str, Any]]:
    """Records over time: by track and, for seconds, class of hardware, the cost at the target that each new record took."""
    found: dict[tuple[str, str | None], list[list[Any]]] = {}
    for entry in entries:
        if entry.id in records:
            scored = track_for(entry.track).scored
            key = entry.track, entry.hardware if scored == "seconds" else None
            found.setdefault(key, []).append([entry.date, scores.scored_cost(entry), entry.id])
    return [
        {"track": track, "scored": track_for(track).scored, "hardware": hardware, "points": points}
        for (track, hardware), points in found.items()
    ]


def attribution(entries: Sequence[Entry], records: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What each kind of author, backend and declared technique has given: entries, records, and the gain of the records, as the
    logarithm of the cost at the target that each took off the record before it, with its share of the track's whole gain.

    A record's gain is given whole to its kind and backend, and to each technique that it declares and the record before did not.
    """
    by_id, gains = {entry.id: entry for entry in entries}, {}
    for line in progress(entries, records):
        for before, after in zip([None, *line["points"]], line["points"]):
            new = set(by_id[after[2]].techniques) - set(by_id[before[2]].techniques if before else ())
            gains[after[2]] = (math.log(before[1] / after[1]) if before else 0.0, new)
    whole: dict[str, float] = {}
    for name, (gain, _) in gains.items():
        whole[by_id[name].track] = whole.get(by_id[name].track, 0.0) + gain
    named = {
        "by_kind": lambda entry: [entry.kind],
        "by_backend": lambda entry: [entry.backend],
        "by_technique": lambda entry: entry.techniques,
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for view, names in named.items():
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for entry in entries:
            for name in names(entry):
                row = rows.setdefault(
                    (entry.track, name),
                    {
                        "track": entry.track,
                        "name": name,
                        "entries": 0,
                        "records": 0,
                        "gain": 0.0,
                        "unit": f"ln {track_for(entry.track).scored} at the target",
                        "share": None,
                    },
                )
                row["entries"] += 1
                row["records"] += entry.id in records
                gain, new = gains.get(entry.id, (0.0, set()))
                row["gain"] += gain if view != "by_technique" or name in new else 0.0
        for row in rows.values():
            row["share"] = row["gain"] / whole[row["track"]] if whole.get(row["track"]) else None
        found[view] = sorted(rows.values(), key=lambda row: (row["track"], -row["gain"], row["name"]))
    return found


def _entry(entry: Entry, change: Delta, records: dict[str, str], on: list[str]) -> dict[str, Any]:
    loss, (target, reason), data = scores.final_loss(entry), scores.target_of(entry), entry.data
    confirm = [run.confirm_loss for run in entry.runs]
    costs = [
        [(entry.mean_costs[axis] or [None] * len(entry.steps))[i] for axis in ("tokens", "flops", "seconds")]
        for i in range(len(entry.steps))
    ]
    return {
        "id": entry.id,
        "title": entry.title,
        "track": entry.track,
        "author": entry.author,
        "kind": entry.kind,
        "backend": entry.backend,
        "recipe": entry.recipe,
        "techniques": list(entry.techniques),
        "note": data["note"],
        "hardware": entry.hardware,
        "date": entry.date,
        "runs": len(entry.runs),
        "depth": data["verdict"]["depth"],
        "isolation": data["verdict"]["isolation"],
        "loss": {"mean": loss.mean, "sd": loss.sd, "low": loss.low, "high": loss.high},
        "bits_per_byte": scores.bits_per_byte(entry),
        "confirm_loss": None if None in confirm else sum(confirm) / len(confirm),
        "cost": {axis: entry.cost(axis) for axis in AXES},
        "points": [[step, *cost, mean] for step, cost, mean in zip(entry.steps, costs, entry.mean_losses)],
        "share": scores.share(entry),
        "target": target and {**target.costs, "p": target.p},
        "target_reason": reason,
        "delta": delta_json(change, track_for(entry.track).scored),
        "record": entry.id in records,
        "record_reason": records.get(entry.id, ""),
        "on_frontier": on,
    }


def delta_json(change: Delta, scored: str | None) -> dict[str, Any]:
    """A delta as plain JSON values; `loss` is the change on the scored axis, or on the first that could be compared."""
    order = [scored, "flops", "tokens", "steps"]
    losses = sorted(change.losses, key=lambda one: order.index(one.axis) if one.axis in order else 9)
    plain = [vars(one) for one in losses]
    return {
        "sentence": change.sentence,
        "verdict": change.verdict,
        "p": change.p,
        "loss": plain[0] if plain else None,
        "losses": plain,
        "costs": [vars(one) for one in change.costs],
        "skipped": list(change.skipped),
    }


def _track(name: str, fronts: dict[tuple[str, str, str | None], list[scores.FrontierPoint]]) -> dict[str, Any]:
    track = TRACKS[name]
    volumes = [
        {
            "axis": axis,
            "hardware": hardware,
            "value": scores.hypervolume(front, track, axis),
            "entries": len({p.entry for p in front}),
        }
        for (of, axis, hardware), front in fronts.items()
        if of == name
    ]
    return {
        "name": name,
        "purpose": track.purpose,
        "slice": track.slice,
        "val_tokens": track.val_tokens,
        "target": track.target,
        "scored": track.scored,
        "hypervolume": volumes,
    }


def _rules(verdict: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": verdict["status"],
        "depth": verdict["depth"],
        "rules": [[rule, status, reason] for rule, status, _, reason in verdict["rules"]],
    }


def _paired(entry: Entry, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Seconds of whole runs beside those of entries that were made in turns with it."""
    found = []
    for other in entries:
        both, _ = deltas.pairs(entry, other) if other.id != entry.id else ([], "")
        if not both:
            continue
        mine, theirs = (one.costs("seconds", one.steps[-1]) or [] for one in (entry, other))
        test = statistics.paired([mine[i] for i, _ in both], [theirs[j] for _, j in both])
        found.append(
            {
                "with": other.id,
                "seconds_change": test.mean,
                "low": test.interval[0],
                "high": test.interval[1],
                "p": test.p,
                "pairs": len(both),
            }
        )
    return found


def _version() -> str:
    try:
        return metadata.version("jaxrun")
    except metadata.PackageNotFoundError:
        return "unknown"
