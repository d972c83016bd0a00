"""Level 6: the optimizer from equal gradients: groups, rates, decay, one step, Newton-Schulz, and the walk of a plan."""

from collections.abc import Iterator

import numpy as np

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.observation import Seen
from parity.compare.side import Side

WALK = 64  # updates at most
SEEN = (1, 2, 3, 6, 8, 16, 24, 32, 48, 60, 64)  # after which the weights are looked at


def update(side: Side, case: Case) -> Iterator[Seen]:
    """One update in its parts, then the plan's updates one after another."""
    recipe, program = case.recipe, side.program(case.recipe)
    state = program.load(case.start)
    if not side.lacks(recipe, ("param_groups",)):
        yield from _memberships(side, case, state)
    if not side.lacks(recipe, ("schedules",)):
        for group, table in sorted(program.schedules().items()):
            yield Seen("schedule", group, np.asarray(table, np.float64), axes=("step",))
    if not side.lacks(recipe, ("orthogonalize",)) and hasattr(recipe, "newton_schulz"):
        yield from _orthogonalization(side, case)
    yield from _decay(side, case, state)
    yield from _walk(side, case)


def _memberships(side: Side, case: Case, state) -> Iterator[Seen]:
    of: dict[str, list[str]] = {}
    for name, group in side.program(case.recipe).param_groups(state):
        of.setdefault(name, []).append(group)
    for name, parameter in case.recipe.parameters().items():
        yield Seen("groups", name, " and ".join(sorted(of.get(name, ["none"]))), expected=parameter.group)


def _orthogonalization(side: Side, case: Case) -> Iterator[Seen]:
    recipe, program = case.recipe, side.program(case.recipe)
    d = recipe.dim
    # a square, a tall and a wide matrix, and one so small that the epsilon beside its norm counts
    for shape, norm in (((d, d), 10.0), ((4 * d, d), 10.0), ((d, 4 * d), 10.0), ((d, d), 1e-6)):
        found = program.orthogonalize(case.matrix(*shape, norm))
        for step, (what, value) in enumerate(found.items()):
            value = (
                side.array(recipe, value, what)
                if recipe.precision != "bfloat16"
                else np.asarray(program.fetch(value)).astype(np.float32)
            )
            yield Seen(
                "Newton-Schulz",
                f"{shape[0]} x {shape[1]} of norm {norm:g}, {what}",
                value,
                bounds.orthogonalization(recipe, step),
                axes=("matrix", "row", "column"),
            )


def _decay(side: Side, case: Case, state) -> Iterator[Seen]:
    """Gradients of zero leave nothing but the decay."""
    recipe, program = case.recipe, side.program(case.recipe)
    zeros = {name: np.zeros_like(g) for name, g in case.gradients(0).items()}
    found = program.export(program.update(state, zeros))
    for name, w in found.items():
        w = side.array(recipe, w, f"weight {name}", case.start[name].shape)
        lost = w.astype(np.float64) - case.start[name]
        yield Seen("decay", name, lost, bounds.decay(recipe), axes=("row", "column")[: w.ndim])


def _walk(side: Side, case: Case) -> Iterator[Seen]:
    recipe, program = case.recipe, side.program(case.recipe)
    state = program.load(case.start)
    for step in range(min(recipe.steps, WALK)):
        state = program.update(state, case.gradients(step))
        if step + 1 not in SEEN:
            continue
        n = step + 1
        line = "weights after a step" if n == 1 else "weights on the way"
        weights = program.export(state)
        if n == 1 and not side.lacks(recipe, ("moments",)):
            for kind, tensors in sorted(program.moments(state).items()):
                for name in (name for name in recipe.parameters() if name in tensors):
                    value = side.array(recipe, tensors[name], f"{kind} of {name}", case.start[name].shape)
                    yield Seen(
                        f"{kind} moment" if kind != "momentum" else kind,
                        name,
                        value,
                        bounds.update(recipe),
                        axes=("row", "column")[: value.ndim],
                        single=hasattr(recipe, "clip_norm"),
                    )  # one factor's error is that of all
        for name in recipe.parameters():
            value = side.array(recipe, weights[name], f"weight {name}", case.start[name].shape)
            bound = bounds.updated(
                recipe, n, recipe.parameters()[name].group, value.shape, float(np.abs(value).max()) or 1.0
            )
            yield Seen(
                line,
                name if n == 1 else f"{name} after {n} updates",
                value,
                bound,
                axes=("row", "column")[: value.ndim],
            )
