"""Writes the site's files."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.frontier.site import attempt, columns, frontier, index, matrices, summary
from parity.frontier.site.markup import GENERATOR, compact

ASSETS = Path(__file__).with_name("assets")
STYLE = Path(__file__).parents[2] / "style.css"  # of all pages of the project; the site's own rules follow it
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}")
OWN_BYTES = 4096  # a page of ours says so within so many


def build(board: dict[str, Any], folder: Path, pages: Iterable[dict[str, Any]]) -> None:
    """Writes `index.html`, `frontier.html` (its points as tables), `attempt/<id>.html` for every page, `matrices.html` where
    there is a matrix, and `assets/`.

    `board` has tracks, entries, frontiers, progress, attribution, reported results and matrices; each of `pages` is an entry
    with its runs, verdicts and source, taken one at a time. Losses in nats per token, times in seconds. Pages of attempts that
    are no longer there are removed; other files of the folder are left alone. Raises InputError for an id that is no file name,
    for ids that occur twice, and where the folder cannot be written.
    """
    folder, board = Path(folder), columns.whole(board)
    known = {entry["id"]: entry for entry in board["entries"]}
    if len(known) < len(board["entries"]):
        raise InputError(
            f"the board has {len(board['entries'])} entries but {len(known)} ids: every entry needs an id of its own"
        )
    for one in known:
        _check(one)
    try:
        (folder / "attempt").mkdir(parents=True, exist_ok=True)
        shutil.copytree(ASSETS, folder / "assets", dirs_exist_ok=True)
        _write(folder / "assets" / "style.css", STYLE.read_text() + (ASSETS / "style.css").read_text())
        _write(folder / "assets" / "curves.js", f"site.curves({compact(columns.curves(board))});\n")
        _write(folder / "index.html", index.page(board))
        _write(folder / "frontier.html", frontier.page(board))
        if matrices.present(board):
            _write(folder / "matrices.html", matrices.page(board))
        else:
            _remove(folder / "matrices.html")
        order, written, titles = list(known), set(), summary.titles(board)
        tracks = {track["name"]: track for track in board["tracks"]}
        for one in pages:
            if _check(one["id"]) in written:
                raise InputError(f"two pages have the id {one['id']}: every attempt needs an id of its own")
            written.add(one["id"])
            _write(
                folder / "attempt" / f"{one['id']}.html",
                attempt.page(one, tracks.get(one["track"]), titles, _beside(order, one["id"])),
            )
        for old in (folder / "attempt").glob("*.html"):
            if old.stem not in written:
                _remove(old)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: the site cannot be written ({error.strerror or error}): choose another "
            "folder, or free some space"
        ) from error


def _check(identifier: Any) -> str:
    if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
        raise InputError(f"id {identifier!r}: expected letters, digits and . _ + - only, for it is a file's name")
    return identifier


def _beside(order: list[str], identifier: str) -> tuple[str | None, str | None]:
    """The ids before and after an id."""
    if identifier not in order:
        return None, None
    place = order.index(identifier)
    return order[place - 1] if place else None, order[place + 1] if place + 1 < len(order) else None


def _write(path: Path, content: str) -> None:
    # Half of a surrogate pair is no character: it becomes a question mark.
    path.write_bytes(content.encode("utf-8", "replace"))


def _remove(path: Path) -> None:
    """Removes a page that an earlier build wrote, and nothing else."""
    if path.is_file():
        with open(path, "rb") as file:
            if GENERATOR.encode() not in file.read(OWN_BYTES):
                return
        path.unlink()
