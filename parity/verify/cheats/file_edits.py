"""Edits of the evidence after an honest run: of its weights, checkpoints and packed source."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from parity import weights
from parity.formats import source_zip
from parity.formats.files import sha256_file
from parity.verify.cheats.cheat import Catalogue
from parity.verify.cheats.forgery import declare, each, rewrite

CHEATS = Catalogue("edit")
SOURCE_RULES = ("code.source", "code.harness")


@CHEATS.add(
    "no-run-behind",
    "a log with no weights, source or checkpoints",
    depth="recompute",
    unjudged=(*SOURCE_RULES, "recompute.weights", "recompute.val", "data.checkpoints"),
    public=True,
)
def _no_run_behind(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        path.rename(path.with_name("gone-" + path.name))
    (run / "weights.safetensors").unlink()
    (run / "source.zip").unlink()


def _write_source(run: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(run / "source.zip", "w") as archive:
        for member, data in sorted(members.items()):
            archive.writestr(member, data)


@CHEATS.add("source-swapped", "source.zip holds other code than run.json names", "code.source")
def _source_swapped(run: Path) -> None:
    _write_source(run, source_zip.read(run / "source.zip") | {"notes.py": b"# nothing"})


@CHEATS.add("patched-on-disk", "the harness' file on the disk was changed", "code.harness")
def _patched_on_disk(run: Path) -> None:
    members, name = source_zip.read(run / "source.zip"), "parity/harness/evaluation.py"
    members[name] = members[name].replace(b"total / tokens", b"0.99 * total / tokens")
    _write_source(run, members)
    declare(run, lambda values: values.update(source_sha256=source_zip.digest(members)))


@CHEATS.add("damaged-checkpoint", "one bit of a checkpoint", "data.checkpoints", depth="data")
def _damaged_checkpoint(run: Path) -> None:
    path = next(path for path in _checkpoint_files(run) if path.stat().st_size > 2000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@CHEATS.add("linked-checkpoint", "a checkpoint's file is a link to a file outside", "data.checkpoints", depth="data")
def _linked_checkpoint(run: Path) -> None:
    path = max(_checkpoint_files(run), key=lambda path: path.stat().st_size)
    outside = run.parent / f"outside-{run.name}"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    os.symlink(outside, path)


def _checkpoint_files(run: Path) -> list[Path]:
    folder = run / "checkpoints" / "step-000030"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "checkpoint.json")


@CHEATS.add(
    "other-weights",
    "other weights are handed in than were trained",
    "recompute.weights",
    may=("recompute.val",),
    depth="recompute",
)
def _other_weights(run: Path) -> None:
    path = run / "weights.safetensors"
    scaled = {name: value * np.float32(0.999) for name, value in weights.load(path).items()}
    weights.save(path, scaled)
    digest = weights.digest(scaled)
    change = each("state", lambda event: event.update(digest=digest), lambda event: event["name"] == "final weights")
    rewrite(run, change)


@CHEATS.add("zip-escape", "source.zip has a file with a path outside", unjudged=SOURCE_RULES)
def _zip_escape(run: Path) -> None:
    with zipfile.ZipFile(run / "source.zip", "a") as archive:
        archive.writestr("../../escaped.py", "raise SystemExit")


@CHEATS.add("zip-bomb", "source.zip holds a gigabyte of zeros", unjudged=SOURCE_RULES)
def _zip_bomb(run: Path) -> None:
    with zipfile.ZipFile(run / "source.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.py", bytes(1 << 30))


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@CHEATS.add(
    "pickle",
    "a checkpoint runs code when it is unpickled",
    backends=("torchref",),
    depth="recompute",
    unjudged=("recompute.weights",),
)
def _pickle(run: Path) -> None:
    """A PyTorch checkpoint that runs code when it is unpickled, its digests in order."""
    folder = run / "checkpoints" / "step-000060"
    path = folder / "state.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = pickle.dumps(_Evil(str(run / "unpickled")), protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    facts = json.loads((folder / "checkpoint.json").read_text())
    facts["files"]["state.pt"] = sha256_file(path)
    (folder / "checkpoint.json").write_text(json.dumps(facts))
