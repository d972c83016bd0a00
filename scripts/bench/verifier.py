"""The verifier's time."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.interleaved import timed
from bench.options import Options

ROOT = Path(__file__).parents[2]


def verify(options: Options) -> dict[str, Any]:
    """Seconds of the verifier's default on every finished run below --runs, and at its limits of scale."""
    figures: dict[str, Any] = {}
    run = None
    for run in sorted(path.parent for path in options.runs.glob("**/weights.safetensors")):
        verdict: dict[str, Any] = {}

        def judge(run=run, verdict=verdict):
            verdict.update(json.loads(_verifier(run.absolute(), "--json", "--no-write", *options.data_arguments)))

        seconds = timed(judge)
        figures[str(run)] = {
            "status": verdict["status"],
            "seconds": round(seconds, 1),
            "rules": {rule["id"]: rule["seconds"] for rule in verdict["rules"] if rule["seconds"] >= 0.1},
        }
        print(f"{run}: {figures[str(run)]}", flush=True)
    if run is None:
        sys.exit(f"--runs {options.runs}: expected finished runs below it, found none: train one first")
    with tempfile.TemporaryDirectory() as folder:
        long, logs = _long_run(run, Path(folder) / "run"), _public_logs(Path(folder) / "logs")
        limits: dict[str, Callable[[], Any]] = {
            "100,000 steps, depth log": lambda: _verifier(long, "--depth", "log", "--no-write"),
            "1,000 public logs": lambda: _verifier("--log", logs, "--json"),
        }
        for name, call in limits.items():
            figures[name] = round(timed(call), 2)
            print(f"{name}: {figures[name]} s", flush=True)
    return figures


def _verifier(*arguments: object) -> str:
    command = [sys.executable, "-m", "parity.verify", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def _long_run(run: Path, path: Path) -> Path:
    """A copy of a run whose log has 100,000 steps."""
    from parity.verify.cheats.forgery import rewrite

    shutil.copytree(run, path, ignore=shutil.ignore_patterns("checkpoints"))

    def lengthened(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        step = next(event for event in events if event["event"] == "step")
        return [events[0], *({**step, "step": i} for i in range(100_000)), events[-1]]

    rewrite(path, lengthened)
    return path


def _public_logs(path: Path) -> Path:
    """A folder of 1,000 logs as the public records have them."""
    path.mkdir()
    lines = "".join(
        f"step:{s}/3000 {f'val_loss:{9 - s / 500:.4f} ' if s % 125 == 0 else ''}"
        f"train_time:{s * 100}ms step_avg:100.00ms\n"
        for s in range(1, 3001)
    )
    for i in range(1000):
        text = "# its source\n" * 2000 + lines.replace("val_loss:3.0000", f"val_loss:3.{i:04d}")
        (path / f"{i}.txt").write_text(text)
    return path
