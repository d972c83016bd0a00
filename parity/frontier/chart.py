"""The main chart as a picture for READMEs: cost against loss, the frontier, the target, and, apart, what others reported."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.errors import MAX_NAMED, InputError
from parity.formats.files import atomic_file
from parity.frontier.entry import Entry
from parity.frontier.scores import frontier, points
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
    """Draws a track's entries on an axis of cost into an SVG or PNG; returns what it shows: numbers of verified entries and of reported
    records, and where it is.

    Raises InputError for another kind of file, and where there is nothing to draw.
    """
    if path.suffix not in (".svg", ".png"):
        raise InputError(
            f"{path}: expected a name that ends in .svg or .png, found {path.suffix or 'no ending'}: choose one"
        )
    of = track_for(track)
    chosen = [entry for entry in entries if entry.track == of.name and entry.cost(axis) is not None]
    if axis == "seconds" and chosen:
        hardware = hardware or Counter(entry.hardware for entry in chosen).most_common(1)[0][0]
        known = sorted({entry.hardware for entry in chosen})
        chosen = [entry for entry in chosen if entry.hardware == hardware]
        if not chosen:
            more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
            raise InputError(
                f"--hardware {hardware}: expected a class that track {of.name} has entries of, found none; known: "
                f"{'; '.join(known[:MAX_NAMED])}{more}"
            )
    others = _reported(of, axis)
    if not chosen and not others:
        raise InputError(
            f"track {of.name}: expected entries to draw, found none: add some with python -m parity.frontier add"
        )
    _save(_figure(of, chosen, others, axis, hardware if axis == "seconds" else None), path)
    return {
        "picture": str(path),
        "track": of.name,
        "axis": axis,
        "hardware": hardware if axis == "seconds" else None,
        "entries": len(chosen),
        "reported": len(others),
    }


def _figure(
    track: Track, chosen: Sequence[Entry], others: Sequence[tuple[float, float]], axis: str, hardware: str | None
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if others:
        axes.plot(
            *zip(*others), linestyle="", marker="x", color=REPORTED, label="reported by others, not verified here"
        )
    for entry in chosen:
        curve = points(entry, axis)
        last, colour = curve[-1], COLOURS[entry.backend]
        axes.plot(
            [point.cost for point in curve], [point.loss for point in curve], color=colour, alpha=0.35, linewidth=1
        )
        axes.plot(
            [last.cost],
            [last.loss],
            color=colour,
            marker=MARKERS[entry.kind],
            markersize=7,
            linestyle="",
            label=f"{entry.backend}, {entry.kind}",
        )
    if front := frontier(chosen, axis):
        axes.step(
            [point.cost for point in front],
            [point.loss for point in front],
            where="post",
            color=FRONT,
            linewidth=1.4,
            label="frontier",
        )
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
    named = dict(zip(reversed((shown := axes.get_legend_handles_labels())[1]), reversed(shown[0])))
    axes.legend(named.values(), named.keys(), frameon=False, loc="upper right")
    return figure


def _plain_ticks(axis: Any) -> None:
    """Numbers on a logarithmic axis as people write them, without powers of ten."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,.10g}" if super().__call__(x, pos) else ""  # which ticks have a label is its to say

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
