"""What the charts read, as columns: no string twice, numbers no longer than the eye can tell apart.

Titles, authors and dates are in the record table already; the scripts take them from there.
"""

import math
from collections.abc import Iterable
from typing import Any

from parity.frontier.site.figures import AXES

REPORTED_TRACK = "small"  # the public history is of the public track 1, which the project has as `small`
KINDS, BACKENDS = ("person", "model", "agent"), ("jaxrun", "torchref")  # each keeps its shape or colour on every board
LOSS_DIGITS, COST_DIGITS = 5, 5  # after the point; in all


def data(board: dict[str, Any]) -> dict[str, Any]:
    """Everything that the first page's charts draw. Entries are named by their place in `board["entries"]`."""
    entries, places = board["entries"], {entry["id"]: place for place, entry in enumerate(board["entries"])}
    tracks = [track["name"] for track in board["tracks"]]
    names = {
        "track": _names(tracks, (entry["track"] for entry in entries)),
        "hardware": _names(board["hardware"], (entry["hardware"] for entry in entries)),
        "backend": _names(BACKENDS, (entry["backend"] for entry in entries)),
        "kind": _names(KINDS, (entry["kind"] for entry in entries)),
        "verdict": _names((), (entry["delta"]["verdict"] for entry in entries)),
    }
    return {
        "axes": AXES, "names": names,
        "tracks": [{key: track[key] for key in ("name", "target", "scored")} for track in board["tracks"]],
        "entries": _entries(entries, names),
        "frontiers": [_line(one, one["axis"], places) for one in board["frontiers"]],
        "progress": [_line(one, one["scored"], places) for one in board["progress"]],
        "reported": _reported(board["reported"]),
    }  # fmt: skip


def curves(board: dict[str, Any]) -> dict[str, Any]:
    """The curves of all attempts and of the reported records, which the first page loads when one is first asked for.

    A curve is columns: steps, tokens, FLOPs, seconds, losses; a reported one: steps, seconds, losses. With them come the changes in
    cost: axis -> change, low and high in per cent of the cost that they are against.
    """
    return {
        "entries": [_turned(entry["points"], 5) for entry in board["entries"]],
        "reported": [_turned(record["points"], 3) for record in board["reported"]["records"]],
        "costs": [{one["axis"]: _percent(one) for one in entry["delta"]["costs"]} for entry in board["entries"]],
    }


def final_loss(record: dict[str, Any]) -> float | None:
    """The loss of a reported record in nats: as stated, else the last of its curve, else None."""
    if record["loss_mean"] is not None:
        return record["loss_mean"]
    return record["points"][-1][-1] if record["points"] else None


def rounded(value: float | None, digits: int = COST_DIGITS) -> float | int | None:
    """A number with so many significant digits; None where it is none or not finite."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _names(first: Iterable[str], then: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *then]))


def _loss(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, LOSS_DIGITS)


def _entries(entries: list[dict[str, Any]], names: dict[str, list[str]]) -> dict[str, Any]:
    place = {what: {name: number for number, name in enumerate(known)} for what, known in names.items()}
    change = [entry["delta"]["loss"] or {"change": None, "low": None, "high": None} for entry in entries]
    found: dict[str, Any] = {what: [place[what][entry[what]] for entry in entries] for what in ("track", "hardware", "backend", "kind")}
    found["verdict"] = [place["verdict"][entry["delta"]["verdict"]] for entry in entries]
    for key, said in (("loss", "mean"), ("low", "low"), ("high", "high")):
        found[key] = [_loss(entry["loss"][said]) for entry in entries]
    found["cost"] = [[rounded(entry["cost"][axis]) for entry in entries] for axis in AXES]
    found["target"] = [[rounded((entry["target"] or {}).get(axis)) for entry in entries] for axis in AXES]
    for key, said in (("change", "change"), ("change_low", "low"), ("change_high", "high")):
        found[key] = [_loss(one[said]) for one in change]
    found["record"] = [place for place, entry in enumerate(entries) if entry["record"]]
    return found


def _line(one: dict[str, Any], axis: str | None, places: dict[str, int]) -> dict[str, Any]:
    """A frontier or a progress line: where it belongs, and its points as columns."""
    first, second, third = zip(*one["points"]) if one["points"] else ((), (), ())
    return {"track": one["track"], "axis": axis, "hardware": one["hardware"],
            "x": [value if isinstance(value, str) else rounded(value) for value in first],
            "y": [rounded(value, 6) for value in second], "entry": [places.get(identifier) for identifier in third]}  # fmt: skip


def _reported(reported: dict[str, Any]) -> dict[str, Any]:
    records = reported["records"]
    steps = [record["points"][-1][0] if record["points"] else None for record in records]
    return {"track": reported.get("track", REPORTED_TRACK), "seconds": [rounded(record["seconds"]) for record in records], "steps": steps,
            "loss": [_loss(final_loss(record)) for record in records]}  # fmt: skip


def _turned(points: list[list[float | None]], width: int) -> list[list[float | None]]:
    return [[_loss(value) if place == width - 1 else rounded(value) for value in column]
            for place, column in enumerate(zip(*points))] if points else [[] for _ in range(width)]  # fmt: skip


def _percent(one: dict[str, Any]) -> list[float | None]:
    if not one["change"] or one["percent"] is None:
        return [rounded(one["percent"], 4), None, None]
    scale = one["percent"] / one["change"]
    return [rounded(one["percent"], 4), *(None if one[end] is None else rounded(scale * one[end], 4) for end in ("low", "high"))]
