"""`python -m parity.frontier check`: derives again all of an entry that follows from the rest, and refuses edits.

A digest over an entry shows accidents and edits; it has no key. What proves an entry is its evidence, which is too
large for a ledger: whoever has it derives the entry again and compares (`evidence_problems`), or judges it again.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parity.declaration.cost import spent
from parity.declaration.record import DECLARATION, RECORD, read_declaration, read_record, runs_of, seeds_for
from parity.errors import InputError
from parity.frontier import entry as entries
from parity.frontier import ledger
from parity.frontier.entry import Entry
from parity.frontier.submission import OPTIONAL, entry_of, hardware_class
from parity.statistics import level, p_below
from parity.tables import counted
from parity.track import TRACKS
from parity.verify.attempts import RULES as ATTEMPT_RULES
from parity.verify.rules import chosen
from parity.verify.run import version

RULES_SINCE = "2026-11-30T20:00:00Z"
"""When the list of rules last changed: verdicts from before were judged by other rules."""
LOSS_TOLERANCE = 1e-3
"""Nats by which the verifier's val loss and the logged one may differ: recompute.val allows less in float32, and
bfloat16 sums differ between machines by a few 1e-4."""


def load_checked(folder: Path, more: str) -> list[Entry]:
    """The entries of a ledger that holds. Raises InputError with its first problem; `more`: the command for all."""
    loaded = ledger.load(folder)
    if problems := problems_of_ledger(loaded, folder):
        raise InputError(problems[0] + f" ({len(problems) - 1} more: {more})" * (len(problems) > 1))
    return loaded


def problems_of_ledger(loaded: Sequence[Entry], folder: Path) -> list[str]:
    """The problems of each entry, and runs that are in two entries, in sentences."""
    problems = [
        f"{ledger.path_of(entry, folder)}: {problem}: restore it, with git for example"
        for entry in loaded
        for problem in problems_of(entry)
    ]
    return problems + [
        f"{ledger.path_of(entry, folder)}: {reason}: one run counts once, so remove one of the two"
        for entry, reason in _repeated_runs(loaded)
    ]


def problems_of(entry: Entry) -> Iterator[str]:
    """What does not follow in one entry."""
    data = entry.data
    if entries.digest(data) != data["digest"]:
        yield "its digest does not match its content: it was edited"
    if entries.id_of(data) != entry.id:
        yield f"expected the id {entries.id_of(data)}, which follows from its runs"
    if entry.track not in TRACKS:
        yield f"there is no track {entry.track[:40]}"
        return
    track = TRACKS[entry.track]
    if (track.slice, track.val_tokens) != (entry.slice, entry.val_tokens):
        yield (
            f"track {entry.track} has {track.val_tokens:,} val tokens of {track.slice}, the entry {entry.val_tokens:,} "
            f"of {entry.slice}"
        )
    try:
        if hardware_class(data["hardware"]["devices"], data["hardware"]["host"]) != entry.hardware:
            yield "its class of hardware does not follow from its devices"
    except InputError as error:
        yield f"its hardware is unknown ({str(error)[:80]})"
    except (KeyError, TypeError):
        yield "its hardware is unknown (a field is missing, or of another kind)"
    yield from _verdict_problems(entry)
    for run in entry.runs:
        yield from (f"{run.name}: {problem}" for problem in _run_problems(run))
    yield from _attempt_problems(entry) if data["declaration"] is not None else _single_problems(entry)


def evidence_problems(path: Path, entry: Entry) -> list[str]:
    """How an entry differs from what its evidence gives, in sentences. Raises InputError and RunFailed as `entry_of`
    does."""
    data = entry.data
    attribution: dict[str, Any] = {}  # of a single run; an attempt's declaration has its own
    if data["declaration"] is None:
        attribution = {name: data[name] for name in ("author", "kind", "note")} | {"techniques": entry.techniques}
    derived = entry_of(path, title=entry.title, **attribution)
    if derived.id != entry.id:
        return [f"{entry.id}: it was not made from {path}, which gives {derived.id}: name its own evidence"]
    return [f"{entry.id}: {name} is not what {path} gives" for name in derived.data if derived.data[name] != data[name]]


def _repeated_runs(loaded: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
    """Entries that have a run of an earlier one, or one run twice."""
    owners: dict[str, Entry] = {}
    for entry in loaded:
        keys = [key for run in entry.runs for key in (f"log {run.log_sha256}", f"weights {run.weights}")]
        if len(set(keys)) < len(keys):
            yield entry, "two of its runs are the same"
        if other := next((owners[key] for key in keys if key in owners), None):
            yield entry, ledger.same_run(entry, other)
        owners |= dict.fromkeys(keys, entry)


def _verdict_problems(entry: Entry) -> Iterator[str]:
    """Rules that had to hold and do not, in the verdicts of the attempt and of its runs."""
    is_attempt, this_version = entry.data["declaration"] is not None, version()
    verdicts = [("", entry.data["verdict"], is_attempt)]
    verdicts += [(f"{run.name}: ", run.verdict, False) for run in entry.runs]
    for prefix, verdict, of_attempt in verdicts:
        holding = {rule for rule, status, _, _ in verdict["rules"] if status == "holds"}
        needed = {rule for rule, _, required, _ in verdict["rules"] if required}
        if verdict["version"] != this_version or verdict["judged_utc"] < RULES_SINCE:
            pass  # another version may have had other rules
        elif of_attempt:
            needed |= set(ATTEMPT_RULES)
        else:
            needed |= {rule.id for rule, _ in chosen(verdict["depth"])} - set(OPTIONAL)
        if missing := sorted(needed - holding):
            yield f"{prefix}its verdict says holds, and {missing[0]} does not"


def _run_problems(run: entries.Run) -> Iterator[str]:
    """Where one run's numbers contradict one another."""
    for before, after in zip(run.evals, run.evals[1:], strict=False):
        if not (before.steps < after.steps and before.tokens <= after.tokens and before.seconds <= after.seconds):
            yield f"its evaluation after {after.steps} steps does not follow that after {before.steps}"
    logged = {point.steps: point.loss for point in run.evals}
    for steps, loss in run.recomputed:
        if steps not in logged:
            yield f"the verifier computed its val loss after {steps} steps again, where it has no evaluation"
        elif abs(logged[steps] - loss) > LOSS_TOLERANCE:
            yield f"its val loss after {steps} steps is {logged[steps]:.5f}, the verifier's {loss:.5f}"
    last = run.evals[-1]
    if abs(last.loss - run.val_loss) > LOSS_TOLERANCE:
        yield f"its last val loss is {last.loss:.5f}, the verifier's {run.val_loss:.5f}"
    if run.ended_s - run.began_s < last.seconds:
        yield f"it trained {last.seconds:.1f} s in {run.ended_s - run.began_s:.1f} s"


def _single_problems(entry: Entry) -> Iterator[str]:
    if len(entry.runs) != 1:
        yield f"it has {counted(len(entry.runs), 'run')} and no declaration: several runs are an attempt"


def _attempt_problems(entry: Entry) -> Iterator[str]:
    """Where declaration, record, seeds, runs, costs and claim do not belong together."""
    data = entry.data
    with tempfile.TemporaryDirectory(prefix="jaxrun-ledger-") as scratch:
        for name, lines in ((DECLARATION, data["declaration"]), (RECORD, data["record"] or [])):
            (Path(scratch) / name).write_bytes("\n".join(lines).encode())
        try:
            declaration, events = read_declaration(Path(scratch) / DECLARATION), read_record(Path(scratch) / RECORD)
        except InputError as error:
            yield str(error).replace(f"{scratch}/", "")
            return
    yield from _declaration_problems(entry, declaration, events)
    yield from _cost_problems(entry, events)
    yield from _claim_problems(entry, declaration)


def _declaration_problems(entry: Entry, declaration: Any, events: list[dict[str, Any]]) -> Iterator[str]:

    data, event = entry.data, next((event for event in reversed(events) if event["event"] == "declared"), None)
    if event is None:
        yield "its record declares no seeds"
        return
    if _sha256(data["declaration"]) != event["declaration_sha256"]:
        yield "its declaration is not the one that its seeds were declared for"
    source = data["source"] or {"lines": [], "sha256": ""}
    if not source["sha256"] == _sha256(source["lines"]) == event["program_sha256"]:
        yield "its program is not the one that its seeds were declared for"
    seeds = seeds_for(event["program_sha256"], event["declaration_sha256"], event["runs"])
    if event["seeds"] != seeds or [run.seed for run in entry.runs] != seeds:
        yield "its runs do not have the seeds that program and declaration give, each once and in order"
    for name in ("author", "kind", "track", "backend", "recipe", "techniques", "note"):
        declared = getattr(declaration, name)
        declared = list(declared) if name == "techniques" else declared
        if data[name] != declared:
            yield f"{name}: the declaration says {str(declared)[:60]!r}, the entry {str(data[name])[:60]!r}"


def _cost_problems(entry: Entry, events: list[dict[str, Any]]) -> Iterator[str]:
    """Where the record's runs are not the entry's, or the costs not those of everything that was started."""
    runs = runs_of(events)
    cost = {**dataclasses.asdict(spent(runs)), "tuning": sum(run.purpose == "tune" for run in runs)}
    if cost != entry.data["cost"]:
        total = f"{counted(cost['runs'], 'run')} and {cost['seconds']:.1f} s"
        yield f"its record comes to {total}, the entry says otherwise"
    recorded = {run.run.rpartition("/")[2]: run for run in runs}
    for run in entry.runs:
        record, last = recorded.get(run.name), run.evals[-1]
        if (
            record is None
            or record.exit_code != 0
            or record.steps != last.steps
            or abs((record.val_loss or 0) - last.loss) > 1e-9
        ):
            yield f"{run.name}: its record has another end than the entry"


def _claim_problems(entry: Entry, declaration: Any) -> Iterator[str]:
    bound, step = declaration.claim.val_loss_below, declaration.claim.at_step
    if bound is None:
        return
    p = p_below(entry.track, entry.losses(step), bound) if step is None or step in entry.steps else None
    if p is None or p >= level(entry.track):
        yield f"its claim, a mean below {bound:g}, does not follow from its runs"


def _sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
