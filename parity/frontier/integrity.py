"""`python -m parity.frontier check`: derives everything in a ledger's entries again that follows from the rest, and refuses edits.

A digest over an entry shows accidents and edits; it has no key. What proves an entry is its evidence, which is too large for a ledger:
whoever has it adds it anew and compares (`against`), or judges it again.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.frontier import entry as entries
from parity.frontier import ledger
from parity.frontier.entry import Entry
from parity.tables import counted
from parity.frontier.submission import OPTIONAL, entry_of, hardware_class
from parity.statistics import level, p_below
from parity.track import TRACKS

LOSS_TOLERANCE = 1e-3
"""Nats by which the verifier's val loss and the logged one may differ: recompute.val allows less in float32, and bfloat16 sums differ
between machines by a few 1e-4."""


def check(folder: Path) -> list[str]:
    """What is wrong with a ledger, in sentences; none where all of it holds. Raises InputError where it cannot be read."""
    found = ledger.load(folder)
    problems = [
        f"{_file(folder, entry)}: {problem}: restore it, with git for example"
        for entry in found
        for problem in problems_of(entry)
    ]
    return problems + [
        f"{_file(folder, entry)}: {reason}: one run counts once, so remove one of the two"
        for entry, reason in _shared(found)
    ]


def _file(folder: Path, entry: Entry) -> Path:
    return folder / entry.track / f"{entry.id}.json"


def problems_of(entry: Entry) -> Iterator[str]:
    """What does not follow in one entry."""
    data = entry.data
    if entries.digest(data) != data["digest"]:
        yield "its digest is not that of what it says: it was edited"
    if entries.id_of(data) != entry.id:
        yield f"expected the id {entries.id_of(data)}, which follows from its runs"
    if entry.track not in TRACKS:
        yield f"there is no track {entry.track[:40]}"
        return
    if TRACKS[entry.track].slice != entry.slice or TRACKS[entry.track].val_tokens != entry.val_tokens:
        yield f"track {entry.track} has {TRACKS[entry.track].val_tokens:,} val tokens of {TRACKS[entry.track].slice}, it says others"
    try:
        if hardware_class(data["hardware"]["devices"], data["hardware"]["host"]) != entry.hardware:
            yield "its class of hardware does not follow from its devices"
    except (InputError, KeyError, TypeError) as error:
        yield f"its hardware is unknown ({str(error)[:80] if isinstance(error, InputError) else 'a field is missing, or of another kind'})"
    yield from _verdicts(entry)
    for run in entry.runs:
        yield from (f"{run.name}: {problem}" for problem in _run(run))
    yield from _attempt(entry) if data["declaration"] is not None else _single(entry)


def against(path: Path, entry: Entry) -> list[str]:
    """How an entry differs from what its evidence gives, in sentences. Raises InputError and RunFailed as `entry_of` does."""
    if entry.data["declaration"] is not None:
        fresh = entry_of(path, title=entry.title)
    else:
        data = entry.data
        fresh = entry_of(
            path,
            title=entry.title,
            author=data["author"],
            kind=data["kind"],
            techniques=tuple(data["techniques"]),
            note=data["note"],
        )
    if fresh.id != entry.id:
        return [f"{entry.id}: it was not made from {path}, which gives {fresh.id}: name its own evidence"]
    return [
        f"{entry.id}: {name} is not what {path} gives" for name in fresh.data if fresh.data[name] != entry.data[name]
    ]


def _shared(found: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
    """Entries that have a run of an earlier one."""
    seen: dict[str, Entry] = {}
    for entry in found:
        keys = [key for run in entry.runs for key in (f"log {run.log_sha256}", f"weights {run.weights}")]
        if len(set(keys)) < len(keys):
            yield entry, "two of its runs are one"
        if other := next((seen[key] for key in keys if key in seen), None):
            yield entry, ledger.same_run(entry, other)
        seen |= dict.fromkeys(keys, entry)


def _verdicts(entry: Entry) -> Iterator[str]:
    """Whether every rule that had to hold does, in the verdicts of the attempt and of its runs."""
    from parity.verify.attempts import RULES as OF_ATTEMPT
    from parity.verify.rules import chosen
    from parity.verify.run import version

    verdict = entry.data["verdict"]
    named = [
        ("", verdict, entry.data["declaration"] is not None),
        *((f"{run.name}: ", run.verdict, False) for run in entry.runs),
    ]
    for name, found, attempt in named:
        held = {rule for rule, status, _, _ in found["rules"] if status == "holds"}
        wanted = {rule for rule, _, required, _ in found["rules"] if required}
        if found["version"] == version() or attempt:  # another version may have had other rules
            wanted |= set(OF_ATTEMPT) if attempt else {rule.id for rule, _ in chosen(found["depth"])} - set(OPTIONAL)
        if missing := sorted(wanted - held):
            yield f"{name}its verdict says holds, and {missing[0]} does not"


def _run(run: entries.Run) -> Iterator[str]:
    """What one run's figures say of one another."""
    for before, after in zip(run.evals, run.evals[1:]):
        if not (before.steps < after.steps and before.tokens <= after.tokens and before.seconds <= after.seconds):
            yield f"its evaluation after {after.steps} steps does not follow that after {before.steps}"
    last = run.evals[-1]
    if abs(last.loss - run.val_loss) > LOSS_TOLERANCE:
        yield f"its last val loss is {last.loss:.5f}, the verifier's {run.val_loss:.5f}"
    if run.ended_s - run.began_s < last.seconds:
        yield f"it trained {last.seconds:.1f} s in {run.ended_s - run.began_s:.1f} s"


def _single(entry: Entry) -> Iterator[str]:
    if len(entry.runs) != 1:
        yield f"it has {counted(len(entry.runs), 'run')} and no declaration: several runs are an attempt"


def _attempt(entry: Entry) -> Iterator[str]:
    """Whether declaration, record, seeds, runs, costs and claim belong together."""
    from parity.attempt.record import DECLARATION, RECORD, read_declaration, read_record

    data = entry.data
    with tempfile.TemporaryDirectory(prefix="jaxrun-ledger-") as scratch:
        for name, lines in ((DECLARATION, data["declaration"]), (RECORD, data["record"] or [])):
            (Path(scratch) / name).write_bytes("\n".join(lines).encode())
        try:
            declaration, events = read_declaration(Path(scratch) / DECLARATION), read_record(Path(scratch) / RECORD)
        except InputError as error:
            yield str(error).replace(f"{scratch}/", "")
            return
    yield from _declared(entry, declaration, events)
    yield from _costs(entry, events)
    yield from _claim(entry, declaration)


def _declared(entry: Entry, declaration: Any, events: list[dict[str, Any]]) -> Iterator[str]:
    from parity.attempt.record import seeds_for

    data, event = entry.data, next((event for event in reversed(events) if event["event"] == "declared"), None)
    if event is None:
        yield "its record declares no seeds"
        return
    if _sha(data["declaration"]) != event["declaration_sha256"]:
        yield "its declaration is not the one that its seeds were declared for"
    source = data["source"] or {"lines": [], "sha256": ""}
    if not source["sha256"] == _sha(source["lines"]) == event["program_sha256"]:
        yield "its program is not the one that its seeds were declared for"
    seeds = seeds_for(event["program_sha256"], event["declaration_sha256"], event["runs"])
    if event["seeds"] != seeds or [run.seed for run in entry.runs] != seeds:
        yield "its runs do not have the seeds that program and declaration give, each once and in order"
    said = {
        "author": declaration.author,
        "kind": declaration.kind,
        "track": declaration.track,
        "backend": declaration.backend,
        "recipe": declaration.recipe,
        "techniques": list(declaration.techniques),
        "note": declaration.note,
    }
    for name, value in said.items():
        if data[name] != value:
            yield f"{name}: the declaration says {str(value)[:60]!r}, the entry {str(data[name])[:60]!r}"


def _costs(entry: Entry, events: list[dict[str, Any]]) -> Iterator[str]:
    """Whether the record's runs are the entry's, and the costs those of all that was started."""
    import dataclasses

    from parity.attempt.cost import spent
    from parity.attempt.record import runs_of

    made = runs_of(events)
    cost = {**dataclasses.asdict(spent(made)), "tuning": sum(run.purpose == "tune" for run in made)}
    if cost != entry.data["cost"]:
        yield f"its record comes to {counted(cost['runs'], 'run')} and {cost['seconds']:.1f} s, the entry says otherwise"
    of_name = {run.run.rpartition("/")[2]: run for run in made}
    for run in entry.runs:
        recorded, last = of_name.get(run.name), run.evals[-1]
        if (
            recorded is None
            or recorded.exit_code != 0
            or recorded.steps != last.steps
            or abs((recorded.val_loss or 0) - last.loss) > 1e-9
        ):
            yield f"{run.name}: its record has another end than the entry"


def _claim(entry: Entry, declaration: Any) -> Iterator[str]:
    wanted, step = declaration.claim.val_loss_below, declaration.claim.at_step
    if wanted is None:
        return
    p = p_below(entry.track, entry.losses(step), wanted) if step is None or step in entry.steps else None
    if p is None or p >= level(entry.track):
        yield f"its claim, a mean below {wanted:g}, does not follow from its runs"


def _sha(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
