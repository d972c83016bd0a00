"""Planting a fault in a backend: its functions are replaced for a while; no file is edited."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from parity.capture import replaced
from parity.recipes import Recipe

MODELS = "models"  # as a patch's module: every module of a backend's models that has the name
MODEL_FILES = ("nanogpt", "muon", "record_11", "record_21", "record_40", "record_58")
Change = Callable[[Any], Any]
Patches = Callable[[str], "list[Patch]"]
ALL = ("nanogpt", "muon", "record-11", "record-21")  # record-40 and record-58 have lists of their own


@dataclass(frozen=True)
class Patch:
    """Replaces `name` (of a module, or `Class.name`) by what `change` makes of the original.

    `module` is a file of the backend (`model`), or a module's full name (`parity.data.stream`).
    """

    module: str
    name: str
    change: Change


@dataclass(frozen=True)
class Fault:
    """One mistake. `level` is the first that can detect it, `location` a pattern of the name that it must report.

    `recipe` changes the recipe that the program is built from; `patches` gives the patches of a backend; `only` is the
    reason for a fault of some recipes or of one backend; `dtype` is the precision in which it can be detected.
    """

    name: str
    sentence: str
    level: str
    location: str
    recipes: tuple[str, ...] = ALL
    recipe: Change | None = None
    patches: Patches | None = None
    backends: tuple[str, ...] = ("jaxrun", "torchref")
    only: str = ""
    dtype: str = "float64"

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe that a program with this fault is built from."""
        return self.recipe(recipe) if self.recipe else recipe


def around(function: Callable) -> Change:
    """The change of a function into `function(original, *args)`; a decorator."""
    return lambda original: lambda *args, **options: function(original, *args, **options)


def in_module(module: str, *names: str, change: Change) -> Patches:
    """Patches of functions of a module, the same in both backends."""
    return lambda backend: [Patch(module, name, change) for name in names]


def by_backend(module: str, *names: str, change: Callable[[str], Change]) -> Patches:
    """Patches whose change depends on the backend."""
    return lambda backend: [Patch(module, name, change(backend)) for name in names]


def targets(change: Patch, backend: str) -> list[tuple[Any, str]]:
    """The (owner, attribute) pairs that a patch replaces in a backend."""
    if change.module == MODELS:
        names = [f"{backend}.models.{file}" for file in MODEL_FILES]
    else:
        names = [change.module if change.module.startswith("parity.") else f"{backend}.{change.module}"]
        names += [f"{backend}.transforms"] if change.module == "optim" else []  # whose functions optim has, too
    pairs = []
    for module in names:
        owner: Any = importlib.import_module(module)
        *owners, name = change.name.split(".")
        for attribute in owners:
            owner = getattr(owner, attribute, None)
        if len(names) == 1 or hasattr(owner, name):
            pairs.append((owner, name))
    return pairs


@contextmanager
def planted(fault: Fault, backend: str | None) -> Iterator[None]:
    """The fault is in the backend's code while this is entered. Programs must be built and used inside."""
    with ExitStack() as stack:
        backend = backend or ""
        for patch in fault.patches(backend) if fault.patches else []:
            for owner, name in targets(patch, backend):
                original = vars(owner).get(name, getattr(owner, name))
                stack.enter_context(replaced(owner, name, patch.change(original)))
        yield
