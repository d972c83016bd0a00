"""`python -m parity.compare`: are two programs the same experiment? Exit code 0: they are; 1: not; 2: not judged."""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parity.cli import command_line
from parity.compare.case import Case, compared_recipe, track_of
from parity.compare.faults.catalogue import FAULTS, fault_for
from parity.compare.faults.plant import Fault
from parity.compare.matrix import OTHER, Caught, matrix
from parity.compare.observation import Result
from parity.compare.reference_errors import record, reference_errors
from parity.compare.report import html, text
from parity.compare.runner import Comparison, chosen_levels
from parity.compare.side import Side
from parity.compare.weight_names import read_weights
from parity.data.slices import prepare
from parity.errors import InputError, nearest, remedy, run_command
from parity.progress import ProgressLine
from parity.recipes import RECIPES

REPEATED_DTYPES = ["float64"] * 9 + ["float32"] * 9 + ["bfloat16"] * 2  # one in bfloat16 has eight seeds


@dataclass(frozen=True)
class Options:
    """Compares two programs: data, init, forward, loss, gradients, update, trajectory, evaluation, restore."""

    recipe: str | None = None
    """muon, nanogpt, record-11 or record-21; all of them by default."""
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
    """Compare from these weights: safetensors or a PyTorch state dict."""
    names: str = "canonical"
    """Whose names the weights have: canonical, nanogpt, hf-gpt2, track3, or a JSON file with a map."""
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


COMMON = {"recipe", "scale", "seed", "data_dir", "device"}
MODES = {  # the options that each of these has a use for
    "faults": COMMON | {"plant", "into", "json", "html"},
    "repeat": COMMON | {"a", "b", "levels", "steps", "plant", "into"},
    "record": {"recipe", "scale", "data_dir"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(lambda: compare(argv))


def compare(argv: Sequence[str] | None) -> int:
    """Reads the command line and runs one of its modes."""
    options = command_line(Options, "python -m parity.compare", argv)
    for problem in _problems(options):
        raise InputError(problem)
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        if options.record:
            return _record(options, Path(folder))
        if options.faults:
            return _matrix(options, Path(folder))
        if options.repeat is not None:
            return _repeat(options, options.repeat, Path(folder))
        return _compare(options, Path(folder))


def _problems(options: Options) -> Iterator[str]:
    """Options that cannot be used, or not together."""
    changed = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    for mode, useful in MODES.items():  # an option without use is never ignored
        if mode in changed and (idle := sorted(changed - useful - {mode})):
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
    for recipe in _recipes(options):
        if reference_errors(recipe, scale, dtype) is None:
            advice = f"compare in float64, or record them with --record --scale {scale}"
            yield f"--dtype {dtype}: no errors were recorded for {recipe} at {scale}: {advice}"
    for name in ("steps", "weights", "device"):
        value, recorded = getattr(options, name), getattr(Options, name)
        if value != recorded:
            advice = "leave it out, or compare in float64"
            yield f"--{name} {value}: errors in {dtype} are recorded for {recorded}: {advice}"


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


def _recipes(options: Options) -> list[str]:
    if options.recipe:
        return [options.recipe]
    return [name for name in RECIPES if options.plant is None or name in fault_for(options.plant).recipes]


def _case(options: Options, name: str, folder: Path, dtype: str | None = None, seed: int | None = None) -> Case:
    recipe = compared_recipe(name, options.scale, dtype or options.dtype)
    if options.steps > recipe.steps:
        raise InputError(
            f"--steps {options.steps}: expected at most {recipe.steps}, the plan of {name} at {options.scale}"
        )
    track = track_of(options.scale)
    tokens = sum(segment.steps * segment.tokens for segment in recipe.plan) + 1
    slice_ = prepare(track.slice, options.data_dir, train_tokens=tokens, progress=ProgressLine())
    weights = read_weights(options.weights, recipe, options.names) if options.weights else None
    seed = options.seed if seed is None else seed
    return Case(recipe, track, slice_, folder, seed, options.steps, weights, weights)


def _sides(options: Options) -> tuple[Side, Side]:
    fault = fault_for(options.plant) if options.plant else None
    faults = (fault, None) if options.into == options.a else (None, fault)  # in a where both are the same
    return Side(options.a, faults[0], options.device), Side(options.b, faults[1], options.device)


def _results(options: Options, case: Case, sides: tuple[Side, Side], truth: Side) -> list[Result]:
    precision, errors = case.recipe.precision, None
    if precision != "float64":
        errors = reference_errors(case.recipe.name, options.scale, precision)
    levels = chosen_levels(options.levels)
    return Comparison(*sides, case, levels, errors, options.keep_going, truth=truth).run()


def _exit_code(results: list[Result]) -> int:
    statuses = {result.status for result in results}
    return 1 if "fails" in statuses else 2 if "not judged" in statuses else 0


def _compare(options: Options, folder: Path) -> int:
    reports: dict[str, Any] = {}
    codes, messages = {0}, set()
    for name in _recipes(options):
        sides = _sides(options)
        try:
            case, truth = _case(options, name, folder), Side("torchref", device=options.device)
            results = _results(options, case, sides, truth)
        except InputError as error:  # other recipes are reported all the same
            if str(error) not in messages:
                print(f"error: {error}", file=sys.stderr)
            messages.add(str(error))
            codes.add(2)
            continue
        planted = f", {options.plant} planted in {options.into}" if options.plant else ""
        title = f"{name} at {options.scale} in {options.dtype}: a = {sides[0].name}, b = {sides[1].name}{planted}"
        print(text.text(title, results) + "\n", flush=True)
        reports[name] = {"title": title, "results": results}
        codes.add(_exit_code(results))
    code = next(code for code in (1, 2, 0) if code in codes)
    _write(options, {"exit_code": code, "recipes": reports}, html.page(reports) if options.html else "")
    return code


def _matrix(options: Options, folder: Path) -> int:
    if options.scale != "tiny":
        raise InputError(f"--faults: the matrix is made at --scale tiny, found {options.scale}: leave it out")
    faults = [fault_for(options.plant)] if options.plant else list(FAULTS.values())
    backends = [options.into] if options.into else list(OTHER)
    cases = [_case(options, name, folder) for name in _recipes(options)]

    def progress(caught: Caught) -> None:
        where = f"{caught.level}: {caught.location}" if caught.level else "missed"
        print(f"{caught.fault} in {caught.backend}, {caught.recipe}: {where}", file=sys.stderr, flush=True)

    rows = matrix(cases, faults, backends, progress)
    print(text.matrix_text(rows))
    _write(options, {"caught": rows}, html.matrix_page(rows) if options.html else "")
    return 0 if all(caught.correct for caught in rows) else 1


def _repeat(options: Options, count: int, folder: Path) -> int:
    recipes, dtypes, failed = _recipes(options), REPEATED_DTYPES, 0
    planned = [(recipes[i % len(recipes)], dtypes[(i // len(recipes)) * 7 % len(dtypes)]) for i in range(count)]
    truth = Side("torchref")
    for name, dtype in dict.fromkeys(planned):  # all seeds of a pair together: its programs are compiled once
        sides, written = _sides(options), {}
        for i in (i for i, pair in enumerate(planned) if pair == (name, dtype)):
            case = dataclasses.replace(_case(options, name, folder, dtype, options.seed + i), written=written)
            results = _results(options, case, sides, truth)
            code = _exit_code(results)
            failed += code != 0
            lines = [line for result in results for line in result.lines if line.allowed and "Holm" not in line.basis]
            largest = max((line.ratio for line in lines), default=0.0)
            finding = next((result.finding for result in results if result.finding), None)
            where = f"{finding.level}, {finding.line}: {finding.location}, {finding.message}" if finding else ""
            print(
                f"{i + 1:>4}  {name:8} {dtype:9} seed {case.seed:<4} {('holds', 'FAILS', 'not judged')[code]}  "
                f"largest part of an allowance {largest:.2g}  {where}",
                flush=True,
            )
    print(f"{count} comparisons, {failed} false positives")
    return 1 if failed else 0


def _record(options: Options, folder: Path) -> int:
    names = _recipes(options)
    path = record(_case(options, names[0], folder), options.scale, names, lambda line: print(line, flush=True))
    print(f"wrote {path}")
    return 0


def _write(options: Options, report: dict[str, Any], page: str) -> None:
    """Writes the report where --json and --html ask for it."""
    json = text.to_json({"options": dataclasses.asdict(options)} | report) if options.json else ""
    for path, content in ((options.json, json), (options.html, page)):
        try:
            if path:
                path.write_text(content)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): {remedy(error)}, or write elsewhere"
            ) from error
