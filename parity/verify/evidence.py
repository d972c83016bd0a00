"""Opens a run directory, trusting nothing: sizes bounded, nothing unpickled or run, every problem a sentence."""

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.formats import schemas, source_zip
from parity.formats.files import plain_files
from parity.formats.folder_lock import holder
from parity.program import BACKENDS
from parity.recipes import RECIPES, Recipe, from_fields
from parity.track import TRACKS, Track
from parity.verify.log import Log, read_log
from parity.verify.weights_file import read_weights
from parity.weights import Weights

MAX_STEPS, MAX_LAYERS, MAX_NUMBER = 10_000_000, 4096, 1 << 32
# No more is read: 64 MB and 4 times a recipe's weights in float64; of a checkpoint 192 MB and twice all that.
WEIGHTS_BYTES, OWN_WEIGHTS, CHECKPOINT_BYTES, STATES, CHECKPOINT_FILES = 64 << 20, 4, 192 << 20, 2, 10_000
CHANGED, OTHER_VERSION = "the file was changed", "verify it with the version that made it"


@dataclass
class Evidence:
    """What a run directory holds. `recipe`: where it is one of ours; of a user program, the one it was made from."""

    path: Path
    run: dict[str, Any]
    track: Track
    log: Log
    recipe: Recipe | None

    @property
    def backend(self) -> str:
        return self.run["backend"]

    @property
    def user_program(self) -> dict[str, Any] | None:
        """The file of a user program, as run.json has it; None for a recipe of ours."""
        return self.run.get("program")

    @property
    def optimizer(self) -> str | None:
        """A user optimizer, as module:function."""
        return self.run.get("options", {}).get("optimizer")

    @property
    def has_user_code(self) -> bool:
        """Whether code runs in it that is not this project's."""
        return bool(self.user_program or self.optimizer)

    @property
    def was_compiled(self) -> bool:
        """Whether the run started compilers, or was made with --compile. XLA is part of JAX and does not count."""
        return bool(self.log.compilers or self.run.get("options", {}).get("compile"))

    @property
    def steps(self) -> int:
        return sum(segment["steps"] for segment in self.run["plan"])

    @property
    def eval_context(self) -> int:
        """Tokens of a row in evaluation."""
        return int(self.run.get("val_row", self.context))

    @property
    def context(self) -> int:
        """Tokens of a row at the end of the training."""
        return int(self.run["plan"][-1]["seq_len"])

    @property
    def precision(self) -> str:
        return self.run["precision"]

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoint_files(self, folder: Path) -> dict[str, int]:
        """The files of a checkpoint's folder and their sizes in bytes: plain files, neither they nor the folder linked.

        Raises InputError for anything else, and for more bytes than weights and optimizer state take; OSError.
        """
        if folder.parent.is_symlink():
            raise InputError(f"{folder.parent}: expected a folder, found a link: put back what was saved")
        return plain_files(folder, CHECKPOINT_FILES, CHECKPOINT_BYTES + STATES * self.weights_bytes)

    @cached_property
    def weights_bytes(self) -> int:
        """The most bytes that the final weights are expected to take: a user program may have more than its recipe."""
        recipe = self.recipe
        count = sum(math.prod(weight.shape) for weight in recipe.parameters().values()) if recipe else 0
        return WEIGHTS_BYTES + 8 * OWN_WEIGHTS * count

    @cached_property
    def source(self) -> dict[str, bytes]:
        """Names and contents of source.zip; InputError for one that is damaged, too large, or reaches outside."""
        return source_zip.read(self.path / "source.zip")

    @cached_property
    def final_weights(self) -> Weights:
        return read_weights(self.path / "weights.safetensors", self.weights_bytes)


def logged_float(value: Any) -> float:
    """A logged number; nan where it is none, as for the log's words nan and inf."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def open_run(path: Path) -> Evidence:
    """Reads run.json and the log of a run directory.

    Raises InputError where it is no run directory, of an unknown version or track, or a run that has not ended.
    """
    path = Path(path)
    remedy = "name a directory that a training command made"
    if not path.is_dir():
        kind = "a file" if path.exists() else "nothing"
        raise InputError(f"{path}: expected a run directory, found {kind} there: {remedy}")
    file = path / "run.json"
    if not os.path.lexists(file):
        raise InputError(f"{path} is not a run directory: expected run.json in it, found none: {remedy}")
    run = schemas.read(file, "run.v1", "the run.json of a run", CHANGED, plain=True)
    recipe = _checked_recipe(file, run)
    if pid := holder(path):
        raise InputError(
            f"{path}: expected a run that has ended, found one that is still running (pid {pid}): wait for "
            "its end, or stop it"
        )
    return Evidence(path, run, TRACKS[run["track"]], read_log(path / "log.jsonl"), recipe)


def _checked_recipe(file: Path, run: dict[str, Any]) -> Recipe | None:
    """The recipe of a run.json, after the checks that its schema leaves out; InputError where one fails."""
    backend, options, track = run["backend"], run.get("options", {}), run["track"]
    if backend not in BACKENDS:
        raise InputError(f"{file}: expected backend {' or '.join(BACKENDS)}, found {backend[:40]!r}: {CHANGED}")
    if not isinstance(options, dict):
        raise InputError(f"{file}: expected options by name, found {type(options).__name__}: {CHANGED}")
    if track not in TRACKS:
        raise InputError(f"{file}: expected track {', '.join(TRACKS)}, found {track[:60]!r}: {OTHER_VERSION}")
    base = run["program"]["base"] if run.get("program") else run["recipe"]
    try:
        recipe = from_fields(base) if base["name"] in RECIPES else None
    except (InputError, TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: expected a recipe of this version, found one that it cannot build ({str(error)[:200]!r}): "
            f"{OTHER_VERSION}"
        ) from None
    if sum(segment["steps"] for segment in run["plan"]) > MAX_STEPS or (recipe and _is_too_large(recipe)):
        raise InputError(
            f"{file}: expected a plan of at most {MAX_STEPS:,} steps and a model of at most {MAX_LAYERS:,} layers, "
            f"found more: {CHANGED}"
        )
    return recipe


def _is_too_large(recipe: Recipe) -> bool:
    numbers = [value for value in vars(recipe).values() if isinstance(value, int)]
    return recipe.layers > MAX_LAYERS or recipe.steps > MAX_STEPS or max(numbers) > MAX_NUMBER
