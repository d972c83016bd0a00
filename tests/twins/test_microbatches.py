"""Microbatches give the gradient of the whole batch, in both backends."""

import dataclasses

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import recipe_for


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize("name", ["muon", "nanogpt"])
def test_loss_and_gradients_do_not_depend_on_microbatches(backend, name, x64):
    """Float64 sums of 16 rows in another order."""
    recipe = dataclasses.replace(
        recipe_for(name, "tiny"), precision="float64", layers=2, dim=32, head_dim=16, context=32, batch_tokens=512
    )
    tokens = np.random.default_rng(0).integers(0, 500, (2, 16, 32)).astype(np.int32)
    found = []
    for count in (1, 4):
        program = build(backend, recipe, device="cpu", microbatches=count)
        state = program.load(canonical.initial_weights(recipe, 0))
        loss, grads = program.fetch(program.loss_and_grads(state, program.put_global_batch(*tokens)))
        _, metrics = program.step(state, program.put_global_batch(*tokens))
        found.append((loss, float(program.fetch(metrics["loss"])), grads))
    for loss, mean, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-13) and mean == pytest.approx(found[0][1], rel=1e-13)
        for key, grad in grads.items():
            np.testing.assert_allclose(
                grad, found[0][2][key], rtol=0, atol=1e-12 * max(1.0, np.abs(found[0][2]["embed.weight"]).max())
            )
