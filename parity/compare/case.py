"""What two sides are compared on: recipe, slice, batches, weights and gradients, all from one seed."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity import weights as canonical
from parity.data import stream
from parity.data.slices import Slice
from parity.recipes import Recipe, recipe_for
from parity.track import TRACKS, Track
from parity.weights import Weights

PADDING = 16  # rows of the head above the vocabulary, so that their treatment shows
ROWS = 16  # of the batch for activations, losses and gradients
SPREAD = 0.1  # standard deviation of the noise on initial weights: no gain is 1, no bias and no projection 0


@dataclass(frozen=True, eq=False)
class Case:
    """One recipe, precision and track. `folder` is for files; `weights` and `first` replace `start` and `initial`."""

    recipe: Recipe
    track: Track
    slice: Slice
    folder: Path
    seed: int = 0
    steps: int = 20
    weights: Weights | None = None
    first: Weights | None = None
    written: dict[str, Path] = dataclasses.field(default_factory=dict)
    """weights.safetensors of a real run of each side, by its name; written before the levels that read them."""

    @functools.cached_property
    def exact(self) -> "Case":
        """The same in float64, from the very weights that this one starts with."""
        weights, first = ({name: w.astype(np.float64) for name, w in x.items()} for x in (self.start, self.initial))
        recipe = dataclasses.replace(self.recipe, precision="float64")
        return dataclasses.replace(self, recipe=recipe, weights=weights, first=first)

    @functools.cached_property
    def initial(self) -> Weights:
        """The weights that a trajectory starts with: the recipe's initial ones; `start` where it has learned factors.

        While projections are 0 a norm undoes what factors of the residual stream do, so that their exact gradient is
        zero, or of the size of a norm's epsilon, and Adam would make a step of 1e-9 of the rounding error: no two
        correct programs agree there.
        """
        if self.first is not None:
            return self.first
        learned = any(parameter.scalar for parameter in self.recipe.parameters().values())
        return self.start if learned else canonical.initial_weights(self.recipe, self.seed)

    @functools.cached_property
    def start(self) -> Weights:
        """Weights for all levels below a trajectory: those given, or the initial ones with noise.

        They are rounded as the recipe stores them, and the same for its float64 twin.
        """
        if self.weights is not None:
            return self.weights
        weights = canonical.initial_weights(self.recipe, self.seed)
        for name, w in weights.items():
            noise = canonical.generator(self.seed, f"compare:{name}").standard_normal(w.shape)
            weights[name] = canonical.round_to(w + SPREAD * noise, self.recipe.storage_dtype(name))
        return weights

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (rows, context): rows of a train batch that the seed chooses. The first row of targets
        is end of text throughout and the second row token 0, which some programs take for padding."""
        plan = list(stream.spans(self.slice.train_lengths, self.recipe.plan))
        inputs, targets = stream.read_span(self.slice.train, plan[self.seed % len(plan)])
        inputs, targets = inputs[:ROWS].copy(), targets[:ROWS].copy()
        targets[0], targets[min(1, len(targets) - 1)] = self.recipe.tokenizer_size - 1, 0
        return inputs, targets

    @property
    def dtype(self) -> type:
        """The type of arrays that go into a program."""
        return np.float64 if self.recipe.precision == "float64" else np.float32

    def gradients(self, step: int) -> Weights:
        """Gradients of global norm 3 at even steps and 0.3 at odd ones; elements over eight orders of magnitude."""
        gradients = {}
        for name, parameter in self.recipe.parameters().items():
            random = canonical.generator(self.seed, f"gradient:{step}:{name}")
            gradients[name] = random.standard_normal(parameter.shape) * 10.0 ** random.uniform(-8, 0, parameter.shape)
        norm = np.sqrt(sum(float(np.sum(g * g)) for g in gradients.values()))
        factor = (0.3 if step % 2 else 3.0) / norm
        return {name: (g * factor).astype(np.float32).astype(self.dtype) for name, g in gradients.items()}

    def matrix(self, rows: int, columns: int, norm: float) -> np.ndarray:
        """A matrix to orthogonalize, of a Frobenius norm."""
        x = canonical.generator(self.seed, f"matrix:{rows}:{columns}:{norm}").standard_normal((rows, columns))
        return (x * (norm / np.linalg.norm(x))).astype(np.float32).astype(self.dtype)

    def batches(self, start: int = 0, count: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Real train batches in the plan's order."""
        for span in itertools.islice(stream.spans(self.slice.train_lengths, self.recipe.plan, start), count):
            yield stream.read_span(self.slice.train, span)


def track_of(scale: str) -> Track:
    """The track whose slice a scale is compared on."""
    return next(track for track in TRACKS.values() if track.scale == scale)


def compared_recipe(name: str, scale: str, precision: str) -> Recipe:
    """A recipe as it is compared: with rows of padding in the head, whatever the scale."""
    recipe = dataclasses.replace(recipe_for(name, scale), precision=precision)
    if recipe.vocab_size == recipe.tokenizer_size:
        recipe = dataclasses.replace(recipe, vocab_size=recipe.vocab_size + PADDING)
    return recipe
