"""The picture of a run: loss against step, the learning rates below it."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TRAIN, VAL, TARGET, FLOOR = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito's, safe for the colour-blind
RATES = ("#000000", "#56B4E9", "#E69F00", "#999999", "#F0E442")
SIZE_PIXELS, DPI = (1000, 750), 125
SMOOTHING = 1 / 20  # of the steps so far are averaged over
END = 0.6  # the part of the run after which its end begins, in the range of whose losses it is shown
LEAST_NATS = 0.5  # the range is no smaller
WHOLE = (0.6, 0.52, 0.39, 0.34)  # left, bottom, width, height of the inset of the whole run, as fractions of the axes
MOST_RATES = 8
TITLE_COLUMNS = 90


def draw_curve(
    path: str | Path,
    steps: Sequence[float],
    losses: Sequence[float],
    eval_steps: Sequence[float],
    val_losses: Sequence[float],
    target: float | None = None,
    title: str = "",
    floor: float | None = None,
    seconds: Sequence[float] = (),
    rates: Mapping[str, Sequence[float]] | None = None,
    optimizer: str = "",
) -> None:
    """Writes a PNG with the training loss (each step's and smoothed), the val loss, a target line, and a floor line.

    Losses in nats per token; `floor` is the least that any model can reach, where it is known. The axis has the range
    of the run's end; an inset shows the whole. `seconds` of training after each step are a second axis, and stand where
    the target was passed. `rates`: learning rates of each step, by name, drawn below; `optimizer` is their title.
    Values that are not finite leave gaps. Needs no display. Raises InputError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from parity.formats.files import atomic_file

    figure = Figure(figsize=(SIZE_PIXELS[0] / DPI, SIZE_PIXELS[1] / DPI), dpi=DPI, layout="constrained")
    axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1)) if rates else (figure.add_subplot(), None)
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
        _plain(plot)

    draw(axes)
    axes.set(ylabel="loss (nats per token)")
    axes.set_title("\n".join(textwrap.wrap(title, TITLE_COLUMNS)), fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower left", fontsize=9)
    points = _finite(steps, smoothed(losses)), _finite(eval_steps, val_losses)
    if points[1]:
        step, loss = points[1][-1]
        axes.annotate(f"{loss:.3f}", (step, loss), xytext=(0, 8), textcoords="offset points", ha="center", color=VAL)
    _show_end(axes, draw, points[0] + points[1], [level[0] for level in levels])
    _mark_target(axes, points[1], target, dict(zip(steps, seconds, strict=False)))
    if below is not None:
        _draw_rates(below, steps, rates or {}, optimizer)
    (below or axes).set_xlabel("step")
    if len(seconds) > 1 and seconds[-1] > seconds[0]:
        _second_axis(axes, steps, seconds)
    with atomic_file(Path(path)) as file:
        FigureCanvasAgg(figure).print_png(file)


def _plain(plot: Any) -> None:
    plot.grid(color="#dddddd", linewidth=0.6)
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)


def _finite(steps: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    return [(step, loss) for step, loss in zip(steps, losses, strict=True) if abs(loss) < float("inf")]


def _show_end(axes: Any, draw: Callable[[Any], None], points: list[tuple[float, float]], levels: list[float]) -> None:
    """Gives the axes the range of the losses at the run's end; the whole run stands above, where it does not fit."""
    last = max((step for step, _ in points), default=0)
    end = sorted(loss for step, loss in points if step >= END * last)
    if len(end) < 10:
        return
    near = [level for level in levels if end[0] - LEAST_NATS <= level <= end[-1] + LEAST_NATS]
    bottom, top = min(end[0], *near, end[-1]), max(end[-1], *near, end[0])
    missing = max(0.0, LEAST_NATS - (top - bottom)) / 2
    bottom, top = bottom - missing - 0.05 * (top - bottom), top + missing
    top += 0.5 * (top - bottom)  # for the inset
    if max(loss for _, loss in points) <= top:
        return
    axes.set_ylim(bottom, top)
    inset = axes.inset_axes(WHOLE)
    draw(inset)
    inset.tick_params(labelsize=8)
    inset.set_title("the whole run", fontsize=9)


def _mark_target(
    axes: Any, points: list[tuple[float, float]], target: float | None, seconds: Mapping[float, float]
) -> None:
    """A line at the first evaluation at or below the target, with its step and the seconds of training until then."""
    passed = [step for step, loss in sorted(points) if target is not None and loss <= target]
    if passed:
        step = passed[0]
        after = f", {seconds[step]:,.1f} s" if step in seconds else ""
        axes.axvline(step, color=TARGET, linewidth=0.9, alpha=0.7)
        axes.annotate(
            f"target passed: step {step:g}{after}",
            (step, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=TARGET,
        )


def _second_axis(axes: Any, steps: Sequence[float], seconds: Sequence[float]) -> None:
    """Seconds of training above the steps."""
    import numpy as np

    last_step, last_s = float(steps[-1]), float(seconds[-1])
    above = axes.secondary_xaxis(
        "top",
        functions=(
            lambda step: np.where(
                np.asarray(step) > last_step, np.asarray(step) * last_s / last_step, np.interp(step, steps, seconds)
            ),
            lambda s: np.where(
                np.asarray(s) > last_s, np.asarray(s) * last_step / last_s, np.interp(s, seconds, steps)
            ),
        ),
    )
    above.set_xlabel("seconds of training", fontsize=9)
    above.tick_params(labelsize=8)


def _draw_rates(axes: Any, steps: Sequence[float], rates: Mapping[str, Sequence[float]], optimizer: str) -> None:
    """Thin lines, one a learning rate, on a log axis where they are far apart."""
    for number, (name, values) in enumerate(list(rates.items())[:MOST_RATES]):
        axes.plot(steps, values, color=RATES[number % len(RATES)], linewidth=1.0, label=name,
                  linestyle="-" if number < len(RATES) else "--")  # fmt: skip
    axes.set_ylabel("rate", fontsize=9)
    axes.tick_params(labelsize=8)
    peaks = [peak for values in rates.values() if (peak := max(map(abs, values), default=0.0)) > 0]
    if peaks and max(peaks) > 10 * min(peaks):
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(peaks) / 30)
    axes.set_title(f"learning rates of {textwrap.shorten(optimizer, 70, placeholder='...')}", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)


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
