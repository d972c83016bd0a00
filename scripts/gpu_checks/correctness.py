"""Whether the device computes what float64 on the CPU does, and which machine this is."""

import dataclasses
import os
import subprocess
from typing import Any

import numpy as np

from gpu_checks.options import RECIPES, TOLERANCES, Options, random_batch, run_part


def versions(options: Options, _: str) -> dict[str, Any]:
    """The machine, its driver and its packages."""
    from parity.harness import fingerprint

    fields = "name,driver_version,memory.total,clocks.max.sm,power.limit,clocks_throttle_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "no nvidia-smi"
    devices = {backend: fingerprint.devices(backend) for backend in ("jaxrun", "torchref")}
    return {"nvidia-smi": gpu, "host": fingerprint.host(), "versions": fingerprint.versions(), **devices}


def correctness(options: Options, backend: str) -> dict[str, Any]:
    """Three steps at tiny on the device in each precision, against float64 on the CPU of another process."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    run_part(dataclasses.replace(options, device="cpu"), f"reference:{backend}", env).check_returncode()
    expected, worst, holds = np.load(options.out / f"{backend}.npz"), {}, True
    for precision, allowed in TOLERANCES.items():
        for recipe in RECIPES:
            largest, place = 0.0, ""
            for key, value in _three_steps(backend, recipe, precision, options.device).items():
                reference = expected[f"{recipe} {key}"]
                difference = float(np.abs(value - reference).max() / max(1e-12, np.abs(reference).max()))
                if not difference <= largest:  # nan too
                    largest, place = difference, key
                holds &= difference <= allowed
            worst[f"{recipe} {precision}"] = {"largest": largest, "at": place, "allowed": allowed}
    return {"holds": holds, "apart": worst}


def reference(options: Options, backend: str) -> dict[str, Any]:
    """Three steps in float64 on the CPU, into a file."""
    tensors = {
        f"{recipe} {key}": value
        for recipe in RECIPES
        for key, value in _three_steps(backend, recipe, "float64", options.device).items()
    }
    np.savez(options.out / f"{backend}.npz", **tensors)
    return {"tensors": len(tensors)}


def _three_steps(backend: str, name: str, precision: Any, device: str) -> dict[str, Any]:
    """Token losses, gradients and the losses of three steps, all as float64."""
    from parity import weights as canonical
    from parity.program import build
    from parity.recipes import recipe_for

    if backend == "jaxrun":
        import jax

        jax.config.update("jax_enable_x64", precision == "float64")
    recipe = dataclasses.replace(recipe_for(name, "tiny"), precision=precision)
    program = build(backend, recipe, device=device)
    start, rng = canonical.initial_weights(recipe, 0), np.random.default_rng(0)
    state = program.load({key: (w + rng.normal(0, 0.05, w.shape)).astype(w.dtype) for key, w in sorted(start.items())})
    batches = [program.put_global_batch(*random_batch(recipe, seed)) for seed in range(3)]
    _, grads = program.fetch(program.loss_and_grads(state, batches[0]))
    # the key bias has a gradient of zero: nothing to be relative to
    results = {
        f"gradient of {key}": g for key, g in grads.items() if not key.endswith(("attn.k.bias", "attn.qkv.bias"))
    }
    results["losses"] = program.fetch(program.token_losses(state, batches[0]))
    for i, batch in enumerate(batches):
        state, metrics = program.step(state, batch)
        results[f"loss of step {i}"] = program.fetch(metrics["loss"])
    return {key: np.asarray(value, np.float64) for key, value in results.items()}
