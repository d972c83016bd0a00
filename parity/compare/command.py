"""`python -m parity.compare`: are two programs the same experiment? Exit code 0: they are; 1: not; 2: not judged."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.compare.case import Case, check_memory, compared_recipe, open_slice, track_of
from parity.compare.faults.catalogue import FAULTS, fault_for
from parity.compare.matrix import OTHER, Caught, matrix
from parity.compare.observation import Result
from parity.compare.options import Options, parse
from parity.compare.reference_errors import record, reference_errors
from parity.compare.report import html, text
from parity.compare.runner import Comparison, chosen_levels
from parity.compare.side import Side
from parity.compare.weight_names import read_weights
from parity.errors import InputError, remedy, run_command
from parity.progress import ProgressLine

REPEATED_DTYPES = ["float64"] * 9 + ["float32"] * 9 + ["bfloat16"] * 2  # one in bfloat16 has eight seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(lambda: compare(argv))


def compare(argv: Sequence[str] | None) -> int:
    """Reads the command line and runs one of its modes."""
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        if options.record:
            return _record(options, Path(folder))
        if options.faults:
            return _matrix(options, Path(folder))
        if options.repeat is not None:
            return _repeat(options, options.repeat, Path(folder))
        return _compare(options, Path(folder))


def _case(options: Options, name: str, folder: Path, dtype: str | None = None, seed: int | None = None) -> Case:
    recipe = compared_recipe(name, options.scale, dtype or options.dtype, options.fields)
    if options.steps > recipe.steps:
        raise InputError(
            f"--steps {options.steps}: expected at most {recipe.steps}, the plan of {name} at {options.scale}"
        )
    check_memory(recipe)
    track = track_of(options.scale)
    slice_ = open_slice(track, recipe, options.data_dir)
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
    for name in options.recipes:
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
    cases = [_case(options, name, folder) for name in options.recipes]

    def progress(caught: Caught) -> None:
        where = f"{caught.level}: {caught.location}" if caught.level else "missed"
        print(f"{caught.fault} in {caught.backend}, {caught.recipe}: {where}", file=sys.stderr, flush=True)

    rows = matrix(cases, faults, backends, progress)
    print(text.matrix_text(rows))
    _write(options, {"caught": rows}, html.matrix_page(rows) if options.html else "")
    return 0 if all(caught.correct for caught in rows) else 1


def _repeat(options: Options, count: int, folder: Path) -> int:
    recipes, dtypes, failed = options.recipes, REPEATED_DTYPES, 0
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
    names = options.recipes
    for path in record(_case(options, names[0], folder), options.scale, names, ProgressLine()):
        print(f"wrote {path}", flush=True)
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
