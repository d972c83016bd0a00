"""The recipes' optimizers as chains of small optax transforms: AdamW, Muon, clipping.

Weights, gradients and updates are flat mappings from canonical name to array. Learning rates are tables, one number a
step. Arithmetic is in float32 or wider; the optimizer's state has the type of its weight.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrun.transforms import (
    Distribute,
    Tensors,
    add_cautious_decay,
    add_decayed_weights,
    as_stored,
    at_step,
    bias_correction,
    equalize,
    momentum,
    orthogonalize,
    scale_by_adam,
    scale_by_aspect,
    scale_by_learning_rate,
    tie,
    wider,
)
from parity.recipes import Recipe


def adamw(
    learning_rates: np.ndarray, betas: tuple[float, float], eps: float, decay: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): p -= rate ((m / c1) / (sqrt(v / c2) + eps) + decay p).

    `learning_rates` (steps,). Moments m, v and corrections c1, c2 as in `scale_by_adam`.
    """
    return optax.chain(scale_by_adam(betas, eps), add_decayed_weights(decay), scale_by_learning_rate(learning_rates))


def muon(
    learning_rates: np.ndarray,
    decay: float,
    mu: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: str,
    distribute: Distribute = lambda function: function,
    ema: bool = True,
    norm: tuple[float, float] = (1.0, 1e-7),
    aspect: bool = True,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024): p -= rate (sqrt(max(1, rows / columns)) orthogonalize(u) + decay p), u of `momentum`.

    For matrices (out, in) and stacks of them. `learning_rates` (steps,); the momentum `mu` is one number or one a step;
    `steps`, `coefficients` and `norm` of Newton-Schulz, in `dtype`; `ema=False` is momentum as SGD has it,
    `aspect=False` leaves out the factor.
    """
    return optax.chain(
        momentum(mu, ema=ema),
        orthogonalize(steps, coefficients, dtype, distribute, norm),
        scale_by_aspect() if aspect else optax.identity(),
        add_decayed_weights(decay),
        scale_by_learning_rate(learning_rates),
    )


def normuon(
    learning_rates: np.ndarray,
    decay: np.ndarray,
    mu: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: str,
    distribute: Distribute = lambda function: function,
    norm: tuple[float, float] = (1.0, 1e-7),
    beta: float = 0.95,
    axis: int = -1,
) -> optax.GradientTransformation:
    """NorMuon (Li et al., arXiv 2510.05491, record 41) with cautious decay: p -= rate (e + [e p >= 0] decay p), with e
    the rows of orthogonalize(u), or with axis -2 the columns, made alike by `equalize`; u of `momentum`.

    `learning_rates` and `decay` (steps,); the rest as for `muon`.
    """
    return optax.chain(
        momentum(mu),
        orthogonalize(steps, coefficients, dtype, distribute, norm),
        equalize(beta, axis),
        add_cautious_decay(decay, strict=False),
        scale_by_learning_rate(learning_rates),
    )


class OddAdamState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    first: Tensors
    second: Tensors
    pending: Tensors


def odd_adam(
    learning_rates: np.ndarray,
    betas: tuple[float, float],
    eps: float,
    dtype: str,
    decay: np.ndarray | None = None,
    tied_until: int = -1,
) -> optax.GradientTransformation:
    """Adam on odd steps alone, each time on the sum of the gradients of two steps (record 39).

    At its t-th update m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; u = sqrt(c2) / c1 m / (sqrt(v) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t; p -= rate (u + [u p > 0] decay p). `learning_rates` and `decay` (steps,); the moments
    are kept in `dtype`, the gradient of an even step in its own type. Up to the step `tied_until` all weights, which
    then have one shape, have the sum of their gradients (record 53).
    """
    b1, b2 = betas

    def init(params):
        first, second = (jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), params) for _ in betas)
        return OddAdamState(jnp.zeros((), jnp.int32), first, second, jax.tree.map(jnp.zeros_like, params))

    def wait(grads, state, params):
        updates = jax.tree.map(lambda g: jnp.zeros(g.shape, wider(g)), grads)
        return updates, state._replace(count=state.count + 1, pending=grads)

    def act(grads, state, params):
        t = state.count // 2 + 1
        sums = jax.tree.map(lambda g, before: (before + g).astype(wider(g)), grads, state.pending)
        first = jax.tree.map(lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g, state.first, sums)
        second = jax.tree.map(lambda v, g: b2 * v.astype(g.dtype) + (1 - b2) * g * g, state.second, sums)

        def update(m, v):
            c1, c2 = (bias_correction(beta, t, m.dtype) for beta in betas)
            return jnp.sqrt(c2) / c1 * m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(update, first, second)
        if decay is not None:
            updates, _ = add_cautious_decay(decay).update(updates, optax.ScaleByScheduleState(state.count), params)
        updates = jax.tree.map(lambda u: -at_step(learning_rates, state.count, u.dtype) * u, updates)
        first, second = as_stored(first, state.first), as_stored(second, state.second)
        return updates, OddAdamState(state.count + 1, first, second, state.pending)

    def update(updates, state, params=None):
        if tied_until >= 0:
            updates = tie(updates, state.count <= tied_until)
        return jax.lax.cond(state.count % 2 == 1, act, wait, updates, state, params)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g *= min(1, max_norm / (||g|| + 1e-6)), the norm over all gradients together (PyTorch's `clip_grad_norm_`)."""

    def update(updates, params):
        factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(update)


def by_group(
    transforms: dict[str, optax.GradientTransformation], groups: dict[str, str]
) -> optax.GradientTransformation:
    """Applies to each weight the transform of its group; `groups` maps every canonical name to a key of `transforms`.

    Unlike optax.partition it hands each transform a mapping of its own weights only, so that those can be batched.
    """

    def members(tensors, group):
        return {name: x for name, x in tensors.items() if groups[name] == group}

    def init(params):
        return {group: transform.init(members(params, group)) for group, transform in transforms.items()}

    def update(updates, state, params=None):
        results: dict[str, Any] = {
            group: transform.update(members(updates, group), state[group], members(params, group))
            for group, transform in transforms.items()
        }
        by_name = {name: u for group_updates, _ in results.values() for name, u in group_updates.items()}
        return {name: by_name[name] for name in updates}, {group: new for group, (_, new) in results.items()}

    return optax.GradientTransformation(init, update)


def make_optimizer(recipe: Recipe, distribute: Distribute = lambda function: function) -> optax.GradientTransformation:
    """The recipe's optimizer: every weight in exactly one group, every group with its optimizer and learning rates.

    `distribute` may spread a function of a stack of matrices over devices.
    """
    transforms = {group: OPTIMIZERS[name](recipe, group, distribute) for group, name in recipe.optimizers.items()}
    optimizer = by_group(transforms, group_of(recipe))
    clip_norm = getattr(recipe, "clip_norm", None)
    return optimizer if clip_norm is None else optax.chain(clip_by_global_norm(clip_norm), optimizer)


def _adamw(recipe: Any, group: str, distribute: Distribute) -> optax.GradientTransformation:
    return adamw(learning_rates(recipe, group), recipe.betas, recipe.adam_eps, recipe.group_weight_decay(group))


def _odd_adam(recipe: Any, group: str, distribute: Distribute) -> optax.GradientTransformation:
    return odd_adam(
        learning_rates(recipe, group),
        recipe.group_betas(group),
        recipe.adam_eps,
        recipe.dtypes.moments,
        cautious_decay(recipe, group),
        recipe.tied_until(group),
    )


def _muon(
    recipe: Any, group: str, distribute: Distribute, ema: bool = True, aspect: bool = True
) -> optax.GradientTransformation:
    return muon(
        learning_rates(recipe, group),
        recipe.group_weight_decay(group),
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        recipe.dtypes.newton_schulz,
        distribute,
        ema,
        recipe.newton_schulz_norm,
        aspect,
    )


def _normuon(recipe: Any, group: str, distribute: Distribute, axis: int = -1) -> optax.GradientTransformation:
    decay = cautious_decay(recipe, group)
    return normuon(
        learning_rates(recipe, group),
        np.zeros(1) if decay is None else decay,
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        recipe.dtypes.newton_schulz,
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


def global_norm(tensors: Tensors) -> jax.Array:
    """L2 norm over all tensors together, in float32 or wider."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(wider(x)))) for x in tensors.values()))


def group_norms(tensors: Tensors, groups: dict[str, str]) -> Tensors:
    """L2 norm of every optimizer group, in float32 or wider."""
    return {
        group: global_norm({name: x for name, x in tensors.items() if groups[name] == group})
        for group in sorted(set(groups.values()))
    }
