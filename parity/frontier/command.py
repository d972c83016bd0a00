"""`python -m parity.frontier`: the ledger of verified results, their scores, what each added, and their pages."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parity.cli import dispatch
from parity.errors import InputError, nearest, run_command
from parity.formats.strict_json import fault
from parity.frontier import comparison, integrity, ledger, tables
from parity.frontier.board import board, delta_json, pages
from parity.frontier.delta import delta, records
from parity.frontier.entry import Entry
from parity.frontier.submission import entry_of
from parity.tables import counted
from parity.track import track_for
from parity.verify.attempts import is_attempt, judge_attempt
from parity.verify.evidence import open_run
from parity.verify.run import Settings, verify_run

COMMAND = "python -m parity.frontier"
CHEATS = Path(__file__).parent / "matrices" / "cheats.json"
Subject = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|ATTEMPT")]
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
Names = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ID")]
Axis = Literal["seconds", "steps", "tokens", "flops"]


@dataclass(frozen=True)
class Common:
    """Options of all commands on a ledger."""

    ledger: Path | None = None
    """Folder of the ledger; by default the project's own."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class Add(Common):
    """Adds a judged run or attempt to the ledger, as one file to review; prints what it adds to the frontier."""

    subject: Subject
    """An attempt's folder or a run directory, with a verdict that holds."""
    title: str | None = None
    """Its name in lists; by default the folder's, or the recipe's."""
    author: str | None = None
    """Of a single run: who made it. An attempt's declaration names its author."""
    kind: Literal["person", "model", "agent"] | None = None
    """Of a single run: what the author is."""
    techniques: tuple[str, ...] = ()
    """Of a single run: how it differs from its recipe."""
    note: str = ""
    """Of a single run: a remark."""


@dataclass(frozen=True)
class List(Common):
    """Lists the entries, oldest first."""


@dataclass(frozen=True)
class Show(Common):
    """Shows an entry, or prints a file of it."""

    id: Name = ""
    """An entry's id, or any part of its id or title that no other has."""
    file: str | None = None
    """Print this file alone: its program, declaration.json or attempt.jsonl."""


@dataclass(frozen=True)
class Check(Common):
    """Derives again everything in the ledger that follows from the rest, and refuses edits."""

    id: Name = ""
    """With --evidence: the entry to compare."""
    evidence: Path | None = None
    """The attempt's folder or run directory that an entry was made from: derive the entry from it again."""
    judge: bool = False
    """With --evidence: judge the evidence again too, at depth replay."""
    data_dir: Path | None = None
    """With --judge: folder of the slices; by default $JAXRUN_DATA or the user's cache."""


@dataclass(frozen=True)
class Score(Common):
    """Scores the ledger: best loss, cost at the target, frontier, and what each entry added."""

    track: str | None = None
    """One track alone."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Writes the page of one run or attempt, with its curve, costs and verdict, as HTML in a folder."""

    run: Subject
    """A judged run directory or attempt, in the ledger or not."""
    ledger: Path | None = None
    """Folder of a ledger to compare it with; by default it is shown alone."""
    out: Path | None = None
    """Folder to write, with the page as attempt/ID.html; by default report/ in the run's or attempt's folder."""


@dataclass(frozen=True)
class Site(Common):
    """Writes the site: the frontier, the records and every entry of the ledger, and the public history."""

    dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")] = Path("site")
    """The folder to write."""
    cheats: Path | None = None
    """Output of python -m parity.verify --cheats --json, shown as a matrix; by default that of this version."""
    parity: Path | None = None
    """Output of python -m parity.compare --faults --json, shown as a matrix."""


@dataclass(frozen=True)
class Plot(Common):
    """Draws the main chart for a README: cost against loss, verified results and, marked as such, reported ones."""

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
    """Is a run's validation curve inside the band of the public seeds of the same record?"""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    record: str | None = None
    """Folder name of the public record; by default that of the run's recipe."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Ablate(Common):
    """The effect of single techniques: compares every two of the entries that differ in one declared technique."""

    ids: Names = ()
    """Entries, by id or by a part of id or title that no other has; none: all of the ledger."""


@dataclass(frozen=True)
class Cross(Common):
    """One recipe in two backends: are the losses equal within noise, and what is the ratio of times?"""

    ids: Names = ()
    """Two entries, one of each backend; none: every such pair of the ledger."""
    margin: float = 0.01
    """The smallest difference of mean losses that matters, in nats per token."""


@dataclass(frozen=True)
class History:
    """What each public record gained, in seconds, percent and nats, and how sure that is. Reported by others."""

    json: bool = False
    """Print JSON, with the figures that could not be reproduced and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    return run_command(lambda: dispatch(COMMAND, COMMANDS, list(sys.argv[1:] if argv is None else argv)))


def _folder(options: Any) -> Path:
    return options.ledger or ledger.PROJECT_LEDGER


def _entries(options: Any) -> list[Entry]:
    """The entries of a ledger that holds. Raises InputError where it was edited."""
    return integrity.load_checked(_folder(options), f"{COMMAND} check")


def _add(options: Add) -> int:
    entry = entry_of(
        options.subject,
        title=options.title,
        author=options.author,
        kind=options.kind,
        techniques=options.techniques,
        note=options.note,
    )
    folder = _folder(options)
    existing = _entries(options) if folder.is_dir() else []
    path = ledger.add(entry, folder)
    before = [other for other in existing if other.began_s < entry.began_s]
    change, record = delta(entry, before), records([*before, entry]).get(entry.id)
    if options.json:
        added = {"id": entry.id, "path": str(path), "delta": delta_json(change, track_for(entry.track).scored)}
        print(json.dumps(added | {"record": record}))
        return 0
    print(f"{path}\n{entry.id}: {change.sentence}{f'. A record: {record}' if record else ''}")
    for reason in change.skipped:
        print(f"left out: {reason}")
    return 0


def _list(options: List) -> int:
    entries = _entries(options)
    print(json.dumps([entry.id for entry in entries]) if options.json else tables.entry_list(entries))
    return 0


def _show(options: Show) -> int:
    entries = _entries(options)
    entry = ledger.by_name(entries, options.id)
    if options.file is not None:
        sys.stdout.write(_file(entry, options.file))
    elif options.json:
        print(json.dumps(entry.data))
    else:
        rows = board([other for other in entries if other.track == entry.track])["entries"]
        print(tables.entry_page(entry, next(row for row in rows if row["id"] == entry.id)))
    return 0


def _file(entry: Entry, name: str) -> str:
    """A file of an entry, by its name."""
    data = entry.data
    files = {"declaration.json": data["declaration"], "attempt.jsonl": data["record"]}
    if data["source"]:
        files[data["source"]["file"]] = data["source"]["lines"]
    files = {file: lines for file, lines in files.items() if lines is not None}
    if name not in files:
        known = nearest(name, files) if files else "it has none"
        raise InputError(f"--file {name}: {entry.id} has no such file; {known}")
    return "\n".join(files[name])


def _check(options: Check) -> int:
    folder = _folder(options)
    entries = ledger.load(folder)
    problems = integrity.problems_of_ledger(entries, folder)
    if options.evidence is not None:
        problems += integrity.evidence_problems(options.evidence, ledger.by_name(entries, options.id))
        problems += _new_verdict_problems(options.evidence, options) if options.judge else []
    elif options.id or options.judge:
        raise InputError(
            f"{options.id or '--judge'}: expected --evidence DIR with an id, found none: without an id the whole "
            "ledger is checked"
        )
    if options.json:
        print(json.dumps({"entries": len(entries), "problems": problems}))
    elif problems:
        print("\n".join(problems))
    else:
        holds = counted(len(entries), "entry holds", "entries hold")
        print(holds if entries else f"{folder} has no entries yet: {ledger.ADD}")
    return 1 if problems else 0


def _new_verdict_problems(evidence: Path, options: Check) -> list[str]:
    """Judges an entry's evidence again, and leaves its verdict.json as it is."""
    from parity.verify.command import progress

    settings, say = Settings("replay", options.data_dir), progress(options.json)
    if is_attempt(evidence):
        verdict = judge_attempt(evidence, settings=settings, say=say)
    else:
        verdict = verify_run(evidence, settings, say)
    return [] if verdict.status == "holds" else [f"{evidence}: {verdict.conclusion()}"]


def _score(options: Score) -> int:
    track = options.track and track_for(options.track).name
    entries = [entry for entry in _entries(options) if track in (None, entry.track)]
    scores = board(entries)
    empty = f"track {track} has no entries yet: {ledger.ADD}" if track and not entries else ""
    print(json.dumps(scores) if options.json else empty or tables.scores(scores))
    return 0


def _report(options: Report) -> int:
    from parity.frontier.site import build

    entry = entry_of(options.run)
    others = [other for other in _entries(options) if not ledger.same_run(entry, other)] if options.ledger else []
    entries = sorted([*others, entry], key=lambda other: (other.began_s, other.id))
    folder, data = options.out or options.run / "report", board(entries)
    build(data, folder, pages(entries, data))
    path = folder / "attempt" / f"{entry.id}.html"
    print(json.dumps({"id": entry.id, "page": str(path)}) if options.json else path)
    return 0


def _site(options: Site) -> int:
    from parity.frontier.site import build
    from parity.history.reported import reported

    entries, history = _entries(options), reported()
    matrices = {
        "cheats": _matrix(options.cheats or CHEATS, "parity.verify --cheats --json"),
        "parity": _matrix(options.parity, "parity.compare --faults --json FILE", "caught"),
    }
    data = board(entries, history, matrices)
    build(data, options.dir, pages(entries, data))
    index = options.dir / "index.html"
    if options.json:
        print(json.dumps({"index": str(index), "entries": len(entries)}))
        return 0
    verified = counted(len(entries), "verified entry", "verified entries")
    records_reported = counted(len({record["n"] for record in history["records"]}), "record")
    print(f"{index}: {verified}, and {records_reported} reported by others")
    return 0


def _matrix(path: Path | None, command: str, key: str = "") -> list[dict[str, Any]] | None:
    """The rows of a file that a command wrote: a list, or the list `key` of an object that has other facts too."""
    if path is None:
        return None
    expected = f"{path}: expected the output of python -m {command}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else fault(error)[:80]
        raise InputError(f"{expected}, found something else ({reason}): write it again") from None
    rows = rows.get(key) if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{expected}, a list of objects, found another form: write it again")
    return rows


def _plot(options: Plot) -> int:
    from parity.frontier.chart import draw

    picture = draw(_entries(options), options.out, options.track, options.axis, options.hardware)
    if options.json:
        print(json.dumps(picture))
        return 0
    verified = counted(picture["entries"], "verified entry", "verified entries")
    others = f", {picture['reported']} reported by others and not verified here" if picture["reported"] else ""
    print(f"{options.out}: {verified} of track {picture['track']}{others}")
    return 0


def _band(options: Band) -> int:
    from parity.history.band import band, record_for

    run = open_run(options.run)
    if run.user_program is not None and options.record is None:
        raise InputError(
            f"{options.run}: its program is its own, so no public record follows from it: name one with --record"
        )
    record = options.record or record_for(run.run["recipe"]["name"], run.track.scale or "")
    result = band([(event["step"], event["val_loss"]) for event in run.log.of("eval")], record)
    if options.json:
        print(json.dumps(result.to_json()))
    else:
        for point in result.points:
            mark = "inside" if point.inside else "OUTSIDE"
            print(f"{point.step:>8,} {point.loss:9.4f}  {point.low:.4f} to {point.high:.4f}  {mark}")
        print(result.sentence)
    return 0 if result.inside else 1


def _ablate(options: Ablate) -> int:
    entries = _entries(options)
    chosen = [ledger.by_name(entries, name) for name in options.ids] or entries
    effects, skipped = comparison.ablations(chosen)
    if not effects:
        reason = f" ({skipped[0]})" if skipped else ""
        raise InputError(
            f"ablate: expected two entries that differ in one declared technique, found none{reason}: declare "
            "techniques in declaration.json"
        )
    if options.json:
        print(json.dumps({"effects": [vars(effect) for effect in effects], "skipped": skipped}))
    else:
        print(tables.ablation_table(effects, skipped))
    return 0


def _cross(options: Cross) -> int:
    entries = _entries(options)
    if len(options.ids) not in (0, 2):
        raise InputError(
            f"cross: expected two entries, one of each backend, found {len(options.ids)}: name two, or none for all "
            "pairs"
        )
    if options.ids:
        couples = [(ledger.by_name(entries, options.ids[0]), ledger.by_name(entries, options.ids[1]))]
    else:
        couples = comparison.pairs_across(entries)
    if not couples:
        raise InputError("cross: expected one recipe in both backends, found none in the ledger: add both")
    results = [comparison.cross(*couple, options.margin) for couple in couples]
    print(json.dumps([vars(result) for result in results]) if options.json else tables.cross_table(results))
    return 0 if all(result.equal for result in results) else 1


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
