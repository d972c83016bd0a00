"""The optimizer loads and makes two steps of a small model, in seconds: `python -m pytest` with this folder."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from parity.declaration.record import read_declaration
from parity.program import build
from parity.recipes import recipe_for

FOLDER = Path(__file__).parent
SMALL = {"layers": 2, "dim": 32, "head_dim": 16, "context": 32, "batch_tokens": 128, "steps": 10}


def test_two_steps_change_the_weights_and_give_finite_losses(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "optimizer", raising=False)
    declaration = read_declaration(FOLDER / "declaration.json")
    recipe = dataclasses.replace(recipe_for(declaration.recipe, "tiny"), **SMALL)
    program = build(declaration.backend, recipe, device="cpu", devices=1, optimizer="optimizer:make")
    state = program.init(seed=0)
    before = program.export(state)
    assert before.keys() == recipe.parameters().keys()
    tokens = np.random.default_rng(0).integers(0, recipe.tokenizer_size, (4, recipe.context + 1), np.int32)
    for _ in range(2):
        batch = program.put_global_batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        state, metrics = program.step(state, batch)
        assert np.isfinite(program.fetch(metrics["loss"]))
    after = program.export(state)
    assert any((after[name] != before[name]).any() for name in before)
    assert all(np.isfinite(array).all() for array in after.values())
