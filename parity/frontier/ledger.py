"""The ledger: a folder of entries, one small text file each, so that a record is a pull request without conflicts.

Entries lie in `<ledger>/<track>/<id>.json`. Nothing else is stored: every list, frontier and record is derived from
them.
"""

from collections.abc import Sequence
from pathlib import Path

from parity.errors import InputError, nearest
from parity.frontier import entry as entries
from parity.frontier.entry import Entry

PROJECT_LEDGER = Path(__file__).parent / "ledger"
ADD = "python -m parity.frontier add RUN|ATTEMPT"
MOST_IDS = 3  # in one message


def paths(folder: Path) -> list[Path]:
    """The files of a ledger. Raises InputError where the folder does not exist, or has something else in it."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected the folder of a ledger, found {'a file' if folder.exists() else 'nothing'}: add an "
            "entry, or name another with --ledger"
        )
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    for path in files:
        if path.suffix != ".json" or path.parent.parent != folder or path.is_symlink():
            raise InputError(f"{path}: expected files named <track>/<id>.json in a ledger, found another: move it out")
    return files


def path_of(entry: Entry, folder: Path) -> Path:
    """Where a ledger has an entry."""
    return folder / entry.track / f"{entry.id}.json"


def load(folder: Path) -> list[Entry]:
    """All entries of a ledger, oldest first. Raises InputError for a file that is no entry, or has another's name."""
    ledger = []
    for path in paths(folder):
        entry = entries.read(path)
        if path_of(entry, folder) != path:
            raise InputError(
                f"{path}: expected {entry.track}/{entry.id}.json as its name, which follows from its content: "
                "rename it back"
            )
        ledger.append(entry)
    return sorted(ledger, key=lambda entry: (entry.began_s, entry.id))


def by_name(ledger: Sequence[Entry], name: str) -> Entry:
    """The entry of an id, of the beginning of one, or of a part of an id or title that only one has; InputError where
    there is none or several."""
    query = name.rstrip("…").lower()  # lists cut long ids with that sign
    if not ledger:
        raise InputError(f"{name or 'ID'}: expected the id of an entry, found a ledger without entries: {ADD}")
    if not query:
        raise InputError(f"expected the id of an entry, found none: name an entry, such as {_first_ids(ledger)}")
    matches = (
        [entry for entry in ledger if entry.id == name]
        or [entry for entry in ledger if entry.id.startswith(query) or entry.title.lower() == query]
        or [entry for entry in ledger if query in entry.id or query in entry.title.lower()]
    )
    if len(matches) == 1:
        return matches[0]
    known = nearest(name, [entry.id for entry in ledger], MOST_IDS)
    hint = f"it may be {_first_ids(matches)}: name more of it" if matches else known
    raise InputError(f"{name}: expected the id of one entry, found {len(matches) or 'none'}; {hint}")


def _first_ids(ledger: Sequence[Entry]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(ledger) - MOST_IDS} more (python -m parity.frontier list)" if len(ledger) > MOST_IDS else ""
    return ", ".join(entry.id for entry in ledger[:MOST_IDS]) + more


def add(entry: Entry, folder: Path) -> Path:
    """Writes an entry into a ledger; its path. Raises InputError where the ledger has one of its runs already."""
    for other in load(folder) if folder.is_dir() else []:
        if reason := same_run(entry, other):
            raise InputError(f"{entry.id}: {reason}: one run counts once")
    path = path_of(entry, folder)
    entries.write(entry, path)
    return path


def same_run(a: Entry, b: Entry) -> str:
    """Which run two entries have in common, by its log or its final weights; "" where none."""
    for field, description in (("log_sha256", "log"), ("weights", "final weights")):
        names = {getattr(run, field): run.name for run in b.runs}
        for run in a.runs:
            if name := names.get(getattr(run, field)):
                return f"its run {run.name} has the {description} of {name} in {b.id}"
    return ""
