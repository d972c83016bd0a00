"""Depth `recompute`: whether the weights were trained, each number by its own gradient, from first to last checkpoint.

An optimizer whose updates broadcast, or that works on copies, leaves weights that did not move, or moved alike.
"""

import numpy as np

from parity.verify.context import Context, NotJudged
from parity.verify.rules import Finding, fails, holds, rule
from parity.weights import Weights

FEW_STEPS = 8  # a matrix behind others that start at 0 moves from the third step on
ALIKE = 1e-3  # of a weight's movement: what rounding leaves of a difference


@rule("recompute.moved", "recompute", "every weight moved, and not all of its rows or columns by the same numbers")
def moved(context: Context) -> Finding:
    evidence, program = context.evidence, context.program
    if evidence.steps < FEW_STEPS:
        return holds(f"a run of {evidence.steps} steps may leave weights as they were")
    folder = evidence.checkpoint(0)
    if not folder.is_dir():
        raise NotJudged(f"the checkpoint of step 0 is not in {folder.parent}: put it back")
    first: Weights = program.export_and_drop(program.restore(folder))
    declared = set(evidence.run.get("idle_weights", ()))
    problems = {
        name: problem
        for name, weight in evidence.final_weights.items()
        if name not in declared and name in first and (problem := stuck(first[name], weight))
    }
    if problems:
        name, problem = next(iter(problems.items()))
        return fails(
            f"{name} {problem} from step 0 to {evidence.steps}{f', and {len(problems) - 1} more' * (len(problems) > 1)}"
            ": check the optimizer's updates, or name weights that are not to be trained in idle_weights",
            weights=problems,
        )
    idle = f", {len(declared)} that are not trained by declaration" if declared else ""
    return holds(f"{len(evidence.final_weights)} weights{idle}")


def stuck(first: np.ndarray, last: np.ndarray) -> str:
    """How a weight (two arrays of one shape) moved, if not every number by itself; "" where it did.

    A common factor, as of weight decay, is no movement. Numbers and vectors may move alike: the signs of a few
    gradients can agree for a whole run.
    """
    if first.size < 2 or first.shape != last.shape:
        return ""
    if np.array_equal(first, last):
        return "has not moved"
    before, after = first.astype(np.float64), last.astype(np.float64)
    way = float(np.linalg.norm(after - before))
    for axis, length in enumerate(first.shape if first.ndim > 1 else ()):
        if length > 1:
            a, b = (x - x.mean(axis, keepdims=True) for x in (before, after))
            factor = float((a * b).sum()) / max(float((a * a).sum()), 1e-30)
            if np.linalg.norm(b - factor * a) <= ALIKE * way:
                return f"moved by the same numbers all along axis {axis} of its shape {first.shape}"
    return ""
