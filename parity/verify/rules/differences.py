"""Losses that must be equal, compared one by one and by their mean with its sign.

Rounding moves a loss up as often as down, so that its mean over many tokens is near 0; what a program gains by a cheat
has a sign. A single difference may therefore be as large as rounding makes it, and a mean only a few of its standard
errors.
"""

import math
from typing import NamedTuple

import numpy as np

CEILING = 100.0  # nats: a probability below 4e-44 counts as 0, however it is written (float32 ends at 1e-38)
SIGMAS = 5.0
# Nats by which one token's loss may move when it is computed in another order: a few roundings of a logit of up to 30.
ROUNDING = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2}
# Nats by which rounding may move a mean. float32: sums of up to 65,536 probabilities, sqrt(65,536) half units of 6e-8.
# bfloat16: a path that rounds logits against one that does not; log sum exp rises by half the variance of the rounding,
# which for logits of 16 to 32 is (1/8)^2 / 12.
MEAN_ROUNDING = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 1e-3}


class Mean(NamedTuple):
    """A mean of `count` values, and its standard error."""

    mean: float
    error: float
    count: int

    def is_off(self, rounding: float) -> bool:
        """Whether it is further from 0 than noise of mean 0 and rounding explain."""
        return not abs(self.mean) <= SIGMAS * self.error + rounding

    @property
    def upper(self) -> float:
        """What the true mean does not exceed, but for SIGMAS standard errors."""
        return self.mean + SIGMAS * self.error


def mean_of(values: np.ndarray) -> Mean:
    """The mean of independent values; nan where there are none."""
    values = np.ravel(values)
    if len(values) < 2:
        return Mean(float(values[0]) if len(values) else math.nan, math.inf, len(values))
    return Mean(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values))


def clipped(losses: np.ndarray) -> np.ndarray:
    """Losses in float64 with every probability of 0 written alike, so that equal ones have a difference of 0."""
    return np.minimum(np.asarray(losses, np.float64), CEILING)


def largest(differences: np.ndarray) -> float:
    """The largest absolute difference; 0 of none, nan where one is."""
    return float(np.abs(differences).max(initial=0.0))
