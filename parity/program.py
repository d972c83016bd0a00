"""The protocol of a program: what a backend or a user program implements for the harness and the comparer.

A program owns only its state and its step; the harness owns data, clock, evaluation and log. A state passed to `step`,
`with_step`, `update` or `reset` must not be used again: use the returned one. Values that a framework computes
asynchronously (metrics, losses) are returned at once and read with `fetch`. A program whose results depend on which
token has which id, as with hashes of tokens, says why in an attribute `token_ids`: a sentence for whoever judges it.
Weights that are not to be trained are named in an attribute `idle_weights`.
"""

import importlib
import sys
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
    """A recipe or a user program, built in one backend."""

    framework: str
    """"jax" or "torch": how the harness counts FLOPs."""
    recipe: Recipe
    devices: list[str]
    """The kind of each device that computes."""

    def init(self, seed: int) -> State:
        """The state before the first step: canonical initial weights of the seed and an empty optimizer state."""
        ...

    def load(self, weights: Weights) -> State:
        """A state with these canonical weights and an empty optimizer state.

        Raises InputError if a name or shape differs.
        """
        ...

    def with_step(self, state: State, step: int) -> State:
        """The state with another number of updates and the same weights.

        Optional: for programs whose model depends on that number, such as by an attention window that grows.
        """
        ...

    def export(self, state: State) -> Weights:
        """The canonical weights of a state: float32, or float64 at that precision."""
        ...

    def put_global_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Batch:
        """Puts an int32 batch of the host on the devices. Called from a reader's thread."""
        ...

    def put_local_batch(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Batch:
        """Like `put_global_batch`, called by each of several processes with its own rows, equally many, in their order.

        Needed only for training in several processes.
        """
        ...

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        """One update, and its metrics, still on the device.

        `loss`: mean nats per token before the update. `grad_norm`: global L2 norm of the gradient of the recipe's
        loss, before clipping. `norms`: {"weights" (after the update), "grads", "updates"} -> {group: L2 norm}.
        """
        ...

    def token_losses(self, state: State, batch: Batch) -> Any:
        """(B, T) negative log-likelihood of each target in nats: float32, or float64 at that precision.

        T may be the context of evaluation.
        """
        ...

    def log_probs(self, state: State, inputs_BT: np.ndarray, positions: np.ndarray | None = None) -> Any:
        """(B, P, V) log-probabilities of the next token at these positions of every row (None: all positions)."""
        ...

    def loss_and_grads(self, state: State, batch: Batch, prefix: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The recipe's loss (with its reduction) and its gradient by canonical name. The state stays valid.

        With `prefix`: the sum of the losses at the first `prefix` positions of every row, and its gradient; tokens at
        later positions must not change them.
        """
        ...

    def fetch(self, values: Any) -> Any:
        """Values on the device (arrays in dicts, tuples, lists) as numpy arrays, once they are computed."""
        ...

    def wait(self, state: State) -> None:
        """Returns when everything that the state depends on has been computed: the devices are drained."""
        ...

    def snapshot(self, state: State) -> Snapshot:
        """A copy of the whole state that later steps do not change."""
        ...

    def reset(self, state: State, snapshot: Snapshot) -> State:
        """The state of which the snapshot was taken; the snapshot stays valid."""
        ...

    def digest(self, state: State) -> str:
        """sha256 over everything in the state: weights, optimizer state, step."""
        ...

    def save(self, state: State, directory: Path | None) -> None:
        """Writes the state in the framework's own format into an existing empty folder.

        Of several processes all must call; the first writes, and the others pass None.
        """
        ...

    def restore(self, directory: Path) -> State:
        """The state that `save` wrote. Raises InputError if it is damaged or has other shapes."""
        ...


class Inspected(Protocol):
    """What the comparer asks of a program beyond training. Each method is optional by itself.

    For the backends' own programs and their subclasses the backend's Inspector has these methods.
    """

    def activations(self, state: State, batch: Batch) -> dict[str, Any]:
        """Values of the forward pass by name, in the order in which they are computed.

        "path:in" and "path": the input and the output of every module. "path:q", "path:k", "path:v" and "path:y",
        (B, T, H, K): the inputs and the result of every attention. "logits": (B, T, V).
        """
        ...

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        """The gradients that the optimizer uses: clipped, if the recipe clips."""
        ...

    def update(self, state: State, grads: dict[str, np.ndarray]) -> State:
        """The state after one step of the optimizer, clipping included, from these gradients by canonical name."""
        ...

    def moments(self, state: State) -> dict[str, dict[str, Any]]:
        """The optimizer's state: "first" and "second" moments (AdamW), "momentum" (Muon), each by canonical name."""
        ...

    def param_groups(self, state: State) -> list[tuple[str, str]]:
        """(canonical name, optimizer group) of every weight, once for each group that updates it."""
        ...

    def schedules(self) -> dict[str, np.ndarray]:
        """Learning rates of every optimizer group over the whole plan, (steps,) float64.

        Also "momentum", (steps,), and "window", (steps + 1,), if the recipe has them.
        """
        ...

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        """The FP8 product of a recipe that has one, of float32 arrays: "y" (T, V) and, from dy, "dx" and "dweight"."""
        ...

    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        """Newton-Schulz on one matrix: "Gram matrix of step k" (1, min(R, C), min(R, C)) and "result" (1, R, C)."""
        ...


def with_step(program: Program, state: State, step: int) -> State:
    """The state with another number of updates, if the program has a method `with_step`."""
    return program.with_step(state, step) if hasattr(program, "with_step") else state


def inspector_of(program: Any) -> Any:
    """The Inspector of a backend's program, or of a subclass of its class; None for any other program."""
    for kind in type(program).__mro__:
        backend, _, module = kind.__module__.partition(".")
        if backend in BACKENDS and module == "program":
            return importlib.import_module(f"{backend}.inspector").Inspector(program)
    return None


def plain(program: Any) -> Any:
    """The backend's own program with the model and optimizer of a subclass, without what that changes.

    Raises TypeError for any other program.
    """
    for backend, name in {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}.items():
        own = getattr(sys.modules.get(f"{backend}.program"), name, None)
        if own is not None and isinstance(program, own):
            return own.plain(program)
    raise TypeError("the program is not derived from the backend's own")


def build(backend: str, recipe: Recipe, **options: Any) -> Program:
    """Builds a recipe in a backend by name. Options: `device`, `devices`, `optimizer`, and torchref's `compile`.

    Raises InputError if the backend's framework is not installed or a requested device is missing.
    """
    return _module(backend, "program").build(recipe, **options)


def import_backend(backend: str) -> None:
    """Imports a backend with its framework."""
    _module(backend, "program")


def init_distributed(backend: str, device: str = "auto") -> None:
    """Joins the processes that torchrun's variables describe, in the backend's framework, before its first use."""
    _module(backend, "sharding").init_distributed(device)


def platform(backend: str, device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` (auto, cpu, gpu) means here. Raises InputError if there is no such device."""
    return _module(backend, "sharding").platform(device)


def _module(backend: str, name: str) -> Any:
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; {nearest(backend, BACKENDS)}")
    keep_freed_memory()  # before the framework starts its threads
    try:
        return importlib.import_module(f"{backend}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("jaxrun", "torchref", "parity"):
            raise
        raise InputError(
            f"backend {backend} needs the package {error.name}, which is not installed: pip install {error.name}"
        ) from error


def check_rows(recipe: Recipe, devices: int, microbatches: int, option: str) -> None:
    """Raises InputError unless the devices divide the rows of a batch, and `microbatches` those of a device.

    `option` is what the user chooses devices by.
    """
    rows = recipe.batch_tokens // recipe.context
    if rows % devices:
        raise InputError(
            f"--batch-tokens {recipe.batch_tokens} is {rows} rows of {recipe.context}, which {devices} "
            f"devices do not divide: choose {option} or --batch-tokens so that they do"
        )
    if microbatches < 1 or rows // devices % microbatches:
        raise InputError(
            f"--microbatches {microbatches}: expected a divisor of the {rows // devices} rows that each of {devices} "
            "devices has of a batch: choose another"
        )
