"""What a forger does to a run directory: edits with a chain made anew, so that the digests alone show nothing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Events = list[dict[str, Any]]


def events_of(run: Path) -> Events:
    """The log's events."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def rewrite(run: Path, edit: Callable[[Events], Events | None]) -> None:
    """Edits the events and writes the log with lines numbered and chained anew, as the harness would have."""
    events = events_of(run)
    events = edit(events) or events
    prev, lines = "0" * 64, []
    for n, event in enumerate(events, 1):
        raw = json.dumps({**event, "n": n, "prev": prev}, separators=(",", ":")).encode()
        prev = hashlib.sha256(raw).hexdigest()
        lines.append(raw)
    (run / "log.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def each(
    kind: str, change: Callable[[dict[str, Any]], None], where: Callable[[dict[str, Any]], bool] = lambda event: True
):
    """An edit of every event of a kind for which `where` holds."""

    def edit(events: Events) -> None:
        for event in events:
            if event["event"] == kind and where(event):
                change(event)

    return edit


def declare(run: Path, change: Callable[[dict[str, Any]], None], honest_start: bool = False) -> None:
    """Edits run.json; the log's start is made to agree, unless `honest_start`."""
    path = run / "run.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2) + "\n")
    if honest_start:
        return
    said = {
        "track": values["track"],
        "seed": values["seed"],
        "backend": values["backend"],
        "slice": values["slice"]["digest"],
        "run_json": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    rewrite(run, each("start", lambda event: event.update(said)))


def last_evaluation(events: Events) -> dict[str, Any]:
    """The last evaluation's event."""
    return [event for event in events if event["event"] == "eval"][-1]


def finish(events: Events) -> dict[str, Any]:
    """The totals of the finish."""
    return next(event for event in events if event["event"] == "finish")["totals"]
