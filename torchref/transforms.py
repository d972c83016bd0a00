"""What a gradient goes through on its way to an update: the functions that `optim.py` has in a row.

Lists of tensors, one for each weight. Arithmetic is in float32 or wider.
"""
# pyright: reportPrivateImportUsage=false
# (torch._foreach_*: one kernel for a list of tensors)

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

EQUALIZER_EPS = 1e-10  # least mean square, and least norm, that `equalize` divides by
Tensors = dict[str, torch.Tensor]
Distribute = Callable[[Callable], Callable]  # spreads a function of a stack of matrices over processes


def tie(grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """The sum of all gradients, in the place of each; they have one shape."""
    total = functools.reduce(torch.add, grads)
    return [total] * len(grads)


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


def equalize(
    updates: list[torch.Tensor], squares: list[torch.Tensor], beta: float, axis: int = -1
) -> list[torch.Tensor]:
    """u of each matrix (R, C) divided by sqrt(s), with s = s + (1 - beta) (r - s), from 0, of r, the mean of u^2 over
    the columns (or with axis -2 the rows); then scaled so that ||u|| is what it was. In place in `squares`."""
    equalized = []
    for u, s in zip(updates, squares, strict=True):
        v = u.to(s.dtype)
        s.lerp_(v.square().mean(axis, keepdim=True), 1 - beta)
        size = torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True)
        v = v * s.clamp(min=EQUALIZER_EPS).rsqrt()
        new_size = torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True).clamp(min=EQUALIZER_EPS)
        equalized.append((v * (size / new_size)).to(u.dtype))
    return equalized


def scale_by_aspect(updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """u *= sqrt(max(1, rows / columns)), in place."""
    torch._foreach_mul_(updates, [max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5 for u in updates])
    return updates


def add_decayed_weights(updates: list[torch.Tensor], weights: list[torch.Tensor], decay: float) -> list[torch.Tensor]:
    """u += decay p, in place."""
    if decay:
        torch._foreach_add_(updates, weights, alpha=decay)
    return updates


def add_cautious_decay(
    updates: list[torch.Tensor], weights: list[torch.Tensor], decay: float, strict: bool = True
) -> list[torch.Tensor]:
    """u += decay p where u p > 0, or unless `strict` where u p >= 0 (record 43)."""
    decayed = []
    for u, w in zip(updates, weights, strict=True):
        p = w.to(u.dtype)
        agrees = u * p > 0 if strict else u * p >= 0
        decayed.append(torch.where(agrees, u + decay * p, u))
    return decayed


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


def wider(x) -> torch.dtype:
    """float32, or the type of x if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def at_step(table: np.ndarray, count: int) -> float:
    """The number of a step; the last one after the table's end."""
    return float(table[min(count, len(table) - 1)])
