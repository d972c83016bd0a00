"""What the charts read, as columns: no string twice, numbers no longer than the eye can tell apart.

Titles, authors and dates are in the record table already; the scripts take them from there.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from parity.frontier.site.figures import AXES
from parity.track import track_for

REPORTED_TRACK = "small"  # the public history is of the public track 1, which the project has as `small`
CURVE = ("steps", "tokens", "flops", "seconds")  # what a point of an entry has before its loss
KINDS, BACKENDS = ("person", "model", "agent"), ("jaxrun", "torchref")  # each keeps its shape or colour on every board
LOSS_DIGITS, COST_DIGITS = 5, 5  # after the point; in all
COUNT_DIGITS = 15  # steps and tokens are counts


def whole(board: dict[str, Any]) -> dict[str, Any]:
    """The board with the reported records' track among its tracks, and with no reported records where it has None."""
    reported = {"track": REPORTED_TRACK, **(board["reported"] or {"source": "", "note": "", "records": []})}
    tracks = list(board["tracks"])
    if reported["records"] and all(track["name"] != reported["track"] for track in tracks):
        track = track_for(reported["track"])
        tracks.append(
            {
                "name": track.name,
                "purpose": track.purpose,
                "slice": track.slice,
                "val_tokens": track.val_tokens,
                "target": track.target,
                "scored": track.scored,
                "hypervolume": [],
            }
        )
    return board | {"tracks": tracks, "reported": reported}


def data(board: dict[str, Any]) -> dict[str, Any]:
    """Everything that the first page's charts draw, of a whole board. Entries are named by their place in `board["entries"]`."""
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
        "axes": AXES,
        "names": names,
        "tracks": [{key: track[key] for key in ("name", "target", "scored")} for track in board["tracks"]],
        "entries": _entries(entries, names),
        "frontiers": [_line(one, one["axis"], places) for one in board["frontiers"]],
        "progress": [_line(one, one["scored"], places) for one in board["progress"]],
        "reported": _reported(board["reported"]),
    }


def curves(board: dict[str, Any]) -> dict[str, Any]:
    """The curves of all attempts and of the reported records, which the first page loads when one is first asked for.

    A curve is columns: steps, tokens, FLOPs, seconds, losses; a reported one: steps, seconds, losses. With them come the changes in
    cost: axis -> change, low and high in per cent of the cost that they are against.
    """
    return {
        "entries": [_turned(entry["points"], CURVE) for entry in board["entries"]],
        "reported": [_turned(record["points"], ("steps", "seconds")) for record in board["reported"]["records"]],
        "costs": [{one["axis"]: _percent(one) for one in entry["delta"]["costs"]} for entry in board["entries"]],
    }


def final_loss(record: dict[str, Any]) -> float | None:
    """The loss of a reported record in nats: as stated, else the last of its curve, else None."""
    if record["loss_mean"] is not None:
        return record["loss_mean"]
    return record["points"][-1][-1] if record["points"] else None


def rounded(value: float | None, digits: int = COST_DIGITS) -> float | int | None:
    """A number with so many significant digits; None stays None."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _names(first: Iterable[str], then: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *then]))


def _cost(value: float | None, axis: str | None) -> float | int | None:
    return rounded(value, COUNT_DIGITS if axis in ("steps", "tokens") else COST_DIGITS)


def _loss(value: float | None) -> float | None:
    return None if value is None else round(value, LOSS_DIGITS)


def _entries(entries: list[dict[str, Any]], names: dict[str, list[str]]) -> dict[str, Any]:
    place = {what: {name: number for number, name in enumerate(known)} for what, known in names.items()}
    change = [entry["delta"]["loss"] or {"change": None, "low": None, "high": None} for entry in entries]
    found: dict[str, Any] = {
        what: [place[what][entry[what]] for entry in entries] for what in ("track", "hardware", "backend", "kind")
    }
    found["verdict"] = [place["verdict"][entry["delta"]["verdict"]] for entry in entries]
    for key, said in (("loss", "mean"), ("low", "low"), ("high", "high")):
        found[key] = [_loss(entry["loss"][said]) for entry in entries]
    found["cost"] = [[_cost(entry["cost"][axis], axis) for entry in entries] for axis in AXES]
    found["target"] = [[_cost((entry["target"] or {}).get(axis), axis) for entry in entries] for axis in AXES]
    for key, said in (("change", "change"), ("change_low", "low"), ("change_high", "high")):
        found[key] = [_loss(one[said]) for one in change]
    found["record"] = [place for place, entry in enumerate(entries) if entry["record"]]
    return found


def _line(one: dict[str, Any], axis: str | None, places: dict[str, int]) -> dict[str, Any]:
    """A frontier or a progress line: where it belongs, and its points as columns."""
    first, second, third = zip(*one["points"]) if one["points"] else ((), (), ())
    return {
        "track": one["track"],
        "axis": axis,
        "hardware": one["hardware"],
        "x": [value if isinstance(value, str) else _cost(value, axis) for value in first],
        "y": [_cost(value, axis) if isinstance(first[0], str) else _loss(value) for value in second],
        "entry": [places.get(identifier) for identifier in third],
    }


def _reported(reported: dict[str, Any]) -> dict[str, Any]:
    records = reported["records"]
    steps = [record["points"][-1][0] if record["points"] else None for record in records]
    return {
        "track": reported["track"],
        "seconds": [rounded(record["seconds"]) for record in records],
        "steps": steps,
        "loss": [_loss(final_loss(record)) for record in records],
        "change": [None if record["gain_nats"] is None else _loss(-record["gain_nats"]) for record in records],
    }


def _turned(points: list[list[float | None]], axes: Sequence[str]) -> list[list[float | None]]:
    """Columns of points that are costs on these axes and then a loss."""
    columns = list(zip(*points)) or [()] * (len(axes) + 1)
    return [
        *([_cost(value, axis) for value in column] for axis, column in zip(axes, columns)),
        [_loss(value) for value in columns[-1]],
    ]


def _percent(one: dict[str, Any]) -> list[float | None]:
    if not one["change"] or one["percent"] is None:
        return [rounded(one["percent"], 4), None, None]
    scale = one["percent"] / one["change"]
    return [
        rounded(one["percent"], 4),
        *(None if one[end] is None else rounded(scale * one[end], 4) for end in ("low", "high")),
    ]
