"""How much two correct programs may differ in float64: derived from the number of roundings, never tuned.

A value behind n roundings, each off by at most u = 2^-53 with a sign that is as good as random, is off by at most
lambda sqrt(n) u with probability 1 - 2 exp(-lambda^2 / 2) (Higham and Mary, SIAM J. Sci. Comput. 41 (2019) A2815); two
programs differ by at most the sum of their errors. lambda = 8 leaves 3e-14 for a false positive. n is counted along the
longest chain of additions and multiplications that leads to a value; errors are relative to the array's largest value.
Where an operation amplifies errors by more than its inputs' relative error, the factor is stated.
"""

import math
from dataclasses import dataclass
from typing import Any

from parity.recipes import Recipe

UNIT = 2.0**-53
LAMBDA = 8.0
TRAJECTORY = 1e-10


@dataclass(frozen=True)
class Bound:
    """An allowance for a relative difference, and where it comes from."""

    allowed: float
    basis: str


def rounding(roundings: float, amplified: float = 1.0, why: str = "") -> Bound:
    """The bound for a value behind so many roundings, errors amplified by a factor because of `why`."""
    allowed = 2 * LAMBDA * math.sqrt(roundings) * UNIT * amplified
    factor = f" x {amplified:,.0f} ({why})" if amplified != 1 else ""
    return Bound(allowed, f"{roundings:,.0f} roundings{factor}")


def block(recipe: Recipe) -> int:
    """Roundings through a block: two norms, four products, scores, softmax and the weighted sum over the context."""
    norms, products = 2 * (recipe.dim + 4), 3 * (recipe.dim + 1) + 4 * recipe.dim + 1
    attention = 2 * (recipe.head_dim + 8) + recipe.head_dim + 2 * recipe.context
    return norms + products + attention + 10


def forward(recipe: Recipe, blocks: int) -> Bound:
    """Activations in or behind so many blocks."""
    return rounding(8 + recipe.dim + blocks * block(recipe))


def logits(recipe: Recipe) -> float:
    """Roundings up to the logits."""
    return recipe.layers * block(recipe) + 3 * recipe.dim + 16


def losses(recipe: Recipe, summed: int = 0) -> Bound:
    """Losses of single tokens, or `summed` of them together."""
    return rounding(logits(recipe) + recipe.vocab_size + 4 + summed)


def gradients(recipe: Recipe, tokens: int) -> Bound:
    """Gradients: forward, two products backward for every one forward, and the sum over a batch's tokens."""
    return rounding(3 * (logits(recipe) + recipe.vocab_size) + tokens)


def eight_bits(recipe: Any) -> Bound | None:
    """A product of numbers that were rounded to 8 bits, of one term each, divided by its scales: exact where these are
    powers of 2; otherwise two float32 roundings in each backend."""
    if all(math.frexp(scale)[0] == 0.5 for scale in recipe.fp8_scales):
        return None
    return Bound(4 * 2.0**-24, "the division by a scale that is no power of 2")


def update(recipe: Recipe, steps: int = 1) -> Bound:
    """Moments after so many updates from equal gradients: 30 roundings a step, and the norm where the recipe clips."""
    norm = sum(math.prod(p.shape) for p in recipe.parameters().values()) if hasattr(recipe, "clip_norm") else 0
    return rounding(norm + 30 * steps)


def updated(recipe: Any, steps: int, group: str, shape: tuple[int, ...], largest: float) -> Bound:
    """A weight of an optimizer group after so many updates from equal gradients; `largest` is its largest element.

    Muon moves it by rate x sqrt(rows / columns) x a matrix of elements up to 1, whose error is the orthogonalization's.
    NorMuon divides its rows by their size, none of which is below a quarter of their mean where it is orthogonal.
    """
    bound = update(recipe, steps)
    if "Muon" not in recipe.optimizers[group]:
        return bound
    orthogonal = orthogonalization(recipe, recipe.newton_schulz_steps)
    rates = sum(recipe.learning_rates(step)[group] for step in range(steps))
    equalized = 4.0 if "NorMuon" in recipe.optimizers[group] else 1.0
    moved = rates * max(1.0, shape[-2] / shape[-1]) ** 0.5 * equalized / largest
    return Bound(bound.allowed + orthogonal.allowed * moved, f"{orthogonal.basis}, moved by {moved:.2g} of the weight")


def decay(recipe: Recipe) -> Bound:
    """What decay takes from a weight in one step, as the difference of two weights."""
    rates = recipe.learning_rates(0)
    parts = [
        rate * (recipe.group_weight_decay(group) or recipe.cautious_decay(group, 0)) for group, rate in rates.items()
    ]
    if not any(parts):
        return rounding(8)
    return rounding(8, 1 / min(part for part in parts if part), "a step takes so small a part of a weight")


def orthogonalization(recipe: Any, step: int) -> Bound:
    """A matrix after so many Newton-Schulz steps, each of which multiplies the smallest singular values by a."""
    slopes = recipe.newton_schulz[::3]
    growth = math.prod(slopes[i] if i < len(slopes) else slopes[0] for i in range(step))
    grow = f"{slopes[0]:g}-fold a step" if len(slopes) == 1 else f"{growth:.4g}-fold in {step} steps"
    return rounding(4 * recipe.dim * (2 + 3 * step), growth, f"small singular values grow {grow}")


def trajectory() -> Bound:
    """Losses and weights of a trained program: the project's own definition of the same experiment."""
    return Bound(TRAJECTORY, "float64 trajectories are the same experiment to 1e-10")
