"""Frees the disk of runs: removes checkpoints that no verdict needs, or, if that is wanted, all of them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

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
        for removal in [_removal(run, every) for run in runs]:
            say(removal.carry_out(dry_run))
    finally:
        for run in runs:
            run.release()


def runs_below(folder: Path) -> list[RunDir]:
    """The run directories in a folder, or itself. Raises InputError where there are none."""
    if not (folder / "run.json").exists() and (files := sorted(folder.glob("**/run.json"))):
        return [rundir.open_existing(file.parent) for file in files]
    return [rundir.open_existing(folder)]


class _Removal(NamedTuple):
    """What is removed of a run, what is kept, and what for."""

    run: RunDir
    removed: list[Path]
    kept: list[Path]
    purpose: str

    def carry_out(self, dry_run: bool) -> str:
        """Removes it, unless this is a `dry_run`; returns a sentence."""
        size = sum(map(checkpoints.size_bytes, self.removed)) if dry_run else checkpoints.remove(self.removed)
        kept = "none, so that it can be verified at depth log alone"
        if self.kept:
            kept = f"{len(self.kept)}, {sum(map(checkpoints.size_bytes, self.kept)) / 1e6:,.0f} MB, for {self.purpose}"
        did = "would remove" if dry_run else "removed"
        return f"{self.run.path}: {did} {len(self.removed)} checkpoints, {size / 1e6:,.0f} MB; kept {kept}"


def _removal(run: RunDir, every: bool) -> _Removal:
    """Raises InputError for `every` of an unfinished run."""
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
    return _Removal(run, removed, kept, "verifying" if finished else "resuming and verifying")
