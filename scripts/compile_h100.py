"""Compiles a recipe's real training step and evaluation for H100 GPUs on a machine that has none, and says what came out.

    pip install -e ".[cuda]"
    python scripts/compile_h100.py --recipe muon --track small --devices 8

It takes half a minute a recipe on 2 cores. Memory, exchanges, kernels and precisions are facts of the compiled programs; times are an
estimate from them and from the rates in ASSUMED, each of which it prints. XLA here chooses kernels without timing any, so that
a machine with the GPUs may choose others.
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

GPUS_A_MACHINE = 8
WINDOW_PRODUCTS = {
    "window_attention": 2,
    "window_attention_dq": 3,
    "window_attention_dkv": 4,
}  # the backward kernels make the scores again
PEAK = 989.4e12  # dense bfloat16 products, by the data sheet
ASSUMED = {
    "products": (0.70 * PEAK, "FLOP/s of matrix products: 0.70 of the data sheet's 989 TFLOP/s"),
    "fp8": (0.70 * 2 * PEAK, "FLOP/s of products of 8-bit numbers: 0.70 of twice as many"),
    "attention": (
        0.45 * PEAK,
        "FLOP/s of fused attention, of which what the mask hides is left out: 0.45 of them; windows as wide as they "
        "are on average over the run, documents longer than they",
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
    """Rows of a batch for each GPU; by default 65,536 tokens of them, or what the track's batch gives it if that is less."""
    microbatches: int = 1
    """Parts that a GPU takes its rows in."""
    shards: int | None = None
    """GPUs that the state is divided over; by default all of one machine."""
    fields: tuple[str, ...] = ()
    """Other fields of the recipe, such as dim=1600 layers=48."""
    remat: str = "none"
    """What is computed again for the gradient: none or blocks."""
    json: bool = False
    """Print JSON."""
    save: Path | None = None
    """Also write the compiled programs' text into this folder."""


def report(options: Options) -> dict[str, Any]:
    """What came out, as plain JSON values. Bytes, FLOPs and seconds are of one GPU and one step."""
    import jax
    from jax.experimental import topologies

    from jaxrun.program import JaxProgram
    from parity.harness import fingerprint
    from parity.harness.evaluation import largest_batch
    from parity.harness.flops import count
    from parity.harness.run import EVAL_TOKENS_PER_DEVICE
    from parity.track import default_recipe, track_for

    n, track = options.devices, track_for(options.track)
    if not (1 <= n <= GPUS_A_MACHINE or n % GPUS_A_MACHINE == 0):
        raise InputError(f"--devices {n}: expected 1 to {GPUS_A_MACHINE}, or a multiple of it: choose another")
    recipe = dataclasses.replace(default_recipe(track, options.recipe), precision="bfloat16")
    rows = options.rows or min(65_536 // recipe.context, max(1, recipe.batch_tokens // recipe.context))
    others = {name: int(value) for name, _, value in (text.partition("=") for text in options.fields)}
    recipe = dataclasses.replace(recipe, **{"batch_tokens": rows * n * recipe.context} | others)
    try:
        described = topologies.get_topology_desc(
            "",
            platform="cuda",
            target_config=(ROOT / "scripts" / "h100.txtpb").read_text(),
            topology=f"1x{max(1, n // GPUS_A_MACHINE)}x{min(n, GPUS_A_MACHINE)}",
        )
    except Exception as error:
        raise InputError(
            f"compiling for H100s needs JAX's CUDA plugin, expected jax[cuda13], found none that works ({str(error)[:200]}): "
            "pip install 'jaxrun[cuda]'"
        ) from error
    shards = options.shards or min(n, GPUS_A_MACHINE)
    program = JaxProgram(
        recipe, list(described.devices), microbatches=options.microbatches, shards=shards, remat=options.remat
    )
    tokens = {
        "step": rows * recipe.context,
        "evaluation": largest_batch(track.val_tokens, EVAL_TOKENS_PER_DEVICE * n, recipe.eval_context, n) // n,
    }
    found = {}
    for what, own in tokens.items():
        begin_s = time.perf_counter()
        compiled = program.lowered(
            own * n // (recipe.context if what == "step" else recipe.eval_context), what
        ).compile()
        found[what] = facts(compiled, own, recipe) | {"compile_s": round(time.perf_counter() - begin_s, 1)}
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            (options.save / f"{recipe.name}-{n}-{what}.txt").write_text(compiled.as_text())
    model = recipe.model_flops_per_token() * tokens["step"]
    batch = [jax.ShapeDtypeStruct((rows * n, recipe.context), "int32")] * 2
    counted = count(program.step, program.shapes, batch) / n
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
        "model_flops": model,
        "counted_flops": counted,
        "flops_over_model": counted / model,
        **found,
        "estimate": estimate(found["step"], model, tokens["step"], recipe.steps),
    }


def facts(compiled: Any, tokens: int, recipe: Any) -> dict[str, Any]:
    """Memory, products, exchanges, kernels and the largest buffers of one compiled program."""
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
    exchanges: dict[str, dict[str, Any]] = {}
    for one in program.collectives:
        row = exchanges.setdefault(
            one.kind, {"count": 0, "async": 0, "bytes": 0, "sent_bytes": 0, "sent_afar_bytes": 0}
        )
        afar = len({device // GPUS_A_MACHINE for device in one.group}) > 1
        row["count"] += one.runs
        row["async"] += one.runs * one.is_async
        row["bytes"] += one.runs * one.bytes
        row["sent_afar_bytes" if afar else "sent_bytes"] += one.runs * one.sent_bytes
    logits, scores = tokens * recipe.vocab_size, (recipe.context, recipe.context)
    arrays = [array for _, one, _, fused in program.walk() if not fused for array in one.makes]
    return {
        "bytes": sizes | {"peak": sum(sizes.values())},
        "products": products,
        "product_flops": sum(p.flops * p.runs for p in program.products if "f8" not in p.factors),
        "fp8_flops": sum(p.flops * p.runs for p in program.products if "f8" in p.factors),
        "attention_flops": sum(p.flops * p.runs for p in program.attention) / 2
        + windowed_flops(program.kernels, recipe, tokens),
        "collectives": exchanges,
        "kernels": program.kernels,
        "traffic_bytes": program.traffic_bytes,
        "full_logits": any(array.shape[-1:] == (recipe.vocab_size,) and array.bytes >= 2 * logits for array in arrays),
        "full_attention_matrix": any(array.shape[-2:] == scores and len(array.shape) > 2 for array in arrays),
        "float64": "f64[" in text,
        "largest_buffers": dict(list(program.buffers.items())[:10]),
    }


def windowed_flops(kernels: dict[str, int], recipe: Any, tokens: int) -> float:
    """FLOPs of attention's own kernels: products x 2 x tokens x D x the keys that a position sees, on average over the run and a block."""
    found = sum(WINDOW_PRODUCTS[name] * count for name, count in kernels.items() if name in WINDOW_PRODUCTS)
    if not found:
        return 0.0
    blocks = [
        max(1, recipe.attention_window(step) // (1 if i in recipe.long else 2)) - 0.5
        for step in range(recipe.steps)
        for i in range(recipe.layers)
        if i != recipe.bare
    ]
    return found * 2 * tokens * recipe.dim * recipe.block * sum(blocks) / len(blocks)


def estimate(step: dict[str, Any], model_flops: float, tokens: int, steps: int) -> dict[str, Any]:
    """Seconds of a step from what it computes and moves, at the assumed rates; exchanges either all behind other work, or none."""
    rate = {name: value for name, (value, _) in ASSUMED.items()}
    parts = {
        "products_s": step["product_flops"] / rate["products"] + step["fp8_flops"] / rate["fp8"],
        "attention_s": step["attention_flops"] / rate["attention"],
        "other kernels_s": step["traffic_bytes"]["others"] / rate["memory"],
    }
    near, afar = (sum(row[name] for row in step["collectives"].values()) for name in ("sent_bytes", "sent_afar_bytes"))
    exchanges = near / rate["link"] + afar / rate["network"]
    hidden, shown = max(sum(parts.values()), exchanges), sum(parts.values()) + exchanges
    return parts | {
        "exchanges_s": exchanges,
        "step_s": [hidden, shown],
        "tokens_per_s": [tokens / shown, tokens / hidden],
        "mfu": [model_flops / shown / PEAK, model_flops / hidden / PEAK],
        "run_s": [steps * hidden, steps * shown],
        "assumed": {name: said for name, (_, said) in ASSUMED.items()},
    }


def show(found: dict[str, Any]) -> None:
    """The report as text of 100 columns."""
    print(
        f"{found['recipe']} of track {found['track']} on {found['devices']} H100s, {found['rows']} rows each in {found['microbatches']} parts, "
        f"state over {found['shards']}"
    )
    print(
        f"model FLOPs {found['model_flops'] / 1e12:.1f} T a GPU and step; the program's {found['flops_over_model']:.3f} x that"
    )
    for what in ("step", "evaluation"):
        one = found[what]
        print(f"\n{what}: {found['tokens'][what]:,} tokens a GPU, compiled in {one['compile_s']} s")
        print("  memory        " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in one["bytes"].items()))
        for types, row in one["products"].items():
            print(
                f"  products      {types:<22} {row['count']:>5} x, {row['flops'] / 1e12:8.3f} TFLOP, largest {row['largest'] / 1e12:.3f}"
            )
        for kind, row in one["collectives"].items():
            print(
                f"  {kind:<18} {row['count']:>3} x, {row['async']} asynchronous, {row['bytes'] / 1e6:8.1f} MB"
                + (f", {row['sent_afar_bytes'] / 1e6:.1f} MB sent to other machines" if row["sent_afar_bytes"] else "")
            )
        print(
            "  kernels       "
            + (", ".join(f"{count} x {name}" for name, count in one["kernels"].items()) or "no library's")
        )
        print(
            f"  traffic       {one['traffic_bytes']['products'] / 1e9:.0f} GB by products, {one['traffic_bytes']['others'] / 1e9:.0f} GB by other kernels"
        )
        print(
            f"  full logits {'YES' if one['full_logits'] else 'no'}, full attention matrix {'YES' if one['full_attention_matrix'] else 'no'}, "
            f"float64 {'YES' if one['float64'] else 'no'}"
        )
        print(
            "  largest       "
            + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in list(one["largest_buffers"].items())[:4])
        )
    guess = found["estimate"]
    print(
        "\nestimate of a step: "
        + ", ".join(
            f"{name.removesuffix('_s')} {1e3 * guess[name]:.1f} ms"
            for name in guess
            if name.endswith("s_s") or name == "attention_s"
        )
    )
    low, high = guess["step_s"]
    print(
        f"  {1e3 * low:.0f} to {1e3 * high:.0f} ms (exchanges hidden or not), {guess['tokens_per_s'][0] / 1e3:.0f} to {guess['tokens_per_s'][1] / 1e3:.0f} thousand "
        f"tokens/s a GPU, MFU {100 * guess['mfu'][0]:.0f} to {100 * guess['mfu'][1]:.0f}%; all steps in {guess['run_s'][0]:.0f} to {guess['run_s'][1]:.0f} s"
    )
    for said in guess["assumed"].values():
        print(f"  assumed: {said}")


def main() -> None:
    options = tyro.cli(Options)
    found = report(options)
    print(json.dumps(found, indent=2)) if options.json else show(found)


if __name__ == "__main__":
    sys.exit(run_command(main))
