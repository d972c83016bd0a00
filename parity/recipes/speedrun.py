"""The hyperparameters that the speedrun's recipes share: Adam, Muon on the blocks' matrices, and their schedules."""

import math
from dataclasses import dataclass
from typing import ClassVar

from parity.recipes.base import RMS_EPS, Recipe

QUINTIC = (3.4445, -4.7750, 2.0315)  # the public speedrun's Newton-Schulz coefficients


@dataclass(frozen=True)
class SpeedrunRecipe(Recipe):
    """RMS norm, rotary, capped logits; Adam for embeddings, head and small tensors, Muon for the blocks' matrices.

    A recipe states its own numbers by declaring a field again with another default.
    """

    peak_rates: ClassVar[dict[str, str]]
    """Parameter group -> the field with its peak learning rate."""

    norm_eps: float = RMS_EPS
    """Epsilon of every RMS norm."""
    rotary_base: float = 1024.0
    """The slowest rotating pair of channels rotates by about 1 / rotary_base a token."""
    logit_cap: float = 30.0
    """Largest absolute value of a logit, by a smooth cap."""
    embed_rate: float = 0.6
    """Peak learning rate of the embeddings (Adam)."""
    head_rate: float = 0.008
    """Peak learning rate of the head's weight (Adam)."""
    muon_rate: float = 0.04
    """Peak learning rate of the blocks' matrices (Muon)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averaging factors."""
    adam_eps: float = 1e-8
    """Adam's epsilon, outside the root."""
    momentum: float = 0.95
    """Muon's momentum, after its warm-up where it has one, also of Nesterov's look-ahead."""
    newton_schulz_steps: int = 5
    """Steps of the orthogonalisation."""
    newton_schulz: tuple[float, ...] = QUINTIC
    """Coefficients a, b, c of a step of the orthogonalisation."""
    cooldown: float = 0.4
    """The fraction of the run over which the learning rates fall in a line, at its end."""

    def _check_hyperparameters(self) -> None:
        self._require_positive("norm_eps", "rotary_base", "logit_cap", "adam_eps", *self.peak_rates.values())
        in_unit = all(0 <= beta < 1 for beta in self.betas)
        self._require(in_unit, "betas", "two numbers in [0, 1)", "they are averaging factors")
        self._require(0 <= self.momentum < 1, "momentum", "in [0, 1)", "it is an averaging factor")
        steps = "newton_schulz_steps"
        self._require(self.newton_schulz_steps > 0, steps, "positive", "without it nothing is orthogonalised")
        self._require(
            0 < self.cooldown <= 1, "cooldown", "in (0, 1]", "it is the fraction of the run over which rates fall"
        )

    def _require_rotary(self, multiple: int, least: int) -> None:
        fits = self.head_dim % multiple == 0 and self.head_dim >= least
        expected = f"a multiple of {multiple}, at least {least}"
        self._require(fits, "head_dim", expected, "rotary rotates pairs of channels")

    def group_betas(self, group: str) -> tuple[float, float]:
        """Adam's averaging factors for a parameter group."""
        return self.betas

    def tied_until(self, group: str) -> int:
        """The last step at which the weights of a group, first drawn alike, share the sum of their gradients; -1: they
        never do."""
        return -1

    def momentum_at(self, step: int) -> float:
        """Muon's momentum at a step."""
        return self.momentum


def spread_scale(head_dim: int, scale: float = 0.12) -> float:
    """The public programs' scale at head_dim 128, and the same spread of q k^T at other widths."""
    return scale * math.sqrt(128 / head_dim)
