"""The picture of a run: loss against step."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRAIN, VAL, TARGET, FLOOR = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito's, safe for the colour-blind
SIZE_PIXELS, DPI = (1000, 625), 125
SMOOTHING = 1 / 20  # of the steps so far are averaged over
ENLARGED = 0.6  # the part of the run after which it is shown once more, enlarged
INSET = (0.42, 0.34, 0.56, 0.38)  # left, bottom, width, height, as fractions of the axes


def draw_curve(
    path: str | Path,
    steps: Sequence[float],
    losses: Sequence[float],
    eval_steps: Sequence[float],
    val_losses: Sequence[float],
    target: float | None = None,
    title: str = "",
    floor: float | None = None,
) -> None:
    """Writes a PNG with the training loss (each step's and smoothed), the val loss, a target line, and a floor line.

    Losses in nats per token; `floor` is the least that any model can reach, where it is known. Values that are not
    finite leave gaps. The last part is enlarged where there is room. Needs no display. Raises InputError where the file
    cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from parity.formats.files import atomic_file

    figure = Figure(figsize=(SIZE_PIXELS[0] / DPI, SIZE_PIXELS[1] / DPI), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    lines = [(target, "target", TARGET, "--"), (floor, "lowest possible", FLOOR, ":")]
    levels = [(level, name, colour, dashes) for level, name, colour, dashes in lines if level is not None]

    def draw(plot: Any) -> None:
        if len(steps):
            plot.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=0.8)
            plot.plot(steps, smoothed(losses), color=TRAIN, linewidth=1.6, label="training loss, smoothed")
        if len(eval_steps):
            plot.plot(eval_steps, val_losses, color=VAL, linewidth=1.2, marker="o", markersize=4, label="val loss")
        for level, name, colour, dashes in levels:
            plot.axhline(level, color=colour, linestyle=dashes, linewidth=1.4, label=f"{name} {level:g}")
        plot.grid(color="#dddddd", linewidth=0.6)
        plot.set_axisbelow(True)
        plot.spines[["top", "right"]].set_visible(False)

    draw(axes)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right")
    points = _finite(steps, losses), _finite(eval_steps, val_losses)
    if points[1]:
        step, loss = points[1][-1]
        axes.annotate(f"{loss:.3f}", (step, loss), xytext=(0, 8), textcoords="offset points", ha="center", color=VAL)
    _enlarge_end(axes, draw, points[0] + points[1], [level[0] for level in levels])
    with atomic_file(Path(path)) as file:
        FigureCanvasAgg(figure).print_png(file)


def _finite(steps: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    return [(step, loss) for step, loss in zip(steps, losses, strict=True) if abs(loss) < float("inf")]


def _enlarge_end(
    axes: Any, draw: Callable[[Any], None], points: list[tuple[float, float]], levels: list[float]
) -> None:
    """Draws the end of the run again in the empty corner above it; nothing where that corner is not empty."""
    last = max((step for step, _ in points), default=0)
    end = sorted(loss for step, loss in points if step >= ENLARGED * last)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    corner = left + (INSET[0] - 0.07) * (right - left), bottom + (INSET[1] - 0.1) * (top - bottom)
    if len(end) < 10 or any(step >= corner[0] and loss >= corner[1] for step, loss in points):
        return
    inset = axes.inset_axes(INSET)
    draw(inset)
    shown = [*end[len(end) // 50 : len(end) - len(end) // 50], *levels]  # without the few outliers
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    inset.set(xlim=(ENLARGED * last, 1.01 * last), ylim=(min(shown) - margin, max(shown) + margin))
    inset.tick_params(labelsize=8)
    inset.set_title(f"from step {ENLARGED * last:.0f} on", fontsize=9)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over the latest twentieth of the steps so far, and at least one; losses that are not finite are skipped.

    Few at the start, where the loss falls fast, so that the curve does not lag behind.
    """
    import numpy as np

    values = np.asarray(losses, float)
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    starts = ends - np.maximum(1, (ends * SMOOTHING).astype(int))
    averaged = counts[ends] - counts[starts]
    with np.errstate(invalid="ignore"):
        return np.where(averaged > 0, (totals[ends] - totals[starts]) / np.maximum(averaged, 1), np.nan).tolist()
