"""What a gradient goes through on its way to an update: small optax transforms that `optim.py` chains.

Weights, gradients and updates are flat mappings from canonical name to array. Arithmetic is in float32 or wider.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

EQUALIZER_EPS = 1e-10  # least mean square, and least norm, that `equalize` divides by
Tensors = dict[str, jax.Array]
Distribute = Callable[[Callable], Callable]  # spreads a function of a stack of matrices over devices


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
            lambda m, v: (m / bias_correction(b1, t, m.dtype)) / (jnp.sqrt(v / bias_correction(b2, t, v.dtype)) + eps),
            first,
            second,
        )
        return updates, AdamState(t, as_stored(first, state.first), as_stored(second, state.second))

    return optax.GradientTransformation(init, update)


def tie(grads: Tensors, tied) -> Tensors:
    """Where `tied` (a bool that may be traced), every gradient is the sum of all; they have one shape."""
    total = sum(grads[name] for name in sorted(grads))
    return {name: jnp.where(tied, total, g) for name, g in grads.items()}


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
        mus = jax.tree.map(lambda m: at_step(mu, state.count, m.dtype), state.momentum)
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


class EqualizeState(NamedTuple):
    squares: Tensors


def equalize(beta: float, axis: int = -1) -> optax.GradientTransformation:
    """u of each matrix (R, C) divided by sqrt(s), with s = s + (1 - beta) (r - s), from 0, of r, the mean of u^2 over
    the columns (or with axis -2 the rows); then scaled so that ||u|| is what it was."""

    def init(params):
        return EqualizeState(jax.tree.map(lambda w: jnp.zeros_like(jnp.sum(w, axis, keepdims=True), wider(w)), params))

    def update(updates, state, params=None):
        def average(s, u):
            return s + (1 - beta) * (jnp.mean(jnp.square(u.astype(s.dtype)), axis, keepdims=True) - s)

        def divide(u, s):
            size = jnp.sqrt(jnp.sum(jnp.square(u.astype(s.dtype)), (-2, -1), keepdims=True))
            v = u.astype(s.dtype) * jax.lax.rsqrt(jnp.maximum(s, EQUALIZER_EPS))
            new_size = jnp.sqrt(jnp.sum(jnp.square(v), (-2, -1), keepdims=True))
            return (v * (size / jnp.maximum(new_size, EQUALIZER_EPS))).astype(u.dtype)

        squares = jax.tree.map(average, state.squares, updates)
        return jax.tree.map(divide, updates, squares), EqualizeState(squares)

    return optax.GradientTransformation(init, update)


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


def add_cautious_decay(decay: np.ndarray, strict: bool = True) -> optax.GradientTransformation:
    """u += decay p where u p > 0, or unless `strict` where u p >= 0 (record 43); `decay` (steps,)."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        def add(u, w):
            p = w.astype(u.dtype)
            agrees = u * p > 0 if strict else u * p >= 0
            return jnp.where(agrees, u + at_step(decay, state.count, u.dtype) * p, u)

        return jax.tree.map(add, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def scale_by_learning_rate(learning_rates: np.ndarray) -> optax.GradientTransformation:
    """u *= -rate, in float32 or wider; `learning_rates` (steps,)."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        updates = jax.tree.map(lambda u: -at_step(learning_rates, state.count, wider(u)) * u, updates)
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


def bias_correction(beta: float, t, dtype):
    """1 - beta^t without the cancellation."""
    return -jnp.expm1(t.astype(dtype) * math.log(max(beta, 1e-300)))


def _matmul(a, b):
    """Batched matrix product; float32 is never rounded to less."""
    return jnp.matmul(a, b, precision="highest", preferred_element_type=a.dtype)


def wider(x) -> Any:
    """float32, or the type of x if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def at_step(table: float | np.ndarray, count, dtype):
    """The number of a step; the last one after the table's end."""
    return jnp.asarray(table, dtype).reshape(-1).at[count].get(mode="clip")


def as_stored(tensors: Tensors, state: Tensors) -> Tensors:
    """Tensors in the types of a state's."""
    return jax.tree.map(lambda x, stored: x.astype(stored.dtype), tensors, state)
