"""One side of a comparison: a backend by name, or a file with somebody's own program, perhaps with a fault planted in it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from parity.compare.faults.plant import Fault, planted
from parity.compare.guarded import Guarded
from parity.compare.observation import Seen
from parity.errors import InputError, nearest
from parity.program import BACKENDS, build
from parity.recipes import Recipe
from parity.user_program import explained, load


class Side:
    """Builds programs of one origin and reads what they give, refusing wrong shapes, types and numbers that are none."""

    def __init__(self, spec: str, fault: Fault | None = None, device: str = "cpu"):
        self.spec, self.fault, self.device = spec, fault, device
        self.backend = spec if spec in BACKENDS else None
        self.name = spec if self.backend else Path(spec).name
        self._module: ModuleType | None = None
        self._imported: dict[str, ModuleType] = {}
        self._programs: dict[Recipe, Any] = {}
        if self.backend is None and not spec.endswith(".py"):
            raise InputError(
                f"{spec}: expected a backend or a Python file; {nearest(spec, BACKENDS)}, or path/to/program.py"
            )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Everything the side does belongs inside: its fault is in the code meanwhile, or its file's folder importable."""
        with planted(self.fault, self.backend) if self.fault else nullcontext():
            if self.backend:
                yield
            else:
                with self._importable():
                    yield

    @property
    def identity(self) -> Any:
        """Equal for sides that show the same: of one backend with one fault on one kind of device."""
        return (self.backend, self.fault.name if self.fault else None, self.device) if self.backend else self

    def observe(self, level: Any, case: Any, memo: dict) -> list[Seen]:
        """All that a level sees of this side, kept in `memo` for the next time."""
        key = self.identity, level.name, case
        if key not in memo:
            with self.active():
                memo[key] = list(level.observe(self, case))
        return memo[key]

    def program(self, recipe: Recipe) -> Any:
        """The side's program of a recipe, built once."""
        if recipe not in self._programs:
            self._programs[recipe] = self._build(self.fault.changed(recipe) if self.fault else recipe)
        return self._programs[recipe]

    def lacks(self, recipe: Recipe, methods: tuple[str, ...]) -> str | None:
        """The first of some methods that the program does not have; "x|y" stands for either of two."""
        program = self.program(recipe)
        return next(
            (
                names.replace("|", " or ")
                for names in methods
                if not any(callable(getattr(program, name, None)) for name in names.split("|"))
            ),
            None,
        )

    def put_global_batch(self, recipe: Recipe, batch: tuple[np.ndarray, np.ndarray]) -> Any:
        """A batch for the program."""
        program = self.program(recipe)
        return program.put_global_batch(*batch) if hasattr(program, "put_global_batch") else batch

    def array(self, recipe: Recipe, value: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A value of the program as numpy: of the recipe's precision (bfloat16 as float32), finite, of a shape."""
        try:
            found = np.array(self.program(recipe).fetch(value))  # a copy: what was fetched may go on to change
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.spec}: {what} expected an array, found {type(value).__name__} ({error})"
            ) from error
        if found.dtype.name == "bfloat16":
            found = found.astype(np.float32)
        wanted = "float64" if recipe.precision == "float64" else "float32"
        if found.dtype.name != wanted:
            raise InputError(
                f"{self.spec}: {what} expected {wanted} at precision {recipe.precision}, found {found.dtype}: "
                "compute in the precision of the recipe"
            )
        if shape is not None and found.shape != shape:
            raise InputError(f"{self.spec}: {what} expected shape {shape}, found {found.shape}: mend the program")
        if not np.isfinite(found).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
            raise InputError(
                f"{self.spec}: {what} is {found[index]} at {list(index)}, expected finite numbers: nothing can "
                "be compared with it"
            )
        return found

    def _build(self, recipe: Recipe) -> Any:
        if self.backend:
            return build(self.backend, recipe, device=self.device)
        with self._importable():
            if self._module is None:
                self._module = load(self.spec, f"compared_{abs(hash(Path(self.spec).resolve()))}")
            with explained(self.spec, "build"):
                made = self._module.build(recipe)
        if not callable(getattr(made, "load", None)) and not callable(getattr(made, "init", None)):
            raise InputError(
                f"{self.spec}: build(recipe) expected a program with a method load or init, found "
                f"{type(made).__name__} without: see docs/porting.md"
            )
        return Guarded(made, self.spec, recipe)

    @contextmanager
    def _importable(self) -> Iterator[None]:
        """The file's folder is where imports are looked up; what is imported from it is this side's alone."""
        folder, before = Path(self.spec).resolve().parent, dict(sys.modules)
        sys.path.insert(0, str(folder))
        sys.modules.update(self._imported)
        try:
            yield
        finally:
            sys.path.remove(str(folder))
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__file__", None)
                if name not in before and file and Path(file).parent == folder:
                    self._imported[name] = sys.modules.pop(name)
