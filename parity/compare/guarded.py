"""A program behind a guard: its results are checked for kind, shape, type and finite values."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from parity.compare.faults.plant import Fault
from parity.errors import InputError
from parity.program import BACKENDS, inspector_of
from parity.recipes import Recipe
from parity.user_program import user_code
from parity.weights import Weights


class Guarded:
    """The methods of a backend's or a file's program (`spec`), perhaps with a fault, and of its backend's Inspector.

    Exceptions of a user program, and results of a wrong kind, become one sentence.
    """

    def __init__(self, program: Any, spec: str, recipe: Recipe, fault: Fault | None = None):
        self._program, self._inspector, self._trusted = program, inspector_of(program), spec in BACKENDS
        self.spec, self.recipe, self.fault = spec, recipe, fault

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self._owner(name), name)  # AttributeError where the program lacks it
        if self._trusted:
            return method

        def guarded(*args: Any) -> Any:
            with user_code(self.spec, name):
                value = method(*args)
            if problem := _problem(name, value, self.recipe):
                raise InputError(f"{self.spec}: {name} {problem}: fix the program")
            return value

        return guarded

    def _owner(self, name: str) -> Any:
        """The program or, for a method that it lacks, its backend's inspector."""
        return self._program if hasattr(self._program, name) or self._inspector is None else self._inspector

    def missing(self, *methods: str) -> str | None:
        """The first of some methods that the program does not have; "x|y" stands for either of two."""
        for names in methods:
            if not any(callable(getattr(self._owner(name), name, None)) for name in names.split("|")):
                return names.replace("|", " or ")
        return None

    def has(self, *methods: str) -> bool:
        """Whether the program has all of these methods."""
        return self.missing(*methods) is None

    def put(self, batch: tuple[np.ndarray, np.ndarray]) -> Any:
        """A batch for the program."""
        return self.put_global_batch(*batch) if self.has("put_global_batch") else batch

    def with_step(self, state: Any, step: int) -> Any:
        """The state as if so many updates had been made, where the program tells a difference."""
        return self.__getattr__("with_step")(state, step) if self.has("with_step") else state

    def fetch(self, values: Any) -> Any:
        """The program's own `fetch`, or arrays converted by numpy, PyTorch tensors too."""
        own = getattr(self._program, "fetch", None)
        with nullcontext() if self._trusted else user_code(self.spec, "fetch"):
            return own(values) if own else _numpy(values)

    def array(self, value: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A value as numpy, of the recipe's precision (bfloat16 as float32), finite, of a shape; else InputError."""
        where, precision = f"{self.spec}: {what}", self.recipe.precision
        if value is None:
            raise InputError(f"{where} expected an array, found None: of what nothing depends on return zeros")
        try:
            array = np.array(self.fetch(value))  # a copy: the program may reuse what it returned
        except (ValueError, TypeError) as error:
            raise InputError(f"{where} expected an array, found {type(value).__name__} ({error})") from error
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        expected = "float64" if precision == "float64" else "float32"
        if array.dtype.name != expected:
            raise InputError(
                f"{where} expected {expected} at precision {precision}, found {array.dtype}: "
                "compute in the precision of the recipe"
            )
        if shape is not None and array.shape != shape:
            raise InputError(f"{where} expected shape {shape}, found {array.shape}: fix the program")
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise InputError(
                f"{where} is {array[index]} at {list(index)}, expected finite numbers: nothing can be compared with it"
            )
        return array

    def arrays(self, values: Mapping[str, Any], what: str) -> Weights:
        """Those of `values` that have canonical names, as arrays, in the recipe's order."""
        return {
            name: self.array(values[name], f"{what} {name}", parameter.shape)
            for name, parameter in self.recipe.parameters().items()
            if name in values
        }


def _problem(name: str, value: Any, recipe: Recipe) -> str | None:
    """What is wrong with the kind of a method's result."""
    pair = isinstance(value, tuple) and len(value) == 2
    if name == "loss_and_grads":
        return _problem_of_names(value[1], recipe) if pair else _expected("a pair (loss, gradients)", value)
    if name in ("export", "clipped"):
        return _problem_of_names(value, recipe)
    if name == "step" and not (pair and isinstance(value[1], Mapping) and "loss" in value[1]):
        return _expected("a pair (state, metrics with `loss`)", value)
    if name in ("activations", "moments", "schedules", "orthogonalize") and not isinstance(value, Mapping):
        return _expected("a mapping from names", value)
    if name == "put_global_batch" and not isinstance(value, tuple | list):
        return _expected("a pair (inputs, targets)", value)
    return None


def _problem_of_names(values: Any, recipe: Recipe) -> str | None:
    if not isinstance(values, Mapping):
        return _expected("a mapping from canonical names", values)
    canonical = recipe.parameters().keys()
    for name in sorted(canonical ^ values.keys()):
        return f"lacks {name}" if name in canonical else f"has {name}, which recipe {recipe.name} does not know"
    return None


def _expected(kind: str, value: Any) -> str:
    return f"expected {kind}, found {type(value).__name__}"


def _numpy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _numpy(value) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(map(_numpy, values))
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)
