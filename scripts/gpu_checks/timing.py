"""Times of whole steps, and of attention and the head alone, in both backends."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import attention_gradients

from gpu_checks.options import (
    RECIPES,
    TOLERANCES,
    Options,
    call_seconds,
    median_ms,
    random_batch,
    run_part,
)

VARIANTS: dict[str, dict[str, Any]] = {"jaxrun": {}, "torchref compiled": {"compile": True}, "torchref eager": {}}
WINDOWS = (1, 4, 14)  # blocks


def step(options: Options, recipe: str) -> dict[str, Any]:
    """Each variant in a process of its own: interleaved on a CPU, one after the other on a GPU, for its memory."""
    figures: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    variants = [name for name in VARIANTS if options.compile or "compiled" not in name]
    for _ in range(options.turns if options.device == "cpu" else 1):
        for variant in variants:
            done = run_part(options, f"timed:{recipe}/{variant}")
            if done.returncode:
                figures[variant] = {"failed": done.stderr.strip()[-800:]}
                continue
            figures[variant] = json.loads(done.stdout.strip().splitlines()[-1])
            times.setdefault(variant, []).append(figures[variant]["step_ms"])
            figures[variant]["step_ms"] = statistics.median(times[variant])
    torch = {name: figures[name]["step_ms"] for name in variants if name != "jaxrun" and "step_ms" in figures[name]}
    if torch and "step_ms" in figures["jaxrun"]:
        best = min(torch, key=torch.__getitem__)
        ratio = round(figures["jaxrun"]["step_ms"] / torch[best], 3)
        figures["jaxrun over the better torchref"] = {"which": best, "time": ratio}
    return figures


def timed(options: Options, recipe_and_variant: str) -> dict[str, Any]:
    """Milliseconds of a step of one variant, and the throughput, MFU and memory that go with them."""
    from parity.devices import peak_flops
    from parity.harness import fingerprint
    from parity.program import build

    recipe_name, variant = recipe_and_variant.split("/")
    recipe = options.recipe(recipe_name)
    program: Any = build(variant.split()[0], recipe, device=options.device, **VARIANTS[variant])
    batch = program.put_global_batch(*random_batch(recipe))
    state = program.init(0)

    def synchronous_step() -> None:
        nonlocal state
        state, metrics = program.step(state, batch)
        program.fetch(metrics["loss"])
        program.wait(state)

    (first_s,) = call_seconds(synchronous_step, 1)
    medians = [statistics.median(call_seconds(synchronous_step, options.steps)[1:]) for _ in range(options.turns)]
    begin_s = time.perf_counter()  # as in a run: the next step is dispatched before the last one's loss is read
    for _ in range(options.steps):
        state, _ = program.step(state, batch)
    program.wait(state)
    step_s = min(statistics.median(medians), (time.perf_counter() - begin_s) / options.steps)
    peak = peak_flops(program.devices[0], recipe.precision)
    return {
        "step_ms": round(1e3 * step_s, 2),
        "first_step_s": round(first_s, 1),
        "tokens_per_s": round(recipe.batch_tokens / step_s),
        "mfu": round(recipe.model_flops_per_token() * recipe.batch_tokens / step_s / peak, 4) if peak else None,
        "peak_device_bytes": fingerprint.peak_device_bytes(program.framework),
        "peak_host_bytes": fingerprint.peak_memory_bytes(),
    }


def parts(options: Options, _: str) -> dict[str, Any]:
    """Attention and head of each recipe alone, forward and backward, in milliseconds."""
    import numpy as np

    figures: dict[str, Any] = {}
    for name in RECIPES:
        recipe, rng = options.recipe(name), np.random.default_rng(0)
        B, T = recipe.batch_tokens // recipe.context, recipe.context
        qkv = rng.standard_normal((3, B, T, recipe.heads, recipe.head_dim), np.float32)
        x_BTD = rng.standard_normal((B, T, recipe.dim), np.float32)
        weight_VD = rng.standard_normal((recipe.vocab_size, recipe.dim), np.float32)
        ids_BT = rng.integers(0, recipe.tokenizer_size, (B, T))
        for backend, head in (("jaxrun", _jax_head), ("torchref", _torch_head)):
            attention = getattr(attention_gradients, backend)(recipe, qkv, ids_BT, options.device)
            runs = {
                "attention": lambda run=attention: run(None),
                "head": head(recipe.dtypes.matmul, x_BTD, weight_VD, ids_BT, options.device),
            }
            for part, run in runs.items():
                figures[f"{name} {part} {backend}"] = {"ms": median_ms(call_seconds(run, options.steps)[1:])}
    return figures


def _jax_head(dtype: str, x_BTD: Any, weight_VD: Any, targets_BT: Any, device: str) -> Callable[[], Any]:
    import jax

    from jaxrun import layers
    from jaxrun.kernels import head_blocks

    def raw_logits(weights, x_BTD):
        return layers.matmul_t(x_BTD, weights["w"], dtype)

    head = head_blocks.Head(raw_logits, raw_logits, lambda logits: logits.astype("float32"))
    inputs = jax.device_put(({"w": weight_VD}, x_BTD, targets_BT), jax.devices(device)[0])

    def loss(weights, x_BTD, targets_BT):
        return head_blocks.total_loss(head, weights, x_BTD.astype(dtype), targets_BT)

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    return lambda: jax.block_until_ready(gradients(*inputs))


def _torch_head(dtype: str, x_BTD: Any, weight_VD: Any, targets_BT: Any, device: str) -> Callable[[], Any]:
    import torch

    from torchref import layers

    on_device = torch.device("cuda" if device == "gpu" else "cpu")
    inputs = [torch.from_numpy(a).to(on_device).requires_grad_() for a in (x_BTD, weight_VD)]
    targets_BT = torch.from_numpy(targets_BT).to(on_device)

    def loss(x_BTD, weight_VD):
        logits = layers.matmul_t(x_BTD, weight_VD, dtype).float()
        return layers.token_losses(logits, targets_BT).sum()

    loss = torch.compile(loss) if device == "gpu" else loss

    def run() -> None:
        torch.autograd.grad(loss(*inputs), inputs)
        if device == "gpu":
            torch.cuda.synchronize()

    return run


def windows(options: Options, _: str) -> dict[str, Any]:
    """Attention within documents and windows: milliseconds of each backend at some windows, and the difference of the
    two relative to the largest number of an array."""
    import numpy as np

    recipe, rng = options.recipe("record-21"), np.random.default_rng(0)
    qkv = rng.standard_normal((3, 1, recipe.context, recipe.heads, recipe.head_dim), np.float32)
    ids_BT = np.cumsum(rng.random((1, recipe.context)) < 1 / 600, axis=1).astype(np.int32)
    jaxrun = attention_gradients.jaxrun(recipe, qkv, ids_BT, options.device)
    torchref = attention_gradients.torchref(recipe, qkv, ids_BT, options.device)
    figures: dict[str, Any] = {}
    holds, allowed = True, TOLERANCES[recipe.precision]
    for window in (w for w in WINDOWS if w <= recipe.attention_window(recipe.steps)):
        ours, theirs = np.asarray(jaxrun(window)), torchref(window).cpu().numpy()
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        holds &= difference <= allowed
        for name, gradient in (("jaxrun", jaxrun), ("torchref", torchref)):
            seconds = call_seconds(lambda gradient=gradient, window=window: gradient(window), options.steps)
            figures[f"window {window} {name}"] = {"ms": median_ms(seconds)}
        figures[f"window {window}"] = {"apart": difference, "allowed": allowed}
    return {"holds": holds, **figures}
