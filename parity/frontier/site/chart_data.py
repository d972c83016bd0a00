"""What the charts read: numbers as columns, rounded to what the eye can tell apart.

Titles, authors and dates are in the record table; the scripts take them from there.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from parity.frontier.entry import AXES
from parity.frontier.site.figures import is_finite
from parity.track import track_for

REPORTED_TRACK = "small"  # the public history is of the public track 1
CURVE_AXES = ("steps", "tokens", "flops", "seconds")  # of an entry's point, before its loss
KINDS, BACKENDS = ("person", "model", "agent"), ("jaxrun", "torchref")  # each keeps its shape or colour on every board
DIGITS = 6  # significant
TRAINING_POINTS = 400  # of a run's training curve; of a longer one each point is an average, which the page says


def with_reported_track(board: dict[str, Any]) -> dict[str, Any]:
    """The board with the reported records' track among its tracks, and with no reported records where it has None."""
    reported = {"track": REPORTED_TRACK, **(board["reported"] or {"source": "", "note": "", "records": []})}
    tracks = list(board["tracks"])
    if reported["records"] and all(track["name"] != REPORTED_TRACK for track in tracks):
        track = track_for(REPORTED_TRACK)
        fields = ("name", "purpose", "slice", "val_tokens", "target", "scored")
        tracks.append({field: getattr(track, field) for field in fields} | {"hypervolume": []})
    return board | {"tracks": tracks, "reported": reported}


def first_page(board: dict[str, Any]) -> dict[str, Any]:
    """What the first page draws. Entries are numbered as in `board["entries"]`, and names as in `names`."""
    entries, records = board["entries"], board["reported"]["records"]
    first_names = {"track": [track["name"] for track in board["tracks"]], "hardware": board["hardware"]}
    first_names |= {"backend": BACKENDS, "kind": KINDS}
    names = {key: list(dict.fromkeys([*first, *_column(entries, key)])) for key, first in first_names.items()}
    numbers = {entry["id"]: number for number, entry in enumerate(entries)}
    return {
        "axes": AXES,
        "names": names,
        "tracks": [{key: track[key] for key in ("name", "target", "scored")} for track in board["tracks"]],
        "entries": {
            **{key: [known.index(entry[key]) for entry in entries] for key, known in names.items()},
            "verdict": _column(entries, "delta", "verdict"),
            "loss": _column(entries, "loss", "mean"),
            "low": _column(entries, "loss", "low"),
            "high": _column(entries, "loss", "high"),
            "cost": [_column(entries, "cost", axis) for axis in AXES],
            "target": [_column(entries, "target", axis) for axis in AXES],
            "change": _column(entries, "delta", "loss", "change"),
            "change_low": _column(entries, "delta", "loss", "low"),
            "change_high": _column(entries, "delta", "loss", "high"),
            "record": [number for number, entry in enumerate(entries) if entry["record"]],
        },
        "frontiers": [_line(line, line["axis"], numbers) for line in board["frontiers"]],
        "progress": [_line(line, line["scored"], numbers) for line in board["progress"]],
        "reported": {
            "track": board["reported"]["track"],
            "seconds": _column(records, "seconds"),
            "steps": [record["points"][-1][0] if record["points"] else None for record in records],
            "loss": [rounded(final_loss(record)) for record in records],
            "change": [rounded(None if gain is None else -gain) for gain in _column(records, "gain_nats")],
        },
    }


def curves(board: dict[str, Any]) -> dict[str, Any]:
    """The curves of all attempts and reported records, which the first page loads when one is first asked for.

    A curve is columns: steps, tokens, FLOPs, seconds, losses; a reported one: steps, seconds, losses. With them come
    the changes in cost: axis -> change, low and high in per cent of the cost that they are against.
    """
    entries, records = board["entries"], board["reported"]["records"]
    return {
        "entries": [_columns(entry["points"], len(CURVE_AXES) + 1) for entry in entries],
        "reported": [_columns(record["points"], 3) for record in records],
        "costs": [{change["axis"]: _percent(change) for change in entry["delta"]["costs"]} for entry in entries],
    }


def attempt(page: dict[str, Any], track: dict[str, Any] | None) -> dict[str, Any]:
    """The curves of an attempt's runs: evaluations as columns, and training losses, averaged over `averaged` steps."""
    runs = [
        {
            "name": run["name"],
            "seed": run["seed"],
            "evals": _columns(run["evals"], len(CURVE_AXES) + 1),
            "verified": run["verified"],
        }
        | _training(run["train"])
        for run in page["runs_detail"]
    ]
    return {"axes": CURVE_AXES, "target": track["target"] if track else None, "runs": runs}


def final_loss(record: dict[str, Any]) -> float | None:
    """The loss of a reported record in nats: as stated, else the last of its curve, else None."""
    if record["loss_mean"] is not None:
        return record["loss_mean"]
    return record["points"][-1][-1] if record["points"] else None


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """A number with so many significant digits, and a whole number in full; None where it is not finite."""
    if not isinstance(value, int | float):
        return value
    if not is_finite(value):
        return None
    short = value if float(value).is_integer() else float(f"{value:.{digits}g}")
    return int(short) if float(short).is_integer() and abs(short) < 1e15 else short


def _column(rows: Iterable[dict[str, Any]], *keys: str) -> list[Any]:
    """One value of every row, by nested keys; None where an outer value is None."""
    column = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value if value is None else value.get(key)
        column.append(rounded(value))
    return column


def _columns(points: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[rounded(value) for value in column] for column in zip(*points, strict=True)] or [[] for _ in range(width)]


def _line(line: dict[str, Any], axis: str | None, numbers: dict[str, int]) -> dict[str, Any]:
    """A frontier or a progress line: where it belongs, and its points as columns."""
    x, y, ids = _columns(line["points"], 3)
    entries = [numbers.get(identifier) for identifier in ids]
    return {"track": line["track"], "axis": axis, "hardware": line["hardware"], "x": x, "y": y, "entry": entries}


def _percent(change: dict[str, Any]) -> list[float | None]:
    ends = (change["low"], change["high"])
    if not change["change"] or change["percent"] is None:
        return [rounded(change["percent"], 4), None, None]
    scale = change["percent"] / change["change"]
    return [rounded(value, 4) for value in (change["percent"], *(None if end is None else scale * end for end in ends))]


def _training(points: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """A training curve of at most TRAINING_POINTS points, each the mean of as many steps, at the last of them."""
    step = -(-len(points) // TRAINING_POINTS) or 1
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    losses = [[loss for _, loss in group if is_finite(loss)] for group in groups]
    means = [rounded(sum(group) / len(group)) if group else None for group in losses]
    return {"train": [[group[-1][0] for group in groups], means], "averaged": step}
