"""What run.json says of a run: its recipe, machine, versions and plan; and the code that is packed beside it."""

import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import parity
from parity.errors import InputError
from parity.formats import source_zip
from parity.harness import fingerprint, rundir
from parity.harness.options import Options
from parity.harness.processes import ProcessGroup
from parity.harness.run import RunSpec
from parity.memory import SETTINGS, keep_freed_memory
from parity.recipes import to_fields

# Options that change only which device computes what, and so a result by rounding at most.
LAYOUT = ("devices", "microbatches", "shards", "remat")


def values(spec: RunSpec, source_sha256: str) -> dict[str, Any]:
    """The values of run.json. All processes must call `host` meanwhile."""
    recipe, options, devices = spec.recipe, spec.options, spec.program.devices
    program = None
    if options.program:
        file = Path(options.program)
        program = {
            "path": str(file),
            "file": file.name,
            "sha256": spec.identity["program"],
            "base": to_fields(spec.base),
        }
    return {
        "schema": rundir.SCHEMA,
        "track": spec.track.name,
        "recipe": spec.identity["recipe"],
        "seed": spec.seed,
        "backend": spec.backend,
        "precision": recipe.precision,
        "options": spec.identity["options"],
        "program": program,
        "created_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": [f"python -m {spec.backend}.train", *sys.argv[1:]],
        "devices": device_counts(spec.backend, devices),
        "processes": spec.processes.size,
        "layout": layout(options) | {"devices": len(devices)},
        "host": host(spec.processes),
        "versions": fingerprint.versions(),
        "environment": fingerprint.environment(),
        "slice": {"name": spec.track.slice, "digest": spec.identity["slice"]},
        "source_sha256": source_sha256,
        "plan": [segment.to_json() for segment in recipe.plan],
        "val_row": recipe.eval_context,
        "val_tokens": spec.track.val_tokens,
        "malloc": SETTINGS if keep_freed_memory() else {},
        "eval_steps": list(recipe.eval_steps()),
        "checkpoints": list(recipe.checkpoint_steps()),
        "flops": None,
        "build_s": spec.build_s,
        **({"idle_weights": list(spec.idle_weights)} if spec.idle_weights else {}),
    }


def layout(options: Options) -> dict[str, Any]:
    """The options of LAYOUT that a backend has."""
    return {name: getattr(options, name) for name in LAYOUT if hasattr(options, name)}


def host(processes: ProcessGroup) -> dict[str, Any]:
    """The machine of the first process, and the number of machines if there are more. All processes must call."""
    machines = len(set(processes.gather(socket.gethostname())))
    return fingerprint.host() | ({"machines": machines} if machines > 1 else {})


def device_counts(backend: str, claimed: list[str]) -> list[dict[str, Any]]:
    """The kinds of devices that a program computes on, each with its platform and number.

    Raises InputError for devices that the framework does not have, whatever a program claims.
    """
    machines = 1
    if backend == "torchref":  # which sees those of one machine alone
        machines = int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    present = {entry["kind"]: entry | {"count": entry["count"] * machines} for entry in fingerprint.devices(backend)}
    present["cpu"] = {"kind": "cpu", "platform": "cpu", "count": len(claimed)}
    counts = {kind: claimed.count(kind) for kind in sorted(set(claimed))} or {"nothing": 0}
    for kind, count in counts.items():
        if not 0 < count <= present.get(kind, {"count": 0})["count"]:
            names = ", ".join(f"{entry['count']} x {name}" for name, entry in present.items())
            raise InputError(
                f"the program says that it computes on {count} x {kind}, found {names}: name the devices it uses"
            )
    return [present[kind] | {"count": count} for kind, count in counts.items()]


def pack_source(path: Path, backend: str, options: Options) -> str:
    """Packs the code that runs, user code included; returns its digest."""
    root = Path(parity.__file__).parents[1]
    files = [Path(options.program)] if options.program else []
    if options.optimizer:
        module = sys.modules[options.optimizer.partition(":")[0]]
        if getattr(module, "__file__", None):  # a module that is built into Python has none
            files.append(Path(str(module.__file__)))
    return source_zip.pack(path, [root / "parity", root / backend], files)
