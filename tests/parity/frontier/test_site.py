"""The frontier's site as files: complete without JavaScript, untrusted text escaped, no network, few bytes."""

import hashlib
import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boards
import pytest

from parity.errors import InputError
from parity.frontier import site
from parity.frontier.site import cards, chart_data, figures, matrices, rules

PLOTLY_SHA256 = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
FIRST_PAGE_BYTES = 2_000_000
LATER = {"curves.js", "attempt.js", "plotly-LICENSE.txt", "plotly-NOTE.txt"}  # not loaded with the first page


class Parsed(HTMLParser):
    """A page's elements with their attributes, in order; its links; its text by element, scripts and styles apart."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text, self.blocks, self._inside = "", [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attributes)))
        self._inside = tag
        if tag == "script":
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.blocks[-1] += data
        else:
            self.text += data

    def values(self, *names: str) -> list[str]:
        """The values of the attributes with these names."""
        return [value or "" for _, attributes in self.elements for name, value in attributes if name in names]

    def data(self) -> Any:
        """The JSON of the data block."""
        return json.loads(next(block for block in self.blocks if block.strip()))


def built(folder: Path, board: dict[str, Any], text: str = "", nulls: bool = False) -> dict[str, Parsed]:
    """The pages of a board's site by their path, parsed."""
    site.build(board, folder, (boards.page(entry, text, nulls) for entry in board["entries"]))
    return {str(path.relative_to(folder)): Parsed(path.read_text()) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Parsed]:
    return built(tmp_path_factory.mktemp("site"), boards.board(30))


def test_every_attempt_has_a_page_and_every_link_leads_somewhere(tmp_path):
    board = boards.board(30)
    pages = built(tmp_path, board)
    assert set(pages) == {
        "index.html",
        "frontier.html",
        "matrices.html",
        *(f"attempt/{entry['id']}.html" for entry in board["entries"]),
    }
    for path, page in pages.items():
        for link in page.values("href", "src"):
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            assert not parts.scheme and not parts.netloc, f"{path} asks for {link}"
            target = (tmp_path / path).parent / unquote(parts.path) if parts.path else tmp_path / path
            assert target.is_file(), f"{path} links to {link}"
            if parts.fragment:
                assert parts.fragment in page.values("id"), f"{path} links to {link}"


def test_all_results_are_in_the_tables_without_javascript(pages):
    board, first = boards.board(30), pages["index.html"]
    for entry in board["entries"]:
        assert f"attempt/{entry['id']}.html" in first.values("href")
        assert f"{entry['loss']['mean']:.4f}" in first.text
    for record in board["reported"]["records"]:
        assert record["label"] in first.text
    assert sum(("class", "reported") in attributes for tag, attributes in first.elements if tag == "tr") == len(
        board["reported"]["records"]
    )
    assert first.text.count("reported by others, not verified here") >= 2
    for line in board["frontiers"]:
        for _, loss, _ in line["points"]:
            assert f"{loss:.4f}" in pages["frontier.html"].text


def test_an_attempts_page_has_all_that_the_attempt_has(pages):
    board = boards.board(30)
    for entry in board["entries"][::7]:
        whole, page = boards.page(entry), pages[f"attempt/{entry['id']}.html"]
        for run in whole["runs_detail"]:
            assert run["name"] in page.text and str(run["seed"]) in page.text
            assert all(rule in page.text for rule, _, _ in run["verdict"]["rules"])
        assert all(command in page.text for command in whole["reproduce"])
        assert whole["source"]["text"] in page.text and entry["delta"]["sentence"] in page.text
        drawn = page.data()["runs"]
        assert [run["evals"][0] for run in drawn] == [
            [point[0] for point in run["evals"]] for run in whole["runs_detail"]
        ]


def test_untrusted_text_is_never_markup(tmp_path):
    harmless = built(tmp_path / "harmless", boards.board(9, text="harmless"), "harmless")
    hostile = built(tmp_path / "hostile", boards.board(9, text=boards.HOSTILE), boards.HOSTILE)
    for path, page in hostile.items():
        assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless[path].elements], path
        assert not [name for _, attributes in page.elements for name, _ in attributes if name.startswith("on")], path
        assert not [block for block in page.blocks if "<" in block], path
        if path != "frontier.html":
            assert "onerror=alert(2)>" in page.text  # shown as it was written, and read as nothing
    assert "<" not in (tmp_path / "hostile" / "assets" / "curves.js").read_text()
    assert hostile["index.html"].data()["names"]["hardware"] == [boards.HOSTILE.replace("\ud800", "?")]


def test_what_is_unknown_is_shown_as_unknown_with_its_reason(tmp_path):
    board = boards.board(12, nulls=True, matrices=False)
    pages = built(tmp_path, board, nulls=True)
    first = pages["index.html"]
    assert "matrices.html" not in pages and "matrices.html" not in first.values("href")
    for entry in board["entries"]:
        page = pages[f"attempt/{entry['id']}.html"]
        assert not re.search(r"\b(None|nan|null|inf)\b", page.text + first.text)
        if entry["target"] is None:
            assert entry["target_reason"] in page.text and entry["target_reason"] in first.values("title")


def test_an_empty_ledger_says_so_and_shows_the_public_history(tmp_path):
    first = built(tmp_path, boards.board(0))["index.html"]
    assert first.text.count("No attempt has been verified yet") == 2 and "Record of the public track 92" in first.text
    nothing = built(tmp_path, boards.board(0) | {"reported": None})["index.html"]
    assert "No attempt has been verified yet" in nothing.text and "reported by others" not in nothing.text


def test_numbers_that_are_not_finite_are_not_known(tmp_path):
    board = boards.board(5)
    board["entries"][2]["loss"] = {"mean": float("inf"), "sd": float("nan"), "low": None, "high": None}
    board["entries"][2]["cost"]["flops"] = float("nan")
    board["entries"][2]["points"][3][4] = float("inf")
    pages = built(tmp_path, board)
    assert pages["index.html"].data()["entries"]["loss"][2] is None
    json.loads(
        (tmp_path / "assets" / "curves.js").read_text().removeprefix("site.curves(").removesuffix(");\n"),
        parse_constant=pytest.fail,
    )


def test_the_first_page_of_1000_attempts_is_under_2_mb(tmp_path):
    site.build(boards.board(1000), tmp_path, ())
    loaded = [tmp_path / "index.html", *(path for path in (tmp_path / "assets").iterdir() if path.name not in LATER)]
    size = sum(path.stat().st_size for path in loaded)
    asked = {
        Path(link).name for link in Parsed(loaded[0].read_text()).values("src", "href") if link.startswith("assets/")
    }
    assert asked == {
        path.name for path in loaded[1:]
    }  # nothing more is loaded, and nothing that is loaded was left out
    print(f"first page of 1,000 attempts: {size:,} bytes")
    assert size < FIRST_PAGE_BYTES


@pytest.mark.slow
def test_a_site_of_1000_attempts_takes_under_30_seconds(tmp_path):
    board = boards.board(1000)
    entries = [boards.page(entry) for entry in board["entries"]]
    start = time.monotonic()
    site.build(board, tmp_path, entries)
    took_s = time.monotonic() - start
    print(f"site of 1,000 attempts: {took_s:.1f} s")
    assert took_s < 30


def test_the_plotting_library_is_the_one_that_was_reviewed():
    assets = Path(site.__file__).with_name("assets")
    assert hashlib.sha256((assets / "plotly-basic.min.js").read_bytes()).hexdigest() == PLOTLY_SHA256
    assert PLOTLY_SHA256 in (assets / "plotly-NOTE.txt").read_text()
    assert "MIT" in (assets / "plotly-LICENSE.txt").read_text()


def test_every_page_forbids_the_browser_the_network(pages):
    for path, page in pages.items():
        policy = dict(
            next(
                attributes
                for tag, attributes in page.elements
                if ("http-equiv", "Content-Security-Policy") in attributes
            )
        )["content"]
        assert (
            policy.startswith("default-src 'none'; script-src 'self'") and "http" not in policy and "*" not in policy
        ), path


def test_pages_of_attempts_that_are_gone_are_removed_and_other_files_stay(tmp_path):
    board = boards.board(5)
    built(tmp_path, board)
    (tmp_path / "attempt" / "mine.html").write_text("<p>mine</p>")
    gone = board["entries"].pop()["id"]
    board = json.loads(json.dumps(board).replace(gone, board["entries"][0]["id"])) | {
        "matrices": {"cheats": None, "parity": None}
    }
    built(tmp_path / ".", board)
    assert not (tmp_path / "attempt" / f"{gone}.html").exists() and not (tmp_path / "matrices.html").exists()
    assert (tmp_path / "attempt" / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize("bad", ["../../etc/passwd", "", ".hidden", "a/b", "a\0b", "é", "x" * 200, None])
def test_an_id_that_is_no_file_name_is_refused(tmp_path, bad):
    board = boards.board(3)
    board["entries"][1]["id"] = bad
    with pytest.raises(InputError, match="file's name"):
        site.build(board, tmp_path, ())
    with pytest.raises(InputError, match="file's name"):
        site.build(boards.board(3), tmp_path, [boards.page(board["entries"][1] | {"runs": 0, "id": "x"}) | {"id": bad}])


def test_ids_that_occur_twice_are_refused(tmp_path):
    board = boards.board(3)
    one = boards.page(board["entries"][0])
    with pytest.raises(InputError, match="two pages"):
        site.build(board, tmp_path, [one, one])
    board["entries"][1]["id"] = board["entries"][0]["id"]
    with pytest.raises(InputError, match="id of its own"):
        site.build(board, tmp_path, ())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        site.build(boards.board(1), tmp_path / "file", ())


def test_long_training_curves_are_averaged_and_short_ones_are_complete():
    points = [[step, float(step)] for step in range(1, 1001)]
    curve = chart_data._training(points)
    steps, losses = curve["train"]
    assert curve["averaged"] == 3 and steps[:2] == [3, 6] and losses[:2] == [2, 5] and steps[-1] == 1000
    assert chart_data._training(points[:400]) == {"train": [list(range(1, 401)), list(range(1, 401))], "averaged": 1}


def test_changes_in_cost_are_per_cent_of_the_cost_that_they_are_against():
    change = {"axis": "seconds", "change": -12.0, "percent": -10.0, "low": -18.0, "high": -6.0}
    assert chart_data._percent(change) == [-10, -15, -5]
    assert chart_data._percent(change | {"low": None}) == [-10, None, -5]
    assert chart_data._percent(change | {"change": 0.0, "percent": 0.0})[0] == 0


def test_a_record_that_was_timed_again_counts_once(tmp_path):
    board = boards.board(5)
    for record in board["reported"]["records"][20:23]:
        record["n"] = 21
    first = built(tmp_path, board)["index.html"]
    assert "92 records since" in first.text
    assert "92 records with their figures, in 94 rows: record 21 was timed 3 times" in first.text


def test_the_card_says_why_a_faster_attempt_is_no_record(tmp_path):
    board = boards.board(12)
    entry = next(entry for entry in board["entries"] if entry["track"] == "pocket" and entry["target"])
    line = next(line for line in board["progress"] if line["hardware"] == entry["hardware"])
    line["points"] = [[entry["date"], entry["target"]["seconds"], entry["id"]]]
    entry["target"]["seconds"] -= 1
    (card,) = cards.cards(board | {"entries": [entry], "progress": [line]})
    assert [record["faster"] for record in card["records"]] == [1]
    text = " ".join(built(tmp_path, board | {"entries": [entry], "progress": [line]})["index.html"].text.split())
    assert "1 attempt reached it in less time and is no record: a record in seconds needs runs interleaved" in text


def test_a_cheats_row_names_the_rules_that_decided_its_result(tmp_path):
    board = boards.board(1)
    cheat = board["matrices"]["cheats"][0]
    not_judged = cheat | {"failing": [], "not_judged": ["a", "b", "c"], "status": "incomplete"}
    site.build(board | {"matrices": {"cheats": [cheat, not_judged]}}, tmp_path, ())
    html = (tmp_path / "matrices.html").read_text()
    assert '<th scope="row">cheat-0<br>' in html and cheat["sentence"] in html
    assert f"caught</span> by <code>{cheat['failing'][0].replace('.', '.<wbr>')}</code>" in html
    assert "caught</span>: <code>a</code>, <code>b</code> and 1 more not judged" in html
    assert matrices.deciding(cheat | {"failing": [], "status": "refused"}) == []


def test_numbers_are_written_for_people():
    assert [figures.saved(gain) for gain in (math.log(2), 0.0, -0.1)] == ["50.0%", "0.0%", "−10.5%"]
    assert figures.cost(1234.56, "seconds") == "1,234.6 s" and figures.cost(1048576, "tokens") == "1,048,576 tokens"
    assert figures.cost(1.2e13, "flops") == "1.20·10<sup>13</sup> FLOPs"
    assert figures.cost(None, "steps") == figures.UNKNOWN
    assert figures.signed(-0.02) == "−0.0200" and figures.interval({"low": None, "high": 0.1}) == ""
    assert figures.interval({"low": -0.03, "high": 0.01}) == "[−0.0300, +0.0100]"
    assert figures.probability(1e-6) == "p < 0.0001" and figures.probability(0.25, "") == "0.25"
    assert figures.json_value({"a<b": [1, True, None]}) == f"a&lt;b: 1, yes, {figures.UNKNOWN}"


def test_reasons_that_differ_between_runs_are_all_shown(tmp_path):
    board = boards.board(1)
    page = boards.page(board["entries"][0])
    page["runs_detail"] = page["runs_detail"][:2]
    for run, seed, reason in zip(page["runs_detail"], (1, 2), ("one", "other"), strict=True):
        run["seed"], run["verdict"]["rules"] = seed, [["a.rule", "holds", "same"], ["b.rule", "holds", reason]]
    assert [row["distinct"] for row in rules.of_runs(page["runs_detail"])] == [["same"], ["one", "other"]]
    site.build(board, tmp_path, [page])
    html = (tmp_path / "attempt" / f"{page['id']}.html").read_text()
    assert html.count("same") == 1 and "seed 1: one<br>seed 2: other" in html


def test_a_reported_record_without_a_loss_takes_the_last_of_its_curve():
    assert chart_data.final_loss({"loss_mean": None, "points": [[1, 2.0, 4.0], [2, None, 3.3]]}) == 3.3
    assert chart_data.final_loss({"loss_mean": 3.27, "points": [[1, 2.0, 4.0]]}) == 3.27
    assert chart_data.final_loss({"loss_mean": None, "points": []}) is None
