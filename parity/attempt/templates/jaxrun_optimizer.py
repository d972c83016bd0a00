"""An attempt in JAX at the optimizer alone, to be edited: data, batch and model are the track's.

It starts as the optimizer of the recipe `muon`. Gradients are those of the recipe's loss, the sum over the batch's
tokens.
"""

import numpy as np

from jaxrun import optim
from parity.recipes import Muon


def learning_rates(recipe: Muon, peak: float) -> np.ndarray:
    """(steps,): the learning rate at every step, level at first and then straight down to 0."""
    return np.array([peak * min(1.0, (1 - step / recipe.steps) / recipe.cooldown) for step in range(recipe.steps)])


def make(recipe: Muon):
    """An optax transform of {name: gradient}: Muon on the blocks' matrices, AdamW on the rest. Any other will do."""
    peaks = {"embed": recipe.embed_rate, "head": recipe.head_rate, "vector": recipe.vector_rate}
    groups = {
        group: optim.adamw(learning_rates(recipe, peak), recipe.betas, recipe.adam_eps, recipe.adam_decay)
        for group, peak in peaks.items()
    }
    groups["matrix"] = optim.muon(
        learning_rates(recipe, recipe.muon_rate),
        recipe.muon_decay,
        recipe.momentum,
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        recipe.dtypes.newton_schulz,
    )
    return optim.by_group(groups, {name: weight.group for name, weight in recipe.parameters().items()})
