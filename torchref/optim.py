"""The recipes' optimizers as torch optimizers: AdamW, Muon, clipping. Rates come as tables, one number a step.

Weights and gradients are flat mappings from canonical name to tensor. Arithmetic is in float32 or wider; what is kept
has the type of its weight.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from parity.recipe import Muon, NanoGPT, Recipe

Tensors = dict[str, torch.Tensor]
Divide = Callable[[Callable], Callable]


def adamw(weights: dict[str, Tensors], betas: tuple[float, float], eps: float,
          decays: dict[str, float]) -> torch.optim.AdamW:
    """AdamW with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); weights and decays by optimizer group.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p *= 1 - rate decay; p -= rate (m / c1) / (sqrt(v / c2) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t at the t-th step. The rate of a group is set from outside before every step.
    """
    groups = [{"params": list(tensors.values()), "name": group, "weight_decay": decays[group]}
              for group, tensors in weights.items()]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)  # fused: narrow weights in float32


def muon(weights: dict[str, Tensors], decay: float, momentum: float, steps: int,
         coefficients: tuple[float, float, float], dtype: torch.dtype, compile: bool = False,
         divide: Divide = lambda function: function) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for matrices (out, in), orthogonalised in `dtype`; weights by optimizer group. `divide` may spread a
    function of a stack of matrices over processes.

    m = lerp(m, g, 1 - momentum); u = lerp(g, m, momentum), orthogonalised, times sqrt(max(1, rows / columns));
    p *= 1 - rate decay; p -= rate u.
    """
    turn = torch.compile(orthogonalize, dynamic=False) if compile else orthogonalize
    return _Muon(weights, decay, momentum, divide(lambda x_NRC: turn(x_NRC, steps, coefficients, dtype)))


class _Muon(torch.optim.Optimizer):
    def __init__(self, weights: dict[str, Tensors], decay: float, momentum: float, turn: Callable):
        groups = [{"params": list(tensors.values()), "name": group} for group, tensors in weights.items()]
        super().__init__(groups, {"lr": 0.0, "weight_decay": decay, "momentum": momentum})
        self.turn = turn

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            rate, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
            for shape in sorted({w.shape for w in group["params"]}):  # equal shapes as one batch
                weights = [w for w in group["params"] if w.shape == shape]
                for w in weights:
                    self.state[w].setdefault("momentum", torch.zeros_like(w))
                grads, kept = [w.grad for w in weights], [self.state[w]["momentum"] for w in weights]
                torch._foreach_lerp_(kept, grads, 1 - momentum)
                turned = self.turn(torch.stack(torch._foreach_lerp(grads, kept, momentum)))
                aspect = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(weights, 1 - rate * decay)
                torch._foreach_add_(weights, list(turned.to(weights[0].dtype).unbind()), alpha=-rate * aspect)


def orthogonalize(x_NRC, steps: int, coefficients: tuple[float, float, float], dtype: torch.dtype):
    """The nearest semi-orthogonal matrix of each of N matrices (R, C), by Newton-Schulz iteration in `dtype`.

    X / (||X||_F + 1e-7), transposed where R > C; then `steps` times A = X X^T, B = b A + c A A, X = a X + B X.
    """
    a, b, c = coefficients
    x = x_NRC.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wider(x)) + 1e-7).to(dtype)
    for _ in range(steps):
        A = gram(x)
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def gram(x_NRC):
    """X X^T."""
    return torch.bmm(x_NRC, x_NRC.mT)


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


def make_optimizer(recipe: Recipe, weights: Tensors, compile: bool = False, divide: Divide = lambda function: function) -> ByGroup:
    """The recipe's optimizer: every weight in exactly one group, every group with its rates. `divide`: see `muon`."""
    return OPTIMIZERS[recipe.name](recipe, weights, compile, divide)


def nanogpt_optimizer(recipe: NanoGPT, weights: Tensors, compile: bool, divide: Divide) -> ByGroup:
    """Clipping, then AdamW with decay on tensors of two or more dimensions."""
    decays = {"decay": recipe.weight_decay, "no_decay": 0.0}
    part = adamw(_parts(recipe, weights, decays), recipe.betas, recipe.adam_eps, decays)
    return ByGroup({"adamw": part}, {group: rates(recipe, group) for group in decays}, recipe.clip_norm)


def muon_optimizer(recipe: Muon, weights: Tensors, compile: bool, divide: Divide) -> ByGroup:
    """Muon on the blocks' matrices, AdamW on the rest."""
    decays = {group: recipe.adam_decay for group in ("embed", "head", "vector")}
    parts = {"adamw": adamw(_parts(recipe, weights, decays), recipe.betas, recipe.adam_eps, decays),
             "muon": muon(_parts(recipe, weights, ["matrix"]), recipe.muon_decay, recipe.momentum,
                          recipe.newton_schulz_steps, recipe.newton_schulz,
                          getattr(torch, recipe.dtypes.newton_schulz), compile, divide)}
    return ByGroup(parts, {group: rates(recipe, group) for group in (*decays, "matrix")})


OPTIMIZERS = {"nanogpt": nanogpt_optimizer, "muon": muon_optimizer}


def group_of(recipe: Recipe) -> dict[str, str]:
    """Canonical name -> optimizer group."""
    return {name: parameter.group for name, parameter in recipe.parameters().items()}


def rates(recipe: Recipe, group: str) -> np.ndarray:
    """(steps,) float64: the group's rate at every step of the plan."""
    return np.array([recipe.rates(step)[group] for step in range(recipe.steps)])


def global_norm(tensors: Tensors) -> torch.Tensor:
    """L2 norm over all tensors together, in float32 or wider; summed in float64, as PyTorch adds one by one."""
    parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors.values()]
    return torch.linalg.vector_norm(torch.stack(parts)).to(wider(next(iter(tensors.values()))))


def group_norms(tensors: Tensors, groups: dict[str, str]) -> Tensors:
    """L2 norm of every optimizer group, in float32 or wider."""
    norms = _norms(tensors)
    return {group: torch.linalg.vector_norm(torch.stack([x for name, x in norms.items() if groups[name] == group]))
            for group in sorted(set(groups.values()))}


def wider(x) -> torch.dtype:
    """float32, or the type of x if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _norms(tensors: Tensors) -> Tensors:
    return {name: torch.linalg.vector_norm(x, dtype=wider(x)) for name, x in tensors.items()}


def _parts(recipe: Recipe, weights: Tensors, groups: Iterable[str]) -> dict[str, Tensors]:
    of = group_of(recipe)
    return {group: {name: w for name, w in weights.items() if of[name] == group} for group in groups}
