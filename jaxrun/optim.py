"""The recipes' optimizers as chains of small optax transforms: AdamW, Muon, clipping.

Weights, gradients and updates are flat mappings from canonical name to array. Learning rates are tables, one number a
step. Arithmetic is in float32 or wider; the optimizer's state has the type of its weight.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.recipes import Recipe

Tensors = dict[str, jax.Array]
Distribute = Callable[[Callable], Callable]  # spreads a function of a stack of matrices over devices


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


class AdamState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    first: Tensors
    second: Tensors


def scale_by_adam(betas: tuple[float, float], eps: float) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980): m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; then the update
    (m / c1) / (sqrt(v / c2) + eps) with c1 = 1 - b1^t, c2 = 1 - b2^t at the t-th step.
    """
    b1, b2 = betas

    def init(params):
        return AdamState(jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, params) for _ in betas))

    def update(updates, state, params=None):
        t = state.count + 1
        grads = jax.tree.map(lambda g, m: g.astype(wider(m)), updates, state.first)
        first = jax.tree.map(lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v.astype(g.dtype) + (1 - b2) * g * g, state.second, grads)
        updates = jax.tree.map(
            lambda m, v: (m / _correction(b1, t, m.dtype)) / (jnp.sqrt(v / _correction(b2, t, v.dtype)) + eps),
            first,
            second,
        )
        return updates, AdamState(t, _as_stored(first, state.first), _as_stored(second, state.second))

    return optax.GradientTransformation(init, update)


class OddAdamState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    first: Tensors
    second: Tensors
    pending: Tensors


def odd_adam(
    learning_rates: np.ndarray, betas: tuple[float, float], eps: float, dtype: str
) -> optax.GradientTransformation:
    """Adam on odd steps alone, each time on the sum of the gradients of two steps (record 39).

    At its t-th update m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= rate sqrt(c2) / c1 m / (sqrt(v) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t. `learning_rates` (steps,); the moments are kept in `dtype`, the gradient of an even
    step in its own type.
    """
    b1, b2 = betas

    def init(params):
        first, second = (jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), params) for _ in betas)
        return OddAdamState(jnp.zeros((), jnp.int32), first, second, jax.tree.map(jnp.zeros_like, params))

    def wait(grads, state):
        updates = jax.tree.map(lambda g: jnp.zeros(g.shape, wider(g)), grads)
        return updates, state._replace(count=state.count + 1, pending=grads)

    def act(grads, state):
        t = state.count // 2 + 1
        sums = jax.tree.map(lambda g, before: (before + g).astype(wider(g)), grads, state.pending)
        first = jax.tree.map(lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g, state.first, sums)
        second = jax.tree.map(lambda v, g: b2 * v.astype(g.dtype) + (1 - b2) * g * g, state.second, sums)

        def update(m, v):
            c1, c2 = (_correction(beta, t, m.dtype) for beta in betas)
            return -_at(learning_rates, state.count, m.dtype) * jnp.sqrt(c2) / c1 * m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(update, first, second)
        first, second = _as_stored(first, state.first), _as_stored(second, state.second)
        return updates, OddAdamState(state.count + 1, first, second, state.pending)

    def update(updates, state, params=None):
        return jax.lax.cond(state.count % 2 == 1, act, wait, updates, state)

    return optax.GradientTransformation(init, update)


class MomentumState(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: Tensors


def momentum(mu: float | np.ndarray, nesterov: bool = True, ema: bool = True) -> optax.GradientTransformation:
    """m = m + (1 - mu) (g - m), or with `ema=False` m = mu m + g, as SGD has it; `mu` is one number or one a step.

    The update is m, or with `nesterov` what m would be after the same gradient once more.
    """

    def init(params):
        return MomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def accumulate(m, g, mu):
        return m + (1 - mu) * (g - m) if ema else mu * m + g

    def update(updates, state, params=None):
        mus = jax.tree.map(lambda m: _at(mu, state.count, m.dtype), state.momentum)
        moments = jax.tree.map(accumulate, state.momentum, updates, mus)
        updates = jax.tree.map(accumulate, moments, updates, mus) if nesterov else moments
        return updates, MomentumState(state.count + 1, moments)

    return optax.GradientTransformation(init, update)


def orthogonalize(
    steps: int,
    coefficients: tuple[float, ...],
    dtype: str,
    distribute: Distribute = lambda function: function,
    norm: tuple[float, float] = (1.0, 1e-7),
) -> optax.GradientTransformation:
    """`newton_schulz` of every matrix and of those in stacks, matrices of equal shape as one batch."""
    orthogonalize_fn = distribute(lambda x_NRC: newton_schulz(x_NRC, steps, coefficients, dtype, norm=norm))

    def update(updates, params):
        ortho_updates = {}
        for shape in sorted({u.shape[-2:] for u in updates.values()}):
            batch = {name: u for name, u in updates.items() if u.shape[-2:] == shape}
            x_NRC = jnp.concatenate([u.reshape(-1, *shape) for u in batch.values()]).astype(dtype)
            ends = np.cumsum([u.size // math.prod(shape) for u in batch.values()])
            for (name, u), y_NRC in zip(batch.items(), jnp.split(orthogonalize_fn(x_NRC), ends[:-1]), strict=True):
                ortho_updates[name] = y_NRC.reshape(u.shape).astype(u.dtype)
        return ortho_updates

    return optax.stateless(update)


def scale_by_aspect() -> optax.GradientTransformation:
    """u *= sqrt(max(1, rows / columns))."""

    def scale(u):
        return u * max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


def add_decayed_weights(decay: float) -> optax.GradientTransformation:
    """u += decay p."""

    def add(u, w):
        return u + decay * w.astype(u.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params)) if decay else optax.identity()


def scale_by_learning_rate(learning_rates: np.ndarray) -> optax.GradientTransformation:
    """u *= -rate, in float32 or wider; `learning_rates` (steps,)."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        updates = jax.tree.map(lambda u: -_at(learning_rates, state.count, wider(u)) * u, updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def newton_schulz(
    x_NRC,
    steps: int,
    coefficients: tuple[float, ...],
    dtype: str,
    observe: Callable[[Any], None] | None = None,
    norm: tuple[float, float] = (1.0, 1e-7),
):
    """The nearest semi-orthogonal matrix of each of N matrices (R, C), by Newton-Schulz iteration in `dtype`.

    X / (f ||X||_F + e) with f, e = `norm`, transposed where R > C; then `steps` times A = X X^T, B = b A + c A A,
    X = a X + B X. `coefficients`: a, b, c of all steps, or of each in turn (Polar Express, Amsel et al.,
    arXiv 2505.16932). `observe` is called with every A.
    """
    x, (factor, eps) = x_NRC.astype(dtype), norm
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    size = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True, dtype=wider(x)))
    x = x / (factor * size + eps).astype(dtype)
    for step in range(steps):
        a, b, c = coefficients[3 * step : 3 * step + 3] or coefficients[:3]
        A = _matmul(x, x.mT)
        if observe:
            observe(A)
        x = a * x + _matmul(b * A + c * _matmul(A, A), x)
    return x.mT if tall else x


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
    return odd_adam(learning_rates(recipe, group), recipe.betas, recipe.adam_eps, recipe.dtypes.moments)


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


def global_norm(tensors: Tensors) -> jax.Array:
    """L2 norm over all tensors together, in float32 or wider."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(wider(x)))) for x in tensors.values()))


def group_norms(tensors: Tensors, groups: dict[str, str]) -> Tensors:
    """L2 norm of every optimizer group, in float32 or wider."""
    return {
        group: global_norm({name: x for name, x in tensors.items() if groups[name] == group})
        for group in sorted(set(groups.values()))
    }


def _correction(beta: float, t, dtype):
    """1 - beta^t without the cancellation."""
    return -jnp.expm1(t.astype(dtype) * math.log(max(beta, 1e-300)))


def _matmul(a, b):
    """Batched matrix product; float32 is never rounded to less."""
    return jnp.matmul(a, b, precision="highest", preferred_element_type=a.dtype)


def wider(x) -> Any:
    """float32, or the type of x if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _at(table: float | np.ndarray, count, dtype):
    """The number of a step; the last one after the table's end."""
    return jnp.asarray(table, dtype).reshape(-1).at[count].get(mode="clip")


def _as_stored(tensors: Tensors, state: Tensors) -> Tensors:
    return jax.tree.map(lambda x, stored: x.astype(stored.dtype), tensors, state)
