"""Text from weights: the same in both backends, by temperature, top-k and seed, up to the end of text."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity import program as programs
from parity import weights
from parity.harness.sampling import sample
from parity.recipes import Recipe, from_fields


class Fixed:
    """A program of three tokens whose next one is as likely after anything: 0 with 0.7, 1 with 0.2, 2 with 0.1."""

    probabilities = np.array([0.7, 0.2, 0.1])

    def log_probs(self, state: Any, inputs_BT: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.tile(np.log(self.probabilities), (len(inputs_BT), len(positions), 1))

    def fetch(self, values: np.ndarray) -> np.ndarray:
        return values


class Counting(Fixed):
    """A program that says the token after the last one it sees, and keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def log_probs(self, state: Any, inputs_BT: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.seen.append(inputs_BT.copy())
        return np.log(np.eye(20)[inputs_BT[:, positions] + 1] + 1e-9)


@pytest.fixture(scope="module")
def recipe(finished: Callable[..., Any]) -> Recipe:
    return from_fields(json.loads((finished("jaxrun").path / "run.json").read_text())["recipe"])


@pytest.fixture(scope="module")
def models(finished: Callable[..., Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The same trained weights in both backends."""
    values = weights.load(finished("jaxrun").path / "weights.safetensors")
    built = {backend: programs.build(backend, recipe, device="cpu", devices=1) for backend in programs.BACKENDS}
    return {backend: (program, program.load(values)) for backend, program in built.items()}


@pytest.mark.parametrize("choice", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "temperature": 1.0, "top_k": None}])
def test_equal_weights_and_seed_give_equal_text_in_both_backends(models, recipe, choice):
    """A float32 difference of 1e-5 in a log-probability moves a border between tokens by less than 1e-5: over 120 draws
    it is crossed once in a thousand seeds, and these are not of them."""
    texts = [sample(*model, recipe, [511], rows=3, tokens=40, **({"seed": 0} | choice)) for model in models.values()]
    assert texts[0] == texts[1]


def test_another_seed_gives_another_text(models, recipe):
    one, two = (sample(*models["torchref"], recipe, [511], rows=1, tokens=20, seed=seed) for seed in (1, 2))
    assert one != two


def test_top_k_of_one_is_temperature_zero(models, recipe):
    one = sample(*models["torchref"], recipe, [511], rows=2, tokens=20, seed=3, top_k=1)
    zero = sample(*models["torchref"], recipe, [511], rows=2, tokens=20, seed=4, temperature=0)
    assert one == zero and one[0] == one[1]


def test_tokens_are_drawn_as_often_as_they_are_likely(recipe):
    """10,000 draws: the frequency's standard error is at most 0.0046; six of them."""
    drawn = np.array(
        sample(Fixed(), None, recipe, [0], rows=500, tokens=20, seed=0, temperature=1.0, top_k=None)
    ).ravel()
    assert np.bincount(drawn, minlength=3) / len(drawn) == pytest.approx(Fixed.probabilities, abs=0.03)


def test_top_k_and_temperature_change_the_odds_as_said(recipe):
    drawn = np.array(sample(Fixed(), None, recipe, [0], rows=500, tokens=20, seed=0, temperature=0.5, top_k=2)).ravel()
    expected = np.array([0.49, 0.04, 0]) / 0.53  # squares of the two likeliest
    assert np.bincount(drawn, minlength=3) / len(drawn) == pytest.approx(expected, abs=0.03)


def test_a_text_ends_at_end_of_text_which_is_not_part_of_it(recipe):
    assert (
        sample(Counting(), None, recipe, [3], rows=2, tokens=10, seed=0, temperature=0, end_of_text=7)
        == [[4, 5, 6]] * 2
    )


def test_rows_end_each_on_their_own(recipe):
    texts = sample(Fixed(), None, recipe, [0], rows=50, tokens=30, seed=0, temperature=1.0, end_of_text=2)
    assert all(2 not in text for text in texts)
    assert len({len(text) for text in texts}) > 5


def test_the_model_sees_the_last_tokens_when_the_context_is_full(recipe):
    program = Counting()
    prompt = [1, 2] * recipe.context + [3]
    assert sample(program, None, recipe, prompt, rows=1, tokens=2, seed=0, temperature=0) == [[4, 5]]
    assert program.seen[1][0].tolist() == [*prompt, 4][-recipe.context :]


@pytest.mark.parametrize(("backend", "maker"), [("jaxrun", "torchref"), ("torchref", "jaxrun")])
def test_the_sample_command_reads_a_run_of_the_other_backend(backend, maker, commands, finished):
    args = ["--data-dir", commands.data, "--prompt", "7 8", "--tokens", "12", "--rows", "2", "--seed", "5"]
    done = commands.run(f"{backend}.sample", finished(maker).path, *args)
    texts = [text for text in done.out.split("\n\n") if text.strip()]
    assert (done.code, done.err, len(texts)) == (0, "", 2)
    assert all(text.startswith("7 8") for text in texts)


def test_both_sample_commands_write_the_same_text(commands, finished):
    args = [finished("jaxrun").path, "--data-dir", commands.data, "--tokens", "20", "--temperature", "0"]
    one, two = (commands.run(f"{backend}.sample", *args).out for backend in programs.BACKENDS)
    assert one == two and one.strip()


@pytest.mark.parametrize(
    ("option", "value"), [("--tokens", "0"), ("--rows", "0"), ("--top-k", "0"), ("--temperature", "-1")]
)
def test_an_impossible_value_is_refused(option, value, commands, finished):
    done = commands.run("torchref.sample", finished("torchref").path, option, value)
    assert done.code == 2
    assert done.err.startswith(f"error: {option}: expected at least ") and len(done.err.splitlines()) == 1
