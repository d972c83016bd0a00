"""Interleaved timings: what is compared runs alternately, so that the machine's drift meets all alike."""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.options import Options

SCRIPT = Path(__file__).parents[1] / "bench.py"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "jaxrun": ("jaxrun", {}),
    "torchref eager": ("torchref", {"compile": False}),
    "torchref compiled": ("torchref", {"compile": True}),
}


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    begin_s = time.perf_counter()
    run()
    return time.perf_counter() - begin_s


def interleaved_calls(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each function over so many rounds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {name: round(1e3 * statistics.median(values[1:]), 1) for name, values in seconds.items()}


def interleaved_steps(
    options: Options, recipe: str, variants: dict[str, tuple[str, dict[str, Any]]], fields: dict[str, int]
) -> tuple[int, dict[str, list[float]]]:
    """Tokens of a step, and each variant's median seconds of a step in every round; a process for each variant."""
    from parity.recipes import recipe_for

    grows = len(recipe_for(recipe, options.scale).window_stages()) > 1
    average = statistics.mean if grows else statistics.median
    workers = {name: Worker(recipe, options.scale, *variant, fields) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.turns):
        for name, worker in workers.items():
            worker.steps(1)
            times[name].append(average(worker.steps(options.steps)))
    tokens = next(iter(workers.values())).tokens
    for worker in workers.values():
        worker.close()
    return tokens, times


def ratio_figures(times: list[float], reference: list[float]) -> dict[str, float]:
    """How much faster `times` are than the reference's of the same rounds."""
    ratios = sorted(other / own for own, other in zip(times, reference, strict=True))
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(ratios[0], 3),
        "most": round(ratios[-1], 3),
    }


class Worker:
    """A process that holds one compiled program and takes steps when it is told to."""

    def __init__(self, recipe: str, scale: str, backend: str, build: dict[str, Any], fields: dict[str, int]):
        command = [sys.executable, str(SCRIPT), "--worker", json.dumps([recipe, scale, backend, build, fields])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.tokens = int(self.stdout.readline())

    def steps(self, count: int) -> list[float]:
        self.stdin.write(f"{count}\n")
        self.stdin.flush()
        return json.loads(self.stdout.readline())

    def close(self) -> None:
        self.stdin.close()
        self.process.wait()


def serve(spec: str) -> None:
    """The other end of Worker: prints the tokens of a step, then a list of seconds for every number it reads."""
    from parity.program import with_step

    recipe, program, state, _ = prepared(*json.loads(spec))
    shapes = [(segment.tokens, segment.seq_len) for segment in recipe.plan for _ in range(segment.steps)]
    batches = {shape: random_batch(recipe, program, *shape) for shape in dict.fromkeys(shapes)}
    forms = {
        (shapes[step], sum(first <= step for first in recipe.window_stages())): step for step in range(len(shapes))
    }
    for (shape, _), step in forms.items():  # compiles what each of them needs
        state, _ = program.step(with_step(program, state, step), batches[shape])
        program.wait(state)
    print(round(sum(tokens for tokens, _ in shapes) / len(shapes)), flush=True)
    for line in sys.stdin:
        seconds, count = [], int(line)
        for i in range(count):  # spread over the run, for attention whose window grows
            step = (2 * i + 1) * recipe.steps // (2 * count)
            state, batch = with_step(program, state, step), batches[shapes[step]]
            begin_s = time.perf_counter()
            state, metrics = program.step(state, batch)
            program.fetch(metrics["loss"])
            program.wait(state)
            seconds.append(time.perf_counter() - begin_s)
        print(json.dumps(seconds), flush=True)


def prepared(
    name: str, scale: str, backend: str, build: dict[str, Any], fields: dict[str, int] | None = None
) -> tuple[Any, Any, Any, Any]:
    """Recipe, program, state and a batch of random tokens; the backend "plain" is plain_gpt.py."""
    from parity.program import build as build_program
    from parity.recipes import recipe_for

    recipe = dataclasses.replace(recipe_for(name, scale), **(fields or {}))
    if backend == "plain":
        from plain_gpt import Plain

        program: Any = Plain(recipe, **build)
    else:
        program = build_program(backend, recipe, **build)
    batch = random_batch(recipe, program, recipe.batch_tokens, recipe.context)
    return recipe, program, program.init(0), batch


def random_batch(recipe: Any, program: Any, tokens: int, length: int) -> Any:
    """A batch of so many random tokens in rows of a length."""
    import numpy as np

    tokens_N = np.random.default_rng(0).integers(0, recipe.tokenizer_size, tokens + 1).astype(np.int32)
    return program.put_global_batch(*(x.reshape(-1, length) for x in (tokens_N[:-1], tokens_N[1:])))
