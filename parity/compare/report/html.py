"""The report as a page that stands alone: tables, a chart of difference against step, a heat map level x parameter."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from parity.compare.matrix import Caught
from parity.compare.observation import Result
from parity.compare.report.text import MARKS, NUMBERS, finding_fields, worst
from parity.recipes import RECIPES, recipe_for

FOLDER = Path(__file__).parent
STYLE = FOLDER.parents[1] / "style.css"
COLORS = {"losses": "var(--accent)", "grad_norm": "var(--soft)"}
TONES = {"holds": "good", "fails": "bad", "not judged": "hint"}


def page(reports: dict[str, dict[str, Any]]) -> str:
    """The page of a comparison: {recipe: {"title", "results"}}."""
    sections = []
    for report in reports.values():
        results: Sequence[Result] = report["results"]
        curves = next((result.curves for result in results if result.curves), None)
        sections.append(
            {
                "title": report["title"],
                "results": results,
                "counts": {status: sum(r.status == status for r in results) for status in MARKS},
                "finding": next((result.finding for result in results if result.finding), None),
                "chart": chart(curves) if curves else None,
                "heat": heat_map(results),
            }
        )
    return _template("comparison.html").render(sections=sections, fields=finding_fields, worst=worst, marks=MARKS)


def matrix_page(rows: Sequence[Caught]) -> str:
    """The page of the matrix fault x level."""
    return _template("matrix.html").render(rows=rows)


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure, "short": _short}
    environment.globals |= {"style": STYLE.read_text(), "numbers": NUMBERS, "tones": TONES}
    return environment.get_template(name)


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}"


def _short(value: float) -> str:
    return "" if value == 0 else "inf" if math.isinf(value) else f"{value:.0e}"


def chart(curves: dict[str, list[float]]) -> dict[str, Any]:
    """Relative differences against step on a logarithmic scale: positions in a drawing of `width` x `height`."""
    width, height, left, right, top, bottom = 720, 240, 60, 10, 10, 30
    values = [x for curve in curves.values() for x in curve if x > 0]
    low = math.floor(math.log10(min(values, default=1e-16)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=1e-15))))
    steps = max(len(curve) for curve in curves.values())

    def x(step: int) -> float:
        return round(left + (width - left - right) * step / max(1, steps - 1), 1)

    def y(value: float) -> float:
        exponent = max(math.log10(value), low) if value > 0 else low
        return round(top + (height - bottom - top) * (high - exponent) / (high - low), 1)

    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "decades": [(y(10.0**e), f"1e{e}") for e in range(low, high + 1, max(1, (high - low) // 5))],
        "steps": [(x(step), step) for step in range(0, steps, max(1, steps // 10))],
        "curves": [
            {
                "name": name.replace("_", " "),
                "color": COLORS.get(name, "var(--ink)"),
                "points": [(x(step), y(value)) for step, value in enumerate(curve)],
            }
            for name, curve in curves.items()
        ],
    }


def heat_map(results: Sequence[Result]) -> dict[str, Any]:
    """The largest used part of an allowance by parameter and level: `levels`, and `rows` of each parameter's cells,
    None where a level has nothing about it."""
    used: dict[str, dict[str, float]] = {}
    for result in results:
        for location, value in result.heat.items():
            if name := _parameter(location):
                cells = used.setdefault(result.level, {})
                cells[name] = max(value, cells.get(name, 0.0))
    names = {name for cells in used.values() for name in cells}
    weights = {name for name in names if name.endswith((".weight", ".bias"))}
    rows = {}
    for name in sorted(weights or names, key=_order):
        module = name.rpartition(".")[0] if name in weights else name
        rows[name] = [_cell([cells[key] for key in {name, module} if key in cells]) for cells in used.values()]
    return {"levels": list(used), "rows": rows}


def _cell(used: list[float]) -> dict[str, Any] | None:
    if not used:
        return None
    value = max(used)
    depth = max(0.0, 1 + math.log10(max(value, 1e-8)) / 8) if value > 0 else 0.0  # 1e-8 of the allowance is white
    return {"text": _short(value), "over": value > 1, "percent": round(6 + 60 * depth)}


def _parameter(location: str) -> str:
    """The canonical name, or the module, that a location is about; "" for none."""
    words = location.replace(":", " ").replace(",", " ").split()
    return next((word for word in words if word.split(".")[0] in _modules()), "")


@functools.cache
def _modules() -> frozenset[str]:
    """The first words of the canonical names of weights, of all recipes."""
    return frozenset(name.split(".")[0] for recipe in RECIPES for name in recipe_for(recipe, "tiny").parameters())


def _order(name: str) -> tuple[int, int, str]:
    """The modules before the blocks, the blocks by their number, the modules behind them."""
    first, *rest = name.split(".")
    behind = ["blocks", "norm_out", "head"]
    return (
        behind.index(first) + 1 if first in behind else 0,
        int(rest[0]) if rest and rest[0].isdigit() else -1,
        name,
    )
