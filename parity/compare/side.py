"""One side of a comparison: a backend by name, or a file with somebody's own program, perhaps with a fault planted in it."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parity.compare.planting import Fault, planted
from parity.errors import InputError, nearest
from parity.program import BACKENDS, build
from parity.recipe import Recipe


class Side:
    """Builds programs of one origin and reads what they give, refusing wrong shapes, types and numbers that are none."""

    def __init__(self, spec: str, fault: Fault | None = None, device: str = "cpu"):
        self.spec, self.fault, self.device = spec, fault, device
        self.backend = spec if spec in BACKENDS else None
        self.name = spec if self.backend else Path(spec).name
        self._module: ModuleType | None = None
        self._programs: dict[Recipe, Any] = {}
        if self.backend is None and not spec.endswith(".py"):
            raise InputError(f"{spec}: expected a backend or a Python file; {nearest(spec, BACKENDS)}, or path/to/program.py")

    @contextmanager
    def active(self) -> Iterator[None]:
        """This side's fault is in the code while it is entered; everything the side does belongs inside."""
        with planted(self.fault, self.backend) if self.fault else nullcontext():
            yield

    def program(self, recipe: Recipe) -> Any:
        """The side's program of a recipe, built once."""
        if recipe not in self._programs:
            self._programs[recipe] = self._build(self.fault.changed(recipe) if self.fault else recipe)
        return self._programs[recipe]

    def lacks(self, recipe: Recipe, methods: tuple[str, ...]) -> str | None:
        """The first of some methods that the program does not have; "x|y" stands for either of two."""
        program = self.program(recipe)
        return next((names.replace("|", " or ") for names in methods
                     if not any(callable(getattr(program, name, None)) for name in names.split("|"))), None)

    def place(self, recipe: Recipe, batch: tuple[np.ndarray, np.ndarray]) -> Any:
        """A batch for the program."""
        program = self.program(recipe)
        return self.call(program.place, *batch) if hasattr(program, "place") else batch

    def call(self, method: Any, *args: Any) -> Any:
        """Calls a program's method; what somebody's own code raises is said in one sentence."""
        if self.backend:
            return method(*args)
        try:
            return method(*args)
        except InputError:
            raise
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == self._path]
            line = f", line {frames[-1].lineno}" if frames else ""
            raise InputError(f"{self.spec}{line}: {getattr(method, '__name__', 'a method')} raised {type(error).__name__}: "
                             f"{str(error).strip().splitlines()[0] if str(error) else 'no message'}: mend the program") from error

    def array(self, recipe: Recipe, value: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A value of the program as numpy: of the recipe's precision (bfloat16 as float32), finite, of a shape."""
        program = self.program(recipe)
        found = np.array(self.call(program.fetch, value) if hasattr(program, "fetch") else value)  # it may go on to change
        if found.dtype.name == "bfloat16":
            found = found.astype(np.float32)
        wanted = "float64" if recipe.precision == "float64" else "float32"
        if found.dtype.name != wanted:
            raise InputError(f"{self.spec}: {what} expected {wanted} at precision {recipe.precision}, found {found.dtype}: "
                             "compute in the precision of the recipe")
        if shape is not None and found.shape != shape:
            raise InputError(f"{self.spec}: {what} expected shape {shape}, found {found.shape}: mend the program")
        if not np.isfinite(found).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
            raise InputError(f"{self.spec}: {what} is {found[index]} at {list(index)}, expected finite numbers: nothing can "
                             "be compared with it")
        return found

    @property
    def _path(self) -> Path:
        return Path(self.spec).resolve()

    def _build(self, recipe: Recipe) -> Any:
        if self.backend:
            return build(self.backend, recipe, device=self.device)
        if self._module is None:
            self._module = self._import()
        made = self.call(self._module.build, recipe)
        if not callable(getattr(made, "load", None)) and not callable(getattr(made, "init", None)):
            raise InputError(f"{self.spec}: build(recipe) expected a program with a method load or init, found "
                             f"{type(made).__name__} without: see docs/porting.md")
        return made

    def _import(self) -> ModuleType:
        if not self._path.is_file():
            raise InputError(f"{self.spec}: expected a Python file with a function build(recipe), found none there")
        spec = importlib.util.spec_from_file_location(f"compared_{self._path.stem}", self._path)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(self._path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == self._path]
            line = frames[-1].lineno if frames else getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise InputError(f"{self.spec}{where}: cannot be imported ({type(error).__name__}: {error}): mend the program "
                             "or install what it needs") from error
        finally:
            sys.path.remove(str(self._path.parent))
        if not callable(getattr(module, "build", None)):
            raise InputError(f"{self.spec}: expected a function build(recipe) that returns a program, found none: see "
                             "docs/porting.md")
        return module
