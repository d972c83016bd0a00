"""Microbatches give the gradient of the whole batch, in both backends."""

import dataclasses

import numpy as np
import pytest

from parity import weights as canonical
from parity.errors import InputError
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
    results = []
    for count in (1, 4):
        program = build(backend, recipe, device="cpu", microbatches=count)
        state = program.load(canonical.initial_weights(recipe, 0))
        loss, grads = program.fetch(program.loss_and_grads(state, program.put_global_batch(*tokens)))
        _, metrics = program.step(state, program.put_global_batch(*tokens))
        results.append((loss, float(program.fetch(metrics["loss"])), grads))
    (loss, mean, grads), (expected_loss, expected_mean, expected_grads) = results[1], results[0]
    assert loss == pytest.approx(expected_loss, rel=1e-13) and mean == pytest.approx(expected_mean, rel=1e-13)
    tolerance = 1e-12 * max(1.0, np.abs(expected_grads["embed.weight"]).max())
    for name in grads:
        np.testing.assert_allclose(grads[name], expected_grads[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_microbatches_that_do_not_divide_a_batch_are_refused(backend):
    program = build(backend, recipe_for("muon", "tiny"), device="cpu", microbatches=4)
    tokens = np.zeros((2, 6, 64), np.int32)
    with pytest.raises(InputError, match="--microbatches 4: expected a divisor of the 6 rows that a device has"):
        program.loss_and_grads(program.init(0), program.put_global_batch(*tokens))
