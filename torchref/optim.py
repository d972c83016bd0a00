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

Tensors = dict[str, torch.Tensor]
Distribute = Callable[[Callable], Callable]  # spreads a function of a stack of matrices over processes


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
            mu = float(self.mu[min(group["updates"], len(self.mu) - 1)])
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


def odd_adam(
    weights: dict[str, Tensors], betas: tuple[float, float], eps: float, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """Adam on odd steps alone, each time on the sum of the gradients of two steps (record 39).

    At its t-th update m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= rate sqrt(c2) / c1 m / (sqrt(v) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t. `weights` by optimizer group, whose learning rate, its "lr", is set before every step;
    the moments are kept in `dtype`, the gradient of an even step in its own type.
    """
    return OddAdam(weights, betas, eps, dtype)


class OddAdam(torch.optim.Optimizer):
    def __init__(self, weights: dict[str, Tensors], betas: tuple[float, float], eps: float, dtype: torch.dtype):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0})
        self.betas, self.eps, self.dtype = betas, eps, dtype

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        b1, b2 = self.betas
        for group in self.param_groups:
            count = group["updates"]
            group["updates"] += 1
            for w in group["params"]:
                if not self.state[w]:
                    moments = {name: torch.zeros_like(w, dtype=self.dtype) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[w].update(moments, pending=torch.zeros_like(w))
            states = [self.state[w] for w in group["params"]]
            if count % 2 == 0:
                torch._foreach_copy_([state["pending"] for state in states], [w.grad for w in group["params"]])
                continue
            c1, c2 = (1 - beta ** (count // 2 + 1) for beta in self.betas)
            for w, state in zip(group["params"], states, strict=True):
                g = state["pending"] + w.grad
                g = g.to(wider(g))
                first = b1 * state["exp_avg"].to(g.dtype) + (1 - b1) * g
                second = b2 * state["exp_avg_sq"].to(g.dtype) + (1 - b2) * g * g
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)
                w.sub_(group["lr"] * c2**0.5 / c1 * first / (second.sqrt() + self.eps))


def momentum(
    grads: list[torch.Tensor], moments: list[torch.Tensor], mu: float, nesterov: bool = True, ema: bool = True
) -> list[torch.Tensor]:
    """m = m + (1 - mu) (g - m), or with `ema=False` m = mu m + g, as SGD has it; in place in `moments`.

    The update is m, or with `nesterov` what m would be after the same gradient once more.
    """
    if ema:
        torch._foreach_lerp_(moments, grads, 1 - mu)
        return list(torch._foreach_lerp(moments, grads, 1 - mu)) if nesterov else [m.clone() for m in moments]
    torch._foreach_mul_(moments, mu)
    torch._foreach_add_(moments, grads)
    return list(torch._foreach_add(grads, moments, alpha=mu)) if nesterov else [m.clone() for m in moments]


def orthogonalize(updates: list[torch.Tensor], orthogonalize_fn: Callable) -> list[torch.Tensor]:
    """`newton_schulz` of every matrix and of those in stacks, matrices of equal shape as one batch."""
    ortho_updates = list(updates)
    for shape in sorted({u.shape[-2:] for u in updates}):
        batch = [i for i, u in enumerate(updates) if u.shape[-2:] == shape]
        y_NRC = orthogonalize_fn(torch.cat([updates[i].view(-1, *shape) for i in batch])).to(updates[batch[0]].dtype)
        sizes = [updates[i].numel() // shape.numel() for i in batch]
        for i, y in zip(batch, y_NRC.split(sizes), strict=True):
            ortho_updates[i] = y.view(updates[i].shape)
    return ortho_updates


def scale_by_aspect(updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """u *= sqrt(max(1, rows / columns)), in place."""
    torch._foreach_mul_(updates, [max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5 for u in updates])
    return updates


def add_decayed_weights(updates: list[torch.Tensor], weights: list[torch.Tensor], decay: float) -> list[torch.Tensor]:
    """u += decay p, in place."""
    if decay:
        torch._foreach_add_(updates, weights, alpha=decay)
    return updates


def scale_by_learning_rate(updates: list[torch.Tensor], learning_rate: float) -> list[torch.Tensor]:
    """u *= -rate, in float32 or wider; in place where the type stays."""
    updates = [u.to(wider(u)) for u in updates]
    torch._foreach_mul_(updates, -learning_rate)
    return updates


def newton_schulz(
    x_NRC,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: torch.dtype,
    observe: Callable[[Any], None] | None = None,
    norm: tuple[float, float] = (1.0, 1e-7),
):
    """The nearest semi-orthogonal matrix of each of N matrices (R, C), by Newton-Schulz iteration in `dtype`.

    X / (f ||X||_F + e) with f, e = `norm`, transposed where R > C; then `steps` times A = X X^T, B = b A + c A A,
    X = a X + B X. `coefficients`: a, b, c of all steps, or of each in turn (Polar Express, Amsel et al.,
    arXiv 2505.16932). `observe` is called with every A.
    """
    x, (factor, eps) = x_NRC.to(dtype), norm
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    size = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wider(x))
    x = x / (factor * size + eps).to(dtype)
    for step in range(steps):
        a, b, c = coefficients[3 * step : 3 * step + 3] or coefficients[:3]
        A = torch.bmm(x, x.mT)
        if observe:
            observe(A)
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
    return odd_adam(weights, recipe.betas, recipe.adam_eps, getattr(torch, recipe.dtypes.moments))


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


OPTIMIZERS = {
    "AdamW": _adamw,
    "Muon": _muon,
    "MuonSGD": functools.partial(_muon, ema=False),
    "OddAdam": _odd_adam,
    "MuonUnscaled": functools.partial(_muon, aspect=False),
}


def group_of(recipe: Recipe) -> dict[str, str]:
    """Canonical name -> optimizer group."""
    return {name: parameter.group for name, parameter in recipe.parameters().items()}


def learning_rates(recipe: Recipe, group: str) -> np.ndarray:
    """(steps,) float64: the group's learning rate at every step of the plan."""
    return np.array([recipe.learning_rates(step)[group] for step in range(recipe.steps)])


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


def wider(x) -> torch.dtype:
    """float32, or the type of x if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _by_group(recipe: Recipe, weights: Tensors, groups: Iterable[str]) -> dict[str, Tensors]:
    of = group_of(recipe)
    return {group: {name: w for name, w in weights.items() if of[name] == group} for group in groups}
