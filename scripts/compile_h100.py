"""Compiles a recipe's real training step and evaluation for H100 GPUs on a machine without one, and reports the result.

    pip install -e ".[cuda]"
    python scripts/compile_h100.py --recipe muon --track small --devices 8

It takes half a minute a recipe on 2 cores. Memory, collectives, kernels and precisions are facts of the compiled
programs; times are an estimate from them and from the rates in ASSUMED, each of which it prints. XLA here chooses
kernels without timing any, so a machine with the GPUs may choose others.
"""

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver here to check against
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import tyro  # noqa: E402
from hlo import Compiled  # noqa: E402

from parity.errors import InputError, run_command  # noqa: E402

GPUS_PER_HOST = 8
# of attention's own kernels; the backward ones compute the scores again
WINDOW_PRODUCTS = {"window_attention": 2, "window_attention_dq": 3, "window_attention_dkv": 4}
PEAK = 989.4e12  # dense bfloat16 products, by the data sheet
ASSUMED = {
    "products": (0.70 * PEAK, "FLOP/s of matrix products: 0.70 of the data sheet's 989 TFLOP/s"),
    "fp8": (0.70 * 2 * PEAK, "FLOP/s of products of 8-bit numbers: 0.70 of twice as many"),
    "attention": (
        0.45 * PEAK,
        "FLOP/s of fused attention without what the mask hides: 0.45 of them; windows at their average over the run, "
        "documents longer than windows",
    ),
    "memory": (0.85 * 3.35e12, "bytes/s that the other kernels read and write: 0.85 of the data sheet's 3.35 TB/s"),
    "link": (0.70 * 450e9, "bytes/s that a GPU sends to others of its machine: 0.70 of NVLink's 450 GB/s"),
    "network": (0.80 * 50e9, "bytes/s that a GPU sends to other machines: 0.80 of 400 Gbit/s"),
}


@dataclass(frozen=True)
class Options:
    """Compiles a recipe for H100 GPUs without one."""

    recipe: str = "muon"
    """Recipe."""
    track: str = "small"
    """Track that gives its sizes."""
    devices: int = 8
    """GPUs: up to 8 on one machine, or a multiple of 8."""
    rows: int | None = None
    """Rows of a batch for each GPU; by default 65,536 tokens of them, or the track's batch if that is less."""
    microbatches: int = 1
    """Microbatches that a GPU divides its rows into."""
    shards: int | None = None
    """GPUs that the state is divided over; by default all of one machine."""
    fields: tuple[str, ...] = ()
    """Other fields of the recipe, such as dim=1600 layers=48."""
    remat: str = "none"
    """Activations that are computed again for the gradient: none or blocks."""
    json: bool = False
    """Print JSON."""
    save: Path | None = None
    """Also write the compiled programs' text into this folder."""


def report(options: Options) -> dict[str, Any]:
    """The compiled programs as plain JSON values. Bytes, FLOPs and seconds are of one GPU and one step."""
    import jax

    from jaxrun.program import JaxProgram
    from parity.harness import fingerprint
    from parity.harness.evaluation import largest_batch
    from parity.harness.flops import count
    from parity.harness.run import EVAL_TOKENS_PER_DEVICE
    from parity.track import default_recipe, track_for

    n, track = options.devices, track_for(options.track)
    if not (1 <= n <= GPUS_PER_HOST or n % GPUS_PER_HOST == 0):
        raise InputError(f"--devices {n}: expected 1 to {GPUS_PER_HOST}, or a multiple of it: choose another")
    recipe: Any = dataclasses.replace(default_recipe(track, options.recipe), precision="bfloat16")
    rows = options.rows or min(65_536 // recipe.context, max(1, recipe.batch_tokens // recipe.context))
    fields = {name: int(value) for name, _, value in (text.partition("=") for text in options.fields)}
    recipe = dataclasses.replace(recipe, **{"batch_tokens": rows * n * recipe.context} | fields)
    shards = options.shards or min(n, GPUS_PER_HOST)
    program = JaxProgram(recipe, h100s(n), microbatches=options.microbatches, shards=shards, remat=options.remat)
    eval_rows = (
        largest_batch(track.val_tokens, EVAL_TOKENS_PER_DEVICE * n, recipe.eval_context, n) // recipe.eval_context
    )
    batch_rows = {"step": rows * n, "evaluation": eval_rows}
    tokens = {"step": rows * recipe.context, "evaluation": eval_rows * recipe.eval_context // n}
    compiled_facts = {}
    for what, count_of_rows in batch_rows.items():
        begin_s = time.perf_counter()
        compiled = program.lowered(count_of_rows, what).compile()
        seconds = round(time.perf_counter() - begin_s, 1)
        compiled_facts[what] = facts(compiled, tokens[what], recipe) | {"compile_s": seconds}
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            (options.save / f"{recipe.name}-{n}-{what}.txt").write_text(compiled.as_text())
    model_flops = recipe.model_flops_per_token() * tokens["step"]
    batch = [jax.ShapeDtypeStruct((rows * n, recipe.context), "int32")] * 2
    counted_flops = count(program.step, program.shapes, batch) / n
    return {
        "recipe": recipe.name,
        "track": track.name,
        "devices": n,
        "shards": shards,
        "rows": rows,
        "microbatches": options.microbatches,
        "remat": options.remat,
        "tokens": tokens,
        "versions": fingerprint.versions(),
        "model_flops": model_flops,
        "counted_flops": counted_flops,
        "flops_over_model": counted_flops / model_flops,
        **compiled_facts,
        "estimate": estimate(compiled_facts["step"], model_flops, tokens["step"], recipe.steps),
    }


def h100s(count: int) -> list[Any]:
    """Devices that are described, not there. InputError where JAX has no plugin to compile for them."""
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            "",
            platform="cuda",
            target_config=(ROOT / "scripts" / "h100.txtpb").read_text(),
            topology=f"1x{max(1, count // GPUS_PER_HOST)}x{min(count, GPUS_PER_HOST)}",
        )
    except Exception as error:
        raise InputError(
            "compiling for H100s needs JAX's CUDA plugin, expected jax[cuda13], found none that works "
            f"({str(error)[:200]}): pip install 'jaxrun[cuda]'"
        ) from error
    return list(described.devices)


def facts(compiled: Any, tokens: int, recipe: Any) -> dict[str, Any]:
    """Memory, products, collectives, kernels and the largest buffers of one compiled program."""
    memory, program = compiled.memory_analysis(), Compiled(text := compiled.as_text())
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    products: dict[str, dict[str, float]] = {}
    for product in program.products:
        row = products.setdefault(f"{product.factors} -> {product.result}", {"count": 0, "flops": 0, "largest": 0})
        row["count"] += product.runs
        row["flops"] += product.flops * product.runs
        row["largest"] = max(row["largest"], product.flops)
    fp8_flops = sum(row["flops"] for types, row in products.items() if "f8" in types.partition(" -> ")[0])
    fused_flops = sum(p.flops * p.runs for p in program.attention)
    logits, scores = tokens * recipe.vocab_size, (recipe.context, recipe.context)
    arrays = [array for _, x, _, fused in program.walk() if not fused for array in x.results]
    return {
        "bytes": sizes | {"peak": sum(sizes.values())},
        "products": products,
        "product_flops": sum(row["flops"] for row in products.values()) - fp8_flops,
        "fp8_flops": fp8_flops,
        "attention_flops": fused_flops / 2 + window_flops(program.kernels, recipe, tokens),
        "collectives": collectives(program),
        "kernels": program.kernels,
        "traffic_bytes": program.traffic_bytes,
        "full_logits": any(array.shape[-1:] == (recipe.vocab_size,) and array.bytes >= 2 * logits for array in arrays),
        "full_attention_matrix": any(array.shape[-2:] == scores and len(array.shape) > 2 for array in arrays),
        "float64": "f64[" in text,
        "largest_buffers": dict(list(program.buffers.items())[:10]),
    }


def collectives(program: Compiled) -> dict[str, dict[str, int]]:
    """Exchanges by kind: how many, how many of them asynchronous, and bytes."""
    rows: dict[str, dict[str, int]] = {}
    for exchange in program.collectives:
        zeros = {"count": 0, "async": 0, "bytes": 0, "sent_bytes": 0, "sent_afar_bytes": 0}
        row = rows.setdefault(exchange.kind, zeros)
        between_hosts = len({device // GPUS_PER_HOST for device in exchange.group}) > 1
        row["count"] += exchange.runs
        row["async"] += exchange.runs * exchange.is_async
        row["bytes"] += exchange.runs * exchange.bytes
        row["sent_afar_bytes" if between_hosts else "sent_bytes"] += exchange.runs * exchange.sent_bytes
    return rows


def window_flops(kernels: dict[str, int], recipe: Any, tokens: int) -> float:
    """FLOPs of attention's own kernels: products x 2 x tokens x D x the keys of a position, on average over the run."""
    products = sum(WINDOW_PRODUCTS[name] * count for name, count in kernels.items() if name in WINDOW_PRODUCTS)
    if not products:
        return 0.0
    blocks = [
        max(1, recipe.attention_window(step) // (1 if i in recipe.long_window_layers else 2)) - 0.5
        for step in range(recipe.steps)
        for i in range(recipe.layers)
        if i != recipe.no_attention_layer
    ]
    return products * 2 * tokens * recipe.dim * recipe.block * sum(blocks) / len(blocks)


def estimate(step: dict[str, Any], model_flops: float, tokens: int, steps: int) -> dict[str, Any]:
    """Seconds of a step at the assumed rates: with all exchanges hidden behind other work, and with none."""
    rate = {name: value for name, (value, _) in ASSUMED.items()}
    work = {
        "products_s": step["product_flops"] / rate["products"] + step["fp8_flops"] / rate["fp8"],
        "attention_s": step["attention_flops"] / rate["attention"],
        "other kernels_s": step["traffic_bytes"]["others"] / rate["memory"],
    }
    near, afar = (sum(row[name] for row in step["collectives"].values()) for name in ("sent_bytes", "sent_afar_bytes"))
    exchanges_s = near / rate["link"] + afar / rate["network"]
    low, high = max(sum(work.values()), exchanges_s), sum(work.values()) + exchanges_s
    return work | {
        "exchanges_s": exchanges_s,
        "step_s": [low, high],
        "tokens_per_s": [tokens / high, tokens / low],
        "mfu": [model_flops / high / PEAK, model_flops / low / PEAK],
        "run_s": [steps * low, steps * high],
        "assumed": {name: sentence for name, (_, sentence) in ASSUMED.items()},
    }


def show(result: dict[str, Any]) -> None:
    """The report as text."""
    print(
        f"{result['recipe']} of track {result['track']} on {result['devices']} H100s, {result['rows']} rows each in "
        f"{result['microbatches']} parts, state over {result['shards']}\n"
        f"model FLOPs {result['model_flops'] / 1e12:.1f} T a GPU and step; the program's "
        f"{result['flops_over_model']:.3f} x that"
    )
    for what in ("step", "evaluation"):
        compiled = result[what]
        print(f"\n{what}: {result['tokens'][what]:,} tokens a GPU, compiled in {compiled['compile_s']} s")
        show_compiled(compiled)
    guess = result["estimate"]
    kinds = ("products", "attention", "other kernels", "exchanges")
    times = ", ".join(f"{kind} {1e3 * guess[f'{kind}_s']:.1f} ms" for kind in kinds)
    step_ms, run_s, mfu = [1e3 * s for s in guess["step_s"]], guess["run_s"], [100 * x for x in guess["mfu"]]
    speeds = [x / 1e3 for x in guess["tokens_per_s"]]
    print(
        f"\nestimate of a step: {times}\n"
        f"  {step_ms[0]:.0f} to {step_ms[1]:.0f} ms (exchanges hidden or not), {speeds[0]:.0f} to {speeds[1]:.0f} "
        f"thousand tokens/s a GPU, MFU {mfu[0]:.0f} to {mfu[1]:.0f}%; all steps in {run_s[0]:.0f} to {run_s[1]:.0f} s"
    )
    for sentence in guess["assumed"].values():
        print(f"  assumed: {sentence}")


def show_compiled(compiled: dict[str, Any]) -> None:
    """Memory, products, collectives, kernels and buffers of a program, a line each."""
    print("  memory        " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in compiled["bytes"].items()))
    for types, row in compiled["products"].items():
        flops, largest = row["flops"] / 1e12, row["largest"] / 1e12
        print(f"  products      {types:<22} {row['count']:>5} x, {flops:8.3f} TFLOP, largest {largest:.3f}")
    for kind, row in compiled["collectives"].items():
        afar = f", {row['sent_afar_bytes'] / 1e6:.1f} MB sent to other machines" if row["sent_afar_bytes"] else ""
        print(f"  {kind:<18} {row['count']:>3} x, {row['async']} asynchronous, {row['bytes'] / 1e6:8.1f} MB{afar}")
    kernels = ", ".join(f"{count} x {name}" for name, count in compiled["kernels"].items())
    print(f"  kernels       {kernels or 'no library kernels'}")
    by_products, others = (compiled["traffic_bytes"][name] / 1e9 for name in ("products", "others"))
    print(f"  traffic       {by_products:.0f} GB by products, {others:.0f} GB by other kernels")
    flags = ("full_logits", "full_attention_matrix", "float64")
    print("  " + ", ".join(f"{name.replace('_', ' ')} {'YES' if compiled[name] else 'no'}" for name in flags))
    buffers = list(compiled["largest_buffers"].items())[:4]
    print("  largest       " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in buffers))


def main() -> None:
    options = tyro.cli(Options)
    result = report(options)
    print(json.dumps(result, indent=2)) if options.json else show(result)


if __name__ == "__main__":
    sys.exit(run_command(main))
