"""One side of a comparison: a backend by name, or a file with a user program, perhaps with a fault planted in it."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from parity.compare.faults.plant import Fault, planted
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.errors import InputError, nearest
from parity.program import BACKENDS, build
from parity.recipes import Recipe
from parity.user_program import enable_float64, load, user_code

if TYPE_CHECKING:
    from parity.compare.case import Case
    from parity.compare.levels import Level

Memo = dict[tuple[Any, str, Any], list[Observation]]
"""Observations by a side's identity, level and case."""


class Side:
    """Builds the programs of one origin, once for every recipe, and observes levels on them."""

    def __init__(self, spec: str, fault: Fault | None = None, device: str = "cpu"):
        self.spec, self.fault, self.device = spec, fault, device
        self.backend = spec if spec in BACKENDS else None
        self.name = spec if self.backend else Path(spec).name
        self._module: ModuleType | None = None
        self._imported: dict[str, ModuleType] = {}
        self._programs: dict[Recipe, Guarded] = {}
        if self.backend is None and not spec.endswith(".py"):
            raise InputError(
                f"{spec}: expected a backend or a Python file; {nearest(spec, BACKENDS)}, or path/to/program.py"
            )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Everything the side does belongs inside: its fault is planted, or its file's folder importable, meanwhile."""
        fault = planted(self.fault, self.backend) if self.fault else nullcontext()
        with fault, nullcontext() if self.backend else self._importable():
            yield

    def answering(self, what: str) -> AbstractContextManager[None]:
        """Errors inside, about what a file's program returned, become one sentence."""
        return nullcontext() if self.backend else user_code(self.spec, f"{what}, with what the program returned,")

    @property
    def identity(self) -> Any:
        """Equal for sides that show the same: of one backend with one fault on one kind of device."""
        return (self.backend, self.fault.name if self.fault else None, self.device) if self.backend else self

    def observe(self, level: "Level", case: "Case", memo: Memo) -> list[Observation]:
        """All observations of a level on this side, cached in `memo`."""
        key = self.identity, level.name, case
        if key not in memo:
            with self.active(), self.answering(f"level {level.name}"):
                memo[key] = list(level.observe(self.program(case.recipe), case))
        return memo[key]

    def program(self, recipe: Recipe) -> Guarded:
        """The side's program of a recipe, built once."""
        if recipe not in self._programs:
            program = self._build(self.fault.changed(recipe) if self.fault else recipe)
            self._programs[recipe] = Guarded(program, self.spec, recipe, self.fault)
        return self._programs[recipe]

    def _build(self, recipe: Recipe) -> Any:
        if self.backend:
            return build(self.backend, recipe, device=self.device)
        with self._importable():
            if self._module is None:
                self._module = load(self.spec, f"compared_{abs(hash(Path(self.spec).resolve()))}")
            enable_float64(recipe)
            with user_code(self.spec, "build"):
                program = self._module.build(recipe)
        if not callable(getattr(program, "load", None)) and not callable(getattr(program, "init", None)):
            raise InputError(
                f"{self.spec}: build(recipe) expected a program with a method load or init, found "
                f"{type(program).__name__} without: see docs/porting.md"
            )
        return program

    @contextmanager
    def _importable(self) -> Iterator[None]:
        """The file's folder is on the import path; modules imported from it stay private to this side."""
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
