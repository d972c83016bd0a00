"""JSON files under the schemas in `schemas/`: what is wrong with a value, in one English sentence."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from parity.errors import InputError, nearest
from parity.formats.files import read_bounded
from parity.formats.strict_json import decode, fault

FOLDER = Path(__file__).with_name("schemas")
MAX_BYTES = 4 << 20

Check = Callable[[Any], str]


def load(name: str) -> dict[str, Any]:
    """The schema `schemas/<name>.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@cache
def check_for(name: str) -> Check:
    """`check` of the schema of a name, such as "run.v1"."""
    return check(load(name))


def check(schema: dict[str, Any]) -> Check:
    """A function that returns what is wrong with a value under a schema, or "" for a valid one."""
    import fastjsonschema

    validate = fastjsonschema.compile(schema)

    def problem(value: Any) -> str:
        try:
            validate(value)
        except fastjsonschema.JsonSchemaValueException as error:
            return _sentence(error)
        return ""

    return problem


def _sentence(error: Any) -> str:
    """A validator's error in plain words, with the path of the field."""
    path = error.name.removeprefix("data").removeprefix(".")
    where = f"{path}: " if path else ""
    if error.rule == "required":
        missing = next(name for name in error.definition["required"] if name not in error.value)
        return f"{where}expected the field {missing}, found none"
    if error.rule == "additionalProperties" and not error.definition["additionalProperties"]:
        known = error.definition.get("properties", {})
        unknown = next(name for name in error.value if name not in known)
        return f"{where}unknown field {unknown!r:.40}; {nearest(unknown[:40], known)}"
    if error.rule == "const":
        return f"expected {path or 'it'} to be {error.definition['const']!r}, found {json.dumps(error.value)[:60]}"
    message = error.message.removeprefix(error.name).strip()
    return f"{path or 'it'} {message[:200]}, found {json.dumps(error.value)[:60]}"


def read(
    path: Path,
    name: str,
    what: str,
    remedy: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_digits: int | None = 19,
    plain: bool = False,
) -> Any:
    """A JSON file, checked against the schema `name` and, where the schema has the field, its version.

    `plain` refuses links. Raises InputError; it calls the file `what` ("the run.json of a run") and ends in `remedy`.
    """
    try:
        value = decode(read_bounded(path, max_bytes, plain=plain), max_digits)
    except OSError as error:
        raise InputError(f"{path}: expected {what}, found none that can be read ({error.strerror}): {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected one JSON object, found {fault(error)}: {remedy}") from None
    version = value.get("schema") if isinstance(value, dict) else None
    if version != name and "schema" in load(name)["properties"]:
        raise InputError(
            f"{path}: expected schema {name}, found {version!r:.40}: read it with the version of this program "
            "that wrote it"
        )
    if problem := check_for(name)(value):
        raise InputError(f"{path}: {problem}: {remedy}")
    return value
