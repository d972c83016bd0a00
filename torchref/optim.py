"""The recipes' optimizers out of small functions of lists of tensors: AdamW, Muon, clipping.

Weights, gradients and updates are flat mappings from canonical name to tensor, or lists in their order. Learning rates
are tables, one number a step. Arithmetic is in float32 or wider; the optimizer's state has the type of its weight.
"""
# pyright: reportPrivateImportUsage=false
# (torch._foreach_*: one kernel for a list of tensors)

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from parity.recipes import Recipe
from torchref.transforms import (
    Distribute,
    Tensors,
    add_cautious_decay,
    add_decayed_weights,
    at_step,
    equalize,
    momentum,
    newton_schulz,
    orthogonalize,
    scale_by_aspect,
    scale_by_learning_rate,
    tie,
    wider,
)


def adamw(
    weights: dict[str, Tensors], betas: tuple[float, float], eps: float, decays: dict[str, float]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): p -= rate ((m / c1) / (sqrt(v / c2) + eps) + decay p), with
    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; c1 = 1 - b1^t, c2 = 1 - b2^t at the t-th step.

    `weights` and `decays` by optimizer group. The learning rate of a group, its "lr", is set before every step.
    """
    groups = [
        {"params": list(tensors.values()), "name": group, "weight_decay": decays[group]}
        for group, tensors in weights.items()
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)  # fused: bfloat16 weights in float32


def muon(
    weights: dict[str, Tensors],
    decay: float,
    mu: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: torch.dtype,
    compile: bool = False,
    distribute: Distribute = lambda function: function,
    ema: bool = True,
    norm: tuple[float, float] = (1.0, 1e-7),
    aspect: bool = True,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024): p -= rate (sqrt(max(1, rows / columns)) orthogonalize(u) + decay p), u of `momentum`.

    For matrices (out, in) and stacks of them. `weights` by optimizer group, whose learning rate, its "lr", is set
    before every step; the momentum `mu` is one number or one a step; `steps`, `coefficients` and `norm` of
    Newton-Schulz, in `dtype`; `ema=False` is momentum as SGD has it, `aspect=False` leaves out the factor.
    """
    function = torch.compile(newton_schulz, dynamic=False) if compile else newton_schulz
    orthogonalize_fn = distribute(lambda x_NRC: function(x_NRC, steps, coefficients, dtype, norm=norm))
    return Muon(weights, decay, mu, orthogonalize_fn, ema, aspect)


class Muon(torch.optim.Optimizer):
    """`momentum`, `orthogonalize`, `scale_by_aspect`, `add_decayed_weights` and `scale_by_learning_rate` in a row."""

    def __init__(
        self,
        weights: dict[str, Tensors],
        decay: float,
        mu: float | np.ndarray,
        orthogonalize_fn: Callable,
        ema: bool = True,
        aspect: bool = True,
    ):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0, "weight_decay": decay})
        self.mu, self.orthogonalize_fn, self.ema, self.aspect = np.atleast_1d(mu), orthogonalize_fn, ema, aspect

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            weights = group["params"]
            mu = at_step(self.mu, group["updates"])
            group["updates"] += 1
            for w in weights:
                if not self.state[w]:
                    self.state[w]["momentum"] = torch.zeros_like(w)
            moments = [self.state[w]["momentum"] for w in weights]
            updates = momentum([w.grad for w in weights], moments, mu, ema=self.ema)
            updates = orthogonalize(updates, self.orthogonalize_fn)
            updates = scale_by_aspect(updates) if self.aspect else updates
            updates = add_decayed_weights(updates, weights, group["weight_decay"])
            updates = scale_by_learning_rate(updates, group["lr"])
            torch._foreach_add_(weights, updates)


def normuon(
    weights: dict[str, Tensors],
    decay: np.ndarray,
    mu: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: torch.dtype,
    compile: bool = False,
    distribute: Distribute = lambda function: function,
    norm: tuple[float, float] = (1.0, 1e-7),
    beta: float = 0.95,
    axis: int = -1,
) -> torch.optim.Optimizer:
    """NorMuon (Li et al., arXiv 2510.05491, record 41) with cautious decay: p -= rate (e + [e p >= 0] decay p), with e
    the rows of orthogonalize(u), or with axis -2 the columns, made alike by `equalize`; u of `momentum`.

    `decay` (steps,); the rest as for `muon`.
    """
    function = torch.compile(newton_schulz, dynamic=False) if compile else newton_schulz
    orthogonalize_fn = distribute(lambda x_NRC: function(x_NRC, steps, coefficients, dtype, norm=norm))
    return NorMuon(weights, decay, mu, orthogonalize_fn, beta, axis)


class NorMuon(torch.optim.Optimizer):
    """`momentum`, `orthogonalize`, `equalize`, `add_cautious_decay` and `scale_by_learning_rate` in a row."""

    def __init__(
        self,
        weights: dict[str, Tensors],
        decay: np.ndarray,
        mu: float | np.ndarray,
        orthogonalize_fn: Callable,
        beta: float,
        axis: int,
    ):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0})
        self.decay, self.mu, self.orthogonalize_fn = np.atleast_1d(decay), np.atleast_1d(mu), orthogonalize_fn
        self.beta, self.axis = beta, axis

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            weights, count = group["params"], group["updates"]
            group["updates"] += 1
            for w in weights:
                if not self.state[w]:
                    self.state[w]["momentum"] = torch.zeros_like(w)
                    self.state[w]["squares"] = torch.zeros_like(w.sum(self.axis, keepdim=True), dtype=wider(w))
            moments = [self.state[w]["momentum"] for w in weights]
            updates = momentum([w.grad for w in weights], moments, at_step(self.mu, count))
            updates = orthogonalize(updates, self.orthogonalize_fn)
            updates = equalize(updates, [self.state[w]["squares"] for w in weights], self.beta, self.axis)
            updates = add_cautious_decay(updates, weights, at_step(self.decay, count), strict=False)
            updates = scale_by_learning_rate(updates, group["lr"])
            torch._foreach_add_(weights, updates)


def odd_adam(
    weights: dict[str, Tensors],
    betas: dict[str, tuple[float, float]],
    eps: float,
    dtype: torch.dtype,
    decay: dict[str, np.ndarray | None] | None = None,
    tied_until: dict[str, int] | None = None,
) -> torch.optim.Optimizer:
    """Adam on odd steps alone, each time on the sum of the gradients of two steps (record 39).

    At its t-th update m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; u = sqrt(c2) / c1 m / (sqrt(v) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t; p -= rate (u + [u p > 0] decay p). `weights`, `betas`, `decay` (steps,) and
    `tied_until` by optimizer group, whose learning rate, its "lr", is set before every step; the moments are kept in
    `dtype`, the gradient of an even step in its own type. Up to the step `tied_until` all weights of a group, which
    then have one shape, have the sum of their gradients (record 53).
    """
    return OddAdam(weights, betas, eps, dtype, decay or {}, tied_until or {})


class OddAdam(torch.optim.Optimizer):
    def __init__(
        self,
        weights: dict[str, Tensors],
        betas: dict[str, tuple[float, float]],
        eps: float,
        dtype: torch.dtype,
        decay: dict[str, np.ndarray | None],
        tied_until: dict[str, int],
    ):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0})
        self.betas, self.eps, self.dtype, self.decay, self.tied_until = betas, eps, dtype, decay, tied_until

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            (b1, b2), count, decay = self.betas[group["name"]], group["updates"], self.decay.get(group["name"])
            group["updates"] += 1
            grads = [w.grad for w in group["params"]]
            if count <= self.tied_until.get(group["name"], -1):
                grads = tie(grads)
            for w in group["params"]:
                if not self.state[w]:
                    moments = {name: torch.zeros_like(w, dtype=self.dtype) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[w].update(moments, pending=torch.zeros_like(w))
            states = [self.state[w] for w in group["params"]]
            if count % 2 == 0:
                torch._foreach_copy_([state["pending"] for state in states], grads)
                continue
            c1, c2 = (1 - beta ** (count // 2 + 1) for beta in (b1, b2))
            for w, state, grad in zip(group["params"], states, grads, strict=True):
                g = state["pending"] + grad
                g = g.to(wider(g))
                first = b1 * state["exp_avg"].to(g.dtype) + (1 - b1) * g
                second = b2 * state["exp_avg_sq"].to(g.dtype) + (1 - b2) * g * g
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)
                update = c2**0.5 / c1 * first / (second.sqrt() + self.eps)
                if decay is not None:
                    (update,) = add_cautious_decay([update], [w], at_step(decay, count))
                w.sub_(group["lr"] * update)


def clip_by_global_norm(grads: list[torch.Tensor], max_norm: float, norm: torch.Tensor) -> None:
    """g *= min(1, max_norm / (||g|| + 1e-6)), in place, the norm over all gradients together (`clip_grad_norm_`)."""
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


class ByGroup:
    """Several torch optimizers as one, each for its own groups of weights; learning rates are set before every step.

    `optimizers` may hold their schedulers behind them; `learning_rates` has a table (steps,) for each name of a
    parameter group, or is empty where the optimizers have their own; gradients are first clipped to `max_norm`;
    `eval_params` returns the weights to evaluate by name, as averages in the optimizers' state.
    """

    def __init__(
        self,
        optimizers: dict[str, Any],
        learning_rates: dict[str, np.ndarray],
        max_norm: float | None = None,
        eval_params: Callable[[], Tensors] | None = None,
    ):
        self.optimizers, self.learning_rates, self.max_norm = optimizers, learning_rates, max_norm
        self.eval_params = eval_params

    def update(self, step: int, grads: list[torch.Tensor], norm: torch.Tensor) -> None:
        """One update of all weights from their `.grad`; `norm` is the global norm of these gradients."""
        if self.max_norm is not None:
            clip_by_global_norm(grads, self.max_norm, norm)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups if self.learning_rates else []:
                table = self.learning_rates[group["name"]]
                group["lr"] = float(table[min(step, len(table) - 1)])
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])


def make_optimizer(
    recipe: Recipe, weights: Tensors, compile: bool = False, distribute: Distribute = lambda function: function
) -> ByGroup:
    """The recipe's optimizer: every weight in exactly one group, every group with its optimizer and learning rates.

    `distribute` may spread a function of a stack of matrices over processes.
    """
    optimizers = {}
    for name in dict.fromkeys(recipe.optimizers.values()):
        groups = [group for group, optimizer in recipe.optimizers.items() if optimizer == name]
        optimizers[name.lower()] = OPTIMIZERS[name](recipe, _by_group(recipe, weights, groups), compile, distribute)
    tables = {group: learning_rates(recipe, group) for group in recipe.optimizers}
    return ByGroup(optimizers, tables, getattr(recipe, "clip_norm", None))


def _adamw(recipe: Any, weights: dict[str, Tensors], compile: bool, distribute: Distribute) -> torch.optim.Optimizer:
    return adamw(weights, recipe.betas, recipe.adam_eps, {group: recipe.group_weight_decay(group) for group in weights})


def _odd_adam(recipe: Any, weights: dict[str, Tensors], compile: bool, distribute: Distribute) -> torch.optim.Optimizer:
    return odd_adam(
        weights,
        {group: recipe.group_betas(group) for group in weights},
        recipe.adam_eps,
        getattr(torch, recipe.dtypes.moments),
        {group: cautious_decay(recipe, group) for group in weights},
        {group: recipe.tied_until(group) for group in weights},
    )


def _muon(
    recipe: Any,
    weights: dict[str, Tensors],
    compile: bool,
    distribute: Distribute,
    ema: bool = True,
    aspect: bool = True,
) -> torch.optim.Optimizer:
    (group,) = weights  # for all of them together the decay would be one
    return muon(
        weights,
        recipe.group_weight_decay(group),
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        getattr(torch, recipe.dtypes.newton_schulz),
        compile,
        distribute,
        ema,
        recipe.newton_schulz_norm,
        aspect,
    )


def _normuon(
    recipe: Any, weights: dict[str, Tensors], compile: bool, distribute: Distribute, axis: int = -1
) -> torch.optim.Optimizer:
    (group,) = weights  # for all of them together the decay would be one
    decay = cautious_decay(recipe, group)
    return normuon(
        weights,
        np.zeros(1) if decay is None else decay,
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        getattr(torch, recipe.dtypes.newton_schulz),
        compile,
        distribute,
        recipe.newton_schulz_norm,
        recipe.equalizer,
        axis,
    )


OPTIMIZERS = {
    "AdamW": _adamw,
    "Muon": _muon,
    "MuonSGD": functools.partial(_muon, ema=False),
    "OddAdam": _odd_adam,
    "MuonUnscaled": functools.partial(_muon, aspect=False),
    "NorMuon": _normuon,
    "NorMuonColumns": functools.partial(_normuon, axis=-2),
}


def group_of(recipe: Recipe) -> dict[str, str]:
    """Canonical name -> optimizer group."""
    return {name: parameter.group for name, parameter in recipe.parameters().items()}


def learning_rates(recipe: Recipe, group: str) -> np.ndarray:
    """(steps,) float64: the group's learning rate at every step of the plan."""
    return np.array([recipe.learning_rates(step)[group] for step in range(recipe.steps)])


def cautious_decay(recipe: Recipe, group: str) -> np.ndarray | None:
    """(steps,) float64: the group's cautious decay at every step of the plan; None where it has none."""
    table = np.array([recipe.cautious_decay(group, step) for step in range(recipe.steps)])
    return table if table.any() else None


def momentum_schedule(recipe: Any) -> np.ndarray:
    """(steps,) float64: Muon's momentum at every step of the plan."""
    return np.array([recipe.momentum_at(step) for step in range(recipe.steps)])


def global_norm(tensors: Tensors) -> torch.Tensor:
    """L2 norm over all tensors together, in float32 or wider; summed in float64, as PyTorch adds tensor by tensor."""
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(norms)).to(wider(next(iter(tensors.values()))))


def group_norms(tensors: Tensors, groups: dict[str, str]) -> Tensors:
    """L2 norm of every optimizer group, in float32 or wider."""
    norms = {name: torch.linalg.vector_norm(x, dtype=wider(x)) for name, x in tensors.items()}
    return {
        group: torch.linalg.vector_norm(torch.stack([x for name, x in norms.items() if groups[name] == group]))
        for group in sorted(set(groups.values()))
    }


def _by_group(recipe: Recipe, weights: Tensors, groups: Iterable[str]) -> dict[str, Tensors]:
    of = group_of(recipe)
    return {group: {name: w for name, w in weights.items() if of[name] == group} for group in groups}
