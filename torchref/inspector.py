"""What the comparer asks of a PyTorch program beyond training: activations, optimizer state, single updates."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.capture import Capture
from torchref import layers, optim, transforms
from torchref.kernels.fp8 import fp8_matmul
from torchref.program import State, TorchProgram

# By torch's names.
MOMENTS = {
    "exp_avg": "first", "exp_avg_sq": "second", "momentum": "momentum", "pending": "pending", "squares": "squares",
}  # fmt: skip


class Inspector:
    """Implements parity.program.Inspected for a TorchProgram."""

    def __init__(self, program: TorchProgram):
        self.program = program
        self.recipe: Any = program.recipe

    @torch.no_grad()
    def activations(self, state: State, batch) -> dict[str, Any]:
        captured, net = Capture(), state.model
        with capturing(net, captured):
            captured["logits"] = net.logits(net(batch[0], *self.program.window(state.step)))
        return captured

    def clipped(self, grads: dict[str, np.ndarray]) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.array(g)) for name, g in grads.items()}
        if (largest := getattr(self.recipe, "clip_norm", None)) is not None:
            optim.clip_by_global_norm(list(tensors.values()), largest, optim.global_norm(tensors))
        return tensors

    def update(self, state: State, grads: dict[str, np.ndarray]) -> State:
        tensors = {name: torch.from_numpy(np.array(grads[name])).to(w) for name, w in state.weights.items()}
        return self.program.apply_gradients(state, tensors)

    def moments(self, state: State) -> dict[str, dict[str, Any]]:
        names: dict[torch.Tensor, str] = {w: name for name, w in state.model.named_parameters()}
        moments: dict[str, dict[str, Any]] = {}
        for optimizer in _optimizers(state):
            for w, tensors in optimizer.state.items():
                for kind in MOMENTS.keys() & tensors.keys():
                    moments.setdefault(MOMENTS[kind], {})[names[w]] = tensors[kind].expand_as(w)
        return moments

    def param_groups(self, state: State) -> list[tuple[str, str]]:
        names = {w: name for name, w in state.model.named_parameters()}
        groups = [group for optimizer in _optimizers(state) for group in optimizer.param_groups]
        return [(names[w], group["name"]) for group in groups for w in group["params"]]

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
        if self.program.window(0):
            first = [self.program.window(step)[0] for step in range(self.recipe.steps + 1)]
            windows = [float(value if isinstance(value, int) else value.blocks) for value in first]
            schedules["window"] = np.array(windows)
        return schedules

    def fp8_matmul(self, x_TD: np.ndarray, weight_VD: np.ndarray, dy_TV: np.ndarray) -> dict[str, Any]:
        x, weight = (torch.from_numpy(a).requires_grad_() for a in (x_TD, weight_VD))
        y_TV = fp8_matmul(x, weight, self.recipe.fp8_scales, self.recipe.row_loss_factor(self.recipe.context))
        dx_TD, dweight_VD = torch.autograd.grad(y_TV, (x, weight), torch.from_numpy(dy_TV))
        return {"y": y_TV, "dx": dx_TD, "dweight": dweight_VD}

    @torch.no_grad()
    def orthogonalize(self, x_RC: np.ndarray) -> dict[str, Any]:
        recipe, grams = self.recipe, []
        coefficients, dtype = recipe.newton_schulz, layers.torch_dtype(recipe.dtypes.newton_schulz)
        x_NRC, norm = torch.from_numpy(x_RC)[None], recipe.newton_schulz_norm
        result = transforms.newton_schulz(x_NRC, recipe.newton_schulz_steps, coefficients, dtype, grams.append, norm)
        return {f"Gram matrix of step {step}": gram for step, gram in enumerate(grams)} | {"result": result}


def _optimizers(state: State) -> list[torch.optim.Optimizer]:
    return [part for part in state.optimizer.optimizers.values() if isinstance(part, torch.optim.Optimizer)]


@contextmanager
def capturing(net: nn.Module, captured: Capture) -> Iterator[None]:
    """Captures what goes into and comes out of every module of a model, and of attention, while this is entered."""

    def before(name: str) -> Callable:
        return lambda module, args, options: captured.enter(name, args, options)

    def after(module, args, y):
        captured.leave(y)

    with ExitStack() as stack:
        stack.enter_context(captured.attention(map(type, net.modules())))
        for name, module in net.named_modules():
            if name and not isinstance(module, nn.ModuleList):
                stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield
