"""The recipes' optimizers as torch optimizers: AdamW, Muon, clipping. Rates come as tables, one number a step.

Weights and gradients are flat mappings from canonical name to tensor. Arithmetic is in float32 or wider; what is kept
has the type of its weight.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from parity.recipes import Recipe

Tensors = dict[str, torch.Tensor]
Divide = Callable[[Callable], Callable]


def adamw(
    weights: dict[str, Tensors], betas: tuple[float, float], eps: float, decays: dict[str, float]
) -> torch.optim.AdamW:
    """AdamW with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); weights and decays by optimizer group.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p *= 1 - rate decay; p -= rate (m / c1) / (sqrt(v / c2) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t at the t-th step. The rate of a group is set from outside before every step.
    """
    groups = [
        {"params": list(tensors.values()), "name": group, "weight_decay": decays[group]}
        for group, tensors in weights.items()
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)  # fused: narrow weights in float32


def muon(
    weights: dict[str, Tensors],
    decay: float,
    momentum: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: torch.dtype,
    compile: bool = False,
    divide: Divide = lambda function: function,
    summed: bool = False,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for matrices (out, in) and stacks of them, orthogonalised in `dtype`; weights by optimizer group,
    momentum one number or one a step. `divide` may spread a function of a stack of matrices over processes.

    m = lerp(m, g, 1 - momentum); u = lerp(g, m, momentum), or, `summed`, m = momentum m + g; u = g + momentum m. Then u,
    orthogonalised, times sqrt(max(1, rows / columns)); p *= 1 - rate decay; p -= rate u.
    """
    turn = torch.compile(orthogonalize, dynamic=False) if compile else orthogonalize
    return _Muon(weights, decay, momentum, divide(lambda x_NRC: turn(x_NRC, steps, coefficients, dtype)), summed)


class _Muon(torch.optim.Optimizer):
    def __init__(
        self, weights: dict[str, Tensors], decay: float, momentum: float | np.ndarray, turn: Callable, summed: bool
    ):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0, "weight_decay": decay})
        self.turn, self.summed, self.momenta = turn, summed, np.atleast_1d(momentum)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            momentum = float(self.momenta[min(group["updates"], len(self.momenta) - 1)])
            group["updates"] += 1
            for shape in sorted({w.shape[-2:] for w in group["params"]}):  # equal shapes as one batch
                weights = [w for w in group["params"] if w.shape[-2:] == shape]
                for w in weights:
                    self.state[w].setdefault("momentum", torch.zeros_like(w))
                grads, kept = [w.grad for w in weights], [self.state[w]["momentum"] for w in weights]
                if self.summed:
                    torch._foreach_mul_(kept, momentum)
                    torch._foreach_add_(kept, grads)
                    ahead = torch._foreach_add(grads, kept, alpha=momentum)
                else:
                    torch._foreach_lerp_(kept, grads, 1 - momentum)
                    ahead = torch._foreach_lerp(grads, kept, momentum)
                turned = self.turn(torch.cat([u.view(-1, *shape) for u in ahead])).to(weights[0].dtype)
                turned = [
                    u.view(w.shape)
                    for u, w in zip(turned.split([w.numel() // shape.numel() for w in weights]), weights)
                ]
                aspect = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(weights, 1 - rate * decay)
                torch._foreach_add_(weights, turned, alpha=-rate * aspect)


def orthogonalize(
    x_NRC,
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: torch.dtype,
    observe: Callable[[Any], None] | None = None,
):
    """The nearest semi-orthogonal matrix of each of N matrices (R, C), by Newton-Schulz iteration in `dtype`.

    X / (||X||_F + 1e-7), transposed where R > C; then `steps` times A = X X^T, B = b A + c A A, X = a X + B X.
    `observe` is called with every A.
    """
    a, b, c = coefficients
    x = x_NRC.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wider(x)) + 1e-7).to(dtype)
    for _ in range(steps):
        A = torch.bmm(x, x.mT)
        if observe:
            observe(A)
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def clip_by_global_norm(grads: list[torch.Tensor], largest: float, norm: torch.Tensor) -> None:
    """g *= min(1, largest / (||g|| + 1e-6)), in place, the norm over all gradients together (`clip_grad_norm_`)."""
    torch._foreach_mul_(grads, (largest / (norm + 1e-6)).clamp(max=1.0))


class ByGroup:
    """Several optimizers as one, each for its own groups of weights, their rates set from tables before every step.

    `parts` are torch optimizers, with their schedulers behind them if they have any; `tables` holds (steps,) rates by the
    name of a parameter group; gradients are clipped to `largest` first, unless it is None.
    """

    def __init__(self, parts: dict[str, Any], tables: dict[str, np.ndarray], largest: float | None = None):
        self.parts, self.tables, self.largest = parts, tables, largest

    def update(self, step: int, grads: list[torch.Tensor], norm: torch.Tensor) -> None:
        """One update of all weights from their `.grad`; `norm` is the global norm of these gradients."""
        if self.largest is not None:
            clip_by_global_norm(grads, self.largest, norm)
        for part in self.parts.values():
            for group in getattr(part, "param_groups", []) if self.tables else []:
                table = self.tables[group["name"]]
                group["lr"] = float(table[min(step, len(table) - 1)])
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def make_optimizer(
    recipe: Recipe, weights: Tensors, compile: bool = False, divide: Divide = lambda function: function
) -> ByGroup:
    """The recipe's optimizer: every weight in exactly one group, every group with its optimizer and its rates. `divide`: see `muon`."""
    kinds = {
        kind: [group for group, own in recipe.optimizers.items() if own == kind]
        for kind in dict.fromkeys(recipe.optimizers.values())
    }
    parts = {
        kind.lower(): OPTIMIZERS[kind](recipe, _parts(recipe, weights, groups), compile, divide)
        for kind, groups in kinds.items()
    }
    return ByGroup(
        parts, {group: learning_rates(recipe, group) for group in recipe.optimizers}, getattr(recipe, "clip_norm", None)
    )


def _adamw_of(recipe: Recipe, weights: dict[str, Tensors], compile: bool, divide: Divide) -> torch.optim.Optimizer:
    return adamw(weights, recipe.betas, recipe.adam_eps, {group: recipe.group_weight_decay(group) for group in weights})


def _muon_of(
    recipe: Recipe, weights: dict[str, Tensors], compile: bool, divide: Divide, summed: bool = False
) -> torch.optim.Optimizer:
    (group,) = weights
    return muon(
        weights,
        recipe.group_weight_decay(group),
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        getattr(torch, recipe.dtypes.newton_schulz),
        compile,
        divide,
        summed,
    )


OPTIMIZERS = {"AdamW": _adamw_of, "Muon": _muon_of, "MuonSGD": functools.partial(_muon_of, summed=True)}


def group_of(recipe: Recipe) -> dict[str, str]:
    """Canonical name -> optimizer group."""
    return {name: parameter.group for name, parameter in recipe.parameters().items()}


def learning_rates(recipe: Recipe, group: str) -> np.ndarray:
    """(steps,) float64: the group's rate at every step of the plan."""
    return np.array([recipe.learning_rates(step)[group] for step in range(recipe.steps)])


def momentum_schedule(recipe: Recipe) -> np.ndarray:
    """(steps,) float64: Muon's momentum at every step of the plan."""
    return np.array([recipe.momentum_at(step) for step in range(recipe.steps)])


def global_norm(tensors: Tensors) -> torch.Tensor:
    """L2 norm over all tensors together, in float32 or wider; summed in float64, as PyTorch adds one by one."""
    parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(parts)).to(wider(next(iter(tensors.values()))))


def group_norms(tensors: Tensors, groups: dict[str, str]) -> Tensors:
    """L2 norm of every optimizer group, in float32 or wider."""
    norms = _norms(tensors)
    return {
        group: torch.linalg.vector_norm(torch.stack([x for name, x in norms.items() if groups[name] == group]))
        for group in sorted(set(groups.values()))
    }


def wider(x) -> torch.dtype:
    """float32, or the type of x if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _norms(tensors: Tensors) -> Tensors:
    return {name: torch.linalg.vector_norm(x, dtype=wider(x)) for name, x in tensors.items()}


def _parts(recipe: Recipe, weights: Tensors, groups: Iterable[str]) -> dict[str, Tensors]:
    of = group_of(recipe)
    return {group: {name: w for name, w in weights.items() if of[name] == group} for group in groups}
