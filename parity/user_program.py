"""User programs: loading one Python file, and explaining its errors by file, line and method.

The file has `build(recipe, *, device, devices)`, which returns a parity.program.Program, and may have
`make_recipe(base)`, which returns the recipe that is run, made from that of --recipe and the other options.
"""

import ast
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from parity.errors import InputError, RunFailed, nearest
from parity.memory import keep_freed_memory
from parity.program import Program
from parity.recipes import Recipe

METHODS = tuple(name for name in vars(Program) if not name.startswith("_") and name != "put_local_batch")


class UserCodeFailed(RunFailed):
    """User code raised after the first step. Its text names the file, the line and what was called."""


@contextmanager
def user_code(spec: str, what: str) -> Iterator[None]:
    """Turns any error of user code into an InputError that names the file, the line and the method."""
    try:
        yield
    except (InputError, RunFailed):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(error_sentence(error, spec, what)) from error


def error_sentence(error: BaseException, spec: str, what: str) -> str:
    """What user code raised: its file, the line in it where there is one, what was called, and the error."""
    path, name, text = str(Path(spec).resolve()), type(error).__name__, str(error).strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in (spec, path)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    # what a callback of a compiled step raises comes back as the text of a traceback
    if line is None and (inner := re.findall(rf'File "{re.escape(path)}", line (\d+), in (\w+)', text)):
        line, what = inner[-1]
        name, _, text = text.splitlines()[-1].partition(": ")
    elif frames and frames[-1].name.isidentifier():
        what = frames[-1].name
    message = text.splitlines()[0] if text else "no message"
    return (
        f"{spec}{f', line {line}' if line else ''}: {what} raised {name}: {message[:300]}: fix the program, or install "
        "what it needs"
    )


def source_file(spec: str) -> str:
    """The file of the module that `module:name` names, once it is imported; the spec itself where it has none."""
    return getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None) or spec


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
    with user_code(str(spec), "its import"):
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
    with user_code(str(module.__file__), "make_recipe"):
        recipe = module.make_recipe(base)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{module.__file__}: make_recipe expected to return a parity.recipes.Recipe, found "
            f"{type(recipe).__name__}: derive it from an existing recipe"
        )
    return recipe


def enable_float64(recipe: Recipe) -> None:
    """Lets JAX compute in float64 where the recipe does and the loaded file has imported it; by default JAX rounds."""
    if recipe.precision == "float64" and (jax := sys.modules.get("jax")):
        jax.config.update("jax_enable_x64", True)


def build(module: ModuleType, recipe: Recipe, **options: Any) -> Program:
    """The file's program of a recipe. Raises InputError if it lacks a method of the protocol."""
    enable_float64(recipe)
    with user_code(str(module.__file__), "build"):
        program = module.build(recipe, **options)
    missing = [name for name in (*METHODS, "framework", "recipe", "devices") if not hasattr(program, name)]
    if missing:
        raise InputError(
            f"{module.__file__}: build(recipe) expected a program as parity/program.py describes it, found "
            f"{type(program).__name__} without {missing[0]}: add it, or derive from the backend's own program"
        )
    return program


def load_function(spec: str, option: str) -> Callable[..., Any]:
    """The function that `module:name` names, imported; `module:name(lr=0.1)` gives it arguments by name.

    Raises InputError if there is no such module or function.
    """
    module_name, _, name = spec.partition(":")
    name, parenthesis, text = name.partition("(")
    arguments = keyword_arguments(text.removesuffix(")"), option) if parenthesis else {}
    if not name:
        raise InputError(f"{option} {spec}: expected module:function, for example mymodule:make")
    # from the source itself: a cached .pyc file may hold other code
    pycache_prefix, sys.pycache_prefix = sys.pycache_prefix, os.devnull
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name.split(".")[0], module_name):
            raise InputError(
                f"{option} {spec}: no module {module_name} on the import path: run from its folder or set PYTHONPATH"
            ) from error
        found = find_spec(module_name.partition(".")[0])
        file = found.origin if found and found.origin else module_name
        raise InputError(f"{option} {error_sentence(error, file, 'its import')}") from error
    finally:
        sys.pycache_prefix = pycache_prefix
    if not callable(getattr(module, name, None)):
        raise InputError(f"{option} {spec}: {module.__file__} has no function {name!r}; {nearest(name, vars(module))}")
    return partial(getattr(module, name), **arguments) if arguments else getattr(module, name)


def keyword_arguments(text: str, option: str) -> dict[str, Any]:
    """The arguments of `lr=3e-3,wd=0.1`: Python's literals, or else text. Raises InputError for another form."""
    arguments: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier() or name in arguments:
            raise InputError(f"{option}: expected name=value, as in lr=3e-3,wd=0.1, found {item!r}: correct it")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments
