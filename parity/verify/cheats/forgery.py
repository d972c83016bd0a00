"""What a forger does to a run directory: edits with a new chain, so that the digests alone show nothing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Events = list[Event]


def read_events(path: Path) -> Events:
    """The events of a chained file, unchecked."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_events(path: Path, events: Events) -> None:
    """Writes events with new line numbers and a new chain, as the harness would have."""
    prev, lines = "0" * 64, []
    for n, event in enumerate(events, 1):
        raw = json.dumps({**event, "n": n, "prev": prev}, separators=(",", ":")).encode()
        prev = hashlib.sha256(raw).hexdigest()
        lines.append(raw)
    path.write_bytes(b"\n".join(lines) + b"\n")


def rewrite(run: Path, edit: Callable[[Events], Events | None]) -> None:
    """Edits the events of a run's log, in place or by what `edit` returns, and chains them."""
    events = read_events(run / "log.jsonl")
    write_events(run / "log.jsonl", edit(events) or events)


def each(kind: str, change: Callable[[Event], None], where: Callable[[Event], bool] = lambda event: True):
    """An edit of every event of a kind for which `where` holds."""

    def edit(events: Events) -> None:
        for event in of_kind(events, kind):
            if where(event):
                change(event)

    return edit


def of_kind(events: Events, kind: str) -> Events:
    """The events of a kind, in order."""
    return [event for event in events if event["event"] == kind]


def totals(events: Events) -> dict[str, Any]:
    """The totals of the finish."""
    return of_kind(events, "finish")[0]["totals"]


def declare(run: Path, change: Callable[[dict[str, Any]], None], honest_start: bool = False) -> None:
    """Edits run.json; the log's start event is made to agree, unless `honest_start`."""
    path = run / "run.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2) + "\n")
    if honest_start:
        return
    fields = {name: values[name] for name in ("track", "seed", "backend")} | {
        "slice": values["slice"]["digest"],
        "run_json": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    rewrite(run, each("start", lambda event: event.update(fields)))
