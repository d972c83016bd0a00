"""Level 10: the same steps on 1, 2, 4 and 8 devices, and on 2 real processes that gloo connects, against one device.

jaxrun's devices are simulated in one process; torchref has a process for each of its devices.

Devices can only be simulated from a process' start on, so every layout runs in processes of its own: this file as a
command.
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
from parity.compare.faults.catalogue import fault_for
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.side import Side
from parity.program import build, init_distributed
from parity.recipes import Recipe, from_fields, to_fields
from parity.weights import Weights

COUNTS = (1, 2, 4, 8)
STEPS = 3
TIMEOUT_S = 600
Worker = tuple[subprocess.Popen, IO[str]]
"""A process, and the file of its stderr."""


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Losses, gradient norms and weights of some steps in every layout, each held against one device."""
    recipe, bound = case.recipe, bounds.trajectory()
    counts = [n for n in COUNTS if (recipe.batch_tokens // recipe.context) % n == 0]
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    canonical.save(folder / "start.safetensors", case.initial)
    np.save(folder / "batches.npy", np.stack([np.stack(batch) for batch in case.batches(0, STEPS)]))
    task = {
        "backend": program.spec,
        "fault": program.fault.name if program.fault else None,
        "recipe": to_fields(recipe),
        "folder": str(folder),
        "counts": counts,
    }
    if program.spec == "jaxrun":
        layouts = _on_devices(task) | {"2 processes": _in_processes(task, 2)}
    else:
        layouts = {f"{n} devices": _in_processes(task, n) for n in counts}  # one device a process
        layouts["2 processes"] = layouts["2 devices"]
    single = layouts.pop("1 devices")
    for name, trained in [("one alone", single), *layouts.items()]:
        expected = dict.fromkeys(single) if trained is single else single
        for line in ("gradient norms", "losses"):  # an optimizer may not see the size of a gradient
            yield Observation(line, name, trained[line], bound, expected=expected[line], axes=("step",))
        for weight in recipe.parameters():
            yield Observation("weights", f"{weight}, {name}", trained[weight], bound, expected=expected[weight])


def _on_devices(task: dict[str, Any]) -> dict[str, Weights]:
    """jaxrun on 1, 2, 4, 8 devices of one process."""
    flags = f"--xla_force_host_platform_device_count={max(task['counts'])}"
    _finish([_start(task | {"kind": "devices"}, {"XLA_FLAGS": flags})])
    return {f"{n} devices": canonical.load(_file(task, f"{n} devices")) for n in task["counts"]}


def _in_processes(task: dict[str, Any], count: int) -> Weights:
    """A backend in so many processes that gloo connects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "XLA_FLAGS": ""}
    _finish([_start(task | {"kind": "processes"}, env | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(count)])
    return canonical.load(_file(task, f"{count} processes"))


def _start(task: dict[str, Any], env: dict[str, str]) -> Worker:
    stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by _finish
    env = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} | env
    command = [sys.executable, "-m", "parity.compare.levels.layout", json.dumps(task)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stderr), stderr


def _finish(workers: list[Worker]) -> None:
    """Waits for all; the first that fails ends the others, which would wait for it, and its stderr is quoted."""
    end_s = time.monotonic() + TIMEOUT_S
    try:
        while any(process.poll() is None for process, _ in workers):
            if any(process.poll() for process, _ in workers) or time.monotonic() > end_s:
                break
            time.sleep(0.05)
        for process, stderr in workers:
            running = process.poll() is None
            if running and time.monotonic() > end_s or process.poll():
                stderr.seek(0)
                reason = "did not end" if running else f"ended with {process.poll()}"
                raise RuntimeError(f"a process of the layout level {reason}:\n{stderr.read()[-2000:]}")
    finally:
        for process, stderr in workers:
            process.kill()
            process.wait()
            stderr.close()


def _file(task: dict[str, Any], layout: str) -> Path:
    return Path(task["folder"]) / f"{layout}.safetensors"


def _work(task: dict[str, Any]) -> None:
    """One process of a layout: trains some steps and writes losses, gradient norms and weights."""
    side = Side(task["backend"], fault_for(task["fault"]) if task["fault"] else None)
    recipe, folder = from_fields(task["recipe"]), Path(task["folder"])
    with side.active():
        if task["kind"] == "devices":
            for n in task["counts"]:
                canonical.save(_file(task, f"{n} devices"), _train(side, recipe, folder, devices=n))
            return
        init_distributed(side.spec, "cpu")
        trained = _train(side, recipe, folder)
        if os.environ["RANK"] == "0":
            canonical.save(_file(task, f"{os.environ['WORLD_SIZE']} processes"), trained)


def _train(side: Side, recipe: Recipe, folder: Path, **options: Any) -> Weights:
    program = build(side.spec, side.fault.changed(recipe) if side.fault else recipe, device="cpu", **options)
    state = program.load(canonical.load(folder / "start.safetensors"))
    metrics = []
    for inputs, targets in np.load(folder / "batches.npy"):
        state, of_step = program.step(state, program.put_global_batch(inputs, targets))
        metrics.append(program.fetch({name: of_step[name] for name in ("loss", "grad_norm")}))
    return {
        "losses": np.array([of_step["loss"] for of_step in metrics]),
        "gradient norms": np.array([of_step["grad_norm"] for of_step in metrics]),
        **program.export(state),
    }


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
