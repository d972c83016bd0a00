"""Tracks: a slice, the number of val tokens, the target loss, what is scored, and which recipe fields are fixed."""

import dataclasses
import math
from dataclasses import dataclass

from parity.errors import InputError, nearest
from parity.recipes import Recipe, recipe_for


@dataclass(frozen=True)
class Reference:
    """The worst corner of a track's plots, from which hypervolumes are measured: the loss of guessing every token alike
    (nats per token), and costs that no sensible attempt exceeds."""

    loss: float
    seconds: float
    steps: float
    tokens: float
    flops: float


@dataclass(frozen=True)
class Track:
    """One discipline. `target` is a val loss in nats per token; `scored` is what a lower number of wins.

    `fixed` names the recipe whose data, batch and architecture every run on the track must have; None leaves them free.
    `target_basis` says where the target comes from. `confirm_gap`: nats by which the baselines' loss on the confirm
    tokens is above that on the val tokens, and how much more is allowed; None where it was not measured. `reference` is
    where hypervolumes are measured from.
    """

    name: str
    purpose: str
    slice: str
    scale: str | None
    val_tokens: int
    target: float | None
    scored: str | None
    recipes: tuple[str, ...]
    fixed: str | None = None
    target_basis: str = ""
    confirm_gap: tuple[float, float] | None = None
    reference: Reference | None = None


FIXED_FIELDS = (
    "tokenizer_size",
    "vocab_size",
    "dim",
    "layers",
    "head_dim",
    "context",
    "batch_tokens",
    "norm_eps",
    "attention_scale",
    "rotary_base",
    "logit_cap",
    "val_every",
    "final_val_every",
)

POCKET = Reference(math.log(4096), 1000, 1024, 2**22, 1e14)
SMALL = Reference(math.log(50257), 3600, 20_000, 1.1e10, 1e19)
RECIPE_NAMES = ("muon", "nanogpt", "record-11", "record-21")
POCKET_BASIS = "recipe muon ends below it with every one of seeds 0 to 4 in both backends; see docs/performance.md"

TRACKS = {
    track.name: track
    for track in (
        Track(
            "pocket",
            "a laptop, minutes on 2 cores",
            "news",
            "pocket",
            131_072,
            4.65,
            "seconds",
            RECIPE_NAMES,
            target_basis=POCKET_BASIS,
            confirm_gap=(0.015, 0.06),
            reference=POCKET,
        ),
        Track(
            "pocket-optimizer",
            "optimizer research on a laptop: any optax transform or torch optimizer drops in",
            "news",
            "pocket",
            131_072,
            4.65,
            "steps",
            ("muon",),
            fixed="muon",
            target_basis=POCKET_BASIS,
            confirm_gap=(0.015, 0.06),
            reference=POCKET,
        ),
        Track(
            "small",
            "the public track 1: 124M parameters, 8 x H100",
            "fineweb10B",
            "small",
            10_485_760,
            3.28,
            "seconds",
            RECIPE_NAMES,
            target_basis="the public track's",
            reference=SMALL,
        ),
        Track(
            "optimizer",
            "the public optimization track: data, batch and architecture fixed",
            "fineweb10B",
            "small",
            10_485_760,
            3.28,
            "steps",
            ("muon",),
            fixed="muon",
            target_basis="the public track's",
            reference=SMALL,
        ),
        Track(
            "medium",
            "the public track 2 (350M): its history only",
            "fineweb10B",
            None,
            10_485_760,
            2.92,
            "seconds",
            (),
            target_basis="the public track's",
            reference=SMALL,
        ),
        Track(
            "tiny",
            "tests: seconds on a CPU",
            "synthetic",
            "tiny",
            8_192,
            None,
            None,
            RECIPE_NAMES,
            confirm_gap=(0.01, 0.05),
            reference=Reference(math.log(512), 60, 600, 1e6, 1e12),
        ),
    )
}


def track_for(name: str) -> Track:
    """The track of a name; InputError with the nearest name that can be run for an unknown one."""
    if name not in TRACKS:
        raise InputError(
            f"unknown track {name!r}; {nearest(name, (track.name for track in TRACKS.values() if track.recipes))}"
        )
    return TRACKS[name]


def default_recipe(track: Track, name: str | None) -> Recipe:
    """The recipe `name` (default: the track's first) at the track's scale; InputError where the track has none."""
    if track.scale is None:
        raise InputError(f"track {track.name} has a public history but no recipe yet: choose --track pocket or small")
    name = name or track.recipes[0]
    recipe = recipe_for(name, track.scale)
    if name not in track.recipes:
        raise InputError(
            f"track {track.name} runs {' or '.join(track.recipes)}, found --recipe {name}: "
            "its architecture is fixed; choose --track pocket or small for another"
        )
    return recipe


def check_recipe(track: Track, recipe: Recipe) -> None:
    """Raises InputError where the recipe changes what the track fixes."""
    if track.fixed is None or track.scale is None:
        return
    pinned = recipe_for(track.fixed, track.scale)
    for field in dataclasses.fields(pinned):
        if field.name in FIXED_FIELDS and getattr(recipe, field.name) != getattr(pinned, field.name):
            option = "--" + field.name.replace("_", "-")
            raise InputError(
                f"track {track.name} fixes {option} at {getattr(pinned, field.name)}, found "
                f"{getattr(recipe, field.name)}: data, batch and architecture are the same for all its runs"
            )
