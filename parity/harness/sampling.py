"""Sampling text from a program's log-probabilities, in numpy: equal weights give equal text in both backends."""

from typing import Any

import numpy as np

from parity.program import Program
from parity.recipes import Recipe
from parity.weights import generator


def sample(
    program: Program,
    state: Any,
    recipe: Recipe,
    prompt: list[int],
    *,
    rows: int,
    tokens: int,
    seed: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    end_of_text: int | None = None,
) -> list[list[int]]:
    """Continues a prompt (token ids, at least one) `rows` times by up to `tokens` tokens; returns only what was added.

    Each next token is drawn from softmax(log_probs / temperature) over the `top_k` most likely (temperature 0: the
    most likely). A row ends at `end_of_text`, which is not returned. The model sees the last `context` tokens.
    """
    random = generator(seed, "sampling")
    written = np.zeros((rows, len(prompt) + tokens), np.int32)
    written[:, : len(prompt)] = prompt
    alive = np.ones(rows, bool)
    lengths = np.full(rows, tokens)
    for added in range(tokens):
        end = len(prompt) + added
        window = written[:, max(0, end - recipe.context) : end]
        # Padded to one length: a causal model's answer at a position does not depend on what comes after it.
        padded = np.zeros((rows, recipe.context), np.int32)
        padded[:, : window.shape[1]] = window
        last = np.array([window.shape[1] - 1])
        log_probs_BV = np.asarray(program.fetch(program.log_probs(state, padded, last)), np.float64)[:, 0]
        drawn = [_draw(row, temperature, top_k, u) for row, u in zip(log_probs_BV, random.random(rows), strict=True)]
        written[:, end] = drawn
        ended = alive & (np.array(drawn) == (-1 if end_of_text is None else end_of_text))
        lengths[ended], alive = added, alive & ~ended
        if not alive.any():
            break
    return [row[len(prompt) : len(prompt) + length].tolist() for row, length in zip(written, lengths, strict=True)]


def _draw(log_probs_V: np.ndarray, temperature: float, top_k: int | None, u: float) -> int:
    """The token at which the cumulative probability passes u, in [0, 1); the most likely tokens come first."""
    order = np.argsort(-log_probs_V, kind="stable")[:top_k]
    if temperature == 0:
        return int(order[0])
    scaled = log_probs_V[order] / temperature
    weights = np.exp(scaled - scaled.max())
    return int(order[np.searchsorted(np.cumsum(weights) / weights.sum(), u, side="right").clip(max=len(order) - 1)])
