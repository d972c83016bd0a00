"""A run that would take days on a CPU is refused before anything is downloaded for it."""

import pytest

from parity.errors import InputError
from parity.harness import duration
from parity.recipes import recipe_for
from parity.track import TRACKS


@pytest.mark.parametrize("name", ["small", "optimizer"])
def test_a_large_track_without_a_gpu_is_refused_with_an_estimate(name, monkeypatch):
    monkeypatch.setattr(duration, "flops_per_s", lambda: 1e11)
    with pytest.raises(InputError, match=r"would take about 18\d days .* at 100 GFLOP/s.*--force"):
        duration.check_duration(TRACKS[name], recipe_for("muon", "small"))


@pytest.mark.parametrize("scale, name", [("pocket", "pocket"), ("pocket", "pocket-optimizer"), ("tiny", "tiny")])
@pytest.mark.parametrize("recipe", ["muon", "nanogpt", "record-21"])
def test_small_runs_are_not_even_estimated(scale, name, recipe, monkeypatch):
    monkeypatch.setattr(duration, "flops_per_s", None)
    duration.check_duration(TRACKS[name], recipe_for(recipe, scale))


def test_a_fast_cpu_and_many_processes_may(monkeypatch):
    monkeypatch.setattr(duration, "flops_per_s", lambda: 1e12)
    recipe = recipe_for("muon", "small")
    with pytest.raises(InputError):
        duration.check_duration(TRACKS["small"], recipe)
    duration.check_duration(TRACKS["small"], recipe, processes=64)


def test_a_cpu_makes_between_a_billion_and_a_hundred_trillion_operations_a_second():
    assert 1e9 < duration.flops_per_s() < 1e14


def test_the_command_ends_with_2_before_it_downloads_and_force_goes_on(commands, tmp_path):
    args = ("torchref.train", "--track", "small", "--data-dir", tmp_path / "data", "--runs", tmp_path / "runs")
    offline = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    done = commands.run(*args, env=offline)
    assert done.code == 2 and "expected a GPU" in done.err and "downloading" not in done.err, done.err
    assert not list(tmp_path.iterdir())
    done = commands.run(*args, "--force", env=offline)
    assert done.code == 2 and "expected a GPU" not in done.err and "downloading" in done.err, done.err
