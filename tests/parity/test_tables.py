"""Tables and paragraphs of at most 100 columns, and numbers as people read them."""

import pytest

from parity.tables import WIDTH, compact, counted, cut, duration, fit, labelled, number, paragraph, quantity, table


def test_columns_are_aligned_and_text_is_cut_with_an_ellipsis():
    lines = table([("run", "<6"), ("loss", ">8"), ("state", "<")], [("final-1", "3.2800", "done"), ("a", 12, "failed")])
    assert lines == ["run        loss state", "final…   3.2800 done", "a            12 failed"]


def test_a_number_is_never_cut():
    assert table([("n", ">2")], [(12345,)]) == [" n", "12345"]


def test_a_column_without_a_width_is_as_wide_as_its_widest_cell():
    assert table([("a", "<"), ("b", ">")], [("long cell", 1), ("x", 22)]) == [
        "a          b",
        "long cell  1",
        "x         22",
    ]


def test_lines_fit_and_cannot_steer_a_terminal():
    text = fit(["\x1b[31mred\nnot a line", "x" * 101])
    assert text.splitlines() == ["?[31mred?not a line", "x" * 99 + "…"]


def test_labels_have_their_paragraphs_beside_them():
    path = "/runs/" + "x" * WIDTH
    lines = labelled(
        [("sample", "word " * 60), ("run directory", path), ("two", "a\nb"), ("empty", "")], whole_words=True
    )
    assert all(len(line) <= WIDTH for line in lines if path not in line)
    assert lines[-4:] == [f"  run directory  {path}", "  two            a", "                 b", "  empty"]
    assert all(len(line) <= WIDTH for line in labelled([("path", path)]))


def test_a_paragraph_is_indented_and_an_empty_one_is_its_beginning():
    lines = paragraph("word " * 40, "first ", "  ")
    assert lines[0].startswith("first word") and lines[1].startswith("  word") and max(map(len, lines)) <= WIDTH
    assert paragraph("", "label ") == ["label"]


def test_what_is_short_enough_is_not_cut():
    assert cut("12345", 5) == "12345" and cut("123456", 5) == "1234…" and cut("123456", 5, "..") == "123.."


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(None, ".4f"), "-"),
        (number(3.28, ".4f"), "3.2800"),
        (counted(1, "entry", "entries"), "1 entry"),
        (counted(1200, "run"), "1,200 runs"),
        (compact(None), "unknown"),
        (compact(1234.0), "1,234"),
        (compact(2.5e9), "2.50e+09"),
        (quantity(123.456, "s"), "123.5 s"),
        (quantity(1_430_000_000, "B"), "1.43 GB"),
        (quantity(1.23e22, "FLOP"), "1.23e+04 EFLOP"),
        (quantity(0.4567, "%"), "45.7 %"),
        (duration(41.4), "41 s"),
        (duration(725), "12 min 05 s"),
        (duration(11_220), "3 h 07 min"),
        (duration(float("nan")), "? s"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown, text):
    assert shown == text
