"""The way to add a technique that CONTRIBUTING.md gives: a model file a backend and a recipe, held against each
other."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import RECIPES, Record21, from_fields, recipe_for, to_fields
from parity.recipes.record_11 import learned_scalars

pytestmark = pytest.mark.usefixtures("x64")


@dataclass(frozen=True)
class Record55(Record21):
    """The skips of record 21 behind a learned gate: x + 2 sigmoid(g_i) y."""

    name: ClassVar[str] = "record-55"

    def parameters(self):
        return super().parameters() | learned_scalars("skips", *[0.0] * (self.layers // 2))


def gated_model(backend: str) -> type:
    """The model of record 21 with gated skips: the only thing that is written for each backend."""
    layers = importlib.import_module(f"{backend}.layers")
    model = importlib.import_module(f"{backend}.models.record_21").Model
    sigmoid = pytest.importorskip("jax").nn.sigmoid if backend == "jaxrun" else pytest.importorskip("torch").sigmoid

    def skip(self, x_BTD, outputs, i):
        return x_BTD + layers.scale_by(outputs[-1 - i], 2 * sigmoid(self.weight[...][i]))

    method = "__call__" if backend == "jaxrun" else "forward"
    gate = type("GatedSkips", (layers.SkipConnections,), {method: skip})

    class Model(model):
        def __init__(self, recipe):
            super().__init__(recipe)
            self.skips = gate(recipe.layers // 2, recipe.dtypes)

    return Model


@pytest.fixture
def registered(monkeypatch):
    """The recipe and its models under their names."""
    monkeypatch.setitem(RECIPES, "record-55", Record55)
    for backend in ("jaxrun", "torchref"):
        monkeypatch.setitem(importlib.import_module(f"{backend}.models").MODELS, "record-55", gated_model(backend))


def test_a_recipe_that_derives_from_another_has_its_sizes(registered):
    for scale in ("pocket", "small"):
        base, derived = recipe_for("record-21", scale), recipe_for("record-55", scale)
        assert dataclasses.asdict(derived) == dataclasses.asdict(base)
    assert from_fields(to_fields(derived)) == derived


def test_a_technique_of_ten_lines_runs_in_both_backends(registered):
    """Sums of up to 512 float64 terms through some thirty layers: 1.1e-16 sqrt(512) 30 is 1e-13 of the largest."""
    recipe = dataclasses.replace(recipe_for("record-55", "tiny"), precision="float64")
    start = canonical.initial_weights(recipe, 0)
    assert (start["skips.weight"] == 0).all()
    rng = np.random.default_rng(0)
    start = {name: w + 0.1 * rng.standard_normal(w.shape) for name, w in start.items()}
    tokens = rng.integers(0, 512, (8, 129)).astype(np.int32)
    results = []
    for backend in ("jaxrun", "torchref"):
        program = build(backend, recipe, device="cpu")
        batch = program.put_global_batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        results.append(program.fetch(program.loss_and_grads(program.with_step(program.load(start), 30), batch)))
    (loss, grads), (torch_loss, torch_grads) = results
    assert loss == pytest.approx(float(torch_loss), rel=1e-12)
    for name, expected in torch_grads.items():
        assert np.abs(np.asarray(grads[name]) - expected).max() < 1e-12 * np.abs(expected).max(), name
    assert np.abs(torch_grads["skips.weight"]).max() > 0
