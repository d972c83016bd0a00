"""`python -m parity.attempt new`: a folder with a program to edit, a declaration, and a test."""

import json
from pathlib import Path

from parity.declaration.record import DECLARATION, DECLARATION_SCHEMA, Declaration, read_declaration
from parity.errors import InputError, nearest, remedy
from parity.program_source import program_source
from parity.track import default_recipe, track_for

BACKENDS = {"jax": "jaxrun", "torch": "torchref", "jaxrun": "jaxrun", "torchref": "torchref"}
TEMPLATES = Path(__file__).parent / "templates"


def new(folder: Path, *, recipe: str, backend: str, track: str, author: str, kind: str, runs: int) -> Declaration:
    """Makes the folder of an attempt and returns what it declares so far.

    Raises InputError where the folder has something in it, or backend, track or recipe are not known.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; {nearest(backend, BACKENDS)}")
    chosen = track_for(track)
    default_recipe(chosen, recipe)
    what = "optimizer" if chosen.fixed else "program"
    if chosen.fixed:
        program = (TEMPLATES / f"{BACKENDS[backend]}_optimizer.py").read_text(encoding="utf-8")
    else:
        program = program_source(BACKENDS[backend], recipe, compile=True)
    declaration = {
        "schema": DECLARATION_SCHEMA,
        "author": author,
        "kind": kind,
        "track": track,
        "backend": BACKENDS[backend],
        "recipe": recipe,
        "claim": {"val_loss_below": chosen.target, "at_step": None, "seconds": None},
        "runs": runs,
        "budget": {"runs": None, "seconds": None, "flops": None},
        "techniques": [],
        "note": "",
        "arguments": [],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: expected a new or an empty folder, found one with files in it: name another")
        (folder / f"{what}.py").write_text(program, encoding="utf-8")
        (folder / f"test_{what}.py").write_bytes((TEMPLATES / f"test_{what}.py").read_bytes())
        text = json.dumps(declaration, indent=2, ensure_ascii=False) + "\n"
        (folder / DECLARATION).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder that can be made and written to, found that it cannot "
            f"({error.strerror}): {remedy(error)}, or name another"
        ) from None
    return read_declaration(folder / DECLARATION)
