"""The board, comparisons two by two, and the tables that show them, on entries of known numbers."""

import json
import math

import numpy as np
import pytest
from fakes import SHAPE, around, fake

from parity.errors import InputError
from parity.frontier import tables
from parity.frontier.board import board, page
from parity.frontier.chart import draw
from parity.frontier.comparison import ablations, cross, pairs_across


def lower(by: float) -> list[float]:
    return [loss - by for loss in SHAPE]


@pytest.fixture(scope="module")
def entries():
    """A baseline in both backends and two changes, all in turns: one takes off 0.15 nats, the other two fifths of the time."""
    rng = np.random.default_rng(1)

    def made(title, place, by=0.0, a_step=0.5, **more):
        return fake(
            title, around(lower(by), rng, 5), step_s=rng.normal(a_step, 0.003, 5), began_s=1.8e9 + 180 * place, **more
        )

    return [
        made("muon", 0),
        made("muon", 1, a_step=0.55, backend="torchref"),
        made("lower", 2, 0.15, techniques=["lower"], kind="agent"),
        made("fast", 3, a_step=0.3, techniques=["fast"], kind="model", author="<b>\x1b[2J"),
    ]


def test_a_board_is_json_that_says_what_each_entry_added(entries):
    found = json.loads(json.dumps(board(entries), allow_nan=False))
    assert [row["delta"]["verdict"] for row in found["entries"]] == ["first", "worse", "improves", "improves"]
    assert [row["record"] for row in found["entries"]] == [True, False, True, True]
    assert found["entries"][2]["delta"]["loss"]["against"] in (entries[0].id, entries[1].id)
    assert {(front["axis"], front["hardware"]) for front in found["frontiers"]} == {
        ("seconds", "AMD EPYC, 2 cores"),
        ("steps", None),
        ("tokens", None),
        ("flops", None),
    }
    assert found["entries"][3]["target"]["seconds"] == pytest.approx(0.3 * 256, rel=0.02)
    assert found["progress"][0]["points"][0][2] == entries[0].id and len(found["progress"][0]["points"]) == 3


def test_gains_are_attributed_in_logarithms_and_add_up(entries):
    found = board(entries)
    kinds = {row["name"]: row for row in found["attribution"]["by_kind"]}
    points = found["progress"][0]["points"]
    assert (
        kinds["agent"]["gain"] == pytest.approx(math.log(points[0][1] / points[1][1])) and kinds["person"]["gain"] == 0
    )
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    techniques = {row["name"]: row for row in found["attribution"]["by_technique"]}
    assert techniques["fast"]["gain"] == pytest.approx(kinds["model"]["gain"])


def test_a_page_has_every_run_and_how_to_make_it_again(entries):
    shown = page(entries[2], board(entries)["entries"][2], entries)
    assert len(shown["runs_detail"]) == 5 and [pair["with"] for pair in shown["paired"]] == [
        e.id for e in entries if e is not entries[2]
    ]
    assert shown["reproduce"][-1].startswith("python -m parity.verify")
    assert json.dumps(shown, allow_nan=False)


def test_the_effect_of_a_technique_is_found_with_its_interval(entries):
    found, skipped = ablations(entries)
    effects = {one.technique: one for one in found}
    assert set(effects) == {"lower", "fast"} and not skipped
    assert effects["lower"].low < -0.15 < effects["lower"].high < 0 and effects["lower"].p_holm < 0.01
    assert effects["fast"].p_holm > 0.05 and effects["fast"].seconds_high < 0.65
    assert "inside the noise" in tables.ablation_table(found, skipped)


def test_a_change_is_held_against_one_baseline_in_turns_or_else_the_latest(entries):
    rng = np.random.default_rng(2)
    late, later = (fake(f"muon {i}", around(SHAPE, rng, 5), began_s=1.8e9 + 90_000 * i) for i in (1, 2))
    new = fake("new", around(SHAPE, rng, 5), began_s=1.8e9 + 90_000 * 3, techniques=["new"])
    found, skipped = ablations([*entries, late, later, new])
    assert {one.technique: one.without for one in found} == {
        "lower": entries[0].id,
        "fast": entries[0].id,
        "new": later.id,
    }
    assert len(skipped) == 6 and f"{late.id} as a baseline: {new.id} is held against {later.id} alone" in skipped


def test_one_seed_has_no_effect_and_that_is_said(entries):
    found, skipped = ablations([entries[0], fake("one", [SHAPE], techniques=["x"])])
    assert not found and "has one run: no interval" in skipped[0]


def test_one_recipe_in_two_backends_is_equal_within_a_margin(entries):
    assert pairs_across(entries) == [(entries[0], entries[1])]
    found = cross(*entries[:2], margin=0.03)
    assert found.equal and found.seconds == pytest.approx(0.5 / 0.55, rel=0.02) and found.seconds_high < 1
    assert not cross(*entries[:2], margin=0.0001).equal
    assert "NOT shown to be equal" in tables.cross_table([cross(*entries[:2], margin=0.0001)])
    with pytest.raises(InputError, match="are both jaxrun"):
        cross(entries[0], entries[2], 0.01)
    with pytest.raises(InputError, match="declare other techniques"):
        cross(entries[1], entries[2], 0.01)


def test_tables_fit_100_columns_and_cannot_steer_a_terminal(entries):
    found = board(entries)
    rows = dict(zip((entry.id for entry in entries), found["entries"]))
    said = [
        tables.scores(found),
        tables.listing(entries),
        *(tables.shown(entry, rows[entry.id]) for entry in entries),
        tables.ablation_table(*ablations(entries)),
        tables.cross_table([cross(*entries[:2], 0.01)]),
    ]
    assert max(len(line) for table in said for line in table.splitlines()) <= 100
    assert not any("\x1b" in table for table in said)
    assert tables.scores(board([])) == tables.listing([]) == tables.EMPTY


def test_sentences_are_wrapped_and_cuts_are_seen(entries):
    rng = np.random.default_rng(3)
    long = fake(
        "a title that is much longer than its column",
        around(SHAPE, rng, 5),
        began_s=1.9e9,
        techniques=["a technique of a very long name"],
    )
    rows = board([*entries, long])
    assert "a title that is… jaxrun" in tables.scores(
        rows
    ) and "a title that is much longer than its column (jaxrun): " in tables.scores(rows)
    effect = tables.ablation_table(*ablations([entries[0], long]))
    assert "a technique of a very long na…" in effect and "drifts by several percent" in " ".join(effect.split())
    assert f"{long.id[:51]}…" in tables.listing([long]) and "jaxrun" in tables.listing(entries)


def test_the_ticks_of_the_chart_are_plain_numbers(entries):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from parity.frontier import chart

    figure = chart._figure(chart.track_for("pocket"), entries, [], "seconds", None)
    FigureCanvasAgg(figure).draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both") if label.get_text()]
    assert {"40", "60", "100"} <= set(labels) and all(label.replace(",", "").isdigit() for label in labels)


def test_the_chart_is_drawn_the_same_each_time(entries, tmp_path):
    said = draw(entries, tmp_path / "a.svg", "pocket", "seconds")
    draw(entries, tmp_path / "b.svg", "pocket", "seconds")
    assert (said["entries"], said["reported"], said["hardware"]) == (4, 0, "AMD EPYC, 2 cores")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert "training time (seconds, lower is better)" in text and "frontier" in text
    assert draw([], tmp_path / "small.png", "small", "seconds")["reported"] > 80
    assert (tmp_path / "small.png").read_bytes()[:4] == b"\x89PNG"
    for wrong, told in (
        (lambda: draw(entries, tmp_path / "a.pdf", "pocket", "steps"), "ends in .svg or .png"),
        (
            lambda: draw(entries, tmp_path / "a.svg", "pocket", "seconds", "a pocket calculator"),
            "found none; known: AMD EPYC",
        ),
        (lambda: draw([], tmp_path / "a.svg", "pocket", "steps"), "found none: add some"),
    ):
        with pytest.raises(InputError, match=told):
            wrong()
