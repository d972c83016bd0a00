"""The way to add a technique that docs/techniques.md gives: a gate on the skips, in both backends, held against each other."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from parity import parts
from parity import weights as canonical
from parity.program import build
from parity.recipes import base as recipe


@dataclass(frozen=True)
class Record55(recipe.Record21):
    """The skips of record 21 behind a learned gate."""

    name: ClassVar[str] = "record-55"
    parts: ClassVar[dict[str, str]] = recipe.Record21.parts | {"skips": "GatedUNet"}


def enter(monkeypatch):
    """What the page says to write, in place."""
    monkeypatch.setitem(
        parts.PARTS,
        "GatedUNet",
        parts.Part(
            "GatedUNet",
            "skips",
            "x + 2 sigmoid(g_i) y",
            "record 55",
            lambda recipe, place: parts.factors(recipe, f"{place}skips", *[0.0] * (recipe.layers // 2)),
            clash=parts._unet,
        ),
    )
    monkeypatch.setitem(recipe.RECIPES, "record-55", Record55)
    for backend, sigmoid in (
        ("jaxrun", lambda x: importlib.import_module("jax").nn.sigmoid(x)),
        ("torchref", lambda x: x.sigmoid()),
    ):
        module = importlib.import_module(f"{backend}.parts")

        def call(self, x_BTD, partner_BTD, i, times=module.times, sigmoid=sigmoid):
            return x_BTD + times(partner_BTD, 2 * sigmoid(self.weight[...][i]))

        method = "__call__" if backend == "jaxrun" else "forward"
        monkeypatch.setitem(module.PARTS, "GatedUNet", type("GatedUNet", (module.UNet,), {method: call}))


def test_a_part_of_ten_lines_runs_in_both_backends(monkeypatch, x64):
    """Sums of up to 512 float64 terms through some thirty layers: 1.1e-16 sqrt(512) 30 is 1e-13 of the largest."""
    enter(monkeypatch)
    for scale in ("pocket", "small"):
        base, own = recipe.recipe_for("record-21", scale), recipe.recipe_for("record-55", scale)
        assert dataclasses.asdict(own) == dataclasses.asdict(base)
    made = dataclasses.replace(recipe.recipe_for("record-55", "tiny"), precision="float64")
    start = canonical.initial_weights(made, 0)
    assert (start["skips.weight"] == 0).all()
    rng = np.random.default_rng(0)
    start = {name: w + 0.1 * rng.standard_normal(w.shape) for name, w in start.items()}
    tokens = rng.integers(0, 512, (8, 129)).astype(np.int32)
    found = []
    for backend in ("jaxrun", "torchref"):
        program = build(backend, made, device="cpu")
        batch = program.put_global_batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        found.append(program.fetch(program.loss_and_grads(program.with_step(program.load(start), 30), batch)))
    (loss, grads), (peer, peers) = found
    assert loss == pytest.approx(float(peer), rel=1e-12)
    assert all(
        np.abs(np.asarray(grads[name]) - peers[name]).max() < 1e-12 * np.abs(peers[name]).max() for name in peers
    )
    assert np.abs(peers["skips.weight"]).max() > 0


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_every_slot_is_asked_for_by_the_model(monkeypatch, backend):
    """One that is listed, and called nowhere, would be a part that does nothing."""
    module, asked = importlib.import_module(f"{backend}.parts"), set()
    original = module.part

    def watched(recipe, slot, *place):
        asked.add(slot)
        return original(recipe, slot, *place)

    for place in (module, importlib.import_module(f"{backend}.model")):
        monkeypatch.setattr(place, "part", watched)
    for name in recipe.RECIPES:
        made = recipe.recipe_for(name, "tiny")
        build(backend, made, device="cpu").load(canonical.initial_weights(made, 0))
    assert asked == parts.SLOTS.keys() - {"init"}  # the canonical weights are drawn for both backends at once
