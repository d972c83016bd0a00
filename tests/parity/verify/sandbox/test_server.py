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
    ends = []
    for call in (server.step, server.update):
        state = server.init(0)
        call(state, **batch)
        ends.append(server.export(state))
    assert all((ends[1][name] == value).all() for name, value in ends[0].items())


def test_the_training_loss_is_the_one_that_a_step_reports(server: Server, batch: dict[str, np.ndarray]):
    state = server.init(0)
    assert server.training_loss(state, **batch) == pytest.approx(server.step(state, **batch)["loss"], rel=1e-6)


def test_log_probs_and_token_losses_agree(server: Server, batch: dict[str, np.ndarray]):
    state, positions = server.init(0), np.arange(32)
    rows = server.log_probs(state, batch["inputs"], positions)
    expected = -np.take_along_axis(rows, batch["targets"][..., None], axis=-1)[..., 0]
    assert np.abs(server.token_losses(state, **batch) - expected).max() < 1e-4
