"""A recipe as one program that a user can edit: its model file, with its schedules and what `--program` asks for.

`python -m parity.attempt new --from RECIPE` writes it. Imports of layers, attention and optimizers stay imports.
"""

import ast
import inspect
import textwrap
from importlib.util import find_spec
from pathlib import Path

from parity.errors import InputError
from parity.recipes import RECIPES, Recipe

FRAMEWORKS = {"jaxrun": "JAX", "torchref": "PyTorch"}
OWN_IMPORTS = {
    "jaxrun": """
from jaxrun import optim
from jaxrun.program import JaxProgram, keep_compiled
from jaxrun.sharding import pick_devices
""",
    "torchref": """
from torchref import optim
from torchref.program import TorchProgram{can_compile}
from torchref.sharding import pick_device
""",
}
NO_COMPILER = {"can_compile": "", "compiled": ""}
HEAD = '''"""An attempt in {framework}, to be edited: the model, optimizer and schedules of the recipe `{recipe}`.

The harness owns the data, the clock, the evaluation and the log; this file owns the model, the optimizer and the
schedules. Attribute paths of the model are the names of its weights. Letters: B rows of a batch, T positions, D width,
L blocks, H heads, K width of a head, V rows of the head.
"""
'''
RECIPE = '''
@dataclass(frozen=True, kw_only=True)
class Mine({base}):
    """Sizes, rates and steps. A field given here, such as `steps: int = 200`, is what runs, whatever the track or the
    command line says. To add a weight, override `parameters`, which names every weight with its shape, first value and
    optimizer group."""

    name: ClassVar[str] = "mine"

{schedules}

'''
TAILS = {
    "jaxrun": '''

def make_optimizer(recipe: Mine):
    """An optax transform of {{name: gradient}}; any other will do.

    {optimizers}.
    """
    return optim.make_optimizer(recipe)


def make_recipe(base: {base}) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> JaxProgram:
    """The program that the harness runs."""
    keep_compiled()  # so that the next run starts sooner
    return JaxProgram(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)
''',
    "torchref": '''

def make_optimizer(recipe: Mine, weights):
    """Torch optimizers of {{name: parameter}}; any others will do.

    {optimizers}.
    """
    return optim.make_optimizer(recipe, weights)


def make_recipe(base: {base}) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> TorchProgram:
    """The program that the harness runs."""
    chosen = pick_device(device, devices)
    return TorchProgram(recipe, chosen, lambda weights: make_optimizer(recipe, weights), make_model=Model{compiled})
''',
}


def program_source(backend: str, recipe: str, compile: bool = False) -> str:
    """The text of a program that trains as the recipe does; `compile`: in PyTorch with torch.compile.

    Raises InputError where the backend has no model of the recipe.
    """
    kind = RECIPES[recipe]
    path = _model_file(backend, recipe)
    text = path.read_text(encoding="utf-8")
    body = ast.parse(text).body
    first = next(node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    lines = text.splitlines()
    imports = "\n".join(ast.unparse(n) for n in body if isinstance(n, ast.Import | ast.ImportFrom))
    imports += "\nfrom dataclasses import dataclass\nfrom typing import ClassVar\nfrom parity.recipes import schedules"
    schedules = [_source(kind, name) for name in ("momentum_at", "learning_rates") if hasattr(kind, name)]
    groups = [f"{optimizer} on {group}" for group, optimizer in kind.optimizers.items()]
    names = {"framework": FRAMEWORKS[backend], "recipe": recipe, "base": kind.__name__}
    names |= {"can_compile": ", can_compile", "compiled": ", compile=can_compile(chosen)"} if compile else NO_COMPILER
    return "\n".join(
        [
            HEAD.format(**names),
            _sorted_imports(imports + OWN_IMPORTS[backend].format(**names), backend),
            RECIPE.format(schedules="\n\n".join(schedules), **names),
            "\n".join(lines[first.lineno - 1 :]),
            TAILS[backend].format(optimizers=", ".join(groups), **names),
        ]
    )


def _model_file(backend: str, recipe: str) -> Path:
    package = find_spec(f"{backend}.models")
    folder = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else Path()
    path = folder / f"{recipe.replace('-', '_')}.py"
    if not path.is_file():
        raise InputError(f"recipe {recipe}: expected its model in {path}, found none: start from another recipe")
    return path


def _source(kind: type[Recipe], name: str) -> str:
    """The source of a method, indented as in a class."""
    return textwrap.indent(textwrap.dedent(inspect.getsource(getattr(kind, name))).rstrip(), "    ")


def _sorted_imports(text: str, backend: str) -> str:
    """Import statements merged by module and in the usual order: standard library, frameworks, this project."""
    plain, names = set(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(node.module, set()).update(alias.name for alias in node.names)
        else:
            plain.add(ast.unparse(node))
    own = sorted(module for module in names if module.split(".")[0] in (backend, "parity"))
    standard = sorted(module for module in names if module in ("dataclasses", "typing"))
    others = sorted(module for module in names if module not in (*own, *standard))

    def lines(modules: list[str]) -> list[str]:
        return [line for module in modules for line in _import_lines(module, sorted(names[module]))]

    groups = [lines(standard), [*sorted(plain), *lines(others)], lines(own)]
    return "\n\n".join("\n".join(group) for group in groups if group) + "\n"


def _import_lines(module: str, names: list[str]) -> list[str]:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 120:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]
