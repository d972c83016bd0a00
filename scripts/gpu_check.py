"""All checks and benchmarks of one GPU, in one command of less than ten minutes: `python scripts/gpu_check.py --out FOLDER`.

    versions      the machine, its driver, the packages
    correctness   losses, gradients and three steps on the GPU in every precision, both backends, against float64 on the CPU
    step          tokens/s, MFU and memory of jaxrun and of torchref, eager and compiled, for each recipe, in turns
    parts         attention and the head alone, forward and backward
    program       what XLA compiled on this machine: kernels, memory, products, largest buffers
    trace         a trace of three steps, and the kernels that take longest

Every part runs in a process of its own with a limit of time, and what goes wrong in one is written down beside the others' results.
FOLDER/gpu_check.json has everything, and the table at the end the figures. With --device cpu --scale tiny it runs anywhere.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
RECIPES = ("muon", "nanogpt")
RECORDS = ("record-11", "record-21")
WINDOWS = (1, 4, 14)  # blocks
VARIANTS = {"jaxrun": {}, "torchref compiled": {"compile": True}, "torchref eager": {}}
# Largest differences from float64 on the CPU, relative to the largest entry of a tensor, after three steps: 20 x what was seen on CPUs.
TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.3}


@dataclass(frozen=True)
class Options:
    """Checks and benchmarks of one GPU."""

    out: Path = Path("gpu_check")
    """Folder for the results."""
    scale: str = "small"
    """Sizes of the recipes that are timed."""
    rows: int | None = None
    """Rows of a batch; by default 65,536 tokens of them, or the recipe's batch if that is less."""
    device: Literal["gpu", "cpu"] = "gpu"
    """Device to check."""
    turns: int = 3
    """How often each variant has its turn."""
    steps: int = 6
    """Steps in a turn, of which the first is not counted."""
    budget_s: float = 570
    """Seconds for everything: parts that would begin later are left out, and said to be."""
    compile: bool = True
    """Also time torchref compiled."""
    part: str = ""
    """One part alone, in this process: what the others are started with."""


def main(options: Options) -> int:
    if options.part:
        name, _, argument = options.part.partition(":")
        print(json.dumps(PARTS[name](options, argument)), flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    begin_s, found = time.monotonic(), {}
    plan = [("versions", 60), ("correctness:jaxrun", 150), ("correctness:torchref", 120)]
    plan += [(f"step:{recipe}", 240) for recipe in RECIPES] + [
        ("parts", 120),
        ("windows", 90),
        *((f"step:{recipe}", 200) for recipe in RECORDS),
        *((f"program:{recipe}", 90) for recipe in (*RECIPES, *RECORDS)),
        ("trace:muon", 90),
    ]
    for part, limit_s in plan:
        left = options.budget_s - (time.monotonic() - begin_s)
        if left < 15:
            found[part] = {"left out": f"the {options.budget_s:.0f} s were used up"}
            continue
        found[part] = _alone(options, part, min(limit_s, left))
        _write(options, found, begin_s)
        print(f"{part}: {found[part].get('failed') or 'done'} ({found[part]['seconds']} s)", flush=True)
    table(found)
    print(f"\n{options.out / 'gpu_check.json'}: all of it; {time.monotonic() - begin_s:.0f} s")
    return 1 if any("failed" in one or one.get("holds") is False for one in found.values()) else 0


def _alone(options: Options, part: str, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part]
    for name, value in asdict(options).items():
        if name != "part" and value is not None:
            option = "--" + name.replace("_", "-")
            command += [option if value else f"--no-{name}"] if isinstance(value, bool) else [option, str(value)]
    begin_s = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT)
        lines = done.stdout.strip().splitlines()
        found = (
            json.loads(lines[-1])
            if done.returncode == 0 and lines
            else {"failed": (done.stderr or done.stdout).strip()[-1500:]}
        )
    except subprocess.TimeoutExpired:
        found = {"failed": f"took longer than {limit_s:.0f} s"}
    return found | {"seconds": round(time.monotonic() - begin_s, 1)}


def _write(options: Options, found: dict[str, Any], begin_s: float) -> None:
    said = {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "scale": options.scale,
        "device": options.device,
        "seconds": round(time.monotonic() - begin_s),
        "parts": found,
    }
    (options.out / "gpu_check.json").write_text(json.dumps(said, indent=2) + "\n")


def versions(options: Options, _: str) -> dict[str, Any]:
    """The machine and its packages."""
    from parity.harness import fingerprint

    try:
        fields = "name,driver_version,memory.total,clocks.max.sm,power.limit,clocks_throttle_reasons.active"
        gpu = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        gpu = "no nvidia-smi"
    found: dict[str, Any] = {"nvidia-smi": gpu, "host": fingerprint.host(), "versions": fingerprint.versions()}
    for backend in ("jaxrun", "torchref"):
        found[backend] = fingerprint.devices(backend)
    return found


def _recipe(name: str, options: Options, **fields: Any) -> Any:
    import dataclasses

    from parity.recipes import recipe_for

    recipe = recipe_for(name, options.scale)
    rows = options.rows or max(1, min(65_536, recipe.batch_tokens) // recipe.context)
    precision = "bfloat16" if options.device == "gpu" else "float32"
    return dataclasses.replace(recipe, **{"precision": precision, "batch_tokens": rows * recipe.context} | fields)


def _batch(recipe: Any, seed: int = 0) -> tuple[Any, Any]:
    import numpy as np

    tokens = np.random.default_rng(seed).integers(
        0, recipe.tokenizer_size, (2, recipe.batch_tokens // recipe.context, recipe.context)
    )
    return tuple(tokens.astype(np.int32))


def correctness(options: Options, backend: str) -> dict[str, Any]:
    """Three steps at tiny on the device in each precision, held against float64 on the CPU, which another process computes."""
    import numpy as np

    name = f"reference:{backend}"
    path = options.out / f"{backend}.npz"
    env = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, __file__, "--part", name, "--out", str(options.out), "--device", "cpu"],
        cwd=ROOT,
        check=True,
        env=os.environ | env,
        capture_output=True,
    )
    reference, found, holds = np.load(path), {}, True
    for precision in TOLERANCES:
        for recipe in RECIPES:
            for key, value in _three_steps(backend, recipe, precision, options).items():
                expected = reference[f"{recipe} {key}"].astype(np.float64)
                apart = float(np.abs(value - expected).max() / max(1e-12, np.abs(expected).max()))
                worst = found.setdefault(
                    f"{recipe} {precision}", {"largest": 0.0, "at": "", "allowed": TOLERANCES[precision]}
                )
                if not apart <= worst["largest"]:
                    worst |= {"largest": apart, "at": key}
                holds &= apart <= TOLERANCES[precision]
    return {"holds": holds, "apart": found}


def reference(options: Options, backend: str) -> dict[str, Any]:
    """Float64 on the CPU, into a file."""
    import numpy as np

    found = {
        f"{recipe} {key}": value
        for recipe in RECIPES
        for key, value in _three_steps(backend, recipe, "float64", options).items()
    }
    np.savez(options.out / f"{backend}.npz", **found)
    return {"tensors": len(found)}


def _three_steps(backend: str, name: str, precision: str, options: Options) -> dict[str, Any]:
    import dataclasses

    import numpy as np

    from parity import weights as canonical
    from parity.program import build
    from parity.recipes import recipe_for

    if backend == "jaxrun":
        import jax

        jax.config.update("jax_enable_x64", precision == "float64")
    recipe = dataclasses.replace(recipe_for(name, "tiny"), precision=precision)
    program = build(backend, recipe, device=options.device)
    start, rng = canonical.initial_weights(recipe, 0), np.random.default_rng(0)
    state = program.load({key: (w + rng.normal(0, 0.05, w.shape)).astype(w.dtype) for key, w in sorted(start.items())})
    loss, grads = program.fetch(program.loss_and_grads(state, program.put_global_batch(*_batch(recipe))))
    found = {
        "losses": np.asarray(
            program.fetch(program.token_losses(state, program.put_global_batch(*_batch(recipe)))), np.float64
        )
    }
    # the key bias has a gradient of zero: nothing to be relative to
    found |= {
        f"gradient of {key}": np.asarray(g, np.float64)
        for key, g in grads.items()
        if not key.endswith(("attn.k.bias", "attn.qkv.bias"))
    }
    for i in range(3):
        state, metrics = program.step(state, program.put_global_batch(*_batch(recipe, i)))
        found[f"loss of step {i}"] = np.asarray(program.fetch(metrics["loss"]), np.float64)
    return found


def step(options: Options, recipe_name: str) -> dict[str, Any]:
    """Each variant in a process that holds its program; the processes take turns, for what fits into the memory together."""
    found: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    variants = [name for name in VARIANTS if options.compile or "compiled" not in name]
    for turn in range(
        options.turns if options.device == "cpu" else 1
    ):  # on a GPU one after the other: each takes its memory
        for variant in variants:
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--part",
                    f"timed:{recipe_name}/{variant}",
                    "--scale",
                    options.scale,
                    "--device",
                    options.device,
                    "--out",
                    str(options.out),
                    "--steps",
                    str(options.steps),
                    "--turns",
                    str(options.turns),
                    *(["--rows", str(options.rows)] if options.rows else []),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                found[variant] = {"failed": done.stderr.strip()[-800:]}
                continue
            found[variant] = json.loads(done.stdout.strip().splitlines()[-1])
            times.setdefault(variant, []).append(found[variant]["step_ms"])
            found[variant]["step_ms"] = statistics.median(times[variant])
    torch = {name: found[name]["step_ms"] for name in variants if name != "jaxrun" and "step_ms" in found[name]}
    if torch and "step_ms" in found["jaxrun"]:
        best = min(torch, key=torch.get)
        found["jaxrun over the better torchref"] = {
            "which": best,
            "time": round(found["jaxrun"]["step_ms"] / torch[best], 3),
        }
    return found


def timed(options: Options, what: str) -> dict[str, Any]:
    """Milliseconds of a step of one variant, with what that comes to."""
    from parity.devices import peak_flops
    from parity.harness import fingerprint
    from parity.program import build

    recipe_name, variant = what.split("/")
    recipe = _recipe(recipe_name, options)
    backend = variant.split()[0]
    program = build(backend, recipe, device=options.device, **VARIANTS[variant])
    begin_s = time.perf_counter()
    batch, state = program.put_global_batch(*_batch(recipe)), program.init(0)
    state, metrics = program.step(state, batch)
    program.fetch(metrics["loss"])
    first_s, medians = time.perf_counter() - begin_s, []
    for _ in range(options.turns):
        seconds = []
        for _ in range(options.steps):
            begin_s = time.perf_counter()
            state, metrics = program.step(state, batch)
            program.fetch(metrics["loss"])
            program.wait(state)
            seconds.append(time.perf_counter() - begin_s)
        medians.append(statistics.median(seconds[1:]))
    # as in a run: the next step is given before the last one's loss is read
    program.wait(state)
    begin_s = time.perf_counter()
    for _ in range(options.steps):
        state, metrics = program.step(state, batch)
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
    """Attention and head of each recipe alone, forward and backward, in milliseconds; jaxrun and torchref."""
    import numpy as np

    found: dict[str, Any] = {}
    for name in RECIPES:
        recipe = _recipe(name, options)
        B, T, H, K = recipe.batch_tokens // recipe.context, recipe.context, recipe.heads, recipe.head_dim
        rng = np.random.default_rng(0)
        qkv = rng.standard_normal((3, B, T, H, K), np.float32)
        x, weight = (
            rng.standard_normal((B, T, recipe.dim), np.float32),
            rng.standard_normal((recipe.vocab_size, recipe.dim), np.float32),
        )
        targets = rng.integers(0, recipe.tokenizer_size, (B, T))
        for backend, make in (("jaxrun", _jax_parts), ("torchref", _torch_parts)):
            for part, run in make(recipe, qkv, x, weight, targets, options).items():
                seconds = []
                for _ in range(options.steps):
                    begin_s = time.perf_counter()
                    run()
                    seconds.append(time.perf_counter() - begin_s)
                found[f"{name} {part} {backend}"] = {"ms": round(1e3 * statistics.median(seconds[1:]), 2)}
    return found


def _jax_parts(
    recipe: Any, qkv: Any, x: Any, weight: Any, targets: Any, options: Options
) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    from jaxrun import layers
    from jaxrun.attention import causal_attention
    from jaxrun.kernels import head_blocks

    device = jax.devices(options.device)[0]
    narrow = recipe.dtypes.matmul
    qkv, x, weight, targets = (jax.device_put(jnp.asarray(a), device) for a in (qkv, x, weight, targets))
    scores = lambda w, x: layers.matmul_t(x, w["w"], narrow)  # noqa: E731
    one = head_blocks.Head(scores, scores, lambda scores: scores.astype("float32"))
    attention = jax.jit(jax.grad(lambda qkv: causal_attention(*qkv.astype(narrow), 0.1).astype("float32").sum()))
    whole = jax.jit(jax.grad(lambda w, x: head_blocks.total_loss(one, w, x, targets), (0, 1)))
    return {
        "attention": lambda: jax.block_until_ready(attention(qkv)),
        "head": lambda: jax.block_until_ready(whole({"w": weight}, x.astype(narrow))),
    }


def _torch_parts(
    recipe: Any, qkv: Any, x: Any, weight: Any, targets: Any, options: Options
) -> dict[str, Callable[[], Any]]:
    import torch

    from torchref import layers
    from torchref.attention import causal_attention

    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    narrow = recipe.dtypes.matmul
    qkv, x, weight = (torch.from_numpy(a).to(device).requires_grad_() for a in (qkv, x, weight))
    targets = torch.from_numpy(targets).to(device)

    def loss(x, weight):
        return layers.token_losses(layers.matmul_t(x, weight, narrow).float(), targets).sum()

    whole = torch.compile(loss) if options.device == "gpu" else loss

    def run(function: Callable, *inputs: Any) -> None:
        torch.autograd.grad(function(*inputs), inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {
        "attention": lambda: run(lambda qkv: causal_attention(*qkv.to(narrow), 0.1).float().sum(), qkv),
        "head": lambda: run(whole, x, weight),
    }


def windows(options: Options, _: str) -> dict[str, Any]:
    """Attention within documents and windows, forward and backward: milliseconds of each backend at some windows, and how far apart
    the two are, relative to the largest number of an array."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from jaxrun import attention as ours
    from torchref import attention as theirs

    recipe = _recipe("record-21", options)
    T, H, K, block, most = (
        recipe.context,
        recipe.heads,
        recipe.head_dim,
        recipe.block,
        recipe.attention_window(recipe.steps),
    )
    rng = np.random.default_rng(0)
    qkv, ids = (
        rng.standard_normal((3, 1, T, H, K), np.float32),
        np.cumsum(rng.random((1, T)) < 1 / 600, axis=1).astype(np.int32),
    )
    narrow, place = recipe.dtypes.matmul, torch.device("cuda" if options.device == "gpu" else "cpu")

    @jax.jit
    def jaxrun(qkv, ids, window):
        return jax.grad(
            lambda x: ours.window_attention(*x.astype(narrow), 0.12, ids, window, block, most).astype("float32").var()
        )(qkv)

    there, rows = torch.from_numpy(qkv).to(place).requires_grad_(), torch.from_numpy(ids).to(place)
    attend = (
        torch.compile(theirs.window_attention, dynamic=False) if options.device == "gpu" else theirs.window_attention
    )

    def torchref(window):
        wide = torch.tensor(window, dtype=torch.int32, device=place)
        y = attend(
            *there.to(getattr(torch, narrow)), 0.12, rows, wide, block, min(most, 1 << (window - 1).bit_length())
        )
        return torch.autograd.grad(y.float().var(correction=0), there)[0].cpu().numpy()

    found: dict[str, Any] = {}
    here, documents = jnp.asarray(qkv), jnp.asarray(ids)
    for window in (w for w in WINDOWS if w <= most):
        runs = {
            "jaxrun": lambda window=window: np.asarray(jaxrun(here, documents, jnp.int32(window))),
            "torchref": lambda window=window: torchref(window),
        }
        results = {name: run() for name, run in runs.items()}
        apart = float(np.abs(results["jaxrun"] - results["torchref"]).max() / np.abs(results["torchref"]).max())
        for name, run in runs.items():
            seconds = []
            for _ in range(options.steps):
                begin_s = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - begin_s)
            found[f"window {window} {name}"] = {"ms": round(1e3 * statistics.median(seconds), 2)}
        found[f"window {window}"] = {"apart": apart, "allowed": TOLERANCES[recipe.precision]}
    return {
        "holds": all(one.get("apart", 0) <= one.get("allowed", 0) for name, one in found.items() if "apart" in one),
        **found,
    }


def program(options: Options, recipe_name: str) -> dict[str, Any]:
    """What XLA made of the step here; the memory that it says is the prediction that the run's peak is held against."""
    from compile_h100 import facts

    from parity.program import build

    recipe = _recipe(recipe_name, options)
    made = build("jaxrun", recipe, device=options.device)
    rows = recipe.batch_tokens // recipe.context
    return {
        what: facts(made.lowered(rows, what).compile(), recipe.batch_tokens, recipe) for what in ("step", "evaluation")
    }


def trace(options: Options, recipe_name: str) -> dict[str, Any]:
    """Three steps under JAX's profiler, and where their time went."""
    import jax

    from parity.program import build

    recipe = _recipe(recipe_name, options)
    made = build("jaxrun", recipe, device=options.device)
    batch, state = made.put_global_batch(*_batch(recipe)), made.init(0)
    for _ in range(2):
        state, _ = made.step(state, batch)
    made.wait(state)
    folder = options.out / "trace"
    with jax.profiler.trace(str(folder), create_perfetto_trace=False):
        for _ in range(3):
            state, _ = made.step(state, batch)
        made.wait(state)
    kernels: Counter[str] = Counter()
    for path in folder.rglob("*.trace.json.gz"):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        tracks = {
            event["pid"]: event["args"].get("name", "") for event in events if event.get("name") == "process_name"
        }
        for event in events:
            if event.get("ph") == "X" and ("GPU" in tracks.get(event["pid"], "") or options.device == "cpu"):
                kernels[event["name"][:80]] += event.get("dur", 0)
    return {
        "trace": str(folder),
        "kernels_ms_of_3_steps": {name: round(us / 1e3, 2) for name, us in kernels.most_common(25)},
    }


PARTS: dict[str, Callable[[Options, str], dict[str, Any]]] = {
    "versions": versions,
    "correctness": correctness,
    "reference": reference,
    "step": step,
    "timed": timed,
    "parts": parts,
    "windows": windows,
    "program": program,
    "trace": trace,
}


def table(found: dict[str, Any]) -> None:
    """The figures, as text."""
    gpu = found.get("versions", {}).get("nvidia-smi", "")
    print(f"\n{gpu}")
    for part, one in found.items():
        if "failed" in one:
            print(f"{part}: FAILED: {one['failed'].splitlines()[-1] if one['failed'] else ''}")
        elif part.startswith("correctness"):
            for name, worst in one["apart"].items():
                print(
                    f"{part:<22}{name:<20} {worst['largest']:.1e} of {worst['allowed']:.0e} allowed, at {worst['at']}"
                )
        elif part.startswith("step"):
            for name, row in one.items():
                if isinstance(row, dict) and "step_ms" in row:
                    mfu, memory = (f", MFU {100 * row['mfu']:.1f}%" if row["mfu"] else ""), row["peak_device_bytes"]
                    print(
                        f"{part:<16}{name:<20}{row['step_ms']:>9.2f} ms {row['tokens_per_s']:>10,} tokens/s{mfu}"
                        + (f", {memory / 1e9:.1f} GB" if memory else "")
                    )
                elif isinstance(row, dict):
                    print(f"{part:<16}{name}: {row.get('failed', row)}")
        elif part in ("parts", "windows"):
            for name, row in one.items():
                if isinstance(row, dict):
                    print(
                        f"{name:<36}"
                        + (
                            f"{row['ms']:>9.2f} ms"
                            if "ms" in row
                            else f"{row['apart']:.1e} apart, {row['allowed']:.0e} allowed"
                        )
                    )
        elif part.startswith("program"):
            peak = one["step"]["bytes"]["peak"]
            print(
                f"{part:<22}step {peak / 1e9:.2f} GB by the compiled program, full logits {one['step']['full_logits']}, kernels {one['step']['kernels']}"
            )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
