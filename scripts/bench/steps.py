"""Steps of training: jaxrun against torchref, torchref against a plain model, and where a step's time goes."""

import statistics
from typing import Any

from bench.interleaved import VARIANTS, interleaved_calls, interleaved_steps, prepared, ratio_figures
from bench.options import Options


def step(options: Options) -> dict[str, Any]:
    """jaxrun as a ratio to the better of torchref eager and compiled."""
    figures = {}
    for recipe in options.recipes:
        tokens, times = interleaved_steps(options, recipe, VARIANTS, options.recipe_fields)
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min("torchref eager", "torchref compiled", key=medians.__getitem__)
        ratios = ratio_figures(times["jaxrun"], times[best])
        figures[recipe] = {
            "tokens_per_s": {name: round(tokens / median) for name, median in medians.items()},
            "step_ms": {name: round(1e3 * median, 1) for name, median in medians.items()},
            "better_torchref": best,
            "jaxrun_over_better_torchref": ratios | {"turns": options.turns},
        }
    return figures


def plain(options: Options) -> dict[str, Any]:
    """torchref's nanogpt and the plain model, eager and compiled each, as the ratio of their better forms."""
    variants = {
        f"{backend} {form}": (backend, {"compile": form == "compiled"})
        for backend in ("torchref", "plain")
        for form in ("eager", "compiled")
    }
    tokens, times = interleaved_steps(options, "nanogpt", variants, options.recipe_fields)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {name: min(f"{name} eager", f"{name} compiled", key=medians.__getitem__) for name in ("torchref", "plain")}
    return {
        "tokens_per_s": {name: round(tokens / median) for name, median in medians.items()},
        "better": best,
        "torchref_over_plain": ratio_figures(times[best["torchref"]], times[best["plain"]]),
    }


def parts(options: Options) -> dict[str, Any]:
    """Forward, forward and backward, and the whole step; the optimizer takes the difference."""
    return {
        f"{recipe} {backend}": _part_times(recipe, backend, options)
        for recipe in options.recipes
        for backend in options.backends
    }


def _part_times(recipe: str, backend: str, options: Options) -> dict[str, str]:
    _, program, state, batch = prepared(recipe, options.scale, backend, {})

    def whole_step():
        nonlocal state
        state, metrics = program.step(state, batch)
        program.fetch(metrics["loss"])
        program.wait(state)

    runs = {
        "forward": lambda: program.fetch(program.token_losses(state, batch)).sum(),
        "forward and backward": lambda: program.fetch(program.loss_and_grads(state, batch)),
        "step": whole_step,
    }
    return {name: f"{ms:.1f} ms" for name, ms in interleaved_calls(runs, options.turns).items()}
