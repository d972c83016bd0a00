"""Level 9: a checkpoint restores the whole state; weights survive files, of either side, byte for byte."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import stored_weights, train_steps

BEFORE, AFTER = 3, 3  # steps around the checkpoint


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """The state and the further steps of a restored checkpoint; weights of every run after import and export."""
    recipe = case.recipe
    state, _ = train_steps(program, case, program.load(case.initial), 0, BEFORE)
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    program.save(state, folder)
    saved = _contents(program, state)
    state, expected = train_steps(program, case, state, BEFORE, AFTER)
    state = program.restore(folder)
    restored = _contents(program, state)
    for key, value in saved.items():
        yield Observation(*key, restored.get(key, np.zeros(0)), expected=value, note="restored from a checkpoint")
    state, metrics = train_steps(program, case, state, BEFORE, AFTER)
    for i, pair in enumerate(zip(expected, metrics, strict=True)):
        first, again = (program.array(of_step["loss"], "loss", ()) for of_step in pair)
        yield Observation("steps after a restore", f"loss of step {BEFORE + i}", again, expected=first)
    for run, path in case.written.items():
        stored = stored_weights(case, path)
        exported = program.export(program.load(stored))
        for name in recipe.parameters():
            value = np.asarray(exported[name])
            yield Observation("export after import", f"{name} of {run}", value, expected=stored[name])


def _contents(program: Guarded, state: Any) -> dict[tuple[str, str], np.ndarray]:
    """Copies of weights and moments by line and location."""
    weights = program.arrays(program.export(state), "weight")
    contents = {("restored weights", name): w for name, w in weights.items()}
    if program.has("moments"):
        for kind, moments in sorted(program.moments(state).items()):
            for name, value in program.arrays(moments, f"{kind} of").items():
                contents["restored moments", f"{kind} of {name}"] = value
    return contents
