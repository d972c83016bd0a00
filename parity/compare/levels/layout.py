"""Level 10: the same steps on 1, 2, 4 and 8 devices, and on 2 real processes that gloo connects, against one device.

jaxrun's devices are simulated in one process; torchref has a process for each of its devices.

Devices can only be simulated from a process' start on, so every layout is a process of its own: this file run as a command.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from parity import weights as canonical
from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.observation import Seen
from parity.compare.side import Side
from parity.recipes import from_fields, to_fields

COUNTS = (1, 2, 4, 8)
STEPS = 3
TIMEOUT_S = 600


def layout(side: Side, case: Case) -> Iterator[Seen]:
    """Losses, gradient norms and weights of some steps in every layout, each held against one device."""
    recipe = case.recipe
    counts = [n for n in COUNTS if (recipe.batch_tokens // recipe.context) % n == 0]
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    canonical.save(folder / "start.safetensors", case.initial)
    batches = [np.stack(batch) for batch in case.batches(0, STEPS)]
    np.save(folder / "batches.npy", np.stack(batches))
    task = {
        "spec": side.spec,
        "fault": side.fault.name if side.fault else None,
        "recipe": to_fields(recipe),
        "folder": str(folder),
        "counts": counts,
    }
    if side.backend == "jaxrun":
        made = _devices(task) | {"2 processes": _processes(task, 2)}
    else:
        made = {f"{n} devices": _processes(task, n) for n in counts}  # one device a process
        made["2 processes"] = made["2 devices"]
    alone = made["1 devices"]
    others = [(name, found) for name, found in made.items() if found is not alone]
    bound = bounds.trajectory()
    for name, found in [("one alone", alone), *others]:
        expected = alone if found is not alone else dict.fromkeys(alone)
        for what in ("gradient norms", "losses"):  # an optimizer may not see the size of a gradient
            yield Seen(what, name, found[what], bound, expected=expected[what], axes=("step",))
        for weight in recipe.parameters():
            yield Seen(
                "weights",
                f"{weight}, {name}",
                found[weight],
                bound,
                expected=expected[weight],
                axes=("row", "column")[: found[weight].ndim],
            )


def _devices(task: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """jaxrun on 1, 2, 4, 8 devices of one process."""
    flags = f"--xla_force_host_platform_device_count={max(task['counts'])}"
    _finish([_start(task | {"kind": "devices"}, {"XLA_FLAGS": flags})])
    return {f"{n} devices": _read(task, f"{n} devices") for n in task["counts"]}


def _processes(task: dict[str, Any], count: int) -> dict[str, np.ndarray]:
    """A backend in so many processes that gloo connects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "XLA_FLAGS": ""}
    _finish([_start(task | {"kind": "processes"}, env | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(count)])
    return _read(task, f"{count} processes")


def _start(task: dict[str, Any], env: dict[str, str]) -> tuple[subprocess.Popen, IO[str]]:
    """A process, and the file that its complaints go to."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed where the process is waited for
    threads = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "parity.compare.levels.layout", json.dumps(task)],
        env=os.environ | threads | env,
        stdout=subprocess.DEVNULL,
        stderr=said,
    ), said


def _finish(processes: list[tuple[subprocess.Popen, IO[str]]]) -> None:
    """Waits for all; the first that fails ends the others, which would wait for it, and is the one to be quoted."""
    end_s = time.monotonic() + TIMEOUT_S
    try:
        while any(process.poll() is None for process, _ in processes):
            failed = [said for process, said in processes if process.poll()]
            if failed or time.monotonic() > end_s:
                break
            time.sleep(0.05)
        for process, said in processes:
            if process.poll() != 0:
                said.seek(0)
                reason = "did not end" if process.poll() is None else f"ended with {process.poll()}"
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"a process of the layout level {reason}:\n{said.read()[-2000:]}")
    finally:
        for process, said in processes:
            process.kill()
            process.wait()
            said.close()


def _read(task: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    return canonical.load(Path(task["folder"]) / f"{name}.safetensors")


def _work(task: dict[str, Any]) -> None:
    """One process of a layout: trains some steps and writes what it found."""
    from parity.compare.faults.catalogue import fault_for
    from parity.program import join

    side = Side(task["spec"], fault_for(task["fault"]) if task["fault"] else None)
    recipe, folder = from_fields(task["recipe"]), Path(task["folder"])
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    with side.active():
        if task["kind"] == "devices":
            for n in task["counts"]:
                canonical.save(folder / f"{n} devices.safetensors", _train(side, recipe, folder, devices=n))
            return
        join(side.backend, "cpu")
        found = _train(side, recipe, folder)
        if rank == 0:
            canonical.save(folder / f"{count} processes.safetensors", found)


def _train(side: Side, recipe, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    from parity.program import build

    program = build(side.backend, side.fault.changed(recipe) if side.fault else recipe, device="cpu", **options)
    state = program.load(canonical.load(folder / "start.safetensors"))
    found = []
    for inputs, targets in np.load(folder / "batches.npy"):
        state, metrics = program.step(state, program.put_global_batch(inputs, targets))
        found.append(program.fetch({name: metrics[name] for name in ("loss", "grad_norm")}))
    return {
        "losses": np.array([m["loss"] for m in found]),
        "gradient norms": np.array([m["grad_norm"] for m in found]),
        **program.export(state),
    }


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
