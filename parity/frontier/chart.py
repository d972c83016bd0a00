"""The main chart for READMEs: cost against loss, the frontier, the target, and results that others reported."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.errors import MAX_NAMED, InputError
from parity.formats.files import atomic_file
from parity.frontier.entry import Entry
from parity.frontier.scores import FrontierPoint, frontier, points
from parity.track import Track, track_for

SIZE_INCHES, DPI = (8, 5), 150
COLOURS = {"jaxrun": "#0072B2", "torchref": "#D55E00"}  # Okabe and Ito's, safe for the colour-blind
MARKERS = {"person": "o", "model": "s", "agent": "^", "unknown": "v"}
REPORTED, TARGET, FRONT = "#999999", "#009E73", "#000000"
LABELS = {
    "seconds": "training time (seconds, lower is better)",
    "steps": "optimizer steps (lower is better)",
    "tokens": "tokens trained on (lower is better)",
    "flops": "FLOPs, counted by the harness (lower is better)",
}


def draw(entries: Sequence[Entry], path: Path, track: str, axis: str, hardware: str | None = None) -> dict[str, Any]:
    """Draws a track's entries on an axis of cost into an SVG or PNG; returns the picture's path, track, axis and class
    of hardware, and the numbers of verified entries and of reported records in it.

    Raises InputError for another kind of file, and where there is nothing to draw.
    """
    if path.suffix not in (".svg", ".png"):
        raise InputError(
            f"{path}: expected a name that ends in .svg or .png, found {path.suffix or 'no ending'}: choose one"
        )
    track_drawn = track_for(track)
    name = track_drawn.name
    chosen = [entry for entry in entries if entry.track == name and entry.cost(axis) is not None]
    hardware = hardware if axis == "seconds" else None
    if axis == "seconds" and chosen:
        classes = Counter(entry.hardware for entry in chosen)
        hardware = hardware or classes.most_common(1)[0][0]
        chosen = [entry for entry in chosen if entry.hardware == hardware]
        if not chosen:
            known = sorted(classes)
            more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
            raise InputError(
                f"--hardware {hardware}: expected a class that track {name} has entries of, found none; known: "
                f"{'; '.join(known[:MAX_NAMED])}{more}"
            )
    reported = _reported(track_drawn, axis)
    if not chosen and not reported:
        raise InputError(
            f"track {name}: expected entries to draw, found none: add some with python -m parity.frontier add"
        )
    _save(_figure(track_drawn, chosen, reported, axis, hardware), path)
    numbers = {"entries": len(chosen), "reported": len(reported)}
    return {"picture": str(path), "track": name, "axis": axis, "hardware": hardware} | numbers


def _figure(
    track: Track, chosen: Sequence[Entry], reported: Sequence[tuple[float, float]], axis: str, hardware: str | None
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if reported:
        label = "reported by others, not verified here"
        axes.plot(*zip(*reported, strict=True), linestyle="", marker="x", color=REPORTED, label=label)
    for entry in chosen:
        costs, losses = _columns(points(entry, axis))
        colour, label = COLOURS[entry.backend], f"{entry.backend}, {entry.kind}"
        axes.plot(costs, losses, color=colour, alpha=0.35, linewidth=1)
        end = {"marker": MARKERS[entry.kind], "markersize": 7, "linestyle": ""}
        axes.plot(costs[-1:], losses[-1:], color=colour, label=label, **end)
    if front := frontier(chosen, axis):
        axes.step(*_columns(front), where="post", color=FRONT, linewidth=1.4, label="frontier")
    if track.target is not None:
        axes.axhline(track.target, color=TARGET, linestyle="--", linewidth=1.2, label=f"target {track.target:g}")
    axes.set(
        xscale="log",
        xlabel=LABELS[axis],
        ylabel="val loss (nats per token, lower is better)",
        title=f"Track {track.name}" + (f", {hardware}" if hardware and chosen else ""),
    )
    if axis != "flops":
        _plain_ticks(axes.xaxis)
    axes.grid(color="#dddddd", linewidth=0.6, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(reversed(labels), reversed(handles), strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, loc="upper right")
    return figure


def _columns(curve: Sequence[FrontierPoint]) -> tuple[list[float], list[float]]:
    return [point.cost for point in curve], [point.loss for point in curve]


def _plain_ticks(axis: Any) -> None:
    """Numbers on a logarithmic axis as people write them, without powers of ten."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,.10g}" if super().__call__(x, pos) else ""  # it chooses which ticks have a label

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context({"svg.hashsalt": "jaxrun"}), atomic_file(path) as file:  # one ledger, one picture, byte for byte
        if path.suffix == ".png":
            FigureCanvasAgg(figure).print_png(file)
        else:
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})


def _reported(track: Track, axis: str) -> list[tuple[float, float]]:
    """Seconds and mean final losses of the public records, for the track that they are of."""
    from parity.history.records import load

    if track.name != "small" or axis != "seconds":
        return []
    return [(record.seconds, record.loss_mean) for record in load().records if record.loss_mean is not None]
