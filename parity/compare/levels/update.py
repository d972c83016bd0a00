"""Level 6: the optimizer from equal gradients: groups, rates, Newton-Schulz, decay, and the plan's updates."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation

MOST_UPDATES = 64
OBSERVED = (1, 2, 3, 6, 8, 16, 24, 32, 48, 60, 64)  # updates after which the weights are read


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """The parts of one update, then the plan's updates one after another."""
    recipe = case.recipe
    state = program.load(case.start)
    if program.has("param_groups"):
        yield from _groups(program, case, state)
    if program.has("schedules"):
        for group, table in sorted(program.schedules().items()):
            yield Observation("schedule", group, np.asarray(table, np.float64), axes=("step",))
    if program.has("orthogonalize") and hasattr(recipe, "newton_schulz"):
        yield from _orthogonalization(program, case)
    yield from _decay(program, case, state)
    yield from _updates(program, case)


def _groups(program: Guarded, case: Case, state: Any) -> Iterator[Observation]:
    groups: dict[str, list[str]] = {}
    for name, group in program.param_groups(state):
        groups.setdefault(name, []).append(group)
    for name, parameter in case.recipe.parameters().items():
        yield Observation("groups", name, " and ".join(sorted(groups.get(name, ["none"]))), expected=parameter.group)


def _orthogonalization(program: Guarded, case: Case) -> Iterator[Observation]:
    recipe, d = case.recipe, case.recipe.dim
    # a square, a tall and a wide matrix, and one whose norm is so small that the epsilon beside it counts
    for shape, norm in (((d, d), 10.0), ((4 * d, d), 10.0), ((d, 4 * d), 10.0), ((d, d), 1e-6)):
        matrices = program.orthogonalize(case.matrix(*shape, norm))
        for step, (name, matrix) in enumerate(matrices.items()):
            if recipe.precision == "bfloat16":
                value = np.asarray(program.fetch(matrix)).astype(np.float32)
            else:
                value = program.array(matrix, name)
            location = f"{shape[0]} x {shape[1]} of norm {norm:g}, {name}"
            bound = bounds.orthogonalization(recipe, step)
            yield Observation("Newton-Schulz", location, value, bound, axes=("matrix", "row", "column"))


def _decay(program: Guarded, case: Case, state: Any) -> Iterator[Observation]:
    """Gradients of zero leave nothing but the decay."""
    recipe = case.recipe
    zeros = {name: np.zeros_like(g) for name, g in case.gradients(0).items()}
    weights = program.arrays(program.export(program.update(state, zeros)), "weight")
    for name, w in weights.items():
        yield Observation("decay", name, w.astype(np.float64) - case.start[name], bounds.decay(recipe))


def _updates(program: Guarded, case: Case) -> Iterator[Observation]:
    recipe = case.recipe
    table, state = recipe.parameters(), program.load(case.start)
    for n in range(1, min(recipe.steps, MOST_UPDATES) + 1):
        state = program.update(state, case.gradients(n - 1))
        if n not in OBSERVED:
            continue
        weights = program.export(state)
        if n == 1 and program.has("moments"):
            yield from _moments(program, case, state)
        for name, value in program.arrays(weights, "weight").items():
            line, location = "weights on the way", f"{name} after {n} updates"
            if n == 1:
                line, location = "weights after a step", name
            largest = float(np.abs(value).max()) or 1.0
            bound = bounds.updated(recipe, n, table[name].group, value.shape, largest)
            yield Observation(line, location, value, bound)


def _moments(program: Guarded, case: Case, state: Any) -> Iterator[Observation]:
    recipe: Any = case.recipe
    for kind, moments in sorted(program.moments(state).items()):
        line = kind if kind == "momentum" else f"{kind} moment"
        for name, value in program.arrays(moments, f"{kind} of").items():
            single = hasattr(recipe, "clip_norm")  # one factor's error is that of all
            bound = bounds.update(recipe)
            if kind == "squares":  # of what was orthogonalized
                bound = bounds.orthogonalization(recipe, recipe.newton_schulz_steps)
            yield Observation(line, name, value, bound, single=single)
