"""Writes the site's files from templates, which escape every value: names, notes and sources are untrusted."""

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from parity.errors import InputError, remedy
from parity.frontier.site import chart_data, matrices, rules
from parity.frontier.site.cards import cards
from parity.frontier.site.figures import FILTERS, UNITS, UNKNOWN, is_finite

HERE = Path(__file__).parent
STYLE = HERE.parents[1] / "style.css"  # of all pages of the project; the site's own rules follow it
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}")
GENERATOR = "jaxrun frontier"  # named by every page, so that a later build recognizes its own
HEAD_BYTES = 4096  # of a page, which name the generator
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing but the site's own scripts and styles; the plotting library adds styles while it runs."""


def build(board: dict[str, Any], folder: Path, pages: Iterable[dict[str, Any]]) -> None:
    """Writes `index.html`, `frontier.html` (its points as tables), `attempt/<id>.html` for every page, `matrices.html`
    where there is a matrix, and `assets/`.

    `board` has tracks, entries, frontiers, progress, attribution, reported results and matrices; each of `pages` is an
    entry with its runs, verdicts and source, taken one at a time. Losses in nats per token, times in seconds. Pages of
    attempts that are gone are removed; other files of the folder are left alone. Raises InputError for an id that is no
    file name, for ids that occur twice, and where the folder cannot be written.
    """
    folder, board = Path(folder), chart_data.with_reported_track(board)
    ids = [_checked_id(entry["id"]) for entry in board["entries"]]
    if len(set(ids)) < len(ids):
        raise InputError(
            f"the board has {len(ids)} entries but {len(set(ids))} ids: every entry needs an id of its own"
        )
    site = _environment(board)
    try:
        (folder / "attempt").mkdir(parents=True, exist_ok=True)
        shutil.copytree(HERE / "assets", folder / "assets", dirs_exist_ok=True)
        _write(folder / "assets" / "style.css", STYLE.read_text() + (HERE / "assets" / "style.css").read_text())
        curves = site.from_string("site.curves({{ curves|finite|tojson }});")
        _write(folder / "assets" / "curves.js", curves.render(curves=chart_data.curves(board)) + "\n")
        _write_board_pages(site, board, folder)
        _write_attempts(site, board, folder / "attempt", ids, pages)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: the site cannot be written ({error.strerror or error}): {remedy(error)}, or "
            "choose another folder"
        ) from error


def _environment(board: dict[str, Any]) -> jinja2.Environment:
    """The templates with their filters, and with what every page may refer to."""
    site = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    site.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    site.filters |= FILTERS | {"finite": finite}
    site.tests["finite"] = is_finite
    titles = {entry["id"]: entry["title"] for entry in board["entries"]}
    site.globals |= {"board": board, "titles": titles, "root": "", "UNITS": UNITS, "UNKNOWN": UNKNOWN}
    site.globals |= {"POLICY": POLICY, "GENERATOR": GENERATOR}
    return site


def finite(value: Any) -> Any:
    """JSON values with None in place of numbers that are not finite, which JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_board_pages(site: jinja2.Environment, board: dict[str, Any], folder: Path) -> None:
    cheats, parity = matrices.cheats(board), matrices.parity(board)
    timings = Counter(record["n"] for record in board["reported"]["records"])
    index = site.get_template("index.html").render(
        cards=cards(board),
        timings=timings,
        has_matrices=bool(cheats or parity),
        chart_data=chart_data.first_page(board),
    )
    _write(folder / "index.html", index)
    _write(folder / "frontier.html", site.get_template("frontier.html").render())
    if cheats or parity:
        page = site.get_template("matrices.html").render(cheats=cheats, parity=parity, marks=matrices.MARKS)
        _write(folder / "matrices.html", page)
    else:
        _remove(folder / "matrices.html")


def _write_attempts(
    site: jinja2.Environment, board: dict[str, Any], folder: Path, ids: list[str], pages: Iterable[dict[str, Any]]
) -> None:
    tracks = {track["name"]: track for track in board["tracks"]}
    neighbours = {
        name: (before, after) for before, name, after in zip([None, *ids], ids, [*ids[1:], None], strict=False)
    }
    written = set()
    for page in pages:
        name = _checked_id(page["id"])
        if name in written:
            raise InputError(f"two pages have the id {name}: every attempt needs an id of its own")
        written.add(name)
        earlier, later = neighbours.get(name, (None, None))
        html = site.get_template("attempt.html").render(
            root="../",
            entry=page,
            earlier=earlier,
            later=later,
            rules=rules.of_runs(page["runs_detail"]),
            chart_data=chart_data.attempt(page, tracks.get(page["track"])),
        )
        _write(folder / f"{name}.html", html)
    for path in folder.glob("*.html"):
        if path.stem not in written:
            _remove(path)


def _checked_id(identifier: Any) -> str:
    if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
        raise InputError(f"id {identifier!r}: expected letters, digits and . _ + - only, for it is a file's name")
    return identifier


def _write(path: Path, content: str) -> None:
    path.write_bytes(content.encode("utf-8", "replace"))  # half of a surrogate pair becomes a question mark


def _remove(path: Path) -> None:
    """Removes a page that an earlier build wrote, and nothing else."""
    if path.is_file():
        with open(path, "rb") as file:
            if GENERATOR.encode() not in file.read(HEAD_BYTES):
                return
        path.unlink()
