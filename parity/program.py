"""The protocol of a program: what a backend, or anyone's own code, gives the harness and the comparer.

A program owns only its state and its step; the harness owns data, clock, evaluation and log. A state given to `step` or
`reset` is used up: go on with the one that comes back. Everything that a framework can do later (steps, losses) is
returned at once and read with `fetch`.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parity.errors import InputError, nearest
from parity.memory import keep_freed_memory
from parity.recipes import Recipe
from parity.weights import Weights

BACKENDS = ("jaxrun", "torchref")

State = Any
Batch = Any
Snapshot = Any


class Program(Protocol):
    """A recipe, or own code, built in one backend."""

    framework: str
    """"jax" or "torch": how the harness counts FLOPs."""
    recipe: Recipe
    devices: list[str]
    """Kind of every device that computes."""

    def init(self, seed: int) -> State:
        """The state before the first step: canonical initial weights of the seed, empty optimizer state."""

    def load(self, weights: Weights) -> State:
        """A state with these canonical weights and empty optimizer state; InputError where names or shapes differ."""

    def with_step(self, state: State, step: int) -> State:
        """The state as if so many updates had been made, as far as something depends on their number alone, such as a window that
        grows; the weights stay. Uses the state up. Only programs of which that is so need it."""

    def export(self, state: State) -> Weights:
        """Canonical weights of a state: float32, or float64 at that precision."""

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Batch:
        """Puts an int32 host batch on the devices. Called from a reader's thread."""

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Batch:
        """As `place`, where each of several processes gives its own rows of the batch, equally many, in their order. Only they need it."""

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        """One update. Metrics, still on the device: `loss` (mean nats per token before the update), `grad_norm`
        (global L2 norm of the gradient that the recipe descends, before clipping), and `norms`: {"weights" (after the
        update), "grads", "updates"} -> {group: L2 norm}."""

    def token_losses(self, state: State, batch: Batch) -> Any:
        """(B, T) negative log-likelihood of each target in nats, float32 (float64 at that precision). T may be that of evaluation."""

    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None) -> Any:
        """(B, P, V) log-probabilities of the next token at the given positions of every row (None: at all of them)."""

    def loss_and_grads(self, state: State, batch: Batch, prefix: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The recipe's loss (its own reduction) and its gradient by canonical name. Leaves the state as it was.

        With `prefix`, of the sum of the losses at the first so many positions of every row instead: what stands behind
        them must not move it.
        """

    def fetch(self, values: Any) -> Any:
        """Waits for values on the device (arrays in dicts, tuples, lists) and returns them as numpy arrays."""

    def wait(self, state: State) -> None:
        """Returns when everything the state depends on has been computed: the devices are drained."""

    def snapshot(self, state: State) -> Snapshot:
        """A copy of the whole state, unharmed by later steps."""

    def reset(self, state: State, snapshot: Snapshot) -> State:
        """The state that the snapshot was taken of."""

    def digest(self, state: State) -> str:
        """sha256 over everything in the state: weights, optimizer state, step."""

    def save(self, state: State, directory: Path | None) -> None:
        """Writes the state as files of the framework's own kind into an existing empty folder. Of several processes, which must all
        call, the first writes, and the others give None."""

    def restore(self, directory: Path) -> State:
        """Reads what `save` wrote; InputError where it is damaged or of other shapes."""


class Inspected(Protocol):
    """What the comparison of two programs asks beyond the above, each method by itself optional."""

    def activations(self, state: State, batch: Batch) -> dict[str, Any]:
        """What goes into ("path:in") and comes out of ("path") every module, q, k, v and the result y of every attention
        ("path:q", (B, T, H, K)), and "logits" (B, T, V), in the order in which they are computed."""

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        """Gradients as the optimizer takes them: after clipping, where the recipe clips."""

    def update(self, state: State, grads: dict[str, np.ndarray]) -> State:
        """One step of the optimizer, clipping included, from these gradients by canonical name. Uses the state up."""

    def moments(self, state: State) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps: "first" and "second" moments (AdamW), "momentum" (Muon), each by canonical name."""

    def param_groups(self, state: State) -> list[tuple[str, str]]:
        """(canonical name, optimizer group) for every weight that a group updates."""

    def schedules(self) -> dict[str, np.ndarray]:
        """(steps,) float64 rates of every optimizer group over the whole plan; and "momentum" (steps,) and "window" (steps + 1,),
        where the recipe has them."""

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        """The 8-bit product of a recipe that has one, of float32 arrays, whatever the precision: "y" (T, V) and, from dy, "dx", "dweight"."""

    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        """Newton-Schulz on one matrix: "Gram matrix of step k" (1, min(R, C), min(R, C)) and "result" (1, R, C)."""


class Outputs(dict[str, Any]):
    """Values by name in the order in which they come up; a name that comes up again is counted on."""

    def note(self, name: str, value: Any) -> None:
        """Keeps a value."""
        count = sum(key.split("#")[0] == name for key in self)
        self[f"{name}#{count + 1}" if count else name] = value

    def attending(self, attend: Callable, inside: list[str]) -> Callable:
        """Attention, with its q, k, v and its result y kept below the path of the module that is `inside` last."""

        def attention(q: Any, k: Any, v: Any, *others: Any) -> Any:
            for name, x in zip("qkv", (q, k, v)):
                self.note(f"{inside[-1]}:{name}", x)
            y = attend(q, k, v, *others)
            self.note(f"{inside[-1]}:y", y)
            return y

        return attention

    def wrapped(self, function: Callable, name: str) -> Callable:
        """The function, with each of its results kept under `name` and the number of the call, from 0."""
        calls = itertools.count()

        def noting(*args: Any) -> Any:
            value = function(*args)
            self[name.format(next(calls))] = value
            return value

        return noting


def with_step(program: Program, state: State, step: int) -> State:
    """The state as if so many updates had been made, where the program tells a difference."""
    return program.with_step(state, step) if hasattr(program, "with_step") else state


def build(backend: str, recipe: Recipe, **options: Any) -> Program:
    """Builds a recipe in a backend by name. Options: `device`, `devices`, `optimizer`, and torchref's `compile`.

    Raises InputError where the backend's framework is not installed or a device that was asked for is not there.
    """
    return _backend(backend).build(recipe, **options)


def join(backend: str, device: str = "auto") -> None:
    """Joins the backend's framework with those of the other processes, which torchrun's variables name; before anything else of it."""
    _backend(backend).join(device)


def platform(backend: str, device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` (auto, cpu, gpu) means here. Raises InputError where there is no such device."""
    return _backend(backend).platform(device)


def _backend(name: str) -> Any:
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}; {nearest(name, BACKENDS)}")
    keep_freed_memory()  # before the framework starts its threads
    try:
        return importlib.import_module(f"{name}.program")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("jaxrun", "torchref", "parity"):
            raise
        raise InputError(
            f"backend {name} needs the package {error.name}, which is not installed: pip install {error.name}"
        ) from error


def check_microbatches(recipe: Recipe, devices: int, microbatches: int) -> None:
    """Raises InputError unless each device's rows of a batch can be cut into so many microbatches."""
    rows = recipe.batch_tokens // recipe.context // devices
    if microbatches < 1 or rows % microbatches:
        raise InputError(
            f"--microbatches {microbatches}: expected a divisor of the {rows} rows that each of {devices} devices has of a "
            "batch: choose another"
        )


def own_function(spec: str, option: str) -> Any:
    """The function that `module:name` names, imported; InputError that says what could not be found."""
    module_name, colon, name = spec.partition(":")
    if not colon or not name:
        raise InputError(f"{option} {spec}: expected module:function, for example mymodule:make")
    before, sys.pycache_prefix = (
        sys.pycache_prefix,
        os.devnull,
    )  # from its source: what lies compiled beside it may be other code
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise InputError(
            f"{option} {spec}: no module {module_name} on the import path: run from its folder or set PYTHONPATH"
        ) from error
    finally:
        sys.pycache_prefix = before
    if not callable(getattr(module, name, None)):
        raise InputError(f"{option} {spec}: {module.__file__} has no function {name!r}; {nearest(name, vars(module))}")
    return getattr(module, name)
