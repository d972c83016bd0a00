"""Level 5: gradients by canonical name, as the loss gives them and as the optimizer takes them."""

from collections.abc import Iterator

import numpy as np

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import half_trained

ZERO_GRADIENT = "its exact gradient is zero, as softmax does not see it: on the scale of the whole bias"


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Gradients in the order of backpropagation, then gradients of two norms after clipping."""
    recipe = case.recipe
    state, batch = half_trained(program, case), program.put(case.batch)
    gradients = program.arrays(program.loss_and_grads(state, batch)[1], "gradient")
    bound = bounds.gradients(recipe, case.batch[0].size)
    for name, g in reversed(gradients.items()):
        if name.endswith("attn.qkv.bias"):
            yield from _qkv_bias(name, g, bound)
        else:
            yield Observation("gradients", name, g, bound)
    if case.weights is None:  # with weights of the user's, such as projections of 0, gradients may well be 0
        # so may those of learned scalars: record-11's first mixes values with themselves
        others = {name for name, parameter in recipe.parameters().items() if not parameter.scalar}
        for name in (name for name, g in reversed(gradients.items()) if name in others and not g.any()):
            yield Observation("dependence", name, "a gradient of 0 throughout", expected="a loss that depends on it")
    if not program.has("clipped"):
        return
    for step, norm in ((0, "3"), (1, "0.3")):
        clipped = program.arrays(program.clipped(case.gradients(step)), "clipped gradient")
        for name, g in clipped.items():  # one factor's error is that of all
            location = f"{name} of a gradient of norm {norm}"
            yield Observation("after clipping", location, g, bounds.update(recipe), single=True)


def _qkv_bias(name: str, g: np.ndarray, bound: bounds.Bound) -> Iterator[Observation]:
    """The thirds of a bias of q, k and v; the key's gradient is zero, and judged on the scale of the whole."""
    scale = float(np.abs(g).max())
    for third, values in zip("qkv", np.split(g, 3), strict=True):
        zero = {"scale": scale, "note": ZERO_GRADIENT} if third == "k" else {}
        yield Observation("gradients", f"{name} ({third})", values, bound, **zero)
