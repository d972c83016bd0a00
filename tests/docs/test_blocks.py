"""What the pages derive from the code is up to date, and the packages form no cycle."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import doc_blocks  # noqa: E402


def test_packages_form_no_cycle():
    assert doc_blocks.cycles(doc_blocks.arrows()) == set()


def test_the_backends_do_not_import_each_other_and_the_verifier_imports_neither():
    graph = doc_blocks.arrows()
    assert "torchref" not in doc_blocks.reachable(graph, "jaxrun")
    assert "jaxrun" not in doc_blocks.reachable(graph, "torchref")
    assert not {"jaxrun", "torchref"} & doc_blocks.reachable(graph, "verify")


@pytest.mark.parametrize(("page", "name"), doc_blocks.BLOCKS)
def test_a_page_has_what_the_code_says(page, name):
    text = doc_blocks.updated(page, name, doc_blocks.BLOCKS[page, name]())
    assert text == (ROOT / page).read_text(), "run: python scripts/doc_blocks.py"


def test_a_cycle_is_detected_and_a_longer_way_replaces_an_arrow():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert doc_blocks.cycles(graph) == set()
    assert doc_blocks.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert doc_blocks.cycles(graph | {"c": {"a"}}) == {("a", "b"), ("a", "c"), ("b", "c"), ("c", "a")}
