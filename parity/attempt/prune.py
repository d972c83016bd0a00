"""Frees the disk of runs: removes checkpoints that no verdict needs, or, if that is wanted, all of them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from parity.errors import InputError
from parity.harness import checkpoints, rundir
from parity.harness.rundir import RunDir
from parity.harness.runlog import read


def prune(
    folders: Sequence[Path], every: bool = False, dry_run: bool = False, say: Callable[[str], None] = print
) -> None:
    """Removes the checkpoints of runs, or of all runs below folders, that are not in their plans; with `every`, all.

    An unfinished run keeps its newest. `dry_run`: only says what it would do. Raises InputError where there is no run,
    and, before anything is removed, where one is live.
    """
    runs = [run for folder in folders for run in runs_below(folder)]
    try:
        if not dry_run:
            for run in runs:
                run.lock()
        for run in runs:
            say(_prune(run, every, dry_run))
    finally:
        for run in runs:
            run.release()


def runs_below(folder: Path) -> list[RunDir]:
    """The run directories in a folder, or itself. Raises InputError where there are none."""
    if not (folder / "run.json").exists() and (files := sorted(folder.glob("**/run.json"))):
        return [rundir.open_existing(file.parent) for file in files]
    return [rundir.open_existing(folder)]


def _prune(run: RunDir, every: bool, dry_run: bool) -> str:
    planned = run.read_run_json()["checkpoints"]
    finished = any(event["event"] == "finish" for event in read(run.log))
    if every and not finished:
        raise InputError(
            f"{run.path}: expected a finished run for --every, found one that could not be resumed without its "
            "checkpoints: leave --every out"
        )
    steps = [int(name[1]) for path in run.checkpoints.glob("*") if (name := re.fullmatch(r"step-(\d+)", path.name))]
    newest = max(steps, default=None) if not finished else None
    removed = checkpoints.unplanned(run, () if every else planned, keep=newest)
    kept = [path for path in run.checkpoints.glob("*") if path not in removed]
    freed = sum(map(checkpoints.size_bytes, removed)) if dry_run else checkpoints.remove(removed)
    left = sum(map(checkpoints.size_bytes, kept))
    did = "would remove" if dry_run else "removed"
    use = "none, so that it can be verified at depth log alone"
    if kept:
        use = (
            f"{len(kept)} of {left / 1e6:,.0f} MB, which {'verifying' if finished else 'resuming and verifying'} needs"
        )
    return f"{run.path}: {did} {len(removed)} checkpoints, {freed / 1e6:,.0f} MB; kept {use}"
