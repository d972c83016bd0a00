"""Measures what docs/performance.md states: `python scripts/bench.py WHAT [--json FILE]`.

    step     tokens/s of jaxrun against torchref, eager and compiled, in turns on one machine, as ratios
    plain    torchref's nanogpt against GPT-2 as PyTorch's users write it, in turns
    growth   tokens/s against batch, context, width and depth, both backends, and what the FLOPs foretell; draws a chart with --chart
    attention  milliseconds of record-21's attention against window and context, both backends; draws a chart with --chart
    loader   tokens/s of the reader from a warm page cache
    parts    where a step's time goes in both backends: forward, backward, optimizer, attention
    start    seconds until --help answers, and until the first step, with and without the compilation cache
    first    the README's first line after the install, from nothing: data, compilation, training, memory
    verify   seconds of the verifier: on the runs of --runs by depth and rule, on a log of 100,000 steps, on 1,000 public logs
    seeds    final val loss of a recipe over several seeds in both backends, and its margin to the track's target

Every figure is a median; those that are compared were taken in turns. Times on a shared machine are noisy: ratios hold.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
VARIANTS = {
    "jaxrun": ("jaxrun", {}),
    "torchref eager": ("torchref", {"compile": False}),
    "torchref compiled": ("torchref", {"compile": True}),
}


@dataclass(frozen=True)
class Bench:
    """Benchmarks of the trainers."""

    what: tyro.conf.Positional[
        Literal["step", "plain", "growth", "attention", "loader", "parts", "start", "first", "verify", "seeds"]
    ]
    """Which figures."""
    recipes: tuple[str, ...] = ("muon", "nanogpt")
    """Recipes to measure."""
    backends: tuple[str, ...] = ("jaxrun", "torchref")
    """Backends for `seeds` and `first`."""
    scale: str = "pocket"
    """Sizes of the recipe for `step` and `parts`."""
    fields: tuple[str, ...] = ()
    """Other fields of the recipe for `step` and `plain`, such as dim=256 vocab_size=50304."""
    chart: Path | None = None
    """Where `growth` and `attention` draw their charts."""
    turns: int = 7
    """How often each variant has its turn."""
    steps: int = 5
    """Steps in a turn, behind one that is not counted; spread over the run where a window grows."""
    seeds: int = 5
    """Seeds for `seeds`: 0, 1, ..."""
    data_dir: Path | None = None
    """Where slices are."""
    runs: Path = Path("runs")
    """Where `seeds` leaves its runs; those that are already complete there are not made again."""
    json: Path | None = None
    """Also write the figures here."""


def main(options: Bench) -> None:
    figures = {
        "step": bench_step,
        "plain": bench_plain,
        "growth": bench_growth,
        "attention": bench_attention,
        "loader": bench_loader,
        "parts": bench_parts,
        "start": bench_start,
        "first": bench_first,
        "verify": bench_verify,
        "seeds": bench_seeds,
    }[options.what](options)
    from parity.harness import fingerprint

    report = {
        "what": options.what,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": fingerprint.host(),
        "versions": fingerprint.versions(),
        "python": platform.python_version(),
        "figures": figures,
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def bench_step(options: Bench) -> dict[str, Any]:
    """Each variant in a process of its own; the processes take turns, so that the machine's drift meets all alike."""
    found = {}
    for recipe in options.recipes:
        tokens, times = in_turns(options, recipe, VARIANTS, fields_of(options.fields))
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min(("torchref eager", "torchref compiled"), key=medians.get)
        ratios = sorted(other / own for own, other in zip(times["jaxrun"], times[best]))
        found[recipe] = {
            "tokens_per_s": {name: round(tokens / median) for name, median in medians.items()},
            "step_ms": {name: round(1e3 * median, 1) for name, median in medians.items()},
            "better_torchref": best,
            "jaxrun_over_better_torchref": {
                "median": round(statistics.median(ratios), 3),
                "least": round(ratios[0], 3),
                "most": round(ratios[-1], 3),
                "turns": options.turns,
            },
        }
    return found


def fields_of(texts: tuple[str, ...]) -> dict[str, int]:
    return {name: int(value) for name, _, value in (text.partition("=") for text in texts)}


def in_turns(
    options: Bench, recipe: str, variants: dict[str, Any], fields: dict[str, int]
) -> tuple[int, dict[str, list[float]]]:
    """Tokens of a step, and the median seconds of each turn of each variant."""
    from parity.recipes import recipe_for

    grows = len(recipe_for(recipe, options.scale).window_stages()) > 1
    workers = {name: Worker(recipe, options.scale, *variant, fields) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.turns):
        for name, worker in workers.items():
            worker.steps(1)
            spread = worker.steps(options.steps)
            times[name].append(statistics.mean(spread) if grows else statistics.median(spread))
    tokens = next(iter(workers.values())).tokens
    for worker in workers.values():
        worker.close()
    return tokens, times


def bench_plain(options: Bench) -> dict[str, Any]:
    """torchref's nanogpt and the plain model, eager and compiled each, as the ratio of their better forms."""
    variants = {
        f"{name} {form}": (backend, {"compile": form == "compiled"})
        for name, backend in (("torchref", "torchref"), ("plain", "plain"))
        for form in ("eager", "compiled")
    }
    tokens, times = in_turns(options, "nanogpt", variants, fields_of(options.fields))
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {name: min((f"{name} eager", f"{name} compiled"), key=medians.get) for name in ("torchref", "plain")}
    ratios = sorted(b / a for a, b in zip(times[best["torchref"]], times[best["plain"]]))
    return {
        "tokens_per_s": {name: round(tokens / median) for name, median in medians.items()},
        "better": best,
        "torchref_over_plain": {
            "median": round(statistics.median(ratios), 3),
            "least": round(ratios[0], 3),
            "most": round(ratios[-1], 3),
        },
    }


GROWTH = {
    "batch (rows of 256)": [{"batch_tokens": rows * 256} for rows in (4, 16, 64)],
    "context (4,096 tokens a batch)": [{"context": T} for T in (256, 512, 1024, 2048, 4096)],
    "width": [{"dim": D} for D in (128, 256, 512)],
    "depth": [{"layers": L} for L in (2, 4, 8)],
}


def bench_growth(options: Bench) -> dict[str, Any]:
    """Tokens/s of both backends as one size grows, and what the model's FLOPs foretell from the smallest."""
    from dataclasses import replace

    from parity.recipes import recipe_for

    base, seen = recipe_for(options.recipes[0], options.scale), {}
    found: dict[str, Any] = {"recipe": base.name}
    for axis, points in GROWTH.items():
        rows = found.setdefault(axis, [])
        for fields in points:
            recipe = replace(base, **fields)
            key = (recipe.batch_tokens, recipe.context, recipe.dim, recipe.layers)
            if key not in seen:
                tokens, times = in_turns(
                    options, base.name, {"jaxrun": VARIANTS["jaxrun"], "torchref": VARIANTS["torchref eager"]}, fields
                )
                seen[key] = {name: tokens / statistics.median(values) for name, values in times.items()}
            row = {
                "at": next(iter(fields.values())),
                **{name: round(speed) for name, speed in seen[key].items()},
                "flops_per_token": recipe.model_flops_per_token(),
            }
            rows.append(row)
            print(axis, row, file=sys.stderr, flush=True)
    if options.chart:
        draw_growth(found, options.chart)
    return found


def draw_growth(found: dict[str, Any], path: Path) -> None:
    """Four charts side by side: tokens/s against each size, with the line that the FLOPs foretell from the smallest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), constrained_layout=True)
    for place, axis in zip(axes, GROWTH):
        rows = found[axis]
        xs = [row["at"] // 256 if axis.startswith("batch") else row["at"] for row in rows]
        for name, colour, marker in (("jaxrun", "#0072b2", "o"), ("torchref", "#d55e00", "s")):
            place.plot(xs, [row[name] for row in rows], marker=marker, color=colour, label=name)
        place.plot(
            xs,
            [rows[0]["jaxrun"] * rows[0]["flops_per_token"] / row["flops_per_token"] for row in rows],
            ":",
            color="grey",
            label="as FLOPs foretell",
        )
        place.set(xscale="log", yscale="log", xlabel=axis, xticks=xs, xticklabels=[f"{x:,}" for x in xs])
        place.minorticks_off()
        place.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s (log), higher is better")
    axes[0].legend(frameon=False)
    figure.suptitle(f"{found['recipe']} at pocket's sizes but for one, 2 CPU cores, float32")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


WINDOWS, CONTEXTS = (1, 2, 4, 7, 10, 14), (1024, 4096, 16384)
BATCH = 16384  # tokens of attention's batch


def bench_attention(options: Bench) -> dict[str, Any]:
    """Forward and backward of one layer's attention at pocket's block, heads and head_dim, 16,384 tokens in rows of some lengths: within
    documents and windows, and plainly causal. The two backends take turns; the process holds both."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from jaxrun import attention as ours
    from parity.recipes import recipe_for
    from torchref import attention as theirs

    recipe, rng = recipe_for("record-21", "pocket"), np.random.default_rng(0)
    most = recipe.attention_window(recipe.steps)
    found: dict[str, Any] = {"block": recipe.block, "tokens": BATCH, "ms": []}
    for T in CONTEXTS:
        qkv = rng.standard_normal((3, BATCH // T, T, recipe.heads, recipe.head_dim), np.float32)
        ids = np.cumsum(rng.random((BATCH // T, T)) < 1 / 600, axis=1).astype(np.int32)
        there, rows, here, documents = (
            torch.from_numpy(qkv).requires_grad_(),
            torch.from_numpy(ids),
            jnp.asarray(qkv),
            jnp.asarray(ids),
        )
        windowed = jax.jit(
            jax.grad(lambda x, ids, w: ours.window_attention(*x, 0.12, ids, w, recipe.block, most).var())
        )
        causal = jax.jit(jax.grad(lambda x: ours.causal_attention(*x, 0.12).var()))
        for window in (*WINDOWS, None):
            if window is None and T > 4096:
                continue  # minutes

            def jaxrun(window=window):
                jax.block_until_ready(causal(here) if window is None else windowed(here, documents, jnp.int32(window)))

            def torchref(window=window):
                y = (
                    theirs.causal_attention(*there, 0.12)
                    if window is None
                    else theirs.window_attention(
                        *there,
                        0.12,
                        rows,
                        torch.tensor(window, dtype=torch.int32),
                        recipe.block,
                        min(most, 1 << (window - 1).bit_length()),
                    )
                )
                torch.autograd.grad(y.var(), there)

            seconds: dict[str, list[float]] = {"jaxrun": [], "torchref": []}
            for turn in range(options.turns + 1):
                for name, run in (("jaxrun", jaxrun), ("torchref", torchref)):
                    begin_s = time.perf_counter()
                    run()
                    seconds[name] += [time.perf_counter() - begin_s] if turn else []
            row = {
                "context": T,
                "window": window,
                **{name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()},
            }
            found["ms"].append(row)
            print(row, file=sys.stderr, flush=True)
    if options.chart:
        draw_attention(found, options.chart)
    return found


def draw_attention(found: dict[str, Any], path: Path) -> None:
    """Two charts: against the window, for each length of a row; and against the length of a row, for the widest window and without one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (by_window, by_context) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    looks = {"jaxrun": ("#0072b2", "o"), "torchref": ("#d55e00", "s")}
    for name, (colour, marker) in looks.items():
        for T, style in zip(CONTEXTS, ("-", "--", ":")):
            rows = [row for row in found["ms"] if row["context"] == T and row["window"]]
            by_window.plot(
                [row["window"] * found["block"] for row in rows],
                [row[name] for row in rows],
                style,
                marker=marker,
                color=colour,
                markersize=4,
                label=f"{name}, rows of {T:,}",
            )
        for window, style, said in (
            (WINDOWS[-1], "-", f"window of {WINDOWS[-1] * found['block']} tokens"),
            (None, "--", "causal, no window"),
        ):
            rows = [row for row in found["ms"] if row["window"] == window]
            by_context.plot(
                [row["context"] for row in rows],
                [row[name] for row in rows],
                style,
                marker=marker,
                color=colour,
                markersize=4,
                label=f"{name}, {said}",
            )
    by_window.set(xlabel="window, tokens", ylabel=f"ms, forward and backward of {found['tokens']:,} tokens", ylim=0)
    by_context.set(
        xlabel="tokens of a row (log)", xscale="log", xticks=CONTEXTS, xticklabels=[f"{T:,}" for T in CONTEXTS], ylim=0
    )
    by_context.minorticks_off()
    for place in (by_window, by_context):
        place.grid(alpha=0.3)
        place.legend(frameon=False, fontsize=8)
    figure.suptitle("attention of one layer of record-21 at pocket's heads, 2 CPU cores, float32: lower is better")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def bench_loader(options: Bench) -> dict[str, Any]:
    """The reader over shards of 100M tokens that the page cache holds: batches of 524,288 tokens in rows of 1,024, for one process that takes
    all of it, and for one of 8 that takes its part."""
    import hashlib

    import numpy as np

    from parity.data.shards import open_shard, write_shard
    from parity.data.stream import Reader, Segment, spans

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.bin"
        write_shard(path, np.random.default_rng(0).integers(0, 50257, 100_000_000).astype(np.uint16))
        shard = open_shard(path)
        _ = int(np.asarray(shard).max())  # now it is in the page cache
        plan = [Segment(180, 524_288, 1024)]
        for name, options_ in (
            ("one process", {}),
            ("one of 8, the first", {"ranks": 8}),
            ("one of 8, another", {"rank": 1, "ranks": 8, "digests": False}),
        ):
            speeds = []
            for _ in range(options.turns):
                begin_s = time.perf_counter()
                with Reader([shard], spans([len(shard)], plan), vocab_size=50257, **options_) as reader:
                    count = sum(1 for _ in reader)
                speeds.append(count * 524_288 / (time.perf_counter() - begin_s))
            found[name] = {"tokens_per_s": round(statistics.median(speeds))}
        data = np.asarray(shard[:524_289]).tobytes()
        begin_s = time.perf_counter()
        for _ in range(50):
            hashlib.sha256(data).hexdigest()
        found["sha256 alone"] = {"tokens_per_s": round(50 * 524_288 / (time.perf_counter() - begin_s))}
    return found


class Worker:
    """A process that holds one compiled program and makes steps when it is told to."""

    def __init__(self, recipe: str, scale: str, backend: str, build: dict[str, Any], fields: dict[str, int]):
        command = [sys.executable, __file__, "--worker", json.dumps([recipe, scale, backend, build, fields])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.tokens = int(self.process.stdout.readline())

    def steps(self, count: int) -> list[float]:
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def worker(spec: str) -> None:
    """The other end of Worker: prints the tokens of a step, then a list of seconds for every number it reads."""
    from parity.program import with_step

    recipe, program, state, batch = prepared(*json.loads(spec))
    for stage in recipe.window_stages():  # compiles what each of them needs
        state, metrics = program.step(with_step(program, state, stage), batch)
        program.wait(state)
    print(recipe.batch_tokens, flush=True)
    for line in sys.stdin:
        seconds, count = [], int(line)
        for i in range(count):  # the steps of a turn are spread over the run, for attention whose window grows
            state = with_step(program, state, (2 * i + 1) * recipe.steps // (2 * count))
            begin_s = time.perf_counter()
            state, metrics = program.step(state, batch)
            program.fetch(metrics["loss"])
            program.wait(state)
            seconds.append(time.perf_counter() - begin_s)
        print(json.dumps(seconds), flush=True)


def prepared(
    name: str, scale: str, backend: str, build: dict[str, Any], fields: dict[str, int] | None = None
) -> tuple[Any, Any, Any, Any]:
    from dataclasses import replace

    import numpy as np

    from parity.program import build as build_program
    from parity.recipes import recipe_for

    recipe = replace(recipe_for(name, scale), **(fields or {}))
    if backend == "plain":
        from plain_gpt import Plain

        program = Plain(recipe, **build)
    else:
        program = build_program(backend, recipe, **build)
    tokens = np.random.default_rng(0).integers(0, recipe.tokenizer_size, recipe.batch_tokens + 1).astype(np.int32)
    shape = (-1, recipe.context)
    return (
        recipe,
        program,
        program.init(0),
        program.put_global_batch(tokens[:-1].reshape(shape), tokens[1:].reshape(shape)),
    )


def bench_parts(options: Bench) -> dict[str, Any]:
    """Forward, forward and backward, and the whole step; the optimizer's share is the difference."""
    found: dict[str, Any] = {}
    for recipe_name in options.recipes:
        for backend in options.backends:
            recipe, program, state, batch = prepared(recipe_name, options.scale, backend, {})

            def step(program=program, batch=batch):
                nonlocal state
                state, metrics = program.step(state, batch)
                program.fetch(metrics["loss"])
                program.wait(state)

            parts = {
                "forward": lambda p=program, b=batch: p.fetch(p.token_losses(state, b)).sum(),
                "forward and backward": lambda p=program, b=batch: p.fetch(p.loss_and_grads(state, b)),
                "step": step,
            }
            times: dict[str, list[float]] = {part: [] for part in parts}
            for turn in range(options.turns + 1):
                for part, run in parts.items():
                    begin_s = time.perf_counter()
                    run()
                    if turn:
                        times[part].append(time.perf_counter() - begin_s)
            found[f"{recipe_name} {backend}"] = {
                part: f"{1e3 * statistics.median(t):.1f} ms" for part, t in times.items()
            }
    return found


def bench_start(options: Bench) -> dict[str, Any]:
    """Seconds of whole processes: --help; then a run of one step, cold and with the compilation cache warm."""
    found: dict[str, Any] = {}
    for backend in options.backends:
        helps = [timed([f"{backend}.train", "--help"])[0] for _ in range(options.turns)]
        found[f"{backend} --help"] = {"median_s": round(statistics.median(helps), 2), "most_s": round(max(helps), 2)}
    with tempfile.TemporaryDirectory() as scratch:
        env = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled"}
        for start in ("first", "second"):
            _, out = timed(
                ["jaxrun.train", "--runs", scratch, "--name", start, "--samples", "0", "--steps", "8", *where(options)],
                env,
            )
            found[f"jaxrun {start} start"] = {"warm_up_s": round(out["warm-up"], 1)}
    return found


def bench_first(options: Bench) -> dict[str, Any]:
    """The trainer with an empty data folder and an empty compilation cache, as on a machine that has never seen it."""
    found = {}
    for backend in options.backends:
        with tempfile.TemporaryDirectory() as scratch:
            env = {
                "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
                "XDG_CACHE_HOME": f"{scratch}/cache",
                "JAXRUN_DATA": f"{scratch}/data",
            }
            seconds, _ = timed([f"{backend}.train", "--runs", f"{scratch}/runs", "--name", "first"], env)
            events = log_of(Path(scratch) / "runs/pocket/first")
            totals = events[-1]["totals"]
            found[backend] = {
                "whole_s": round(seconds, 1),
                "train_s": round(totals["train_s"], 1),
                "eval_s": round(totals["eval_s"], 1),
                "warm_up_s": round(phases(events)["warm-up"], 1),
                "val_loss": round(totals["val_loss"], 4),
                "peak_host_gb": round(totals["peak_host_bytes"] / 1e9, 2),
                "telemetry_fraction": round(totals["telemetry_fraction"], 5),
            }
    return found


def bench_verify(options: Bench) -> dict[str, Any]:
    """Seconds of the verifier's default on every finished run below --runs, and at its limits of scale."""
    from parity.verify.cheats.forgery import rewrite

    found: dict[str, Any] = {}
    for run in sorted(path.parent for path in options.runs.glob("**/weights.safetensors")):
        begin_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "parity.verify", str(run.absolute()), "--json", "--no-write", *where(options)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        verdict = json.loads(done.stdout)
        rules = {rule["id"]: rule["seconds"] for rule in verdict["rules"] if rule["seconds"] >= 0.1}
        found[str(run)] = {
            "status": verdict["status"],
            "seconds": round(time.perf_counter() - begin_s, 1),
            "rules": rules,
        }
        print(f"{run}: {found[str(run)]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "run"
        shutil.copytree(run, long, ignore=shutil.ignore_patterns("checkpoints"))

        def longer(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
            step = next(event for event in events if event["event"] == "step")
            return [events[0], *({**step, "step": i} for i in range(100_000)), events[-1]]

        rewrite(long, longer)
        logs = Path(folder) / "logs"
        logs.mkdir()
        lines = "".join(
            f"step:{s}/3000 {f'val_loss:{9 - s / 500:.4f} ' if s % 125 == 0 else ''}train_time:{s * 100}ms step_avg:100.00ms\n"
            for s in range(1, 3001)
        )
        for i in range(1000):
            (logs / f"{i}.txt").write_text(
                "# its source\n" * 2000 + lines.replace("val_loss:3.0000", f"val_loss:3.{i:04d}")
            )
        for name, arguments in (
            ("100,000 steps, depth log", [str(long), "--depth", "log", "--no-write"]),
            ("1,000 public logs", ["--log", str(logs), "--json"]),
        ):
            begin_s = time.perf_counter()
            subprocess.run([sys.executable, "-m", "parity.verify", *arguments], cwd=ROOT, capture_output=True)
            found[name] = round(time.perf_counter() - begin_s, 2)
            print(f"{name}: {found[name]} s", flush=True)
    return found


def bench_seeds(options: Bench) -> dict[str, Any]:
    """Final val losses; a run that is there and complete is read, not made again."""
    from parity.track import TRACKS

    target, found = TRACKS["pocket"].target, {}
    for recipe in options.recipes:
        for seed in range(options.seeds):
            for backend in options.backends:
                name = f"{recipe}-{backend}-seed{seed}"
                path = options.runs / "pocket" / name
                if not (path / "weights.safetensors").exists():
                    timed(
                        [
                            f"{backend}.train",
                            "--recipe",
                            recipe,
                            "--seed",
                            str(seed),
                            "--runs",
                            str(options.runs),
                            "--name",
                            name,
                            *where(options),
                        ]
                    )
                totals = log_of(path)[-1]["totals"]
                row = {
                    "val_loss": round(totals["val_loss"], 4),
                    "train_s": round(totals["train_s"], 1),
                    "peak_host_gb": round(totals["peak_host_bytes"] / 1e9, 2),
                    "telemetry_fraction": round(totals["telemetry_fraction"], 5),
                }
                print(name, row, file=sys.stderr, flush=True)
                found.setdefault(f"{recipe} {backend}", []).append(row)
    for rows in list(found.values()):
        losses = [row["val_loss"] for row in rows]
        rows.append(
            {
                "mean": round(statistics.mean(losses), 4),
                "highest": max(losses),
                "sd": round(statistics.stdev(losses), 4) if len(losses) > 1 else None,
                "target": target,
                "margin": round(target - max(losses), 4) if target else None,
            }
        )
    return found


def timed(arguments: list[str], env: dict[str, str] | None = None) -> tuple[float, dict[str, float]]:
    """Runs `python -m ARGUMENTS`; seconds of the whole process, and of each phase of the run it made, if any."""
    begin_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT if "--runs" not in arguments else None,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begin_s
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    if "--name" in arguments and "--runs" in arguments:
        run = Path(arguments[arguments.index("--runs") + 1]) / "pocket" / arguments[arguments.index("--name") + 1]
        return seconds, phases(log_of(run))
    return seconds, {}


def where(options: Bench) -> list[str]:
    return ["--data-dir", str(options.data_dir)] if options.data_dir else []


def log_of(run: Path) -> list[dict[str, Any]]:
    from parity.harness.runlog import read

    return list(read(run / "log.jsonl"))


def phases(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds in each phase, in all."""
    total: dict[str, float] = {}
    for event in (e for e in events if e["event"] == "phase"):
        total[event["name"]] = total.get(event["name"], 0.0) + event["clock_s"] * (1 if event["edge"] == "end" else -1)
    return total


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main(tyro.cli(Bench))
