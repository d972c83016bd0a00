"""The public history as a table, JSON, the board's object and the tables of the documentation."""

import json
from pathlib import Path

import pytest
from archive import row

from parity.errors import InputError
from parity.history.reported import PAGE, documented, reported, table, to_json, updated
from parity.history.reproduction import disagreements

DOCUMENT = Path(__file__).parents[3] / PAGE


def test_the_table_has_every_row_and_at_most_100_columns():
    lines = table().splitlines()
    assert len(lines) == 3 + 94 and max(map(len, lines)) <= 100
    assert lines[1] == "reported by others, not verified here"
    assert lines[3 + 11].split()[:2] == ["12", "2024-11-19"]


def test_the_boards_object_is_marked_and_compact():
    board = reported()
    assert set(board) == {"source", "note", "records"} and board["note"] == "reported by others, not verified here"
    keys = {
        "n",
        "label",
        "date",
        "title",
        "hardware",
        "seconds",
        "runs",
        "loss_mean",
        "loss_sd",
        "p",
        "gain_seconds",
        "gain_percent",
        "gain_nats",
        "share",
        "sure",
        "points",
    }
    assert len(board["records"]) == 94 and all(set(row) == keys for row in board["records"])
    assert all(len(row["points"]) <= 12 for row in board["records"])
    assert all(
        step > 0 and loss < 10 for row in board["records"] for step, _, loss in row["points"]
    )  # step 0 scales no plot
    assert len(json.dumps(board, allow_nan=False)) < 100_000


def test_a_thinned_curve_keeps_its_end():
    rows = {row["label"]: row for row in reported()["records"]}
    record, _, _ = row("57")
    steps, seconds, loss = rows["57"]["points"][-1]
    assert (steps, seconds, loss) == (1840, record.time_mean, round(record.loss_mean, 4))
    assert rows["1"]["points"] == [] and len(rows["4"]["points"]) == 12 and rows["4"]["points"][-1][0] == 6200


def test_all_results_are_json():
    results = json.loads(json.dumps(to_json(), allow_nan=False))
    assert len(results["records"]) == len(results["reproduction"]) == 94 and results["note"].startswith(
        "reported by others"
    )
    assert len(results["disagreements"]) == len(disagreements())


def test_the_document_is_in_step_with_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    if updated(text, documented()) != text:
        pytest.fail(f"{PAGE} differs: python -m parity.history.reported {PAGE}")


def test_a_document_without_its_markers_is_refused():
    with pytest.raises(InputError, match="history"):
        updated("<!-- history -->", {"history": "x"})
