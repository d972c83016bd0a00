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
