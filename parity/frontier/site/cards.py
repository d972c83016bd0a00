"""The cards of the first page: each track's records, its lowest loss and its hypervolume."""

from typing import Any

from parity.frontier.site.figures import is_finite

MOST_RECORDS = 3  # lines of a track's card, one for each class of hardware


def cards(board: dict[str, Any]) -> list[dict[str, Any]]:
    """A card for every track that has entries."""
    tracks_with_entries = {entry["track"] for entry in board["entries"]}
    return [_card(track, board) for track in board["tracks"] if track["name"] in tracks_with_entries]


def _card(track: dict[str, Any], board: dict[str, Any]) -> dict[str, Any]:
    entries = [entry for entry in board["entries"] if entry["track"] == track["name"]]
    lines = [line for line in board["progress"] if line["track"] == track["name"] and line["points"]]
    lines.sort(key=lambda line: line["points"][-1][0], reverse=True)
    finished = [entry for entry in entries if is_finite(entry["loss"]["mean"])]
    return {
        "track": track,
        "attempts": len(entries),
        "records": [_record(line, entries) for line in lines[:MOST_RECORDS]],
        "more_classes": max(0, len(lines) - MOST_RECORDS),
        "best": min(finished, key=lambda entry: entry["loss"]["mean"], default=None),
        "hypervolumes": [
            volume
            for volume in track["hypervolume"]
            if is_finite(volume["value"]) and volume["axis"] == track["scored"]
        ],
    }


def _record(line: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The latest record of a line of progress, and how many attempts took fewer seconds and are no record."""
    date, cost, identifier = line["points"][-1]
    seconds = [
        entry["target"]["seconds"]
        for entry in entries
        if line["scored"] == "seconds" and entry["hardware"] == line["hardware"] and entry["target"]
    ]
    return {
        "date": date,
        "cost": cost,
        "axis": line["scored"],
        "hardware": line["hardware"],
        "id": identifier,
        "faster": sum(is_finite(value) and value < cost for value in seconds),
    }
