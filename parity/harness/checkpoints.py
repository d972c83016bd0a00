"""Checkpoints of a run: folders that appear whole or not at all, each saying which run and step it belongs to."""

import json
import os
import re
from pathlib import Path
from typing import Any

from parity.errors import REMEDIES, InputError
from parity.formats import schemas
from parity.formats.files import atomic_folder, free_bytes, sha256_file
from parity.harness.processes import ProcessGroup
from parity.harness.rundir import RunDir
from parity.program import Program

SCHEMA = "checkpoint.v1"


def save(
    directory: RunDir, program: Program, state: Any, step: int, identity: dict[str, Any], processes: ProcessGroup
) -> tuple[Path, str]:
    """Writes the state after `step` updates; returns its folder and the digest of the state.

    Of several processes the first writes. `identity` is what a resumed run must have in common with it. Raises
    InputError where the disk is full; earlier checkpoints stay.
    """
    path = directory.checkpoints / f"step-{step:06d}"
    digest = program.digest(state)
    if processes.broadcast(path.exists()):
        return path, digest
    if not processes.first:
        program.save(state, None)
        processes.gather("saved")
        return path, digest
    _check_room(directory)
    with atomic_folder(path) as partial:
        try:
            program.save(state, partial)
        except (RuntimeError, ValueError) as error:  # tensorstore has no error of its own for a full disk
            for number in REMEDIES:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number)) from error
            _check_disk_full(directory, partial)
            raise
        facts = {"schema": SCHEMA, "step": step, "digest": digest, "identity": identity, "files": _digests(partial)}
        (partial / "checkpoint.json").write_text(json.dumps(facts, indent=2) + "\n")
    processes.gather("saved")
    return path, digest


def latest(directory: RunDir, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its facts, or None; InputError where it is another run's or of another version."""
    paths = [path for path in directory.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    if not paths:
        return None
    path = max(paths, key=lambda path: int(path.name[5:]))
    return path, read_facts(path, identity)


def read_facts(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The facts in checkpoint.json, checked against the run that resumes from it."""
    remedy = "the checkpoint is damaged; remove its folder to resume from the one before"
    facts = schemas.read(path / "checkpoint.json", SCHEMA, "the facts of a checkpoint", remedy)
    for name, expected in identity.items():
        if facts["identity"].get(name) != expected:
            raise InputError(
                f"{path}: this checkpoint is of another {name}: expected {_short(expected)}, found "
                f"{_short(facts['identity'].get(name))}: put back the run's own checkpoints"
            )
    return facts


def check_files(path: Path, facts: dict[str, Any]) -> None:
    """Raises InputError where a checkpoint's files were changed: frameworks would read damaged ones, or crash."""
    digests = _digests(path)
    for name, digest in facts["files"].items():
        if digests.get(name) != digest:
            raise InputError(
                f"{path / name}: expected sha256 {digest[:12]}, found {digests.get(name, 'no file')[:12]}: the "
                "checkpoint is damaged; remove its folder to resume from the one before"
            )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder but checkpoint.json, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "checkpoint.json")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _check_room(directory: RunDir) -> None:
    """Raises InputError where a checkpoint as large as the largest so far would not fit on the disk."""
    needed, free = _largest(directory), free_bytes(directory.path)
    if needed > free:
        raise InputError(
            f"{directory.checkpoints}: a checkpoint takes {needed:,} bytes and the disk has {free:,} left: "
            f"make room, then continue with --resume {directory.path}"
        )


def _largest(directory: RunDir) -> int:
    """Bytes of the largest checkpoint so far."""
    sizes = [sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in directory.checkpoints.glob("step-*")]
    return max(sizes, default=0)


def _check_disk_full(directory: RunDir, folder: Path) -> None:
    """Raises OSError where a checkpoint's size in zeros cannot be written in a folder that is about to be removed."""
    zeros = bytes(1 << 20)
    with open(folder / "zeros", "wb") as file:
        for _ in range(_largest(directory) // len(zeros) + 1):
            file.write(zeros)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
