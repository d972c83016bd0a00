"""The head and its losses in blocks of tokens, so that the logits of a whole batch are never in memory.

The gradient of a sum of losses is computed in the forward pass, while a block's logits are there: nothing is computed
twice, and nothing of the size of the logits is kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrun import layers
from jaxrun.kernels.platform import target_platform

BLOCK_TOKENS = {"cpu": 512, "gpu": 8192}
"""Tokens in a block: few enough for a CPU's caches where the vocabulary is small, and enough to fill a GPU."""

Weights = dict[str, Any]


class Head(NamedTuple):
    """What makes logits of a model's last activations: a product, then a softcap of each number.

    `raw_logits(weights, x)`: (B, T, D) to (B, T, V), in the type of products; `training_raw_logits`: the same as
    training computes them; `softcap(raw_logits)`: logits, in the accumulation dtype.
    """

    raw_logits: Callable[[Weights, Any], Any]
    training_raw_logits: Callable[[Weights, Any], Any]
    softcap: Callable[[Any], Any]


def token_losses(head: Head, weights: Weights, x_BTD, targets_BT):
    """-log softmax(logits)[target]: (B, T), nats, in the type of the logits."""

    def block_losses(x, targets):
        return layers.token_losses(head.raw_logits(weights, x), targets, head.softcap)

    return map_blocks(block_losses, split_blocks(x_BTD, targets_BT)).reshape(targets_BT.shape)


def total_loss(head: Head, weights: Weights, x_BTD, targets, loss_weights=None):
    """The sum of the losses as training computes them, in nats, each times its weight if there are weights.

    `targets` (B, T), or (B, T, N) where a position has N of them; `loss_weights` of the same shape, or None.
    """
    names = head_weights(head, weights, x_BTD)
    return _total(head, {name: weights[name] for name in names}, x_BTD, targets, loss_weights)


def _training_losses(head, weights, x, targets, loss_weights):
    raw_logits = head.training_raw_logits(weights, x)
    if targets.ndim == 3:
        return layers.weighted_token_losses(raw_logits, targets, loss_weights, head.softcap)
    losses: Any = layers.token_losses(raw_logits, targets, head.softcap)
    return losses if loss_weights is None else losses * loss_weights


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(head, weights, x_BTD, targets, loss_weights):
    blocks = split_blocks(x_BTD, targets, *([] if loss_weights is None else [loss_weights]))
    return jnp.sum(map_blocks(lambda *block: _training_losses(head, weights, *(*block, None)[:3]), blocks))


def _total_forward(head, weights, x_BTD, targets, loss_weights):
    blocks = split_blocks(x_BTD, targets, *([] if loss_weights is None else [loss_weights]))

    def block_grads(x, targets, loss_weights=None):
        def loss(weights, x):
            return jnp.sum(_training_losses(head, weights, x, targets, loss_weights))

        return jax.value_and_grad(loss, (0, 1))(weights, x)

    def accumulate(sums, block):
        loss, (dweights, dx) = block_grads(*block)
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, (loss, dweights)), dx

    if len(blocks[0]) == 1:
        loss, (dweights, dx) = block_grads(*(x[0] for x in blocks))
    else:  # sums over many blocks are kept in float32 or wider, whatever the type of one
        zeros = {name: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)) for name, w in weights.items()}
        loss_dtype = jax.eval_shape(lambda *xs: block_grads(*(x[0] for x in xs)), *blocks)[0].dtype
        (loss, dweights), dx = jax.lax.scan(accumulate, (jnp.zeros((), loss_dtype), zeros), blocks)
    dweights = {name: g.astype(weights[name].dtype) for name, g in dweights.items()}
    return loss, (dweights, dx.reshape(x_BTD.shape))


def _total_backward(head, residuals, dloss):
    dweights, dx = jax.tree.map(lambda g: (g * dloss).astype(g.dtype), residuals)
    return dweights, dx, None, None


_total.defvjp(_total_forward, _total_backward)


def split_blocks(x_BTD, *others) -> tuple:
    """The tokens of a batch in n equal blocks: x (n, 1, tokens, D), and whatever else each token has (n, 1, tokens,
    ...)."""
    count, most = x_BTD.shape[0] * x_BTD.shape[1], BLOCK_TOKENS[target_platform()]
    blocks = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= most)
    tokens = count // blocks
    return x_BTD.reshape(blocks, 1, tokens, -1), *(x.reshape(blocks, 1, tokens, *x.shape[2:]) for x in others)


def map_blocks(function: Callable, blocks: tuple):
    """The results of a function for every block, stacked."""
    if len(blocks[0]) == 1:
        return function(*(x[0] for x in blocks))[None]
    return jax.lax.map(lambda xs: function(*xs), blocks)


def head_weights(head: Head, weights: Weights, x_BTD) -> list[str]:
    """The names of the weights that the head uses: the others have no gradient there."""
    names = sorted(weights)

    def raw_logits(*values):
        return head.raw_logits(dict(zip(names, values, strict=True)), x_BTD[:1, :1])

    jaxpr = jax.make_jaxpr(raw_logits)(*(weights[name] for name in names)).jaxpr
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    return [name for name, variable in zip(names, jaxpr.invars, strict=True) if id(variable) in used]
