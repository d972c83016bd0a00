"""Somebody's own program in one Python file: how it is loaded, and its mistakes told by file, line and what was called.

The file has `build(recipe, *, device, devices)`, which returns a parity.program.Program, and may have
`make_recipe(base)`, which makes the recipe that is run from the one that --recipe and the other options name.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from parity.errors import InputError
from parity.memory import keep_freed_memory
from parity.program import Program
from parity.recipes import Recipe

METHODS = tuple(name for name in vars(Program) if not name.startswith("_") and name != "put_local_batch")


@contextmanager
def explained(spec: str, what: str) -> Iterator[None]:
    """Whatever somebody's own code raises is an InputError that names the file, the line and the method."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        path = Path(spec).resolve()
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise InputError(
            f"{spec}{f', line {line}' if line else ''}: {what} raised {type(error).__name__}: {message}: mend the "
            "program, or install what it needs"
        ) from error


def load(spec: str | Path, name: str = "own_program") -> ModuleType:
    """The file as a module, its folder not on the import path: all of a program is in its one file.

    Raises InputError where there is no such file, its import fails, or it has no function `build`.
    """
    path = Path(spec).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise InputError(
            f"{spec}: expected a Python file with a function build(recipe), found "
            f"{'another kind of file' if path.is_file() else 'none there'}: check the path"
        )
    keep_freed_memory()  # before the file imports a framework
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look themselves up there
    with explained(
        str(spec), "its import"
    ):  # from the source itself: what Python keeps compiled beside it may be other code
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    if not callable(getattr(module, "build", None)):
        raise InputError(
            f"{spec}: expected a function build(recipe) that returns a program, found none: see docs/verifier.md"
        )
    return module


def make_recipe(module: ModuleType, base: Recipe) -> Recipe:
    """The recipe that the file runs: its own, made from `base`, or `base` itself."""
    if not hasattr(module, "make_recipe"):
        return base
    with explained(module.__file__, "make_recipe"):
        made = module.make_recipe(base)
    if not isinstance(made, Recipe):
        raise InputError(
            f"{module.__file__}: make_recipe expected to return a parity.recipes.Recipe, found "
            f"{type(made).__name__}: derive it from a recipe that there is"
        )
    return made


def build(module: ModuleType, recipe: Recipe, **options: Any) -> Program:
    """The file's program of a recipe; InputError where it lacks a method of the protocol."""
    with explained(module.__file__, "build"):
        made = module.build(recipe, **options)
    missing = [name for name in METHODS if not hasattr(made, name)] + [
        name for name in ("framework", "recipe", "devices") if not hasattr(made, name)
    ]
    if missing:
        raise InputError(
            f"{module.__file__}: build(recipe) expected a program as parity/program.py describes it, found "
            f"{type(made).__name__} without {missing[0]}: add it, or derive from the backend's own program"
        )
    return made
