"""JSON of others: what is read, and what is refused in a few words."""

import pytest

from parity.formats.strict_json import decode, fault


def refusal(data: bytes, max_digits: int | None = None) -> str:
    with pytest.raises((ValueError, RecursionError)) as error:
        decode(data, max_digits)
    return fault(error.value)


def test_plain_json_is_read():
    assert decode(b'{"a": [1, -2.5e3, null, true, "\\u00fc"]}') == {"a": [1, -2500.0, None, True, "ü"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "text that is no JSON (line 1, column 1)"),
        (b"\xff", "no text in UTF-8"),
        (b'{"a": 1, "a": 2}', "a name that comes twice"),
        (b"NaN", "NaN, which is no finite number"),
        (b"[1e999]", "1e999, which is no finite number"),
        (b"[" * 21 + b"]" * 21, "nested more than 20 deep"),
        (b"[" * 100_000, "nested more than 20 deep"),
        (b'"\\ud800"', "surrogates not allowed"),
    ],
)
def test_what_a_reader_could_trip_over_is_refused(data, words):
    assert words in refusal(data)


def test_whole_numbers_are_bounded_where_that_is_asked():
    assert decode(b"9" * 20) == int("9" * 20) and decode(b"9" * 19, 19) == int("9" * 19)
    assert "more than 19 digits" in refusal(b"9" * 20, 19)
