"""Strict JSON: finite numbers, no name twice in an object, bounded depth, Unicode text."""

import json
import math
from functools import cache
from typing import Any

MAX_DEPTH = 20


def decode(data: bytes, max_digits: int | None = None) -> Any:
    """The value of JSON text in UTF-8. `max_digits` bounds whole numbers, so that they fit a machine integer.

    Raises ValueError or RecursionError; `fault` puts either in a few words.
    """
    value = _decoder(max_digits).decode(data.decode())
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no bytes
    return value


@cache
def _decoder(max_digits: int | None) -> json.JSONDecoder:
    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text[:40]}, which is no finite number")
        return number

    def bounded(text: str) -> int:
        if max_digits is not None and len(text) > max_digits:
            raise ValueError(f"{text[:20]}..., a whole number of more than {max_digits} digits")
        return int(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(value := dict(pairs)) < len(pairs):
            raise ValueError("a name that comes twice in one object")
        return value

    return json.JSONDecoder(parse_float=finite, parse_constant=finite, parse_int=bounded, object_pairs_hook=unique)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        dicts, lists = [x for x in level if isinstance(x, dict)], [x for x in level if isinstance(x, list)]
        level = [inner for outer in [*(d.values() for d in dicts), *lists] for inner in outer]
    if level:
        raise ValueError(f"objects nested more than {MAX_DEPTH} deep")


def fault(error: Exception) -> str:
    """What `decode` could not read, in a few words."""
    if isinstance(error, RecursionError):
        return f"objects nested more than {MAX_DEPTH} deep"
    if isinstance(error, json.JSONDecodeError):
        return f"text that is no JSON (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"bytes that are no text in UTF-8, from byte {error.start} on"
    if isinstance(error, UnicodeEncodeError):
        return f"a text that is no Unicode ({error.reason})"
    return (str(error).splitlines() or ["nothing"])[0]
