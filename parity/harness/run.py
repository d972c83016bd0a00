"""A run: what it is, what it writes, and how far it is."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from parity.data.slices import Slice
from parity.data.stream import spans
from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.harness.clock import TrainingClock
from parity.harness.evaluation import largest_batch
from parity.harness.guard import Guard
from parity.harness.options import Options
from parity.harness.processes import ProcessGroup
from parity.harness.rundir import RunDir
from parity.harness.runlog import NoLog, RunLog, read
from parity.harness.screen import Screen
from parity.program import Program
from parity.recipes import Recipe, to_fields
from parity.track import Track

EVAL_TOKENS_PER_DEVICE = 65_536  # so that the logits of an evaluation fit beside the training state
SAME_ON_RESUME = ("optimizer", "compile")  # options that a resumed run takes from its start


@dataclass(frozen=True)
class RunSpec:
    """What a run is: decided before its directory is made, and never changed."""

    backend: str
    options: Options
    track: Track
    base: Recipe
    """The recipe that a user program's make_recipe gets; else the recipe itself."""
    recipe: Recipe
    seed: int
    slice: Slice
    program: Program
    guard: Guard
    processes: ProcessGroup
    build_s: float = 0.0
    """What loading and building the program took."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a resumed run and a checkpoint must have in common with the run."""
        *_, last = spans(self.slice.train_lengths, self.recipe.plan, documents=self.slice.documents)
        return {
            "track": self.track.name,
            "recipe": to_fields(self.recipe),
            "seed": self.seed,
            "backend": self.backend,
            "slice": self.slice.manifest.used(last.shard + 1).digest,  # of the shards that the plan reads
            "options": {name: getattr(self.options, name) for name in SAME_ON_RESUME if hasattr(self.options, name)},
            "program": program_digest(self.options),
        }

    @property
    def label(self) -> str:
        """The recipe's name, and the user optimizer's where there is one."""
        return f"{self.recipe.name} with {self.options.optimizer}" if self.options.optimizer else self.recipe.name

    @property
    def idle_weights(self) -> tuple[str, ...]:
        """Names of the weights that no optimizer of the program updates, where the backend can tell."""
        return tuple(getattr(self.program, "idle_weights", ()))

    @property
    def eval_batch_tokens(self) -> int:
        devices = len(self.program.devices)
        most = min(self.recipe.batch_tokens, EVAL_TOKENS_PER_DEVICE * devices)
        return largest_batch(self.track.val_tokens, most, self.recipe.eval_context, devices)


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes. Of several processes only the first has a log and a screen that show anything."""

    dir: RunDir
    log: RunLog | NoLog
    screen: Screen
    resumed: bool
    resume_command: str
    source_sha256: str | None = None
    """Of the code that continues a resumed run."""


@dataclass
class Progress:
    """How far a run is; the loop counts here."""

    clock: TrainingClock = field(default_factory=TrainingClock)
    logged_s: float = 0.0
    """The clock's reading at the last logged step."""
    telemetry_s: float = 0.0
    """What logging and showing steps has cost, inside the training time."""
    losses: dict[int, float] = field(default_factory=dict)
    """Step -> training loss."""
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Updates -> the fields of the eval event."""
    checkpoints: set[int] = field(default_factory=set)
    """Those that the log has."""
    saved_step: int = 0
    """Of the newest checkpoint."""
    saved_s: float = 0.0
    """The clock's reading at the newest checkpoint."""
    flops: int = 0
    """Of all steps of the plan."""
    stop_poll_steps: int = 1
    """Steps between two times that several processes ask one another for a request to stop."""

    @classmethod
    def from_log(cls, directory: RunDir) -> "Progress":
        """The progress that the log of a run has. Raises InputError for a finished run."""
        progress, seconds = cls(), 0.0
        for event in read(directory.log):
            if event["event"] == "step":
                progress.losses[event["step"]] = float(event["loss"])
                seconds = event["train_s"]
            elif event["event"] == "eval":
                progress.evaluations[event["step"]] = event
            elif event["event"] == "checkpoint":
                progress.checkpoints.add(event["step"])
            elif event["event"] == "finish":
                raise InputError(
                    f"{directory.path} is finished: there is nothing to resume; start another with a new --name"
                )
        progress.clock, progress.logged_s, progress.saved_s = TrainingClock(seconds), seconds, seconds
        return progress


@dataclass(frozen=True)
class Run:
    """An opened run, ready to train."""

    spec: RunSpec
    files: RunFiles
    progress: Progress


def program_digest(options: Options) -> str | None:
    """The sha256 of the file of a user program; None without one."""
    return sha256_file(options.program) if options.program and Path(options.program).is_file() else None
