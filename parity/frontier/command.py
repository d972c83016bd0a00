"""`python -m parity.frontier`: the ledger of verified results, their scores, what each added, and the pages that show them."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parity.cli import dispatch
from parity.errors import InputError, nearest, run_command

COMMAND = "python -m parity.frontier"
CHEATS = Path(__file__).parent / "matrices" / "cheats.json"
Subject = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|ATTEMPT")]
Names = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ID")]
Axis = Literal["seconds", "steps", "tokens", "flops"]


@dataclass(frozen=True)
class Common:
    """What all commands on a ledger take."""

    ledger: Path | None = None
    """Folder of the ledger; by default the project's own."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class Add(Common):
    """Adds a judged run or attempt to the ledger, as one file to review and merge; says what it adds to the frontier."""

    subject: Subject
    """An attempt's folder or a run directory, with a verdict that holds."""
    title: str | None = None
    """Its name in lists; by default the folder's, or the recipe's."""
    author: str | None = None
    """Of a single run: who made it. An attempt's declaration says so itself."""
    kind: Literal["person", "model", "agent"] | None = None
    """Of a single run: what the author is."""
    techniques: tuple[str, ...] = ()
    """Of a single run: what it does otherwise than its recipe."""
    note: str = ""
    """Of a single run: a remark."""


@dataclass(frozen=True)
class List(Common):
    """Lists the entries, oldest first."""


@dataclass(frozen=True)
class Show(Common):
    """Shows an entry, or prints a file that it keeps."""

    id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")] = ""
    """An entry's id, or any part of its id or title that only one has."""
    file: str | None = None
    """Print this file alone: its program, declaration.json or attempt.jsonl."""


@dataclass(frozen=True)
class Check(Common):
    """Derives everything in the ledger again that follows from the rest, and refuses edits."""

    id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")] = ""
    """With --evidence: the entry to compare."""
    evidence: Path | None = None
    """The attempt's folder or run directory that an entry was made from: derive the entry from it anew."""
    judge: bool = False
    """With --evidence: judge the evidence anew too, at depth replay."""
    data_dir: Path | None = None
    """With --judge: folder that slices are kept in; by default $JAXRUN_DATA or the user's cache."""


@dataclass(frozen=True)
class Score(Common):
    """Scores the ledger: best loss, cost at the target, frontier, and what each entry added."""

    track: str | None = None
    """One track alone."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """One run's or attempt's page: its curve, costs and verdict, as HTML in a folder."""

    run: Subject
    """A judged run directory or attempt, in the ledger or not."""
    ledger: Path | None = None
    """Folder of a ledger to show it beside; by default it is shown alone."""
    out: Path | None = None
    """Folder to write, of which attempt/ID.html is the page; by default report/ in the run's or attempt's own."""


@dataclass(frozen=True)
class Site(Common):
    """Writes the site: the frontier, the records and every entry, of the ledger beside the public history."""

    dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")] = Path("site")
    """The folder to write."""
    cheats: Path | None = None
    """What python -m parity.verify --cheats --json printed, to be shown as a matrix; by default what it printed of this version."""
    parity: Path | None = None
    """What python -m parity.compare --faults --json printed, to be shown as a matrix."""


@dataclass(frozen=True)
class Plot(Common):
    """Draws the main chart for a README: cost against loss, verified results and, apart, reported ones."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")] = Path("frontier.svg")
    """The picture: .svg or .png."""
    track: str = "pocket"
    """The track to draw."""
    axis: Axis = "seconds"
    """The cost."""
    hardware: str | None = None
    """For seconds: the class of hardware; by default the one with the most entries."""


@dataclass(frozen=True)
class Band:
    """Is a run's validation curve inside the band that the public seeds of the same record left?"""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    record: str | None = None
    """Folder name of the public record; by default that of the run's recipe."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Ablate(Common):
    """The effect of single techniques: every two of the entries that differ in one declared technique are compared."""

    ids: Names = ()
    """Entries, by id or by a part of id or title that only one has; none: all of the ledger."""


@dataclass(frozen=True)
class Cross(Common):
    """One recipe in two backends: are the losses equal within noise, and what is the ratio of times?"""

    ids: Names = ()
    """Two entries, one of each backend; none: every such pair of the ledger."""
    margin: float = 0.01
    """The smallest difference of mean losses that matters, in nats per token."""


@dataclass(frozen=True)
class History:
    """What each of the public records gave, in seconds, in percent and in nats, and how sure it is. Reported by others."""

    json: bool = False
    """Print JSON, with the figures that do not come out again and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    return run_command(lambda: dispatch(COMMAND, COMMANDS, list(sys.argv[1:] if argv is None else argv)))


def _ledger(options: Common) -> Path:
    from parity.frontier.ledger import OWN

    return options.ledger or OWN


def _entries(options: Common) -> list[Any]:
    """The entries of a ledger that holds. Raises InputError where it was edited."""
    from parity.frontier import ledger
    from parity.frontier.integrity import check

    folder = _ledger(options)
    if problems := check(folder):
        raise InputError(problems[0] + f" ({len(problems) - 1} more: {COMMAND} check)" * (len(problems) > 1))
    return ledger.load(folder)


def _add(options: Add) -> int:
    from parity.frontier import ledger
    from parity.frontier.board import delta_json
    from parity.frontier.delta import delta, records
    from parity.frontier.submission import entry_of
    from parity.track import track_for

    made = entry_of(
        options.subject,
        title=options.title,
        author=options.author,
        kind=options.kind,
        techniques=options.techniques,
        note=options.note,
    )
    folder = _ledger(options)
    there = _entries(options) if folder.is_dir() else []
    path = ledger.add(made, folder)
    before = [other for other in there if other.began_s < made.began_s]
    change, record = delta(made, before), records([*before, made]).get(made.id)
    if options.json:
        print(
            json.dumps(
                {
                    "id": made.id,
                    "path": str(path),
                    "delta": delta_json(change, track_for(made.track).scored),
                    "record": record,
                }
            )
        )
        return 0
    print(f"{path}\n{made.id}: {change.sentence}{f'. A record: {record}' if record else ''}")
    for reason in change.skipped:
        print(f"left out: {reason}")
    return 0


def _list(options: List) -> int:
    from parity.frontier.tables import listing

    entries = _entries(options)
    print(json.dumps([entry.id for entry in entries]) if options.json else listing(entries))
    return 0


def _show(options: Show) -> int:
    from parity.frontier import ledger
    from parity.frontier.board import board
    from parity.frontier.tables import shown

    entries = _entries(options)
    entry = ledger.one(entries, options.id)
    if options.file is not None:
        sys.stdout.write(_file(entry, options.file))
    elif options.json:
        print(json.dumps(entry.data))
    else:
        same = [other for other in entries if other.track == entry.track]
        row = next(row for row in board(same)["entries"] if row["id"] == entry.id)
        print(shown(entry, row))
    return 0


def _file(entry: Any, name: str) -> str:
    data = entry.data
    files = {"declaration.json": data["declaration"], "attempt.jsonl": data["record"]}
    if data["source"]:
        files[data["source"]["file"]] = data["source"]["lines"]
    found = {file: lines for file, lines in files.items() if lines is not None}
    if name not in found:
        raise InputError(
            f"--file {name}: {entry.id} keeps no such file; {nearest(name, found) if found else 'it keeps none'}"
        )
    return "\n".join(found[name])


def _check(options: Check) -> int:
    from parity.frontier import ledger
    from parity.frontier.integrity import against, check
    from parity.tables import counted

    folder = _ledger(options)
    entries = ledger.load(folder)
    problems = check(folder)
    if options.evidence is not None:
        one = ledger.one(entries, options.id)
        problems += against(options.evidence, one)
        problems += _judged(options) if options.judge else []
    elif options.id or options.judge:
        raise InputError(
            f"{options.id or '--judge'}: expected --evidence DIR with an id, found none: without an id the whole ledger is checked"
        )
    if options.json:
        print(json.dumps({"entries": len(entries), "problems": problems}))
    elif problems:
        print("\n".join(problems))
    else:
        holds = counted(len(entries), "entry holds", "entries hold")
        print(holds if entries else f"{folder} has no entries yet: {ledger.ADD}")
    return 1 if problems else 0


def _judged(options: Check) -> list[str]:
    """What a new verdict on an entry's evidence finds wrong; the evidence keeps the verdict that it has."""
    from parity.verify.attempts import is_attempt, judge_attempt
    from parity.verify.command import progress
    from parity.verify.run import Settings, verify_run

    settings = Settings("replay", options.data_dir)
    say = progress(options.json)
    found = (
        judge_attempt(options.evidence, settings=settings, say=say)
        if is_attempt(options.evidence)
        else verify_run(options.evidence, settings, say)
    )
    return [] if found.status == "holds" else [f"{options.evidence}: {found.conclusion()}"]


def _score(options: Score) -> int:
    from parity.frontier.board import board
    from parity.frontier.ledger import ADD
    from parity.frontier.tables import scores
    from parity.track import track_for

    track = options.track and track_for(options.track).name
    entries = [entry for entry in _entries(options) if track in (None, entry.track)]
    found = board(entries)
    empty = f"track {track} has no entries yet: {ADD}" if track and not entries else ""
    print(json.dumps(found) if options.json else empty or scores(found))
    return 0


def _report(options: Report) -> int:
    from parity.frontier.board import board, page
    from parity.frontier.ledger import same_run
    from parity.frontier.site import build
    from parity.frontier.submission import entry_of

    entry = entry_of(options.run)
    others = [other for other in _entries(options) if not same_run(entry, other)] if options.ledger else []
    entries = sorted([*others, entry], key=lambda one: (one.began_s, one.id))
    found = board(entries)
    folder = options.out or options.run / "report"
    build(found, folder, (page(one, row, entries) for one, row in zip(entries, found["entries"])))
    path = folder / "attempt" / f"{entry.id}.html"
    print(json.dumps({"id": entry.id, "page": str(path)}) if options.json else path)
    return 0


def _site(options: Site) -> int:
    from parity.frontier.board import board, page
    from parity.frontier.site import build
    from parity.tables import counted
    from parity.history.reported import reported

    entries = _entries(options)
    matrices = {
        "cheats": _matrix(options.cheats or CHEATS, "parity.verify --cheats --json"),
        "parity": _matrix(options.parity, "parity.compare --faults --json"),
    }
    found = board(entries, reported(), matrices)
    build(found, options.dir, (page(entry, row, entries) for entry, row in zip(entries, found["entries"])))
    index = options.dir / "index.html"
    records = len({record["n"] for record in found["reported"]["records"]})
    said = f"{counted(len(entries), 'verified entry', 'verified entries')}, and {counted(records, 'record')} reported by others"
    print(json.dumps({"index": str(index), "entries": len(entries)}) if options.json else f"{index}: {said}")
    return 0


def _matrix(path: Path | None, command: str) -> Any:
    if path is None:
        return None
    from parity.formats.strict_json import fault

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else fault(error)[:80]
        raise InputError(
            f"{path}: expected what python -m {command} printed, found something else ({reason}): make it anew"
        ) from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(
            f"{path}: expected a list of objects, as python -m {command} prints, found another form: make it anew"
        )
    return found


def _plot(options: Plot) -> int:
    from parity.frontier.chart import draw
    from parity.tables import counted

    found = draw(_entries(options), options.out, options.track, options.axis, options.hardware)
    others = f", {found['reported']} reported by others and not verified here" if found["reported"] else ""
    said = f"{options.out}: {counted(found['entries'], 'verified entry', 'verified entries')} of track {found['track']}{others}"
    print(json.dumps(found) if options.json else said)
    return 0


def _band(options: Band) -> int:
    from parity.history.band import band, record_for
    from parity.verify.evidence import open_run

    run = open_run(options.run)
    if run.user_program is not None and options.record is None:
        raise InputError(
            f"{options.run}: its program is its own, so no public record follows from it: name one with --record"
        )
    record = options.record or record_for(run.run["recipe"]["name"], run.track.scale or "")
    found = band([(event["step"], event["val_loss"]) for event in run.log.of("eval")], record)
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        for point in found.points:
            mark = "inside" if point.inside else "OUTSIDE"
            print(f"{point.step:>8,} {point.loss:9.4f}  {point.low:.4f} to {point.high:.4f}  {mark}")
        print(found.sentence)
    return 0 if found.inside else 1


def _ablate(options: Ablate) -> int:
    from parity.frontier import ledger
    from parity.frontier.comparison import ablations
    from parity.frontier.tables import ablation_table

    entries = _entries(options)
    chosen = [ledger.one(entries, name) for name in options.ids] or entries
    found, skipped = ablations(chosen)
    if not found:
        raise InputError(
            "ablate: expected two entries that differ in one declared technique, found none"
            f"{f' ({skipped[0]})' if skipped else ''}: declare techniques in declaration.json"
        )
    print(
        json.dumps({"effects": [vars(one) for one in found], "skipped": skipped})
        if options.json
        else ablation_table(found, skipped)
    )
    return 0


def _cross(options: Cross) -> int:
    from parity.frontier import ledger
    from parity.frontier.comparison import cross, pairs_across
    from parity.frontier.tables import cross_table

    entries = _entries(options)
    if options.ids and len(options.ids) != 2:
        raise InputError(
            f"cross: expected two entries, one of each backend, found {len(options.ids)}: name two, or none for all pairs"
        )
    couples = [tuple(ledger.one(entries, name) for name in options.ids)] if options.ids else pairs_across(entries)
    if not couples:
        raise InputError("cross: expected one recipe in both backends, found none in the ledger: add both")
    found = [cross(*couple, options.margin) for couple in couples]
    print(json.dumps([vars(one) for one in found]) if options.json else cross_table(found))
    return 0 if all(one.equal for one in found) else 1


def _history(options: History) -> int:
    from parity.history import reported

    print(json.dumps(reported.to_json()) if options.json else reported.table())
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "add": (Add, _add),
    "list": (List, _list),
    "show": (Show, _show),
    "check": (Check, _check),
    "score": (Score, _score),
    "report": (Report, _report),
    "site": (Site, _site),
    "plot": (Plot, _plot),
    "band": (Band, _band),
    "ablate": (Ablate, _ablate),
    "cross": (Cross, _cross),
    "history": (History, _history),
}
