"""What two sides are compared on: recipe, slice, batches, weights and gradients, all from one seed."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity import weights as canonical
from parity.data import stream
from parity.data.slices import Slice, prepare
from parity.errors import InputError
from parity.progress import ProgressLine
from parity.recipes import Recipe, recipe_for
from parity.track import TRACKS, Track
from parity.weights import Weights

PADDING = 16  # rows of the head above the vocabulary, so that their treatment shows
ROWS = 16  # of the batch for activations, losses and gradients
COPIES = 4  # of the weights: each program's, those that are compared from, and gradients
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
        plan = list(stream.spans(self.slice.train_lengths, self.recipe.plan, documents=self.slice.documents))
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
        spans = stream.spans(self.slice.train_lengths, self.recipe.plan, start, self.slice.documents)
        for span in itertools.islice(spans, count):
            yield stream.read_span(self.slice.train, span)


def track_of(scale: str) -> Track:
    """The track whose slice a scale is compared on."""
    return next(track for track in TRACKS.values() if track.scale == scale)


def compared_recipe(name: str, scale: str, precision: str, fields: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe as it is compared, with these fields: unless they say otherwise the head has rows of padding, whatever
    the scale."""
    fields = dict(fields or {})
    base = recipe_for(name, scale)
    if "vocab_size" not in fields and (size := fields.get("tokenizer_size", base.tokenizer_size)) >= base.vocab_size:
        fields["vocab_size"] = size + PADDING
    return dataclasses.replace(base, precision=precision, **fields)


def check_memory(recipe: Recipe) -> None:
    """Raises InputError where not even the weights, logits and scores of one block fit into this machine's memory."""
    weights = sum(math.prod(p.shape) for p in recipe.parameters().values())
    tokens = min(ROWS * recipe.context, recipe.batch_tokens)
    needed = 8 * (COPIES * weights + tokens * (recipe.vocab_size + recipe.heads * recipe.context))
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise InputError(
            f"recipe {recipe.name} with {weights:,} weights and rows of {recipe.context:,} tokens: two programs "
            f"need more than {needed / 1e9:,.0f} GB, found {available / 1e9:,.0f} GB of memory: choose smaller sizes"
        )


def open_slice(track: Track, recipe: Recipe, data_dir: Path | None) -> Slice:
    """The track's slice, prepared if it is not here yet. Its tokens may be some of the recipe's only.

    Raises InputError where they are others, or too few for the recipe's plan and the track's evaluation.
    """
    tokens = sum(segment.steps * segment.tokens for segment in recipe.plan) + 1
    opened = prepare(track.slice, data_dir, train_tokens=tokens, progress=ProgressLine())
    if opened.manifest.vocab_size > recipe.tokenizer_size:
        raise InputError(
            f"slice {track.slice} has a vocabulary of {opened.manifest.vocab_size}, found --tokenizer-size "
            f"{recipe.tokenizer_size}: choose that or more"
        )
    stream.check_plan(opened.train_lengths, recipe.plan, f"slice {track.slice}", opened.documents)
    if track.val_tokens % recipe.eval_context:
        raise InputError(
            f"--context {recipe.eval_context} does not divide the track's {track.val_tokens:,} val tokens: choose one "
            "that does"
        )
    return opened
