"""Tokens/s against batch, context, width and depth."""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.charts import STYLES, chart
from bench.interleaved import VARIANTS, interleaved_steps
from bench.options import Options

AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch (rows of 256)": ("batch_tokens", (1024, 4096, 16_384)),
    "context (4,096 tokens a batch)": ("context", (256, 512, 1024, 2048, 4096)),
    "width": ("dim", (128, 256, 512)),
    "depth": ("layers", (2, 4, 8)),
}


def growth(options: Options) -> dict[str, Any]:
    """Tokens/s of both backends as one size grows, and what the model's FLOPs predict from the smallest."""
    from parity.recipes import recipe_for

    base = recipe_for(options.recipes[0], options.scale)
    variants = {"jaxrun": VARIANTS["jaxrun"], "torchref": VARIANTS["torchref eager"]}
    speeds: dict[Any, dict[str, int]] = {}  # the axes have a size in common
    figures: dict[str, Any] = {"recipe": base.name}
    for axis, (field, values) in AXES.items():
        figures[axis] = []
        for value in values:
            recipe = dataclasses.replace(base, **{field: value})
            if recipe not in speeds:
                tokens, times = interleaved_steps(options, base.name, variants, {field: value})
                speeds[recipe] = {name: round(tokens / statistics.median(s)) for name, s in times.items()}
            row = {"at": value, **speeds[recipe], "flops_per_token": recipe.model_flops_per_token()}
            figures[axis].append(row)
            print(axis, row, file=sys.stderr, flush=True)
    if options.chart:
        draw(figures, options.chart)
    return figures


def draw(figures: dict[str, Any], path: Path) -> None:
    """A chart for each size, with the line that the FLOPs predict from the smallest."""
    title = f"{figures['recipe']} at pocket's sizes but for one, 2 CPU cores, float32"
    with chart(path, title, len(AXES), (14, 3.6)) as axes:
        for each, axis in zip(axes, AXES, strict=True):
            rows = figures[axis]
            xs = [row["at"] // 256 if axis.startswith("batch") else row["at"] for row in rows]
            for name, style in STYLES.items():
                each.plot(xs, [row[name] for row in rows], label=name, **style)
            work = rows[0]["jaxrun"] * rows[0]["flops_per_token"]
            predicted = [work / row["flops_per_token"] for row in rows]
            each.plot(xs, predicted, ":", color="grey", label="as FLOPs predict")
            each.set(xscale="log", yscale="log", xlabel=axis, xticks=xs, xticklabels=[f"{x:,}" for x in xs])
            each.minorticks_off()
        axes[0].set_ylabel("tokens/s (log), higher is better")
        axes[0].legend(frameon=False)
