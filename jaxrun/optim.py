"""The recipes' optimizers as optax transforms: AdamW, Muon, clipping. Rates come as tables, one number a step.

Weights and gradients are flat mappings from canonical name to array. Arithmetic is in float32 or wider; what is kept
has the type of its weight.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.recipes import Recipe

Divide = Callable[[Callable], Callable]


class AdamWState(NamedTuple):
    count: jax.Array
    first: dict[str, jax.Array]
    second: dict[str, jax.Array]


class MuonState(NamedTuple):
    count: jax.Array
    momentum: dict[str, jax.Array]


def adamw(rates: np.ndarray, betas: tuple[float, float], eps: float, decay: float) -> optax.GradientTransformation:
    """AdamW with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); rates (steps,), decay scaled by the rate.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p *= 1 - rate decay; p -= rate (m / c1) / (sqrt(v / c2) + eps), with
    c1 = 1 - b1^t, c2 = 1 - b2^t at the t-th step, tabulated like the rates so that no precision loses them.
    """
    powers = np.arange(1, len(rates) + 1)
    corrections = [1 - beta**powers for beta in betas]

    def init(weights):
        zeros = {name: jnp.zeros_like(w) for name, w in weights.items()}
        return AdamWState(jnp.zeros((), jnp.int32), zeros, dict(zeros))

    def update(grads, state, weights):
        def one(g, m, v, w):
            wide = wider(w)
            rate, c1, c2 = (_at(table, state.count, wide) for table in (rates, *corrections))
            g, w = g.astype(wide), w.astype(wide)
            m = betas[0] * m.astype(wide) + (1 - betas[0]) * g
            v = betas[1] * v.astype(wide) + (1 - betas[1]) * g * g
            return -rate * ((m / c1) / (jnp.sqrt(v / c2) + eps) + decay * w), m, v

        new = {name: one(g, state.first[name], state.second[name], weights[name]) for name, g in grads.items()}
        kept = [{name: parts[i].astype(weights[name].dtype) for name, parts in new.items()} for i in (1, 2)]
        return {name: parts[0] for name, parts in new.items()}, AdamWState(state.count + 1, *kept)

    return optax.GradientTransformation(init, update)


def muon(
    rates: np.ndarray,
    decay: float,
    momentum: float | np.ndarray,
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: str,
    divide: Divide = lambda function: function,
    summed: bool = False,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices (out, in) and stacks of them, orthogonalised in `dtype`; rates (steps,), momentum one number
    or one a step. `divide` may spread a function of a stack of matrices over devices.

    m = lerp(m, g, 1 - momentum); u = lerp(g, m, momentum), or, `summed`, m = momentum m + g; u = g + momentum m. Then u,
    orthogonalised, times sqrt(max(1, rows / columns)); p *= 1 - rate decay; p -= rate u.
    """
    momenta = np.broadcast_to(momentum, len(rates))

    def init(weights):
        return MuonState(jnp.zeros((), jnp.int32), {name: jnp.zeros_like(w) for name, w in weights.items()})

    def averaged(m, g, share):
        return share * m + g if summed else m + (1 - share) * (g - m)

    def looked_ahead(m, g, share):
        return g + share * m if summed else g + share * (m - g)

    def update(grads, state, weights):
        shares = {name: _at(momenta, state.count, m.dtype) for name, m in state.momentum.items()}
        kept = {name: averaged(m, grads[name], shares[name]) for name, m in state.momentum.items()}
        ahead = {name: looked_ahead(kept[name], g, shares[name]) for name, g in grads.items()}
        updates = {}
        for shape in sorted({g.shape[-2:] for g in grads.values()}):  # equal shapes as one batch
            names = [name for name, g in grads.items() if g.shape[-2:] == shape]
            turned = divide(lambda x_NRC: orthogonalize(x_NRC, steps, coefficients, dtype))(
                jnp.concatenate([ahead[name].reshape(-1, *shape) for name in names]).astype(dtype)
            )
            aspect = max(1.0, shape[0] / shape[1]) ** 0.5
            sizes = [ahead[name].size // (shape[0] * shape[1]) for name in names]
            for name, u in zip(names, jnp.split(turned, np.cumsum(sizes)[:-1])):
                w = weights[name]
                rate = _at(rates, state.count, wider(w))
                updates[name] = -rate * (u.reshape(w.shape).astype(w.dtype) * aspect + decay * w)
        return updates, MuonState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def orthogonalize(
    x_NRC,
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: str,
    observe: Callable[[Any], None] | None = None,
):
    """The nearest semi-orthogonal matrix of each of N matrices (R, C), by Newton-Schulz iteration in `dtype`.

    X / (||X||_F + 1e-7), transposed where R > C; then `steps` times A = X X^T, B = b A + c A A, X = a X + B X.
    `observe` is called with every A.
    """
    a, b, c = coefficients
    x = x_NRC.astype(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True, dtype=wider(x))) + 1e-7).astype(dtype)
    for _ in range(steps):
        A = matmul(x, x.mT)
        if observe:
            observe(A)
        x = a * x + matmul(b * A + c * matmul(A, A), x)
    return x.mT if tall else x


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """g *= min(1, largest / (||g|| + 1e-6)), the norm over all gradients together (PyTorch's `clip_grad_norm_`)."""

    def update(grads, state, weights=None):
        factor = jnp.minimum(1.0, largest / (global_norm(grads) + 1e-6))
        return {name: g * factor.astype(g.dtype) for name, g in grads.items()}, state

    return optax.GradientTransformation(lambda weights: optax.EmptyState(), update)


def by_group(
    transforms: dict[str, optax.GradientTransformation], groups: dict[str, str]
) -> optax.GradientTransformation:
    """Each weight to the transform of its group; `groups` maps every canonical name to one key of `transforms`.

    Unlike optax.partition it hands each transform a mapping of its own weights only, so that those can be batched.
    """

    def part(tensors, group):
        return {name: x for name, x in tensors.items() if groups[name] == group}

    def init(weights):
        return {group: transform.init(part(weights, group)) for group, transform in transforms.items()}

    def update(grads, state, weights):
        done = {
            group: transform.update(part(grads, group), state[group], part(weights, group))
            for group, transform in transforms.items()
        }
        updates = {name: update for group_updates, _ in done.values() for name, update in group_updates.items()}
        return {name: updates[name] for name in grads}, {group: new for group, (_, new) in done.items()}

    return optax.GradientTransformation(init, update)


def make_optimizer(recipe: Recipe, divide: Divide = lambda function: function) -> optax.GradientTransformation:
    """The recipe's optimizer: every weight in exactly one group, every group with its optimizer and its rates. `divide`: see `muon`."""
    groups = {group: OPTIMIZERS[kind](recipe, group, divide) for group, kind in recipe.optimizers.items()}
    together = by_group(groups, group_of(recipe))
    clip_norm = getattr(recipe, "clip_norm", None)
    return together if clip_norm is None else optax.chain(clip_by_global_norm(clip_norm), together)


def _adamw_of(recipe: Recipe, group: str, divide: Divide) -> optax.GradientTransformation:
    return adamw(learning_rates(recipe, group), recipe.betas, recipe.adam_eps, recipe.group_weight_decay(group))


def _muon_of(recipe: Recipe, group: str, divide: Divide, summed: bool = False) -> optax.GradientTransformation:
    return muon(
        learning_rates(recipe, group),
        recipe.group_weight_decay(group),
        momentum_schedule(recipe),
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        recipe.dtypes.newton_schulz,
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


def global_norm(tensors: dict[str, jax.Array]) -> jax.Array:
    """L2 norm over all tensors together, in float32 or wider."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(wider(x)))) for x in tensors.values()))


def group_norms(tensors: dict[str, jax.Array], groups: dict[str, str]) -> dict[str, jax.Array]:
    """L2 norm of every optimizer group, in float32 or wider."""
    return {
        group: global_norm({name: x for name, x in tensors.items() if groups[name] == group})
        for group in sorted(set(groups.values()))
    }


def matmul(a, b):
    """Batched matrix product; float32 is never narrowed."""
    return jnp.matmul(a, b, precision="highest", preferred_element_type=a.dtype)


def wider(x) -> Any:
    """float32, or the type of x if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _at(table: np.ndarray, count, dtype):
    return jnp.asarray(table, dtype)[count]
