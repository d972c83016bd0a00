"""Whole runs of the trainers as processes: until they start, from nothing, and over several seeds."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.options import Options

ROOT = Path(__file__).parents[2]


def start(options: Options) -> dict[str, Any]:
    """Seconds of --help, and of the warm-up of a run with the compilation cache cold and warm."""
    figures: dict[str, Any] = {}
    for backend in options.backends:
        seconds = [train(backend, "--help") for _ in range(options.turns)]
        figures[f"{backend} --help"] = {
            "median_s": round(statistics.median(seconds), 2),
            "most_s": round(max(seconds), 2),
        }
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("first", "second"):
            arguments = ("--runs", scratch, "--name", name, "--samples", "0", "--steps", "8", *options.data_arguments)
            train("jaxrun", *arguments, JAX_COMPILATION_CACHE_DIR=f"{scratch}/compiled")
            seconds = phase_seconds(events_of(Path(scratch, "pocket", name)), "warm-up")
            figures[f"jaxrun {name} start"] = {"warm_up_s": round(seconds, 1)}
    return figures


def first(options: Options) -> dict[str, Any]:
    """The trainer with an empty data folder and an empty compilation cache, as on a machine that has never seen it."""
    figures = {}
    for backend in options.backends:
        with tempfile.TemporaryDirectory() as scratch:
            env = {
                "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
                "XDG_CACHE_HOME": f"{scratch}/cache",
                "JAXRUN_DATA": f"{scratch}/data",
            }
            seconds = train(backend, "--runs", f"{scratch}/runs", "--name", "first", **env)
            events = events_of(Path(scratch, "runs", "pocket", "first"))
            totals = events[-1]["totals"]
            figures[backend] = {
                "whole_s": round(seconds, 1),
                "eval_s": round(totals["eval_s"], 1),
                "warm_up_s": round(phase_seconds(events, "warm-up"), 1),
                **_of_totals(totals),
            }
    return figures


def seeds(options: Options) -> dict[str, Any]:
    """Final val losses; a run that is complete is read, not repeated."""
    from parity.track import TRACKS

    target, figures = TRACKS["pocket"].target, {}
    for recipe in options.recipes:
        for seed in range(options.seeds):
            for backend in options.backends:
                name = f"{recipe}-{backend}-seed{seed}"
                run = options.runs / "pocket" / name
                if not (run / "weights.safetensors").exists():
                    arguments = ("--recipe", recipe, "--seed", seed, "--runs", options.runs, "--name", name)
                    train(backend, *map(str, arguments), *options.data_arguments)
                row = _of_totals(events_of(run)[-1]["totals"])
                print(name, row, file=sys.stderr, flush=True)
                figures.setdefault(f"{recipe} {backend}", []).append(row)
    for rows in figures.values():
        losses = [row["val_loss"] for row in rows]
        rows.append(
            {
                "mean": round(statistics.mean(losses), 4),
                "highest": max(losses),
                "sd": round(statistics.stdev(losses), 4) if len(losses) > 1 else None,
                "target": target,
                "margin": round(target - max(losses), 4) if target else None,
            }
        )
    return figures


def _of_totals(totals: dict[str, Any]) -> dict[str, float]:
    return {
        "val_loss": round(totals["val_loss"], 4),
        "train_s": round(totals["train_s"], 1),
        "peak_host_gb": round(totals["peak_host_bytes"] / 1e9, 2),
        "telemetry_fraction": round(totals["telemetry_fraction"], 5),
    }


def train(backend: str, *arguments: str, **env: str) -> float:
    """Seconds of a whole `python -m BACKEND.train`; ends this process where that one fails."""
    command = [sys.executable, "-m", f"{backend}.train", *arguments]
    begin_s = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin_s
    if done.returncode:
        sys.exit(f"{' '.join(command[2:])} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def events_of(run: Path) -> list[dict[str, Any]]:
    from parity.harness.runlog import read

    return list(read(run / "log.jsonl"))


def phase_seconds(events: list[dict[str, Any]], name: str) -> float:
    """Seconds in a phase, in all."""
    edges = [event for event in events if event["event"] == "phase" and event["name"] == name]
    return sum(event["clock_s"] if event["edge"] == "end" else -event["clock_s"] for event in edges)
