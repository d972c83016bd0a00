"""The board, comparisons of two entries, and the tables that show them, on entries of known numbers."""

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
    """A baseline in both backends and two changes, interleaved: one takes off 0.15 nats, the other 2/5 of the time."""
    rng = np.random.default_rng(1)

    def entry(title, number, by=0.0, a_step=0.5, **fields):
        losses, step_s = around(lower(by), rng, 5), rng.normal(a_step, 0.003, 5)
        return fake(title, losses, step_s=step_s, began_s=1.8e9 + 180 * number, **fields)

    return [
        entry("muon", 0),
        entry("muon", 1, a_step=0.55, backend="torchref"),
        entry("lower", 2, 0.15, techniques=["lower"], kind="agent"),
        entry("fast", 3, a_step=0.3, techniques=["fast"], kind="model", author="<b>\x1b[2J"),
    ]


def test_a_board_is_json_that_says_what_each_entry_added(entries):
    scored = json.loads(json.dumps(board(entries), allow_nan=False))
    assert [row["delta"]["verdict"] for row in scored["entries"]] == ["first", "worse", "improves", "improves"]
    assert [row["record"] for row in scored["entries"]] == [True, False, True, True]
    assert scored["entries"][2]["delta"]["loss"]["against"] in (entries[0].id, entries[1].id)
    assert {(front["axis"], front["hardware"]) for front in scored["frontiers"]} == {
        ("seconds", "AMD EPYC, 2 cores"),
        ("steps", None),
        ("tokens", None),
        ("flops", None),
    }
    assert scored["entries"][3]["target"]["seconds"] == pytest.approx(0.3 * 256, rel=0.02)
    assert scored["progress"][0]["points"][0][2] == entries[0].id and len(scored["progress"][0]["points"]) == 3


def test_gains_are_attributed_in_logarithms_and_add_up(entries):
    scored = board(entries)
    kinds = {row["name"]: row for row in scored["attribution"]["by_kind"]}
    points = scored["progress"][0]["points"]
    assert (
        kinds["agent"]["gain"] == pytest.approx(math.log(points[0][1] / points[1][1])) and kinds["person"]["gain"] == 0
    )
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    techniques = {row["name"]: row for row in scored["attribution"]["by_technique"]}
    assert techniques["fast"]["gain"] == pytest.approx(kinds["model"]["gain"])


def test_a_page_has_every_run_and_how_to_repeat_it(entries):
    shown = page(entries[2], board(entries)["entries"][2], entries)
    assert len(shown["runs_detail"]) == 5 and [pair["with"] for pair in shown["paired"]] == [
        e.id for e in entries if e is not entries[2]
    ]
    assert shown["reproduce"][-1].startswith("python -m parity.verify")
    assert json.dumps(shown, allow_nan=False)


def test_the_effect_of_a_technique_is_found_with_its_interval(entries):
    effects, skipped = ablations(entries)
    by_technique = {effect.technique: effect for effect in effects}
    assert set(by_technique) == {"lower", "fast"} and not skipped
    assert by_technique["lower"].low < -0.15 < by_technique["lower"].high < 0 and by_technique["lower"].p_holm < 0.01
    assert by_technique["fast"].p_holm > 0.05 and by_technique["fast"].seconds_high < 0.65
    assert "inside the noise" in tables.ablation_table(effects, skipped)


def test_a_change_is_compared_with_one_interleaved_baseline_or_else_the_latest(entries):
    rng = np.random.default_rng(2)
    late, later = (fake(f"muon {i}", around(SHAPE, rng, 5), began_s=1.8e9 + 90_000 * i) for i in (1, 2))
    new = fake("new", around(SHAPE, rng, 5), began_s=1.8e9 + 90_000 * 3, techniques=["new"])
    effects, skipped = ablations([*entries, late, later, new])
    assert {effect.technique: effect.without for effect in effects} == {
        "lower": entries[0].id,
        "fast": entries[0].id,
        "new": later.id,
    }
    assert len(skipped) == 6 and f"{late.id} as a baseline: {new.id} is compared with {later.id} alone" in skipped


def test_one_seed_has_no_effect_and_that_is_said(entries):
    effects, skipped = ablations([entries[0], fake("one", [SHAPE], techniques=["x"])])
    assert not effects and "has one run: no interval" in skipped[0]


def test_one_recipe_in_two_backends_is_equal_within_a_margin(entries):
    assert pairs_across(entries) == [(entries[0], entries[1])]
    result = cross(*entries[:2], margin=0.03)
    assert result.equal and result.seconds == pytest.approx(0.5 / 0.55, rel=0.02) and result.seconds_high < 1
    assert not cross(*entries[:2], margin=0.0001).equal
    assert "NOT shown to be equal" in tables.cross_table([cross(*entries[:2], margin=0.0001)])
    with pytest.raises(InputError, match="are both jaxrun"):
        cross(entries[0], entries[2], 0.01)
    with pytest.raises(InputError, match="declare other techniques"):
        cross(entries[1], entries[2], 0.01)


def test_tables_fit_100_columns_and_cannot_steer_a_terminal(entries):
    scored = board(entries)
    rows = dict(zip((entry.id for entry in entries), scored["entries"], strict=True))
    texts = [
        tables.scores(scored),
        tables.entry_list(entries),
        *(tables.entry_page(entry, rows[entry.id]) for entry in entries),
        tables.ablation_table(*ablations(entries)),
        tables.cross_table([cross(*entries[:2], 0.01)]),
    ]
    assert max(len(line) for table in texts for line in table.splitlines()) <= 100
    assert not any("\x1b" in table for table in texts)
    assert tables.scores(board([])) == tables.entry_list([]) == tables.EMPTY


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
    assert f"{long.id[:51]}…" in tables.entry_list([long]) and "jaxrun" in tables.entry_list(entries)


def test_the_ticks_of_the_chart_are_plain_numbers(entries):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from parity.frontier import chart

    figure = chart._figure(chart.track_for("pocket"), entries, [], "seconds", None)
    FigureCanvasAgg(figure).draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both") if label.get_text()]
    assert {"40", "60", "100"} <= set(labels) and all(label.replace(",", "").isdigit() for label in labels)


def test_the_chart_is_drawn_the_same_each_time(entries, tmp_path):
    picture = draw(entries, tmp_path / "a.svg", "pocket", "seconds")
    draw(entries, tmp_path / "b.svg", "pocket", "seconds")
    assert (picture["entries"], picture["reported"], picture["hardware"]) == (4, 0, "AMD EPYC, 2 cores")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert "training time (seconds, lower is better)" in text and "frontier" in text
    assert draw([], tmp_path / "small.png", "small", "seconds")["reported"] > 80
    assert (tmp_path / "small.png").read_bytes()[:4] == b"\x89PNG"
    for wrong, message in (
        (lambda: draw(entries, tmp_path / "a.pdf", "pocket", "steps"), "ends in .svg or .png"),
        (
            lambda: draw(entries, tmp_path / "a.svg", "pocket", "seconds", "a pocket calculator"),
            "found none; known: AMD EPYC",
        ),
        (lambda: draw([], tmp_path / "a.svg", "pocket", "steps"), "found none: add some"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
