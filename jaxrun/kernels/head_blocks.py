"""The head and its losses in blocks of tokens: no memory ever holds the logits of a whole batch. Letters: parity/recipes/base.py.

The gradient of a sum of losses is made on the way forward, while a block's scores are there: nothing is computed twice, and
nothing of the size of the logits is kept for later.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrun import layers
from jaxrun.attention import target_platform

BLOCK_TOKENS = {"cpu": 512, "gpu": 8192}
"""Tokens in a block: on the CPU so few that their logits stay in its caches where the vocabulary is small, on a GPU enough to fill it."""

Weights = dict[str, Any]


class Head(NamedTuple):
    """What makes logits of a model's last activations: products, then what is done to each number by itself.

    `scores(weights, x)`: (B, T, D) to (B, T, V), in the type of products; `training_scores`: the same as training computes them;
    `squash(scores)`: logits, in the wide type.
    """

    scores: Callable[[Weights, Any], Any]
    training_scores: Callable[[Weights, Any], Any]
    squash: Callable[[Any], Any]


def token_losses(head: Head, weights: Weights, x_BTD, targets_BT):
    """-log softmax(logits)[target]: (B, T), nats, in the type of the logits."""
    blocks = in_blocks(x_BTD, targets_BT)
    losses = each(lambda x, targets: layers.token_losses(head.scores(weights, x), targets, head.squash), blocks)
    return losses.reshape(targets_BT.shape)


def total_loss(head: Head, weights: Weights, x_BTD, targets_BT, counted_BT=None):
    """The sum of the losses as training computes them, in nats, each times its number in `counted` (None: all of them once)."""
    named = names_of(head, weights, x_BTD)
    return _total(head, {name: weights[name] for name in named}, x_BTD, targets_BT, counted_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(head, weights, x_BTD, targets_BT, counted_BT):
    losses = token_losses(head._replace(scores=head.training_scores), weights, x_BTD, targets_BT)
    return jnp.sum(losses if counted_BT is None else losses * counted_BT)


def _total_forward(head, weights, x_BTD, targets_BT, counted_BT):
    blocks = in_blocks(x_BTD, targets_BT, *([] if counted_BT is None else [counted_BT]))

    def block(x, targets, *counted):
        def loss(weights, x):
            losses = layers.token_losses(head.training_scores(weights, x), targets, head.squash)
            return jnp.sum(losses * counted[0] if counted else losses)

        return jax.value_and_grad(loss, (0, 1))(weights, x)

    def add(found, xs):
        loss, (dweights, dx) = block(*xs)
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), found, (loss, dweights)), dx

    if len(blocks[0]) == 1:
        loss, (dweights, dx) = block(*(x[0] for x in blocks))
    else:  # sums of many blocks are kept wide, whatever a single one is
        empty = {name: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)) for name, w in weights.items()}
        kind = jax.eval_shape(lambda *xs: block(*(x[0] for x in xs)), *blocks)[0]
        (loss, dweights), dx = jax.lax.scan(add, (jnp.zeros((), kind.dtype), empty), blocks)
    dweights = {name: g.astype(weights[name].dtype) for name, g in dweights.items()}
    return loss, (dweights, dx.reshape(x_BTD.shape))


def _total_backward(head, kept, scale):
    dweights, dx = jax.tree.map(lambda g: (g * scale).astype(g.dtype), kept)
    return dweights, dx, None, None


_total.defvjp(_total_forward, _total_backward)


def in_blocks(x_BTD, *others_BT) -> tuple:
    """The tokens of a batch in equal blocks: x (blocks, 1, N, D) and whatever else each token has (blocks, 1, N)."""
    count = x_BTD.shape[0] * x_BTD.shape[1]
    blocks = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= BLOCK_TOKENS[target_platform()])
    return x_BTD.reshape(blocks, 1, count // blocks, -1), *(x.reshape(blocks, 1, count // blocks) for x in others_BT)


def each(function: Callable, blocks: tuple):
    """The results of a function for every block, stacked."""
    return (
        function(*(x[0] for x in blocks))[None]
        if len(blocks[0]) == 1
        else jax.lax.map(lambda xs: function(*xs), blocks)
    )


def names_of(head: Head, weights: Weights, x_BTD) -> list[str]:
    """The weights that the head uses: the others have no gradient there."""
    names = sorted(weights)
    jaxpr = jax.make_jaxpr(lambda *values: head.scores(dict(zip(names, values)), x_BTD[:1, :1]))(
        *(weights[name] for name in names)
    ).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    return [name for name, x in zip(names, jaxpr.invars) if id(x) in used]
