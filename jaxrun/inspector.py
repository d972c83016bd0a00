"""What only the comparison of two programs asks of one: activations, optimizer state, single updates, in JAX."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrun import model, optim
from jaxrun.kernels.fp8 import fp8_matmul
from parity.program import Outputs


class Inspection:
    """Implements parity.program.Inspected beside a program."""

    def activations(self, state, batch) -> dict[str, Any]:
        return dict(zip(*self._named(self._outputs, state["weights"], batch[0], self.window(state["step"]))))

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        largest = getattr(self.recipe, "clip_norm", None)
        grads = {name: jnp.asarray(g) for name, g in grads.items()}
        return grads if largest is None else optim.clip_by_global_norm(largest).update(grads, optax.EmptyState())[0]

    def update(self, state, grads: dict[str, np.ndarray]):
        return self._given({name: jnp.asarray(g, state["weights"][name].dtype) for name, g in grads.items()}, state)

    def moments(self, state) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for _, part in self._parts(state):
            for kind, tensors in part._asdict().items():
                if kind != "count":
                    found.setdefault(kind, {}).update(tensors)
        return found

    def param_groups(self, state) -> list[tuple[str, str]]:
        return [(name, group) for group, part in self._parts(state) for name in part[1]]

    def schedules(self) -> dict[str, np.ndarray]:
        found = {group: optim.learning_rates(self.recipe, group) for group in sorted(set(self.groups.values()))}
        if hasattr(self.recipe, "momentum"):
            found["momentum"] = optim.momentum_schedule(self.recipe)
        if windows := self.window(jnp.arange(self.recipe.steps + 1)):
            found["window"] = np.asarray(windows[0], np.float64)
        return found

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        recipe = self.recipe
        y, pull = jax.vjp(
            lambda x, w: fp8_matmul(x, w, recipe.fp8_scales, 1 / recipe.context),
            jnp.asarray(x_TD),
            jnp.asarray(weight_VD),
        )
        return {"y": y, **dict(zip(("dx", "dweight"), pull(jnp.asarray(dy_TV))))}

    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        found = Outputs()
        with patch.object(optim, "gram", found.wrapped(optim.gram, "Gram matrix of step {}")):
            recipe = self.recipe
            result = optim.orthogonalize(
                jnp.asarray(x_RC)[None], recipe.newton_schulz_steps, recipe.newton_schulz, recipe.dtypes.newton_schulz
            )
        return {**found, "result": result}

    @staticmethod
    def _parts(state) -> list[tuple[str, Any]]:
        """(group, state) of every AdamW and Muon in the optimizer."""
        kinds = optim.AdamWState, optim.MuonState
        leaves = jax.tree_util.tree_leaves_with_path(state["optimizer"], is_leaf=lambda x: isinstance(x, kinds))
        return [(path[-1].key, part) for path, part in leaves if isinstance(part, kinds)]

    def _named(self, function, *args):
        """The names and values of what a function that returns a mapping gives: jit would sort it by name."""
        names: list[str] = []

        def values(*args):
            found = function(*args)
            names[:] = found
            return list(found.values())

        return names, jax.jit(values)(*args)

    def _outputs(self, weights, inputs_BT, window) -> Outputs:
        found = Outputs()

        def run(net):
            with recorded(net, found):
                return net.logits(net(inputs_BT, *window))

        found["logits"] = model.apply(self.definition, weights, run)
        return found


@contextmanager
def recorded(net: nnx.Module, found: Outputs) -> Iterator[None]:
    """Notes what goes into and comes out of every module of a model, and of attention, while it runs."""
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(net)}
    inside: list[str] = []

    def noting(original):
        def call(module, x, *args):
            inside.append(paths[id(module)])
            found.note(f"{inside[-1]}:in", x)
            y = original(module, x, *args)
            found.note(inside.pop(), y[0] if isinstance(y, tuple) else y)
            return y

        return call

    kinds = {type(module) for _, module in nnx.iter_modules(net) if paths[id(module)] and callable(module)}
    before = {kind: kind.__call__ for kind in kinds}
    with ExitStack() as patches:
        for place in {sys.modules[kind.__module__] for kind in type(net).__mro__}:  # where the model calls attention
            for name in ("causal_attention", "window_attention"):
                if hasattr(place, name):
                    patches.enter_context(patch.object(place, name, found.attending(getattr(place, name), inside)))
        for kind in kinds:
            patches.enter_context(patch.object(kind, "__call__", noting(before[kind])))
        yield
