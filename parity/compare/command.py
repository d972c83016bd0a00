"""`python -m parity.compare`: are two programs the same experiment? Exit code 0: they are; 1: not; 2: not judged."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from parity.errors import InputError, nearest, run_command

if TYPE_CHECKING:
    from parity.compare.case import Case
    from parity.compare.observation import Result
    from parity.compare.side import Side

REPEATED = {
    "float64": 9,
    "float32": 9,
    "bfloat16": 2,
}  # of every 20 repetitions; one in bfloat16 is eight draws in itself


@dataclass(frozen=True)
class Options:
    """Compares two programs level by level: data, init, forward, loss, gradients, update, trajectory, evaluation, restore."""

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
    """Record the errors of this code in float32 and bfloat16, for comparisons to be held against."""
    keep_going: bool = False
    """Judge the levels behind the first that fails too."""
    json: Path | None = None
    """Write the report as JSON."""
    html: Path | None = None
    """Write the report as a page that stands alone."""
    device: Literal["cpu", "gpu", "auto"] = "cpu"
    """What both compute on; recorded errors are a CPU's."""
    data_dir: Path | None = None
    """Folder that slices are kept in; by default $JAXRUN_DATA or the user's cache."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(lambda: compare(argv))


def compare(argv: Sequence[str] | None) -> int:
    """Reads the command line and does what it asks for."""
    from parity.cli import command_line

    options = command_line(Options, "python -m parity.compare", argv)
    _check(options)
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        if options.record:
            return _record(options, Path(folder))
        if options.faults:
            return _matrix(options, Path(folder))
        if options.repeat is not None:
            return _repeat(options, Path(folder))
        return _compare(options, Path(folder))


COMMON = {"recipe", "scale", "seed", "data_dir", "device"}
MODES = {  # what each of these has a use for
    "faults": COMMON | {"plant", "into", "json", "html"},
    "repeat": COMMON | {"a", "b", "levels", "steps", "plant", "into"},
    "record": {"recipe", "scale", "data_dir"},
}


def _check(options: Options) -> None:
    from parity.compare.faults.catalogue import fault_for
    from parity.compare.runner import chosen_levels

    _check_modes(options)
    levels = chosen_levels(options.levels)
    if options.dtype != "float64" and any(level.numeric for level in levels):
        _check_recorded(options)
    for name, least in (("steps", 1), ("seed", 0), ("repeat", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: expected {least} or more, found {value}: choose another")
    if options.weights and not options.recipe:
        raise InputError("--weights: expected --recipe with it, found none: name the recipe that the weights are of")
    for path in (options.json, options.html):
        if path and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist: make it, or write elsewhere")
    if options.plant is None:
        if options.into and not options.faults:
            raise InputError(f"--in {options.into}: expected --plant FAULT with it: name the fault, or leave it out")
        return
    fault = fault_for(options.plant)
    sides = [options.a, options.b]
    if not options.faults and options.into not in sides:
        raise InputError(
            f"--plant {options.plant}: expected --in with the side to plant it in, found {options.into}; "
            f"{nearest(options.into or '', sides)}"
        )
    if options.into and options.into not in fault.backends:
        raise InputError(
            f"--in {options.into}: {fault.name} can be planted in {' and '.join(fault.backends)}: choose one"
        )
    if fault.dtype != "float64" and options.dtype != fault.dtype:
        raise InputError(
            f"--plant {options.plant}: it shows at --dtype {fault.dtype} alone, where 8 bits are used, found {options.dtype}: "
            "choose that"
        )
    if options.scale != "tiny":
        raise InputError(
            f"--plant {options.plant}: the catalogue is for --scale tiny, found {options.scale}: leave one of them out"
        )
    if options.recipe and options.recipe not in fault.recipes:
        raise InputError(
            f"--plant {options.plant}: a fault of {' and '.join(fault.recipes)}, found --recipe {options.recipe} "
            f"({fault.only}): leave --recipe out"
        )


def _check_modes(options: Options) -> None:
    """An option that what was asked for has no use for is not ignored in silence."""
    changed = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    for mode, useful in MODES.items():
        if mode in changed and (idle := sorted(changed - useful - {mode})):
            name = {"into": "in"}.get(idle[0], idle[0].replace("_", "-"))
            raise InputError(f"--{name}: --{mode} has no use for it: leave one of the two out")
    if "names" in changed and "weights" not in changed:
        raise InputError(
            f"--names {options.names}: expected --weights FILE with it: say which weights have these names"
        )


def _check_recorded(options: Options) -> None:
    """Errors are recorded for one kind of comparison, and others cannot be held against them."""
    from parity.compare import low_precision

    for recipe in _recipes(options):
        if low_precision.recorded_errors(recipe, options.scale, options.dtype) is None:
            raise InputError(
                f"--dtype {options.dtype}: no errors were recorded for {recipe} at {options.scale}: compare in float64, "
                f"or record them with --record --scale {options.scale}"
            )
    for name in ("steps", "weights", "device"):
        value = getattr(options, name)
        if value != getattr(Options, name):
            raise InputError(
                f"--{name} {value}: errors in {options.dtype} are recorded for {getattr(Options, name)}: leave it out, "
                "or compare in float64"
            )


def _recipes(options: Options) -> list[str]:
    from parity.compare.faults.catalogue import fault_for
    from parity.recipes import RECIPES

    if options.recipe:
        return [options.recipe]
    return [name for name in RECIPES if options.plant is None or name in fault_for(options.plant).recipes]


def _case(options: Options, recipe: str, folder: Path, dtype: str | None = None, seed: int | None = None) -> "Case":
    from parity.compare.case import Case, compared_recipe, track_of
    from parity.compare.weight_names import read_weights
    from parity.data.progress import Progress
    from parity.data.slices import prepare

    made = compared_recipe(recipe, options.scale, dtype or options.dtype)
    if options.steps > made.steps:
        raise InputError(
            f"--steps {options.steps}: expected at most {made.steps}, the plan of {recipe} at {options.scale}"
        )
    track = track_of(options.scale)
    needed = sum(segment.steps * segment.tokens for segment in made.plan) + 1
    slice_ = prepare(track.slice, options.data_dir, train_tokens=needed, progress=Progress())
    weights = read_weights(options.weights, made, options.names) if options.weights else None
    return Case(made, track, slice_, folder, options.seed if seed is None else seed, options.steps, weights, weights)


def _sides(options: Options) -> "list[Side]":
    from parity.compare.faults.catalogue import fault_for
    from parity.compare.side import Side

    fault = fault_for(options.plant) if options.plant else None
    planted = 0 if options.into == options.a else 1  # in a where both are the same
    return [
        Side(spec, fault if i == planted else None, options.device) for i, spec in enumerate((options.a, options.b))
    ]


def _judged(options: Options, case: "Case", sides: "list[Side]", truth: "Side") -> "list[Result]":
    from parity.compare import low_precision
    from parity.compare.runner import Comparison, chosen_levels

    precision, recorded = case.recipe.precision, None
    if precision != "float64":
        recorded = low_precision.recorded_errors(case.recipe.name, options.scale, precision)
    return Comparison(*sides, case, chosen_levels(options.levels), recorded, options.keep_going, truth=truth).run()


def _compare(options: Options, folder: Path) -> int:
    from parity.compare.report import html
    from parity.compare.report import text as report
    from parity.compare.side import Side

    reports: dict[str, Any] = {}
    code, complaints = 0, set()
    for recipe in _recipes(options):
        sides = _sides(options)
        try:
            results = _judged(options, _case(options, recipe, folder), sides, Side("torchref", device=options.device))
        except InputError as error:  # what was found of another recipe is reported all the same
            if str(error) not in complaints:
                print(f"error: {error}", file=sys.stderr)
            complaints.add(str(error))
            code = max(code, 2, key=(0, 2, 1).index)
            continue
        planted = f", {options.plant} planted in {options.into}" if options.plant else ""
        title = f"{recipe} at {options.scale} in {options.dtype}: a = {sides[0].name}, b = {sides[1].name}{planted}"
        print(report.text(title, results) + "\n", flush=True)
        reports[recipe] = {"title": title, "results": results}
        code = max(code, _code(results), key=(0, 2, 1).index)
    if options.json:
        _write(options.json, report.to_json({"options": _plain(options), "exit_code": code, "recipes": reports}))
    if options.html:
        _write(options.html, html.page(reports))
    return code


def _code(results: "list[Result]") -> int:
    statuses = {result.status for result in results}
    return 1 if "fails" in statuses else 2 if "not judged" in statuses else 0


def _matrix(options: Options, folder: Path) -> int:
    from parity.compare.faults.catalogue import FAULTS, fault_for
    from parity.compare.faults.matrix import PAIR, matrix
    from parity.compare.report import html
    from parity.compare.report import text as report

    if options.scale != "tiny":
        raise InputError(f"--faults: the matrix is made at --scale tiny, found {options.scale}: leave it out")
    faults = [fault_for(options.plant)] if options.plant else list(FAULTS.values())
    backends = [options.into] if options.into else list(PAIR)
    cases = [_case(options, recipe, folder) for recipe in _recipes(options)]

    def say(caught) -> None:
        where = f"{caught.level}: {caught.place}" if caught.level else "missed"
        print(f"{caught.fault} in {caught.backend}, {caught.recipe}: {where}", file=sys.stderr, flush=True)

    found = matrix(cases, faults, backends, say)
    print(report.matrix_text(found))
    if options.json:
        _write(options.json, report.to_json({"options": _plain(options), "caught": found}))
    if options.html:
        _write(options.html, html.matrix_page(found))
    return 0 if all(caught.right for caught in found) else 1


def _repeat(options: Options, folder: Path) -> int:
    from parity.compare.side import Side

    recipes, failed = _recipes(options), 0
    dtypes = [dtype for dtype, count in REPEATED.items() for _ in range(count)]
    planned = [
        (recipes[i % len(recipes)], dtypes[(i // len(recipes)) * 7 % len(dtypes)]) for i in range(options.repeat)
    ]
    truth = Side("torchref")
    for recipe, dtype in dict.fromkeys(planned):  # all seeds of a pair together: its programs are compiled once
        sides, written = _sides(options), {}
        for i in (i for i, pair in enumerate(planned) if pair == (recipe, dtype)):
            case = dataclasses.replace(_case(options, recipe, folder, dtype, options.seed + i), written=written)
            results = _judged(options, case, sides, truth)
            code = _code(results)
            failed += code != 0
            worst = max(
                (line.ratio for r in results for line in r.lines if line.allowed and "Holm" not in line.basis),
                default=0.0,
            )
            finding = next(
                (
                    f"{r.finding.level}, {r.finding.line}: {r.finding.place}, {r.finding.says}"
                    for r in results
                    if r.finding
                ),
                "",
            )
            print(
                f"{i + 1:>4}  {recipe:8} {dtype:9} seed {case.seed:<4} {('holds', 'FAILS', 'not judged')[code]}  "
                f"largest part of an allowance {worst:.2g}  {finding}",
                flush=True,
            )
    print(f"{options.repeat} comparisons, {failed} false alarms")
    return 1 if failed else 0


def _record(options: Options, folder: Path) -> int:
    from parity.compare.reference_errors import record

    names = _recipes(options)
    path = record(_case(options, names[0], folder), options.scale, names, lambda line: print(line, flush=True))
    print(f"wrote {path}")
    return 0


def _plain(options: Options) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(options).items()
    }


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): write elsewhere") from error
