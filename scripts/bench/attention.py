"""record-21's attention against window and context."""

import sys
from pathlib import Path
from typing import Any

from attention_gradients import jaxrun, torchref

from bench.charts import STYLES, chart
from bench.interleaved import interleaved_calls
from bench.options import Options

WINDOWS, CONTEXTS = (1, 2, 4, 7, 10, 14), (1024, 4096, 16_384)
BATCH_TOKENS = 16_384
LONGEST_CAUSAL = 4096  # longer rows take minutes without a window


def attention(options: Options) -> dict[str, Any]:
    """Milliseconds of one layer, forward and backward, at pocket's block, heads and head_dim, on rows of some lengths:
    within documents and windows, and causal without a window. One process holds both backends."""
    import numpy as np

    from parity.recipes import recipe_for

    recipe: Any = recipe_for("record-21", "pocket")
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {"block": recipe.block, "tokens": BATCH_TOKENS, "ms": []}
    for T in CONTEXTS:
        rows = BATCH_TOKENS // T
        qkv = rng.standard_normal((3, rows, T, recipe.heads, recipe.head_dim), np.float32)
        ids_BT = np.cumsum(rng.random((rows, T)) < 1 / 600, axis=1).astype(np.int32)
        backends = {
            name: make(recipe, qkv, ids_BT, "cpu") for name, make in (("jaxrun", jaxrun), ("torchref", torchref))
        }
        for window in (*WINDOWS, *((None,) if T <= LONGEST_CAUSAL else ())):
            runs = {name: lambda run=run, window=window: run(window) for name, run in backends.items()}
            row = {"context": T, "window": window, **interleaved_calls(runs, options.turns)}
            figures["ms"].append(row)
            print(row, file=sys.stderr, flush=True)
    if options.chart:
        draw(figures, options.chart)
    return figures


def draw(figures: dict[str, Any], path: Path) -> None:
    """Milliseconds against the window for each length of a row, and against that length with and without a window."""
    block, widest = figures["block"], WINDOWS[-1]
    title = "attention of one layer of record-21 at pocket's heads, 2 CPU cores, float32: lower is better"
    with chart(path, title, 2, (11, 4)) as (by_window, by_context):
        for name, style in STYLES.items():
            for T, line in zip(CONTEXTS, ("-", "--", ":"), strict=True):
                rows = [row for row in figures["ms"] if row["context"] == T and row["window"]]
                xs = [row["window"] * block for row in rows]
                label = f"{name}, rows of {T:,}"
                by_window.plot(xs, [row[name] for row in rows], line, markersize=4, label=label, **style)
            lines = ((widest, "-", f"window of {widest * block} tokens"), (None, "--", "causal, no window"))
            for window, line, kind in lines:
                rows = [row for row in figures["ms"] if row["window"] == window]
                xs = [row["context"] for row in rows]
                label = f"{name}, {kind}"
                by_context.plot(xs, [row[name] for row in rows], line, markersize=4, label=label, **style)
        by_window.set(xlabel="window, tokens", ylabel=f"ms, forward and backward of {BATCH_TOKENS:,} tokens", ylim=0)
        ticks = {"xticks": CONTEXTS, "xticklabels": [f"{T:,}" for T in CONTEXTS]}
        by_context.set(xlabel="tokens of a row (log)", xscale="log", ylim=0, **ticks)
        by_context.minorticks_off()
        for axes in (by_window, by_context):
            axes.legend(frameon=False, fontsize=8)
