"""The errors of fault-free code in float32 and bfloat16: how they are recorded, and the file that comparisons read."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from parity.compare import low_precision
from parity.compare.case import Case, compared_recipe
from parity.compare.judge import root_mean_square
from parity.compare.levels import LEVELS, Level
from parity.compare.runner import Comparison
from parity.compare.side import Side
from parity.program import BACKENDS

FIRST_SEED = 1000  # none of a comparison's
FLOAT32_SEEDS = 8
TRAJECTORY_SEEDS = 48  # one of some forty departs from float64 by chance
BFLOAT16_SEEDS = 16
FILE = Path(str(files("parity.compare") / "recorded.json"))


def reference_errors(recipe: str, scale: str, precision: str) -> dict[str, Any] | None:
    """Errors by "level/line" for a recipe, scale and precision; None where none are recorded."""
    return _load().get(f"{recipe}/{scale}/{precision}")


def record(base: Case, scale: str, recipes: list[str], progress: Callable[[str], None]) -> Path:
    """Measures the errors of both backends for the recipes at a scale, and replaces theirs in the file."""
    errors = _load()
    for name in recipes:
        for precision, measure in (("float32", _float32), ("bfloat16", _bfloat16)):
            progress(f"recording {name} at {scale} in {precision}")
            case = dataclasses.replace(base, recipe=compared_recipe(name, scale, precision), written={})
            errors[f"{name}/{scale}/{precision}"] = measure(case)
    FILE.write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")
    return FILE


def _load() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def _numeric_levels() -> list[Level]:
    return [level for level in LEVELS.values() if level.numeric]


def _float32(case: Case) -> dict[str, dict[str, float]]:
    """The largest error of a location over all seeds and backends, and each backend's median error over a line."""
    largest: dict[str, float] = {}
    typical: dict[str, dict[str, list[float]]] = {}
    a, b = sides = [Side(backend) for backend in BACKENDS]
    truth, written = Side("torchref"), {}
    for i in range(TRAJECTORY_SEEDS):
        seeded = dataclasses.replace(case, seed=FIRST_SEED + i, written=written)
        levels = [level for level in _numeric_levels() if i < FLOAT32_SEEDS or level.name == "trajectory"]
        comparison = Comparison(a, b, seeded, levels, truth=truth)
        comparison.write_runs()
        for level in levels:
            exact = truth.observe(level, seeded.exact, comparison.memo)
            for side in sides:
                observations = side.observe(level, seeded, comparison.memo)
                for key, errors in low_precision.line_errors(level.name, observations, exact).items():
                    largest[key] = max(largest.get(key, 0.0), *errors)
                    typical.setdefault(key, {}).setdefault(side.name, []).append(root_mean_square(errors))
            comparison.memo.clear()
    return {
        key: {"largest": _rounded(largest[key])}
        | {name: _rounded(statistics.median(errors)) for name, errors in typical[key].items()}
        for key in sorted(largest)
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _bfloat16(case: Case) -> dict[str, Any]:
    """Each backend's typical and largest error on every line, as logarithms, for every seed."""
    a, b = (Side(backend) for backend in BACKENDS)
    comparison = Comparison(a, b, case, _numeric_levels())
    cases = [dataclasses.replace(case, seed=FIRST_SEED + i, written={}) for i in range(BFLOAT16_SEEDS)]
    per_seed: tuple[low_precision.PerSeed, low_precision.PerSeed] = {}, {}
    for level in _numeric_levels():
        comparison.measure_errors(level, cases, per_seed)
    return {
        key: {
            backend: [[round(errors.typical, 4), round(errors.largest, 4)] for errors in side[key]]
            for backend, side in zip(BACKENDS, per_seed, strict=True)
        }
        for key in sorted(per_seed[0])
    }
