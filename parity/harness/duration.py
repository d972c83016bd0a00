"""How long a run would take on this machine's CPU, before anything is downloaded for it."""

import os
import time

import numpy as np

from parity.data.stream import tokens_after
from parity.errors import InputError
from parity.recipes import Recipe
from parity.track import Track

CHEAP_FLOPS = 1e15  # hours on any machine: not estimated
MOST_H = 24.0
SIZE, REPEATS = 768, 3  # of the product that is timed


def check_duration(track: Track, recipe: Recipe, processes: int = 1) -> None:
    """Raises InputError where a run, evaluations included, would take longer than a day on so many CPU processes."""
    flops = run_flops(track, recipe)
    if flops <= CHEAP_FLOPS:
        return
    speed = flops_per_s() * processes
    hours = flops / speed / 3600
    if hours > MOST_H:
        took = f"{hours / 24:,.0f} days" if hours > 48 else f"{hours:.0f} hours"
        raise InputError(
            f"--track {track.name}: expected a GPU for {recipe.steps:,} steps of {recipe.batch_tokens:,} tokens, found "
            f"none: on this machine's CPU they would take about {took} ({flops:.1g} FLOPs at {speed / 1e9:,.0f} "
            "GFLOP/s); choose --track pocket, or start it all the same with --force"
        )


def run_flops(track: Track, recipe: Recipe) -> float:
    """FLOPs of all steps by the model's formula, and of all evaluations, which have no backward pass."""
    evaluated = len(recipe.eval_steps()) * track.val_tokens
    return recipe.model_flops_per_token() * (tokens_after(recipe.plan, recipe.steps) + evaluated / 3)


def flops_per_s() -> float:
    """FLOPs a second of a product of two matrices in float32, the best of a few, on the cores that there are."""
    a = np.ones((SIZE, SIZE), np.float32)
    best_s = float("inf")
    for _ in range(REPEATS):
        begin_s = time.perf_counter()
        _ = a @ a
        best_s = min(best_s, time.perf_counter() - begin_s)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    idle = cores / int(threads) if threads.isdigit() and 0 < int(threads) < cores else 1.0
    return 2 * SIZE**3 / max(best_s, 1e-9) * idle
