"""Levels 7 to 9: steps on real data, evaluation by the harness' own path, checkpoints and files of weights."""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity import weights as canonical
from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.observation import Seen
from parity.compare.side import Side
from parity.harness import evaluation as harness
from parity.program import with_step
from parity.recipes import Recipe

SAVED_AFTER, GO_ON = 3, 3  # steps before and behind the checkpoint
RUN_STEPS = 4  # of the real run whose weights both sides evaluate


def trajectory(side: Side, case: Case) -> Iterator[Seen]:
    """Losses and gradient norms of n steps, then the weights, and what evaluation makes of them."""
    recipe, program = case.recipe, side.program(case.recipe)
    state, found = _steps(side, case, program.load(case.initial), 0, case.steps)
    state_weights = program.export(state)
    bound = bounds.trajectory()
    for what in ("loss", "grad_norm"):
        if all(what in metrics for metrics in found):
            values = [side.array(recipe, metrics[what], f"{what} of step {i}", ()) for i, metrics in enumerate(found)]
            yield Seen(
                what.replace("loss", "losses"),
                f"of {case.steps} steps",
                np.array(values),
                bound,
                axes=("step",),
                single=what == "grad_norm" or recipe.precision != "float64",
            )
    for name in recipe.parameters():
        value = side.array(recipe, state_weights[name], f"weight {name}", case.initial[name].shape)
        yield Seen("weights", name, value, bound, axes=("row", "column")[: value.ndim])
    if not side.lacks(recipe, ("token_losses",)):
        found = program.token_losses(state, side.put_global_batch(recipe, case.batch))
        yield Seen(
            "token losses",
            "token_losses after the last step",
            side.array(recipe, found, "token losses"),
            bound,
            axes=("row", "position"),
        )


def evaluation(side: Side, case: Case) -> Iterator[Seen]:
    """Val loss over the whole val slice: of the weights that real runs left, of a live state, for two sizes of batch."""
    recipe, program = case.recipe, side.program(case.recipe)
    batch = harness.largest_batch(case.track.val_tokens, recipe.batch_tokens, recipe.eval_context, 1)
    smaller = harness.largest_batch(case.track.val_tokens, batch // 2, recipe.eval_context, 1)
    bound = bounds.losses(recipe, case.track.val_tokens)

    def score(state, batch_tokens: int):
        return harness.evaluate(
            program, state, case.slice, "val", case.track.val_tokens, batch_tokens, recipe.eval_context
        )

    for name, path in case.written.items():
        state = with_step(program, program.load(_typed(recipe, canonical.load(path))), recipe.steps)
        found = score(state, batch)
        yield Seen("tokens scored", name, f"{found.tokens} tokens, batches {found.batches[:16]}")
        yield Seen("val loss", name, np.array(found.val_loss), bound, axes=(), single=True)
        again = score(state, smaller)
        yield Seen(
            "size of a batch",
            f"{name}, {smaller:,} tokens at a time",
            np.array(again.val_loss),
            bound,
            expected=np.array(found.val_loss),
            single=True,
        )
    if side.lacks(recipe, ("step", "export")):
        return
    state, _ = _steps(side, case, program.load(case.initial), 0, 2)
    live = score(state, batch)
    loaded = score(with_step(program, program.load(program.export(state)), 2), batch)
    yield Seen(
        "live state",
        "after 2 steps, against its exported weights",
        np.array(live.val_loss),
        bound,
        expected=np.array(loaded.val_loss),
        single=True,
    )


def restore(side: Side, case: Case) -> Iterator[Seen]:
    """A checkpoint gives back everything that counts; weights survive files, here and from the other side, byte for byte."""
    recipe, program = case.recipe, side.program(case.recipe)
    state, _ = _steps(side, case, program.load(case.initial), 0, SAVED_AFTER)
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    program.save(state, folder)
    kept = _contents(side, case, state)
    state, expected = _steps(side, case, state, SAVED_AFTER, GO_ON)
    state = program.restore(folder)
    back = _contents(side, case, state)
    for (line, place), before in kept.items():
        value = back.get((line, place), np.zeros(0))
        yield Seen(line, place, value, expected=before, note="restored from a checkpoint")
    state, found = _steps(side, case, state, SAVED_AFTER, GO_ON)
    for i, (before, after) in enumerate(zip(expected, found)):
        values = (np.asarray(side.array(recipe, metrics["loss"], "loss", ())) for metrics in (before, after))
        first, again = values
        yield Seen("steps after a restore", f"loss of step {SAVED_AFTER + i}", again, expected=first)
    for name, path in case.written.items():
        stored = _typed(recipe, canonical.load(path))
        back = program.export(program.load(stored))
        for weight in recipe.parameters():
            yield Seen("export after import", f"{weight} of {name}", np.asarray(back[weight]), expected=stored[weight])


def written_by(side: Side, case: Case) -> Path:
    """weights.safetensors of a real run of a side, made now: by its trainer, or for somebody's own program by two steps."""
    recipe = case.recipe
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    if side.backend:
        from parity.harness.train import train

        changed = [f"--{name.replace('_', '-')}={value}" for name, value in _run_fields(recipe).items()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(
                side.backend,
                [
                    "--track",
                    case.track.name,
                    "--recipe",
                    recipe.name,
                    "--runs",
                    str(folder),
                    "--name",
                    "run",
                    "--samples",
                    "0",
                    "--device",
                    side.device,
                    "--seed",
                    str(case.seed),
                    "--data-dir",
                    str(case.slice.directory.parent),
                    *changed,
                ],
            )
        return folder / case.track.name / "run" / "weights.safetensors"
    program = side.program(recipe)
    state = program.load(case.initial)
    if not side.lacks(recipe, ("step", "export")):
        state, _ = _steps(side, case, state, 0, 2)
    weights = case.initial if side.lacks(recipe, ("export",)) else program.export(state)
    canonical.save(folder / "weights.safetensors", weights)
    return folder / "weights.safetensors"


def _run_fields(recipe: Recipe) -> dict[str, Any]:
    fields = {
        "vocab_size": recipe.vocab_size,
        "precision": recipe.precision,
        "steps": RUN_STEPS,
        "val_every": RUN_STEPS,
        "final_val_every": RUN_STEPS,
    }
    return fields | ({"warmup_steps": 1} if hasattr(recipe, "warmup_steps") else {})


def _steps(side: Side, case: Case, state, start: int, count: int) -> tuple[Any, list[dict[str, Any]]]:
    """The state after `count` steps on the plan's batches from `start` on, and their metrics, fetched."""
    program = side.program(case.recipe)
    found = []
    for batch in itertools.islice(case.batches(start), count):
        state, metrics = program.step(state, side.put_global_batch(case.recipe, batch))
        found.append({name: metrics[name] for name in ("loss", "grad_norm") if name in metrics})
    fetch = program.fetch
    return state, [{name: fetch(value) for name, value in metrics.items()} for metrics in found]


def _contents(side: Side, case: Case, state) -> dict[tuple[str, str], np.ndarray]:
    """Weights and moments by line and place, copied."""
    recipe, program = case.recipe, side.program(case.recipe)
    found = {
        ("restored weights", name): side.array(recipe, w, f"weight {name}") for name, w in program.export(state).items()
    }
    if not side.lacks(recipe, ("moments",)):
        for kind, tensors in sorted(program.moments(state).items()):
            for name in (name for name in recipe.parameters() if name in tensors):
                value = side.array(recipe, tensors[name], f"{kind} of {name}")
                found["restored moments", f"{kind} of {name}"] = np.array(value)
    return found


def _typed(recipe: Recipe, weights: canonical.Weights) -> canonical.Weights:
    dtype = np.float64 if recipe.precision == "float64" else np.float32
    return {name: w.astype(dtype) for name, w in weights.items()}
