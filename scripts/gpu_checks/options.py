"""The command line of `scripts/gpu_check.py`, and what all checks share."""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("muon", "nanogpt")
RECORDS = ("record-11", "record-21")
# Largest differences from float64 on the CPU, relative to the largest entry of a tensor, after three steps: 20 times
# those measured on CPUs.
TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.3}


@dataclasses.dataclass(frozen=True)
class Options:
    """Checks and benchmarks of one GPU."""

    out: Path = Path("gpu_check")
    """Folder for the results."""
    scale: str = "small"
    """Sizes of the recipes that are timed."""
    rows: int | None = None
    """Rows of a batch; by default 65,536 tokens of them, or the recipe's batch if that is less."""
    device: Literal["gpu", "cpu"] = "gpu"
    """Device to check."""
    turns: int = 3
    """Rounds of timings of each variant."""
    steps: int = 6
    """Steps in a round, of which the first is not counted."""
    budget_s: float = 570
    """Seconds for everything: checks that would begin later are left out, and reported as such."""
    compile: bool = True
    """Also time torchref compiled."""
    part: str = ""
    """One check alone, in this process: what the others are started with."""

    def recipe(self, name: str) -> Any:
        """The recipe at the scale, in the device's precision, with the rows of a batch."""
        from parity.recipes import recipe_for

        recipe = recipe_for(name, self.scale)
        rows = self.rows or max(1, min(65_536, recipe.batch_tokens) // recipe.context)
        precision = "bfloat16" if self.device == "gpu" else "float32"
        return dataclasses.replace(recipe, precision=precision, batch_tokens=rows * recipe.context)


def run_part(options: Options, part: str, env: dict[str, str] | None = None, timeout_s: float | None = None):
    """One check in a process of its own; its result is the last line of its output."""
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py")]
    for name, value in dataclasses.asdict(dataclasses.replace(options, part=part)).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            command += [f"--{option}", str(value)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


def random_batch(recipe: Any, seed: int = 0) -> tuple[Any, Any]:
    """Inputs and targets (B, T) of random tokens."""
    import numpy as np

    shape = (2, recipe.batch_tokens // recipe.context, recipe.context)
    inputs_BT, targets_BT = np.random.default_rng(seed).integers(0, recipe.tokenizer_size, shape).astype(np.int32)
    return inputs_BT, targets_BT


def call_seconds(run: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of so many calls."""
    seconds = []
    for _ in range(count):
        begin_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin_s)
    return seconds


def median_ms(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 2)
