"""Charts of the figures, by matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STYLES = {"jaxrun": {"color": "#0072b2", "marker": "o"}, "torchref": {"color": "#d55e00", "marker": "s"}}


@contextmanager
def chart(path: Path, title: str, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """The axes of a figure with so many charts side by side, which is written when this is left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size, constrained_layout=True)
    yield axes
    for each in axes:
        each.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
