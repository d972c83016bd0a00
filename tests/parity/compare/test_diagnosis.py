"""The reasons that a report gives for programs that show no activations, and of which no single mistake is known."""

import pytest

WITHOUT_ACTIVATIONS = """
import dataclasses
from parity.compare.faults.catalogue import FAULTS
from parity.compare.faults.plant import planted
from parity.program import build as built

class Program:
    def __init__(self, recipe):
        fault = FAULTS.get({fault!r})
        recipe = fault.changed(recipe) if fault else recipe
        self.whole, self.fault = built("torchref", dataclasses.replace(recipe, **{fields}), device="cpu"), fault
    def load(self, weights):
        return self.whole.load(weights)
    def put_global_batch(self, inputs, targets):
        return self.whole.put_global_batch(inputs, targets)
    def token_losses(self, state, batch):
        if self.fault is None:
            return self.whole.token_losses(state, batch) {change}
        with planted(self.fault, "torchref"):
            return self.whole.token_losses(state, batch)

def build(recipe):
    return Program(recipe)
"""

SMALL = "--dim", "32", "--layers", "2", "--batch-tokens", "512"


@pytest.fixture
def reasons(compare, tmp_path):
    """The reasons of a report about a program without activations, at level 4."""

    def get(*options, fault=None, fields=None, change="", recipe="nanogpt"):
        path = tmp_path / "program.py"
        path.write_text(WITHOUT_ACTIVATIONS.format(fault=fault, fields=fields or {}, change=change))
        result = compare("--a", path, "--recipe", recipe, "--levels", "forward,loss", *SMALL, *options)
        assert result.code == 1 and "FAILS at level 4, loss (token losses)" in result.out, result.out or result.err
        return " ".join(result.out.partition("  why ")[2].split())

    return get


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("nanogpt", "norm-eps-1e-6"),
        ("nanogpt", "attention-scale-missing"),
        ("nanogpt", "position-from-1"),
        ("muon", "rotary-pairs"),
    ],
)
def test_faults_of_the_forward_pass_are_named_by_the_losses_alone(reasons, recipe, fault):
    assert f"with the mistake {fault} planted in torchref they agree" in reasons(fault=fault, recipe=recipe)


def test_the_form_of_gelu_is_named_in_either_direction(reasons):
    for option, port in (("exact", "tanh"), ("tanh", "exact")):
        assert "the mistake gelu-tanh planted in" in reasons("--gelu", option, fields={"gelu": port})


def test_a_known_mistake_in_another_amount_is_guessed(reasons):
    assert "perhaps, in another amount or sign: the norms' epsilon is 1e-6" in reasons(fields={"norm_eps": 2e-5})


def test_a_mistake_that_explains_most_of_a_difference_is_guessed(reasons):
    said = reasons(fields={"norm_eps": 1e-6, "gelu": "tanh", "tokenizer_size": 528})
    assert "perhaps, beside another: rows above the tokenizer's take part in the softmax" in said


@pytest.mark.parametrize("change", ["+ 1e-6", "* (1 + 1e-6)", "+ 1e-9 * (batch[1] % 7)"])
def test_mistakes_with_effects_of_another_size_are_not_guessed(reasons, change):
    said = reasons(change=change)
    assert "perhaps" not in said and "level forward was not judged in full" in said
