"""The format of a run's log, `log.v1`: kinds of events and their fields."""

from functools import cache
from typing import Any

from parity.errors import nearest
from parity.formats import schemas
from parity.formats.chain_log import Format

COMPILING = ("build", "init", "warm-up")  # the phases of a run in which code may be compiled

FORMAT = Format(
    schema="log.v1",
    title="the run log",
    missing="name a run directory that has a log.jsonl",
    changed="the log was changed, so the run must be made again",
    resume="--resume {folder}",
    first="start",
    monotonic=True,
)
KINDS = (
    "start",
    "phase",
    "step",
    "norms",
    "eval",
    "checkpoint",
    "resume",
    "state",
    "memory",
    "sample",
    "interrupt",
    "failure",
    "torn_line_dropped",
    "guard",
    "finish",
)


def problem(event: dict[str, Any]) -> str:
    """What is wrong with the kind or the clocks of an event; "" if nothing. Reading a long log takes no more."""
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"unknown event {kind!r:.40}; {nearest(str(kind)[:40], KINDS)}"
    for clock in ("clock_s", "time_s"):
        if type(event.get(clock)) not in (float, int):
            return f"expected {clock} in seconds, found {event.get(clock)!r:.40}"
    return ""


def field_problem(event: dict[str, Any]) -> str:
    """What is wrong with any field of an event, as `log.v1.json` describes it; "" if nothing."""
    return problem(event) or (reason := _check(event["event"])(event)) and f"{event['event']}: {reason}"


@cache
def _check(kind: str) -> schemas.Check:
    """The check of one kind of event: all kinds in one schema take four times as long."""
    schema = schemas.load(FORMAT.schema)
    rule = next(rule for rule in schema["allOf"] if rule["if"]["properties"]["event"]["const"] == kind)
    base = {key: schema[key] for key in ("type", "required", "properties", "definitions")}
    return schemas.check(base | {"allOf": [rule["then"]]})
