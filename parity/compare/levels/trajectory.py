"""Level 7: losses and gradient norms of n steps on real data, then the weights and their losses."""

from collections.abc import Iterator

import numpy as np

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import train_steps


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Series of losses and gradient norms, weights after the last step, and the losses of tokens with them."""
    recipe, bound = case.recipe, bounds.trajectory()
    state, metrics = train_steps(program, case, program.load(case.initial), 0, case.steps)
    weights = program.export(state)
    for line, name in (("losses", "loss"), ("grad_norm", "grad_norm")):
        if all(name in of_step for of_step in metrics):
            values = [program.array(of_step[name], f"{name} of step {i}", ()) for i, of_step in enumerate(metrics)]
            single = name == "grad_norm" or recipe.precision != "float64"
            location = f"of {case.steps} steps"
            yield Observation(line, location, np.array(values), bound, axes=("step",), single=single)
    for name, value in program.arrays(weights, "weight").items():
        yield Observation("weights", name, value, bound)
    if program.has("token_losses"):
        losses = program.token_losses(state, program.put(case.batch))
        losses = program.array(losses, "token losses")
        yield Observation("token losses", "token_losses after the last step", losses, bound, axes=("row", "position"))
