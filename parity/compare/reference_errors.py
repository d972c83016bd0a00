"""Records the errors of unplanted code in float32 and bfloat16, which comparisons in these precisions are held against."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity.compare import low_precision
from parity.compare.case import Case, compared_recipe
from parity.compare.judge import together
from parity.compare.levels import LEVELS, Level
from parity.compare.runner import Comparison
from parity.compare.side import Side
from parity.program import BACKENDS

SEEDS = 8  # in float32: the largest error of them is recorded
TRAJECTORIES = 48  # one of some forty parts from float64 by chance
DRAWS = 16  # in bfloat16: all of them are


def record(base: Case, scale: str, recipes: list[str], say: Callable[[str], None]) -> Path:
    """Writes the errors of both backends for the recipes at a scale over what recorded.json says of them."""
    path = low_precision.recorded_file()
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in recipes:
        for precision, measure in (("float32", _float32), ("bfloat16", _bfloat16)):
            say(f"recording {name} at {scale} in {precision}")
            case = dataclasses.replace(base, recipe=compared_recipe(name, scale, precision), written={})
            kept[f"{name}/{scale}/{precision}"] = measure(case)
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return path


def _numeric() -> list[Level]:
    return [level for level in LEVELS.values() if level.numeric]


def _float32(case: Case) -> dict[str, dict[str, float]]:
    """The largest error of a place over all seeds and backends, and each backend's median error over a line."""
    largest: dict[str, float] = {}
    usual: dict[str, dict[str, list[float]]] = {}
    sides, truth, written = [Side(backend) for backend in BACKENDS], Side("torchref"), {}
    for seed in range(TRAJECTORIES):
        one = dataclasses.replace(case, seed=1000 + seed, written=written)
        levels = [level for level in _numeric() if seed < SEEDS or level.name == "trajectory"]
        comparison = Comparison(*sides, one, levels, truth=truth)
        comparison.write_runs()
        for level in levels:
            exact = truth.observe(level, one.exact, comparison.memo)
            for side in sides:
                for key, errors in low_precision.line_errors(
                    level.name, side.observe(level, one, comparison.memo), exact
                ).items():
                    largest[key] = max(largest.get(key, 0.0), *errors)
                    usual.setdefault(key, {}).setdefault(side.name, []).append(together(errors))
            comparison.memo.clear()
    return {
        key: {"largest": _short(largest[key]), **{name: _short(statistics.median(x)) for name, x in usual[key].items()}}
        for key in sorted(largest)
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _bfloat16(case: Case) -> dict[str, Any]:
    found: list[dict[str, list[low_precision.Size]]] = [{}, {}]
    cases = [dataclasses.replace(case, seed=1000 + i, written={}) for i in range(DRAWS)]
    comparison = Comparison(*(Side(backend) for backend in BACKENDS), case, _numeric(), truth=Side("torchref"))
    for level in _numeric():
        comparison.drawn(level, cases, found)
    return {
        key: {
            backend: [[round(x, 4) for x in size[:2]] for size in sizes[key]] for backend, sizes in zip(BACKENDS, found)
        }
        for key in sorted(found[0])
    }
