"""What XLA compiled on this machine, and where its time goes."""

import gzip
import json
from collections import Counter
from typing import Any

from gpu_checks.options import Options, random_batch


def program(options: Options, recipe_name: str) -> dict[str, Any]:
    """Memory, products, kernels and largest buffers of the compiled step and evaluation."""
    from compile_h100 import facts

    from parity.program import build

    recipe = options.recipe(recipe_name)
    built: Any = build("jaxrun", recipe, device=options.device)
    rows, tokens = recipe.batch_tokens // recipe.context, recipe.batch_tokens
    return {what: facts(built.lowered(rows, what).compile(), tokens, recipe) for what in ("step", "evaluation")}


def trace(options: Options, recipe_name: str) -> dict[str, Any]:
    """Three steps under JAX's profiler, and the kernels that take longest."""
    import jax

    from parity.program import build

    recipe = options.recipe(recipe_name)
    built: Any = build("jaxrun", recipe, device=options.device)
    batch, state = built.put_global_batch(*random_batch(recipe)), built.init(0)
    for _ in range(2):
        state, _ = built.step(state, batch)
    built.wait(state)
    folder = options.out / "trace"
    with jax.profiler.trace(str(folder), create_perfetto_trace=False):
        for _ in range(3):
            state, _ = built.step(state, batch)
        built.wait(state)
    kernels: Counter[str] = Counter()
    for path in folder.rglob("*.trace.json.gz"):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        tracks = {e["pid"]: e["args"].get("name", "") for e in events if e.get("name") == "process_name"}
        for event in events:
            if event.get("ph") == "X" and ("GPU" in tracks.get(event["pid"], "") or options.device == "cpu"):
                kernels[event["name"][:80]] += event.get("dur", 0)
    longest = {name: round(us / 1e3, 2) for name, us in kernels.most_common(25)}
    return {"trace": str(folder), "kernels_ms_of_3_steps": longest}
