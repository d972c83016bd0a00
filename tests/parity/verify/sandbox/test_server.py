"""The calls that a sandboxed process answers, made in this process."""

import dataclasses

import numpy as np
import pytest

from parity.recipes import recipe_for, to_fields
from parity.verify.sandbox.server import Server

SIZES = {"layers": 1, "dim": 32, "head_dim": 16, "context": 32, "batch_tokens": 128}


@pytest.fixture
def server() -> Server:
    server = Server()
    recipe = dataclasses.replace(recipe_for("muon", "tiny"), **SIZES)
    server.build("torchref", to_fields(recipe), None, None, "cpu")
    return server


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    inputs, targets = np.random.default_rng(0).integers(0, 512, (2, 4, 32))
    return {"inputs": inputs, "targets": targets}


def test_a_step_is_the_update_by_the_gradient_of_its_batch(server: Server, batch: dict[str, np.ndarray]):
    stepped, updated = server.init(0), server.init(0)
    server.step(stepped, **batch)
    server.plain_update(updated, server.plain_gradient(updated, **batch)["grads"])
    end = server.plain_weights(updated)
    assert all((end[name] == value).all() for name, value in server.export(stepped).items())


def test_several_steps_in_one_call_are_those_of_single_calls(server: Server, batch: dict[str, np.ndarray]):
    singly, together = server.init(0), server.init(0)
    metrics = [server.step(singly, **batch) for _ in range(3)]
    assert server.steps(together, *(np.stack([array] * 3) for array in batch.values())) == metrics
    assert server.digest(singly) == server.digest(together)


def test_scoring_takes_a_third_of_the_flops_of_a_step_at_most(server: Server, batch: dict[str, np.ndarray]):
    counts = server.flops(server.init(0), **batch)
    assert 0 < counts["evaluation"] < counts["step"] / 3


def test_the_training_loss_is_the_one_that_a_step_reports(server: Server, batch: dict[str, np.ndarray]):
    state = server.init(0)
    assert server.training_loss(state, **batch) == pytest.approx(server.step(state, **batch)["loss"], rel=1e-6)


def test_log_probs_and_token_losses_agree(server: Server, batch: dict[str, np.ndarray]):
    state, positions = server.init(0), np.arange(32)
    rows = server.log_probs(state, batch["inputs"], positions)
    expected = -np.take_along_axis(rows, batch["targets"][..., None], axis=-1)[..., 0]
    assert np.abs(server.token_losses(state, **batch) - expected).max() < 1e-4
