"""User programs: loading one Python file, and explaining its errors by file, line and method.

The file has `build(recipe, *, device, devices)`, which returns a parity.program.Program, and may have
`make_recipe(base)`, which returns the recipe that is run, made from that of --recipe and the other options.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from parity.errors import InputError, nearest
from parity.memory import keep_freed_memory
from parity.program import Program
from parity.recipes import Recipe

METHODS = tuple(name for name in vars(Program) if not name.startswith("_") and name != "put_local_batch")


@contextmanager
def explained(spec: str, what: str) -> Iterator[None]:
    """Turns any error of user code into an InputError that names the file, the line and the method."""
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
            f"{spec}{f', line {line}' if line else ''}: {what} raised {type(error).__name__}: {message}: fix the "
            "program, or install what it needs"
        ) from error


def load(spec: str | Path, name: str = "user_program") -> ModuleType:
    """The file as a module, without its folder on the import path: a program is one file.

    Raises InputError if there is no such file, its import fails, or it has no function `build`.
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
    with explained(str(spec), "its import"):
        # from the source itself: a cached .pyc file may hold other code
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
    with explained(str(module.__file__), "make_recipe"):
        recipe = module.make_recipe(base)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{module.__file__}: make_recipe expected to return a parity.recipes.Recipe, found "
            f"{type(recipe).__name__}: derive it from an existing recipe"
        )
    return recipe


def build(module: ModuleType, recipe: Recipe, **options: Any) -> Program:
    """The file's program of a recipe. Raises InputError if it lacks a method of the protocol."""
    with explained(str(module.__file__), "build"):
        program = module.build(recipe, **options)
    missing = [name for name in (*METHODS, "framework", "recipe", "devices") if not hasattr(program, name)]
    if missing:
        raise InputError(
            f"{module.__file__}: build(recipe) expected a program as parity/program.py describes it, found "
            f"{type(program).__name__} without {missing[0]}: add it, or derive from the backend's own program"
        )
    return program


def load_function(spec: str, option: str) -> Callable[..., Any]:
    """The function that `module:name` names, imported. Raises InputError if there is no such module or function."""
    module_name, _, name = spec.partition(":")
    if not name:
        raise InputError(f"{option} {spec}: expected module:function, for example mymodule:make")
    # from the source itself: a cached .pyc file may hold other code
    pycache_prefix, sys.pycache_prefix = sys.pycache_prefix, os.devnull
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name.split(".")[0], module_name):
            raise
        raise InputError(
            f"{option} {spec}: no module {module_name} on the import path: run from its folder or set PYTHONPATH"
        ) from error
    finally:
        sys.pycache_prefix = pycache_prefix
    if not callable(getattr(module, name, None)):
        raise InputError(f"{option} {spec}: {module.__file__} has no function {name!r}; {nearest(name, vars(module))}")
    return getattr(module, name)
