"""Tracks: a slice, the number of val tokens, the target loss, what is scored, and which recipe fields are fixed."""

import dataclasses
import math
from dataclasses import dataclass, replace

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
    tokens is above that on the val tokens, and how much more is allowed; None where it was not measured. `spread`: half
    the standard deviation of a baseline's final val losses between seeds, in nats; None where it was not measured.
    `reference` is where hypervolumes are measured from.
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
    spread: float | None = None
    reference: Reference | None = None


# Data, batch and architecture: the recipe fields that a track with `fixed` fixes.
FIXED_FIELDS = (
    *("tokenizer_size", "vocab_size", "dim", "layers", "head_dim", "context", "batch_tokens", "norm_eps"),
    *("attention_scale", "rotary_base", "logit_cap"),
)
RECIPE_NAMES = ("muon", "nanogpt", "record-11", "record-21", "record-40", "record-58")
POCKET = Track(
    name="pocket",
    purpose="a laptop, minutes on 2 cores",
    slice="news",
    scale="pocket",
    val_tokens=131_072,
    target=4.65,
    scored="seconds",
    recipes=RECIPE_NAMES,
    target_basis="recipe muon ends below it with every one of seeds 0 to 4 in both backends; see docs/performance.md",
    confirm_gap=(0.015, 0.06),
    spread=0.003,  # 0.0034 to 0.0092 over 3 to 5 seeds of recipe muon in both backends
    reference=Reference(math.log(4096), seconds=1000, steps=1024, tokens=2**22, flops=1e14),
)
SMALL = Track(
    name="small",
    purpose="the public track 1: 124M parameters, 8 x H100",
    slice="fineweb10B",
    scale="small",
    val_tokens=10_485_760,
    target=3.28,
    scored="seconds",
    recipes=RECIPE_NAMES,
    target_basis="the public track's",
    spread=0.00065,  # the public optimization track counts on 0.0013
    reference=Reference(math.log(50257), seconds=3600, steps=20_000, tokens=1.1e10, flops=1e19),
)
TINY = Track(
    name="tiny",
    purpose="tests: seconds on a CPU",
    slice="synthetic",
    scale="tiny",
    val_tokens=8_192,
    target=None,
    scored=None,
    recipes=RECIPE_NAMES,
    confirm_gap=(0.01, 0.05),
    spread=0.003,  # 0.0066 over 3 seeds of recipe muon in 60 steps
    reference=Reference(math.log(512), seconds=60, steps=600, tokens=1e6, flops=1e12),
)
OPTIMIZER_ONLY = {"scored": "steps", "recipes": ("muon",), "fixed": "muon"}
ALL_TRACKS = (
    POCKET,
    replace(
        POCKET,
        name="pocket-optimizer",
        purpose="optimizer research on a laptop: any optax transform or torch optimizer drops in",
        **OPTIMIZER_ONLY,
    ),
    SMALL,
    replace(
        SMALL,
        name="optimizer",
        purpose="the public optimization track: data, batch and architecture fixed",
        **OPTIMIZER_ONLY,
    ),
    replace(
        SMALL,
        name="medium",
        purpose="the public track 2 (350M): its history only",
        scale=None,
        target=2.92,
        recipes=(),
    ),
    TINY,
)
TRACKS = {track.name: track for track in ALL_TRACKS}


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
