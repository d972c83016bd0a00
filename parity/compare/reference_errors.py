"""The errors of fault-free code in float32 and bfloat16: how they are recorded, and the files that comparisons read."""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from parity.compare import low_precision
from parity.compare.case import Case, compared_recipe
from parity.compare.judge import root_mean_square
from parity.compare.levels import LEVELS, Level
from parity.compare.runner import Comparison
from parity.compare.side import Side
from parity.formats.files import write_file
from parity.program import BACKENDS
from parity.progress import ProgressLine

FIRST_SEED = 1000  # none of a comparison's
FLOAT32_SEEDS = 8
TRAJECTORY_SEEDS = 48  # one of some forty departs from float64 by chance
BFLOAT16_SEEDS = 16
FOLDER = Path(str(files("parity.compare") / "recorded"))  # a file for each recipe and scale


def reference_errors(recipe: str, scale: str, precision: str) -> dict[str, Any] | None:
    """Errors by "level/line" for a recipe, scale and precision; None where none are recorded."""
    return _load(recipe, scale).get(precision)


def record(base: Case, scale: str, recipes: list[str], progress: ProgressLine) -> Iterator[Path]:
    """Measures the errors of both backends for each of the recipes at a scale, and replaces those in its file.

    Gives the file once all of a recipe's errors are in it. Raises InputError where it cannot be written.
    """
    for name in recipes:
        path = FOLDER / f"{name}-{scale}.json"
        for precision, measure in (("float32", _float32), ("bfloat16", _bfloat16)):
            case = dataclasses.replace(base, recipe=compared_recipe(name, scale, precision), written={})
            errors = _load(name, scale) | {precision: measure(case, progress)}
            write_file(path, (json.dumps(errors, indent=1, sort_keys=True) + "\n").encode())
        yield path


def _load(recipe: str, scale: str) -> dict[str, Any]:
    path = FOLDER / f"{recipe}-{scale}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _numeric_levels() -> list[Level]:
    return [level for level in LEVELS.values() if level.numeric]


def _float32(case: Case, progress: ProgressLine) -> dict[str, dict[str, float]]:
    """The largest error of a location over all seeds and backends, and each backend's median error over a line."""
    largest: dict[str, float] = {}
    typical: dict[str, dict[str, list[float]]] = {}
    a, b = sides = [Side(backend) for backend in BACKENDS]
    truth, written = Side("torchref"), {}
    task, done = f"recording {case.recipe.name} in float32", 0
    total = sum(TRAJECTORY_SEEDS if level.name == "trajectory" else FLOAT32_SEEDS for level in _numeric_levels())
    for i in range(TRAJECTORY_SEEDS):
        seeded = dataclasses.replace(case, seed=FIRST_SEED + i, written=written)
        levels = [level for level in _numeric_levels() if i < FLOAT32_SEEDS or level.name == "trajectory"]
        comparison = Comparison(a, b, seeded, levels, truth=truth)
        for level in levels:
            if level.name == "evaluation":
                comparison.write_runs()
            exact = truth.observe(level, seeded.exact, comparison.memo)
            for side in sides:
                observations = side.observe(level, seeded, comparison.memo)
                for key, errors in low_precision.line_errors(level.name, observations, exact).items():
                    largest[key] = max(largest.get(key, 0.0), *errors)
                    typical.setdefault(key, {}).setdefault(side.name, []).append(root_mean_square(errors))
            comparison.memo.clear()
            done += 1
            progress.step(task, done, total, "observations")
    return {
        key: {"largest": _rounded(largest[key])}
        | {name: _rounded(statistics.median(errors)) for name, errors in typical[key].items()}
        for key in sorted(largest)
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _bfloat16(case: Case, progress: ProgressLine) -> dict[str, Any]:
    """Each backend's typical and largest error on every line, as logarithms, for every seed."""
    a, b = (Side(backend) for backend in BACKENDS)
    comparison = Comparison(a, b, case, _numeric_levels())
    cases = [dataclasses.replace(case, seed=FIRST_SEED + i, written={}) for i in range(BFLOAT16_SEEDS)]
    per_seed: tuple[low_precision.PerSeed, low_precision.PerSeed] = {}, {}
    observed = list(itertools.product(_numeric_levels(), cases))
    for done, (level, seeded) in enumerate(observed, 1):
        comparison.measure_errors(level, [seeded], per_seed)
        progress.step(f"recording {case.recipe.name} in bfloat16", done, len(observed), "observations")
    return {
        key: {
            backend: [[round(errors.typical, 4), round(errors.largest, 4)] for errors in side[key]]
            for backend, side in zip(BACKENDS, per_seed, strict=True)
        }
        for key in sorted(per_seed[0])
    }
