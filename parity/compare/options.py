"""The command line of `python -m parity.compare`: its options, the fields of a recipe, and what cannot be used."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from parity.cli import command_line
from parity.compare.faults.catalogue import fault_for
from parity.compare.faults.plant import Fault
from parity.compare.reference_errors import reference_errors
from parity.compare.runner import chosen_levels
from parity.errors import InputError, nearest
from parity.recipes import RECIPES, Recipe, recipe_for


@dataclass(frozen=True)
class Options:
    """Compares two programs: data, init, forward, loss, gradients, update, trajectory, evaluation, restore.

    With --recipe NAME the recipe's fields are options too: --recipe NAME --help lists them.
    """

    recipe: str | None = None
    """muon, nanogpt, record-11, -21, -40 or -58; all of them by default."""
    scale: str = "tiny"
    """tiny, pocket or small."""
    a: str = "jaxrun"
    """jaxrun, torchref, or a Python file with a function build(recipe) (docs/porting.md)."""
    b: str = "torchref"
    """The other side, in the same way."""
    levels: str | None = None
    """Names or numbers, such as 1-5 or data,forward, or all; by default 1-9, layout (10) only when it is named."""
    dtype: Literal["float64", "float32", "bfloat16"] = "float64"
    """Precision that both compute in."""
    steps: int = 20
    """Steps of the trajectory."""
    seed: int = 0
    """Seed of weights, gradients and batches."""
    weights: Path | None = None
    """Compare from these weights: safetensors, a PyTorch state dict, or the folder of save_pretrained or of a run."""
    names: str | None = None
    """Whose names the weights have: canonical, nanogpt, hf-gpt2, track3, or a JSON file with a map; by default
    canonical, of a folder of save_pretrained hf-gpt2."""
    plant: str | None = None
    """Plant this fault of the catalogue in one side (--in)."""
    into: Annotated[str | None, tyro.conf.arg(name="in")] = None
    """The side that the fault is planted in: jaxrun or torchref."""
    faults: bool = False
    """Plant every fault in every backend (or that of --plant in that of --in) and print the matrix fault x level."""
    repeat: int | None = None
    """Compare so many times over seeds, recipes and precisions; none must fail."""
    record: bool = False
    """Record the errors of this code in float32 and bfloat16 as the reference of later comparisons."""
    keep_going: bool = False
    """Judge the levels behind the first that fails too."""
    json: Path | None = None
    """Write the report as JSON."""
    html: Path | None = None
    """Write the report as a page that stands alone."""
    device: Literal["cpu", "gpu", "auto"] = "cpu"
    """Device of both sides; recorded errors are a CPU's."""
    data_dir: Path | None = None
    """Folder of the slices; by default $JAXRUN_DATA or the user's cache."""
    fields: Annotated[dict[str, Any], tyro.conf.Fixed, tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """The recipe's fields that the command line gives, such as --dim 96."""

    @property
    def recipes(self) -> list[str]:
        """The recipes to compare."""
        if self.recipe:
            return [self.recipe]
        return [name for name in RECIPES if self.plant is None or name in fault_for(self.plant).recipes]


COMMON = {"recipe", "scale", "seed", "data_dir", "device"}
LEAVE_OUT = "leave it out, or compare in float64"
COMMAND = "python -m parity.compare"
OTHERWISE = ("steps", "precision")  # --steps is the trajectory's, and the precision is --dtype
MODES = {  # the options that each of these has a use for
    "faults": COMMON | {"plant", "into", "json", "html"},
    "repeat": COMMON | {"a", "b", "levels", "steps", "plant", "into"},
    "record": {"recipe", "scale", "data_dir"},
}


def parse(argv: Sequence[str] | None = None) -> Options:
    """Reads the command line. Raises InputError for an unknown recipe, option or field, and impossible values."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    first.add_argument("--scale", nargs="?", default=Options.scale)
    chosen, _ = first.parse_known_args(argv)
    everywhere = {name for kind in RECIPES.values() for name in _field_types(kind)}
    given = {a[2:].partition("=")[0].replace("-", "_") for a in argv if re.match(r"--[a-z]", a)}
    if "precision" in given:
        raise InputError("--precision: expected --dtype, which is its name here: say that")
    given = {name if name in everywhere else name.removeprefix("no_") for name in given} & everywhere
    if given and not chosen.recipe:
        having = [name for name, kind in RECIPES.items() if given <= _field_types(kind).keys()]
        if len(having) != 1:
            raise InputError(f"--{_spelled(min(given))}: expected --recipe with it, found none: name the recipe")
        chosen.recipe = having[0]  # the only one with these fields
        argv += ["--recipe", chosen.recipe]
    if given or (chosen.recipe and {"--help", "-h"} & set(argv)):
        options = _with_fields(argv, recipe_for(chosen.recipe, chosen.scale or ""), given)
    else:
        options = command_line(Options, COMMAND, argv)
    for problem in _problems(options):
        raise InputError(problem)
    return options


def _field_types(recipe: type[Recipe]) -> dict[str, Any]:
    """The recipe's fields that are options of the comparison, with their types."""
    hints = get_type_hints(recipe)
    return {field.name: hints[field.name] for field in dataclasses.fields(recipe) if field.name not in OTHERWISE}


def _with_fields(argv: list[str], base: Recipe, given: set[str]) -> Options:
    types = _field_types(type(base))
    for name in sorted(given - types.keys()):
        raise InputError(f"--{_spelled(name)}: recipe {base.name} has no such field; {nearest(name, types)}")
    known = dataclasses.make_dataclass(
        "Known",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="")]),
            *((name, kind, getattr(base, name)) for name, kind in types.items()),
        ],
        frozen=True,
    )
    known.__doc__ = Options.__doc__
    parsed: Any = command_line(known, COMMAND, argv)
    return dataclasses.replace(parsed.options, fields={name: getattr(parsed, name) for name in sorted(given)})


def _problems(options: Options) -> Iterator[str]:
    """Options that cannot be used, or not together."""
    changed = {name for name in vars(options) if getattr(options, name) != getattr(Options, name, {})}
    changed |= options.fields.keys()
    for mode, useful in MODES.items():  # an option without use is never ignored
        if mode in changed and (idle := sorted(changed - useful - {mode, "fields"})):
            yield f"--{_spelled(idle[0])}: --{mode} has no use for it: leave one of the two out"
    if "names" in changed and "weights" not in changed:
        yield f"--names {options.names}: expected --weights FILE with it: say which weights have these names"
    levels = chosen_levels(options.levels)
    if options.dtype != "float64" and any(level.numeric for level in levels):
        yield from _problems_of_recorded_errors(options)
    for name, least in (("steps", 1), ("seed", 0), ("repeat", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            yield f"--{name}: expected {least} or more, found {value}: choose another"
    if options.weights and not options.recipe:
        yield "--weights: expected --recipe with it, found none: name the recipe that the weights are of"
    for path in (options.json, options.html):
        if path and not path.resolve().parent.is_dir():
            yield f"{path}: its folder does not exist: make it, or write elsewhere"
    if options.plant is not None:
        yield from _problems_of_planting(options, fault_for(options.plant))
    elif options.into and not options.faults:
        yield f"--in {options.into}: expected --plant FAULT with it: name the fault, or leave it out"


def _spelled(name: str) -> str:
    """An option as it is written on the command line."""
    return "in" if name == "into" else name.replace("_", "-")


def _problems_of_recorded_errors(options: Options) -> Iterator[str]:
    """Errors are recorded for one kind of comparison, and others cannot be held against them."""
    dtype, scale = options.dtype, options.scale
    for recipe in options.recipes:
        if reference_errors(recipe, scale, dtype) is None:
            advice = f"compare in float64, or record them with --record --scale {scale}"
            yield f"--dtype {dtype}: no errors were recorded for {recipe} at {scale}: {advice}"
    for name, value in options.fields.items():
        yield f"--{_spelled(name)} {value}: errors in {dtype} are recorded for the recipe as it is: {LEAVE_OUT}"
    for name in ("steps", "weights", "device"):
        value, recorded = getattr(options, name), getattr(Options, name)
        if value != recorded:
            yield f"--{name} {value}: errors in {dtype} are recorded for {recorded}: {LEAVE_OUT}"


def _problems_of_planting(options: Options, fault: Fault) -> Iterator[str]:
    plant, into, sides = f"--plant {fault.name}", options.into, [options.a, options.b]
    if not options.faults and into not in sides:
        yield f"{plant}: expected --in with the side to plant it in, found {into}; {nearest(into or '', sides)}"
    if into and into not in fault.backends:
        yield f"--in {into}: {fault.name} can be planted in {' and '.join(fault.backends)}: choose one"
    if fault.dtype not in ("float64", options.dtype):
        where = f"it shows at --dtype {fault.dtype} alone, where 8 bits are used"
        yield f"{plant}: {where}, found {options.dtype}: choose that"
    if options.scale != "tiny":
        yield f"{plant}: the catalogue is for --scale tiny, found {options.scale}: leave one of them out"
    if options.recipe and options.recipe not in fault.recipes:
        recipes = f"a fault of {' and '.join(fault.recipes)}, found --recipe {options.recipe} ({fault.only})"
        yield f"{plant}: {recipes}: leave --recipe out"
