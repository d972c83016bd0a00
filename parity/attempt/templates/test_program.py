"""The program loads, builds at a small size and makes two steps, in seconds: `python -m pytest` with this folder."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from parity import user_program
from parity.declaration.record import read_declaration
from parity.recipes import recipe_for

FOLDER = Path(__file__).parent
SMALL = {
    "layers": 2,
    "dim": 32,
    "head_dim": 16,
    "context": 32,
    "batch_tokens": 128,
    "steps": 10,
    "window": 16,
    "val_context": 64,
}


@pytest.fixture(scope="module")
def program():
    base = recipe_for(read_declaration(FOLDER / "declaration.json").recipe, "tiny")
    if not hasattr(base, "max_len"):  # of the late records the sizes fit together, and are small enough
        base = dataclasses.replace(base, **{name: value for name, value in SMALL.items() if hasattr(base, name)})
    module = user_program.load(FOLDER / "program.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # without torch.compile, which would take longer than the test
        return user_program.build(module, user_program.make_recipe(module, base), device="cpu", devices=1)


def test_weights_have_the_names_and_shapes_of_the_recipe(program):
    found = {name: array.shape for name, array in program.export(program.init(seed=0)).items()}
    assert found == {name: weight.shape for name, weight in program.recipe.parameters().items()}


def test_two_steps_change_the_weights_and_give_finite_losses(program):
    recipe, state = program.recipe, program.init(seed=0)
    before = program.export(state)
    rows = recipe.batch_tokens // recipe.context
    tokens = np.random.default_rng(0).integers(0, recipe.tokenizer_size, (rows, recipe.context + 1), np.int32)
    for _ in range(2):
        batch = program.put_global_batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        state, metrics = program.step(state, batch)
        assert np.isfinite(program.fetch(metrics["loss"]))
    after = program.export(state)
    assert any((after[name] != before[name]).any() for name in before)
    assert all(np.isfinite(array).all() for array in after.values())
