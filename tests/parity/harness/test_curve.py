"""The picture of a run."""

import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from parity.errors import InputError
from parity.harness.curve import draw_curve, smoothed

STEPS = list(range(1, 201))
LOSSES = [3 + 5 / step**0.5 for step in STEPS]


def pixels(path) -> np.ndarray:
    return np.round(255 * matplotlib.image.imread(path)[..., :3]).astype(int)


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image - rgb).max(axis=-1) <= 3).any())


def test_the_picture_shows_training_loss_val_loss_and_target(tmp_path):
    draw_curve(
        tmp_path / "curve.png", STEPS, LOSSES, [0, 100, 200], [8.0, 3.6, 3.4], target=3.3, title="a run", floor=3.0
    )
    image = pixels(tmp_path / "curve.png")
    assert image.shape[0] >= 500 and image.shape[1] >= 800
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7"):
        assert has_colour(image, colour), colour


def test_a_target_that_is_not_given_is_not_drawn(tmp_path):
    draw_curve(tmp_path / "curve.png", STEPS, LOSSES, [0, 200], [8.0, 3.4])
    image = pixels(tmp_path / "curve.png")
    assert not has_colour(image, "#009E73") and not has_colour(image, "#CC79A7")


def drawn(monkeypatch, tmp_path, *args, **kwargs):
    """The figure that is drawn, instead of its file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures = []
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda self, file: figures.append(self.figure))
    draw_curve(tmp_path / "curve.png", *args, **kwargs)
    return figures[0]


def test_the_axis_has_the_range_of_the_end_and_an_inset_the_whole(monkeypatch, tmp_path):
    axes, *_ = drawn(monkeypatch, tmp_path, STEPS, LOSSES, [0, 100, 200], [8.0, 3.6, 3.4], target=3.3).axes
    bottom, top = axes.get_ylim()
    assert top - bottom < 1.2 and bottom < 3.3 < 3.6 < top < 8
    (inset,) = axes.child_axes
    assert inset.get_ylim()[1] > 8


def test_where_the_target_was_passed_and_the_seconds_are_shown(monkeypatch, tmp_path):
    seconds = [0.5 * step for step in STEPS]
    evaluations = [0, 100, 150, 200], [8.0, 3.6, 3.5, 3.4]
    figure = drawn(monkeypatch, tmp_path, STEPS, LOSSES, *evaluations, target=3.5, seconds=seconds)
    assert "target passed: step 150, 75.0 s" in {text.get_text() for text in figure.axes[0].texts}
    above = next(axes for axes in figure.axes[0].child_axes if axes.get_xlabel() == "seconds of training")
    assert above._functions[0](100.0) == pytest.approx(50.0) and above._functions[1](50.0) == pytest.approx(100.0)


@pytest.mark.parametrize("peaks", [(0.1,), (0.7, 0.004), (0.0,), (float("nan"), 0.1)])
def test_learning_rates_are_drawn_below_with_the_optimizers_name(monkeypatch, tmp_path, peaks):
    rates = {f"rate{number}": [peak * (1 - step / 200) for step in STEPS] for number, peak in enumerate(peaks)}
    optimizer = "mine:make(" + "lr=0.1, " * 20 + ")"
    figure = drawn(monkeypatch, tmp_path, STEPS, LOSSES, [200], [3.4], rates=rates, optimizer=optimizer)
    _, below = figure.axes[:2]
    assert below.get_title(loc="left").startswith("learning rates of mine:make(lr=0.1")
    assert [text.get_text() for text in below.get_legend().get_texts()] == list(rates)
    assert (below.get_yscale() == "log") == (peaks == (0.7, 0.004))


@pytest.mark.parametrize(
    ("losses", "val_losses"),
    [
        ([], []),
        ([5.0], [5.1]),
        ([5.0, float("nan"), float("inf"), 4.0], [5.1, float("nan")]),
        ([float("nan")] * 3, [float("nan")]),
        ([4.0] * 100, [4.0]),
        ([4.0] * 60 + [float("inf")] * 40, []),
    ],
)
def test_runs_that_were_short_flat_or_went_wrong_are_drawn_too(tmp_path, losses, val_losses):
    draw_curve(tmp_path / "curve.png", range(len(losses)), losses, range(len(val_losses)), val_losses, target=3.0)
    assert pixels(tmp_path / "curve.png").shape[1] >= 800


def test_smoothing_follows_the_start_and_averages_a_twentieth_of_the_steps_later():
    values = smoothed([10.0, 8.0, 6.0] + [1.0, 3.0] * 100)
    assert values[:3] == [10.0, 8.0, 6.0]
    assert values[-1] == pytest.approx(2.0)
    assert len(values) == 203


def test_smoothing_passes_over_what_is_not_finite():
    values = smoothed([2.0] * 100 + [float("nan")] + [2.0] * 5)
    assert values[100:] == [2.0] * 6


def test_a_picture_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (tmp_path / "curve.png").write_bytes(b"the last one")

    def half(self, file):
        file.write(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", half)
    with pytest.raises(InputError, match="disk is full"):
        draw_curve(tmp_path / "curve.png", STEPS, LOSSES, [], [])
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes() == b"the last one"


def test_a_picture_needs_no_display_and_importing_the_module_loads_no_matplotlib(tmp_path):
    code = (
        "import sys; from parity.harness.curve import draw_curve; assert 'matplotlib' not in sys.modules; "
        "draw_curve(sys.argv[1], [1, 2], [3.0, 2.0], [], []); assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"MPLBACKEND": "qtagg"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curve.png")], check=True, env=environment)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
