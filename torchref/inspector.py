"""What only the comparison of two programs asks of one: activations, optimizer state, single updates, in PyTorch."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from parity.program import Outputs
from torchref import layers, optim
from torchref.kernels.fp8 import fp8_matmul

KINDS = {"exp_avg": "first", "exp_avg_sq": "second", "momentum": "momentum"}  # torch's names of what an optimizer keeps


class Inspection:
    """Implements parity.program.Inspected beside a program."""

    @torch.no_grad()
    def activations(self, state, batch) -> dict[str, Any]:
        found = Outputs()
        with recorded(state.model, found):
            found["logits"] = state.model.logits(state.model(batch[0], *self.window(state.step)))
        return found

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.array(g)) for name, g in grads.items()}
        if (largest := getattr(self.recipe, "clip_norm", None)) is not None:
            optim.clip_by_global_norm(list(tensors.values()), largest, optim.global_norm(tensors))
        return tensors

    def update(self, state, grads: dict[str, np.ndarray]):
        weights = dict(state.model.named_parameters())
        tensors = {name: torch.from_numpy(np.array(grads[name])).to(w) for name, w in weights.items()}
        self._apply(state, tensors, optim.global_norm(tensors))
        return state

    def moments(self, state) -> dict[str, dict[str, Any]]:
        names = {w: name for name, w in state.model.named_parameters()}
        found: dict[str, dict[str, Any]] = {}
        for part in self._parts(state):
            for w, kept in part.state.items():
                for kind, tensor in kept.items():
                    if kind in KINDS:
                        found.setdefault(KINDS[kind], {})[names[w]] = tensor
        return found

    def param_groups(self, state) -> list[tuple[str, str]]:
        names = {w: name for name, w in state.model.named_parameters()}
        return [
            (names[w], group["name"])
            for part in self._parts(state)
            for group in part.param_groups
            for w in group["params"]
        ]

    def schedules(self) -> dict[str, np.ndarray]:
        found = {group: optim.learning_rates(self.recipe, group) for group in sorted(set(self.groups.values()))}
        if hasattr(self.recipe, "momentum"):
            found["momentum"] = optim.momentum_schedule(self.recipe)
        if self.window(0):
            found["window"] = np.array([float(self.window(step)[0][0]) for step in range(self.recipe.steps + 1)])
        return found

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        x, weight = (torch.from_numpy(a).requires_grad_() for a in (x_TD, weight_VD))
        y = fp8_matmul(x, weight, self.recipe.fp8_scales, 1 / self.recipe.context)
        return {"y": y, **dict(zip(("dx", "dweight"), torch.autograd.grad(y, (x, weight), torch.from_numpy(dy_TV))))}

    @torch.no_grad()
    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        found = Outputs()
        with patch.object(optim, "gram", found.wrapped(optim.gram, "Gram matrix of step {}")):
            recipe = self.recipe
            result = optim.orthogonalize(
                torch.from_numpy(x_RC)[None],
                recipe.newton_schulz_steps,
                recipe.newton_schulz,
                layers.torch_dtype(recipe.dtypes.newton_schulz),
            )
        return {**found, "result": result}

    @staticmethod
    def _parts(state) -> list[torch.optim.Optimizer]:
        return [part for part in state.optimizer.parts.values() if isinstance(part, torch.optim.Optimizer)]


@contextmanager
def recorded(net: nn.Module, found: Outputs) -> Iterator[None]:
    """Notes what goes into and comes out of every module of a model, and of attention, while it runs."""
    inside: list[str] = []

    def before(path):
        def hook(module, inputs):
            inside.append(path)
            found.note(f"{path}:in", inputs[0])

        return hook

    def after(module, inputs, y):
        found.note(inside.pop(), y[0] if isinstance(y, tuple) else y)

    with ExitStack() as hooks:
        for place in {sys.modules[kind.__module__] for kind in type(net).__mro__}:  # where the model calls attention
            for name in ("causal_attention", "window_attention"):
                if hasattr(place, name):
                    hooks.enter_context(patch.object(place, name, found.attending(getattr(place, name), inside)))
        for path, module in net.named_modules():
            if path and not isinstance(module, nn.ModuleList):
                hooks.callback(module.register_forward_pre_hook(before(path)).remove)
                hooks.callback(module.register_forward_hook(after).remove)
        yield
