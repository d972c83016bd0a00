"""What the comparer asks of a JAX program beyond training: activations, optimizer state, single updates."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx.tracers import TraceState

from jaxrun import model, optim, transforms
from jaxrun.kernels.fp8 import fp8_matmul
from jaxrun.program import JaxProgram, State
from parity.capture import Capture, replaced

REMAT = (jax, "checkpoint"), (jax, "remat"), (nnx, "remat")


class Inspector:
    """Implements parity.program.Inspected for a JaxProgram."""

    def __init__(self, program: JaxProgram):
        self.program = program
        self.recipe: Any = program.recipe
        self._names: list[str] = []
        self._compiled_activations = jax.jit(self._activations)

    def activations(self, state: State, batch) -> dict[str, Any]:
        window = self.program.window(state["step"])
        arrays = self._compiled_activations(state["weights"], batch[0], window)  # sets the names
        return dict(zip(self._names, arrays, strict=True))

    def _activations(self, weights, inputs_BT, window) -> list[Any]:
        """The values alone, since jit would sort a dict by name; the names are kept."""
        captured = Capture()
        captured.readable = TraceState().is_valid  # no value of a trace in this one, as of a scan

        def run(net):
            with capturing(net, captured):
                return net.logits(net(inputs_BT, *window))

        captured["logits"] = model.apply(self.program.definition, weights, run)
        self._names = list(captured)
        return list(captured.values())

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        largest = getattr(self.recipe, "clip_norm", None)
        arrays: Any = {name: jnp.asarray(g) for name, g in grads.items()}
        if largest is not None:
            arrays, _ = optim.clip_by_global_norm(largest).update(arrays, optax.EmptyState())
        return arrays

    def update(self, state: State, grads: dict[str, np.ndarray]) -> State:
        arrays = {name: jnp.asarray(g, state["weights"][name].dtype) for name, g in grads.items()}
        return self.program.apply_gradients(state, arrays)

    def moments(self, state: State) -> dict[str, dict[str, Any]]:
        moments: dict[str, dict[str, Any]] = {}
        for _, part in _optimizer_states(state):
            for kind, tensors in part._asdict().items():
                if kind != "count":
                    whole = {name: jnp.broadcast_to(x, state["weights"][name].shape) for name, x in tensors.items()}
                    moments.setdefault(kind, {}).update(whole)
        return moments

    def param_groups(self, state: State) -> list[tuple[str, str]]:
        states = [(group, part) for group, part in _optimizer_states(state) if "count" in part._fields]
        return [(name, group) for group, part in states for name in part[1]]

    def schedules(self) -> dict[str, np.ndarray]:
        groups = sorted(set(self.program.groups.values()))
        schedules = {group: optim.learning_rates(self.recipe, group) for group in groups}
        if hasattr(self.recipe, "momentum"):
            schedules["momentum"] = optim.momentum_schedule(self.recipe)
        for group in groups:
            if (table := optim.cautious_decay(self.recipe, group)) is not None:
                schedules[f"decay of {group}"] = table
        for k, table in enumerate(zip(*map(self.program.target_weights, range(self.recipe.steps)), strict=True)):
            schedules[f"target {k + 1}"] = np.array([float(weight) for weight in table])
        if windows := self.program.window(jnp.arange(self.recipe.steps + 1)):
            schedules["window"] = np.asarray(windows[0], np.float64)
        return schedules

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        def product(x_TD, weight_VD):
            return fp8_matmul(x_TD, weight_VD, self.recipe.fp8_scales, self.recipe.row_loss_factor(self.recipe.context))

        y_TV, vjp = jax.vjp(product, jnp.asarray(x_TD), jnp.asarray(weight_VD))
        dx_TD, dweight_VD = vjp(jnp.asarray(dy_TV))
        return {"y": y_TV, "dx": dx_TD, "dweight": dweight_VD}

    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        recipe, grams = self.recipe, []
        coefficients, dtype = recipe.newton_schulz, recipe.dtypes.newton_schulz
        x_NRC, norm = jnp.asarray(x_RC)[None], recipe.newton_schulz_norm
        result = transforms.newton_schulz(x_NRC, recipe.newton_schulz_steps, coefficients, dtype, grams.append, norm)
        return {f"Gram matrix of step {step}": gram for step, gram in enumerate(grams)} | {"result": result}


def _optimizer_states(state: State) -> list[tuple[str, Any]]:
    """(group, state) of every part of the optimizer that has moments."""
    kinds = transforms.AdamState, optim.OddAdamState, transforms.MomentumState, transforms.EqualizeState
    leaves = jax.tree_util.tree_leaves_with_path(state["optimizer"], is_leaf=lambda x: isinstance(x, kinds))
    return [
        ([key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1], part)
        for path, part in leaves
        if isinstance(part, kinds)
    ]


def _not_rematerialised(function: Any = None, *args: Any, **options: Any) -> Any:
    """Stands for jax.checkpoint and its like: they trace a function by itself, and nothing can be read out of that."""
    return function if callable(function) else lambda function: function


@contextmanager
def capturing(net: nnx.Module, captured: Capture) -> Iterator[None]:
    """Captures what goes into and comes out of every module of a model, and of attention, while this is entered."""
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(net)}
    kinds = {type(module) for path, module in nnx.iter_modules(net) if path and callable(module)}

    def with_capture(original: Callable) -> Callable:
        def call(module, *args, **options):
            path, y = paths.get(id(module)), None
            if not path:  # the model itself, or a module that is none of its attributes
                return original(module, *args, **options)
            captured.enter(path, args, options)
            try:
                y = original(module, *args, **options)
            finally:
                captured.leave(y)
            return y

        return call

    with ExitStack() as stack:
        stack.enter_context(captured.attention(kinds | {type(net)}))
        for kind, call in [(kind, with_capture(kind.__call__)) for kind in kinds]:
            stack.enter_context(replaced(kind, "__call__", call))
        for owner, name in REMAT:
            stack.enter_context(replaced(owner, name, _not_rematerialised))
        yield
