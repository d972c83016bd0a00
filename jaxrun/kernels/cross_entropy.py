"""Cross-entropy of capped logits, its gradient in one pass: autodiff would write the logits' size several times."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrun.kernels.platform import target_platform


class BoundedSoftcap(NamedTuple):
    """A softcap and the largest absolute value of its results, which tells whether exponentials need a shift."""

    function: Callable[[Any], Any]
    bound: float = math.inf

    def __call__(self, raw_logits):
        return self.function(raw_logits)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(softcap: Callable, raw_logits_BTV, targets_BT, weights_BTN=None):
    """-log softmax(softcap(raw logits))[target]: (B, T), in the type of the capped logits, nats.

    With weights the targets are (B, T, N), and the N losses of a position are summed, each times its weight.
    """
    return _forward(softcap, raw_logits_BTV, targets_BT, weights_BTN)[0]


def _forward(softcap, raw_logits_BTV, targets_BT, weights_BTN):
    if _needs_no_shift(softcap):
        # One pass: without the barrier XLA would split it before the exponential.
        exps_BTV = jax.lax.optimization_barrier(jnp.exp(softcap(raw_logits_BTV)))
        total = jnp.sum(exps_BTV, axis=-1)
        targets = softcap(_at_targets(raw_logits_BTV, targets_BT, weights_BTN))
        losses_BT = _weighted(jnp.log(total), targets, weights_BTN)
        return losses_BT, (raw_logits_BTV, total, targets_BT, weights_BTN, exps_BTV)
    largest = jax.lax.stop_gradient(jnp.max(softcap(raw_logits_BTV), axis=-1))
    logits_BTV = softcap(_recompute(raw_logits_BTV, largest))
    total = jnp.log(jnp.sum(jnp.exp(logits_BTV - largest[..., None]), axis=-1)) + largest
    losses_BT = _weighted(total, _at_targets(logits_BTV, targets_BT, weights_BTN), weights_BTN)
    return losses_BT, (raw_logits_BTV, total, targets_BT, weights_BTN, None)


def _at_targets(logits_BTV, targets_BT, weights_BTN):
    if weights_BTN is None:
        return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.take_along_axis(logits_BTV, targets_BT, axis=-1)


def _weighted(total_BT, targets, weights_BTN):
    if weights_BTN is None:
        return total_BT - targets
    return jnp.sum(weights_BTN.astype(total_BT.dtype) * (total_BT[..., None] - targets), axis=-1)


def _backward(softcap, residuals, dlosses_BT):
    """softmax - 1 at the target, through the softcap; of several targets the weighted sum."""
    raw_logits_BTV, total, targets_BT, weights_BTN, exps_BTV = residuals
    logits_BTV, pull_back = jax.vjp(softcap, _recompute(raw_logits_BTV, total))
    tokens = jnp.arange(logits_BTV.shape[-1])
    if weights_BTN is None:
        weight_BT, at_target = dlosses_BT, tokens == targets_BT[..., None]
    else:
        weights_BTN = weights_BTN.astype(dlosses_BT.dtype)
        weight_BT = dlosses_BT * jnp.sum(weights_BTN, axis=-1)
        at_target = sum(
            (tokens == targets_BT[..., n, None]) * weights_BTN[..., n, None] for n in range(weights_BTN.shape[-1])
        )
    if exps_BTV is not None:
        grads_BTV = exps_BTV * (weight_BT / total)[..., None] - at_target * dlosses_BT[..., None]
        return pull_back(grads_BTV)[0], None, None
    if weights_BTN is None:
        grads_BTV = (jnp.exp(logits_BTV - total[..., None]) - at_target) * dlosses_BT[..., None]
    else:
        grads_BTV = jnp.exp(logits_BTV - total[..., None]) * weight_BT[..., None] - at_target * dlosses_BT[..., None]
    return _recompute(pull_back(grads_BTV)[0]), None, None


cross_entropy.defvjp(_forward, _backward)


def _needs_no_shift(softcap) -> bool:
    """Whether exponentials of the logits can be summed without subtracting their maximum first.

    Only on a CPU, where a pass for the maximum costs as much as one for the sum; exp(50) times any vocabulary fits
    float32.
    """
    return target_platform() == "cpu" and getattr(softcap, "bound", math.inf) <= 50


def _recompute(x, *after):
    """x, once the values `after` are known. On a GPU an optimization barrier: XLA recomputes the upcast of x for each
    consumer instead of writing it to memory. On a CPU it is the other way round, so there is none."""
    return x if target_platform() == "cpu" else jax.lax.optimization_barrier((x, *after))[0]
