"""Short trainings that several levels read: a state in the middle of a plan, steps on real data, a run's weights."""

import contextlib
import dataclasses
import io
import tempfile
from pathlib import Path
from typing import Any

from parity import weights as canonical
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.side import Side
from parity.recipes import recipe_for
from parity.weights import Weights

RUN_STEPS = 4  # of the real run whose weights both sides evaluate


def half_trained(program: Guarded, case: Case) -> Any:
    """A state with the case's weights at half of the steps, so that a window that grows with them is half grown."""
    return program.with_step(program.load(case.start), case.recipe.steps // 2)


def train_steps(program: Guarded, case: Case, state: Any, start: int, count: int) -> tuple[Any, list[dict[str, Any]]]:
    """The state after `count` steps on the plan's batches from `start` on, and their metrics, fetched."""
    metrics = []
    for batch in case.batches(start, count):
        state, of_step = program.step(state, program.put(batch))
        metrics.append({name: of_step[name] for name in ("loss", "grad_norm") if name in of_step})
    return state, [{name: program.fetch(value) for name, value in of_step.items()} for of_step in metrics]


def write_run(side: Side, case: Case) -> Path:
    """weights.safetensors of a new run of a side: of its trainer, or of two steps for a user program."""
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    if side.backend and case.recipe.tokenizer_size == case.slice.manifest.vocab_size:  # as the trainers ask
        return _backend_run(side.backend, side.device, case, folder)
    program, weights = side.program(case.recipe), case.initial
    if program.has("export"):
        state = program.load(case.initial)
        if program.has("step"):
            state, _ = train_steps(program, case, state, 0, 2)
        weights = program.arrays(program.export(state), "weight")
    canonical.save(folder / "weights.safetensors", weights)
    return folder / "weights.safetensors"


def _backend_run(backend: str, device: str, case: Case, folder: Path) -> Path:
    from parity.harness.train import train

    recipe = case.recipe
    usual = recipe_for(recipe.name, case.track.scale or "")
    changed = [f.name for f in dataclasses.fields(recipe) if getattr(recipe, f.name) != getattr(usual, f.name)]
    options = {name.replace("_", "-"): getattr(recipe, name) for name in changed}
    options |= {
        "track": case.track.name,
        "recipe": recipe.name,
        "runs": folder,
        "name": "run",
        "samples": 0,
        "device": device,
        "seed": case.seed,
        "data-dir": case.slice.directory.parent,
        "steps": RUN_STEPS,
        "val-every": RUN_STEPS,
        "final-val-every": RUN_STEPS,
    }
    if hasattr(recipe, "warmup_steps"):
        options["warmup-steps"] = 1
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(backend, [word for name, value in options.items() for word in _words(name, value)])
    return folder / case.track.name / "run" / "weights.safetensors"


def _words(name: str, value: Any) -> list[str]:
    """An option as it is typed."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]


def stored_weights(case: Case, path: Path) -> Weights:
    """Weights of a file in the type that the case's programs take."""
    return {name: w.astype(case.dtype) for name, w in canonical.load(path).items()}
