"""JSON that others wrote, read strictly: what is wrong with it is told, and nothing in it surprises a reader."""

import json
import math
from collections.abc import Callable
from typing import Any

from parity.errors import nearest

DEPTH = 20


def decode(text: bytes) -> Any:
    """JSON of finite numbers, without names that come twice, whose texts are Unicode; ValueError or RecursionError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name that comes twice in one object")
        return found

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text[:40]}, which is no finite number")
        return number

    value = json.loads(text.decode(), parse_float=finite, parse_constant=finite, object_pairs_hook=once)
    _check_depth(value)
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair has no bytes
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"objects nested more than {DEPTH} deep")


def fault(error: Exception) -> str:
    """What `decode` could not read, in a few words."""
    if isinstance(error, RecursionError):
        return f"objects nested more than {DEPTH} deep"
    if isinstance(error, json.JSONDecodeError):
        return f"text that is no JSON (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"bytes that are no text in UTF-8, from byte {error.start} on"
    if isinstance(error, UnicodeEncodeError):
        return f"a text that is no Unicode ({error.reason})"
    return (str(error).splitlines() or ["nothing"])[0]


def schema_check(schema: dict[str, Any]) -> Callable[[Any], str]:
    """A function that returns what is wrong with a value under a schema, or "" where nothing is."""
    import fastjsonschema

    check = fastjsonschema.compile(schema)

    def problem(value: Any) -> str:
        try:
            check(value)
        except fastjsonschema.JsonSchemaValueException as error:
            at = error.name.removeprefix("data").removeprefix(".")
            place = f"{at}: " if at else ""
            known = error.definition.get("properties", {})
            if error.rule == "required":
                missing = next(name for name in error.definition["required"] if name not in error.value)
                return f"{place}expected the field {missing}, found none"
            if error.rule == "additionalProperties":
                strange = next(name for name in error.value if name not in known)
                return f"{place}unknown field {strange!r:.40}; {nearest(strange[:40], known)}"
            said = error.message.removeprefix(error.name).strip()
            return f"{at or 'it'} {said}, found {json.dumps(error.value)[:60]}"
        return ""

    return problem
