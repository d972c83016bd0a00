"""Somebody's own program behind a guard: what it raises, or returns of a wrong kind, is said in one sentence."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.recipes import Recipe
from parity.user_program import explained


class Guarded:
    """A program of a file: every method is called with care; `fetch` is there even if the program has none."""

    def __init__(self, program: Any, spec: str, recipe: Recipe):
        self._program, self._spec, self._recipe = program, spec, recipe
        self.framework, self.recipe, self.devices = "numpy", recipe, ["cpu"]

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self._program, name)  # AttributeError where there is none: the program lacks it

        def guarded(*args: Any) -> Any:
            with explained(self._spec, name):
                value = method(*args)
            if problem := _problem(name, value, self._recipe):
                raise InputError(f"{self._spec}: {name} {problem}: mend the program")
            return value

        return guarded

    def fetch(self, values: Any) -> Any:
        """The program's own, or arrays as numpy makes them, of PyTorch tensors too."""
        own = getattr(self._program, "fetch", None)
        with explained(self._spec, "fetch"):
            return own(values) if own else _numpy(values)


def _problem(name: str, value: Any, recipe: Recipe) -> str | None:
    """What is wrong with the kind of a method's result."""
    if name == "loss_and_grads":
        if not isinstance(value, tuple) or len(value) != 2:
            return f"expected a pair (loss, gradients), found {type(value).__name__}"
        return _names(value[1], recipe)
    if name in ("export", "clipped"):
        return _names(value, recipe)
    if name == "step":
        if (
            not isinstance(value, tuple)
            or len(value) != 2
            or not isinstance(value[1], Mapping)
            or "loss" not in value[1]
        ):
            return f"expected a pair (state, metrics with `loss`), found {type(value).__name__}"
    elif name in ("activations", "moments", "schedules", "orthogonalize") and not isinstance(value, Mapping):
        return f"expected a mapping from names, found {type(value).__name__}"
    elif name == "put_global_batch" and not isinstance(value, tuple | list):
        return f"expected a pair (inputs, targets), found {type(value).__name__}"
    return None


def _names(found: Any, recipe: Recipe) -> str | None:
    wanted = recipe.parameters().keys()
    if not isinstance(found, Mapping):
        return f"expected a mapping from canonical names, found {type(found).__name__}"
    for name in sorted(wanted ^ found.keys()):
        return f"lacks {name}" if name in wanted else f"has {name}, which recipe {recipe.name} does not know"
    return None


def _numpy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _numpy(value) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(map(_numpy, values))
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)
