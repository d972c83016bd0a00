"""The ledger: a folder of entries, one small text file each, so that a record is a pull request without conflicts.

Entries lie in `<ledger>/<track>/<id>.json`. Nothing else is kept: every list, frontier and record is derived from them.
"""

import gc
from collections.abc import Iterable
from pathlib import Path

from parity.errors import InputError, nearest
from parity.frontier import entry as entries
from parity.frontier.entry import Entry

OWN = Path(__file__).parent / "ledger"
"""The project's own ledger."""
ADD = "python -m parity.frontier add RUN|ATTEMPT"
FEW = 3  # ids in one message


def paths(folder: Path) -> list[Path]:
    """The files of a ledger. Raises InputError where the folder does not exist, or has something else in it."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected the folder of a ledger, found {'a file' if folder.exists() else 'nothing'}: add an entry, or "
            "name another with --ledger"
        )
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    for path in found:
        if path.suffix != ".json" or path.parent.parent != folder or path.is_symlink():
            raise InputError(f"{path}: expected files named <track>/<id>.json in a ledger, found another: move it out")
    return found


def load(folder: Path) -> list[Entry]:
    """All entries of a ledger, oldest first. Raises InputError for a file that is no entry, or is not where it belongs."""
    files = paths(folder)
    collecting = gc.isenabled()
    gc.disable()  # nothing that is read here is garbage, and looking for some takes a third of the time
    try:
        found = [entries.read(path) for path in files]
    finally:
        if collecting:
            gc.enable()
    for entry, path in zip(found, files):
        if (entry.track, f"{entry.id}.json") != (path.parent.name, path.name):
            raise InputError(
                f"{path}: expected {entry.track}/{entry.id}.json as its name, which follows from what is in it: put it back"
            )
    return sorted(found, key=lambda entry: (entry.began_s, entry.id))


def one(ledger: Iterable[Entry], name: str) -> Entry:
    """The entry of an id, of the beginning of one, or of a part of its id or title that only one has; InputError where there is none or
    several."""
    ledger, part = list(ledger), name.rstrip("…").lower()  # a list cuts long ids with that sign
    if not ledger:
        raise InputError(f"{name or 'ID'}: expected the id of an entry, found a ledger without entries: {ADD}")
    if not part:
        raise InputError(f"expected the id of an entry, found none: name an entry, such as {_few(ledger)}")
    found = (
        [entry for entry in ledger if entry.id == name]
        or [entry for entry in ledger if entry.id.startswith(part) or entry.title.lower() == part]
        or [entry for entry in ledger if part in entry.id or part in entry.title.lower()]
    )
    if len(found) == 1:
        return found[0]
    hint = f"it may be {_few(found)}: name more of it" if found else nearest(name, [entry.id for entry in ledger], FEW)
    raise InputError(f"{name}: expected the id of one entry, found {len(found) or 'none'}; {hint}")


def _few(entries: list[Entry]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(entries) - FEW} more (python -m parity.frontier list)" if len(entries) > FEW else ""
    return ", ".join(entry.id for entry in entries[:FEW]) + more


def add(entry: Entry, folder: Path) -> Path:
    """Puts an entry into a ledger; its path. Raises InputError where one of its runs is there already."""
    for other in load(folder) if folder.is_dir() else []:
        if reason := same_run(entry, other):
            raise InputError(f"{entry.id}: {reason}: one run counts once")
    path = folder / entry.track / f"{entry.id}.json"
    entries.write(entry, path)
    return path


def same_run(a: Entry, b: Entry) -> str:
    """Which run two entries share, by its log or its final weights; "" where none."""
    for what in ("log_sha256", "weights"):
        theirs = {getattr(run, what): run.name for run in b.runs}
        for run in a.runs:
            if getattr(run, what) in theirs:
                return f"its run {run.name} has the {'log' if what == 'log_sha256' else 'final weights'} of {theirs[getattr(run, what)]} in {b.id}"
    return ""
