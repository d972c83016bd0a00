"""Level 4: losses of tokens, their reduction, log-probabilities, and rounding to 8 bits in the head."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from parity import weights as canonical
from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import half_trained

PROBED = 4  # rows whose log-probabilities are all read


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Losses and log-probabilities of tokens, the probability of rows of padding, 8-bit products, the reduction."""
    recipe = case.recipe
    state, batch = half_trained(program, case), program.put(case.batch)
    shape, bound = case.batch[1].shape, bounds.losses(recipe)
    if program.has("token_losses"):
        losses = program.array(program.token_losses(state, batch), "token losses", shape)
        yield Observation("token losses", "token_losses", losses, bound, axes=("row", "position"))
    if program.has("log_probs"):
        yield from _log_probs(program, case, state)
    if hasattr(recipe, "fp8_scales") and program.has("fp8_matmul"):
        yield from _eight_bits(program, case)
    if program.has("loss_and_grads"):
        loss = program.array(program.loss_and_grads(state, batch)[0], "the loss", ())
        bound = bounds.losses(recipe, shape[0] * shape[1])
        yield Observation("reduction", f"{recipe.loss_reduction} over the batch", loss, bound, single=True)


def _log_probs(program: Guarded, case: Case, state: Any) -> Iterator[Observation]:
    recipe, inputs, bound = case.recipe, case.batch[0][:PROBED], bounds.losses(case.recipe)
    log_probs = program.log_probs(state, inputs)
    log_probs = program.array(log_probs, "log_probs", (*inputs.shape, recipe.vocab_size))
    axes = ("row", "position", "token")
    yield Observation("log-probabilities", "log_probs", log_probs[..., : recipe.tokenizer_size], bound, axes=axes)
    padding = np.exp(log_probs[..., recipe.tokenizer_size :]).sum(axis=-1)
    location = "probability of the rows above the tokenizer's"
    yield Observation("padding", location, padding, bound, scale=1.0, axes=axes[:2])


def _eight_bits(program: Guarded, case: Case) -> Iterator[Observation]:
    """Rounding of x, the weight and the gradient to 8 bits: products with a diagonal sum nothing, and are facts."""
    recipe: Any = case.recipe
    d = recipe.dim
    random = canonical.generator(case.seed, "8 bits")
    x, weight, dy = (random.standard_normal((d, d)).astype(np.float32) * np.float32(size) for size in (1.0, 0.05, 1.0))
    # a scale that is too small loses the smallest gradients
    dy *= 10 ** random.uniform(-6, 0, (d, d)).astype(np.float32)
    diagonal = 0.5 * np.eye(d, dtype=np.float32)  # a weight of 1 would be beyond e4m3
    for name, operands, not_exact in (
        ("x and gradient", (x, diagonal, dy), "dweight"),
        ("weight and gradient", (diagonal, weight, dy), "dx"),
    ):
        for product, value in program.fp8_matmul(*operands).items():
            if product != not_exact:
                found = np.asarray(program.fetch(value), np.float32)
                yield Observation("8 bits", f"{product} of {name}", found, bounds.eight_bits(recipe))
    if recipe.dtypes.fp8 and recipe.fp8 and program.has("loss_and_grads"):
        yield _gradients_behind_a_small_head(program, case, recipe.fp8_scales[1])


def _gradients_behind_a_small_head(program: Guarded, case: Case, scale: float) -> Observation:
    """e4m3 rounds values below 2^-10 to 0: where training really uses 8 bits, no gradient comes through such a head."""
    small = np.full_like(case.start["head.weight"], 2.0**-11 / scale)
    state = program.load(case.start | {"head.weight": small})
    _, gradients = program.loss_and_grads(state, program.put(case.batch))
    others = (g for name, g in sorted(program.fetch(gradients).items()) if name != "head.weight")
    largest = np.array([np.abs(np.asarray(g, np.float32)).max() for g in others], np.float32)
    location = "largest gradients behind a head that 8 bits round to 0"
    return Observation("8 bits", location, largest, axes=("weight",))
