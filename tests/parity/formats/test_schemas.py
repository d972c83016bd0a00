"""What is wrong with a value under a schema, in a sentence."""

import pytest

from parity.formats import schemas

SCHEMA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "version": {"const": 1},
        "inner": {"type": "object", "required": ["count"], "properties": {"count": {"type": "integer"}}},
    },
}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"name": "a"}, ""),
        ([], "it must be object, found []"),
        ({}, "expected the field name, found none"),
        ({"name": 1}, "name must be string, found 1"),
        ({"name": "a", "version": 2}, "expected version to be 1, found 2"),
        ({"name": "a", "inner": {}}, "inner: expected the field count, found none"),
        ({"name": "a", "inner": {"count": "x" * 99}}, 'inner.count must be integer, found "' + "x" * 59),
        ({"name": "a", "nam": 1}, "unknown field 'nam'; did you mean name? known: name, version, inner"),
    ],
)
def test_a_value_is_valid_or_the_sentence_names_the_field(value, sentence):
    assert schemas.check(SCHEMA)(value) == sentence


@pytest.mark.parametrize("path", sorted(schemas.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_schema_compiles_and_refuses_a_list(path):
    assert "must be object" in schemas.check_for(path.stem)([])
