"""Single mistakes in AdamW and Muon: a piece of `optim.py` is replaced, or something added before or after a step.

Each is a function from a backend to its patches.
"""

import inspect
from collections.abc import Callable
from functools import partial

import numpy as np

from parity.compare.faults.plant import Change, Patch, Patches, around, by_backend, one


def _adam(direction: Callable) -> Patches:
    """Adam whose update is `direction(m, v, c1, c2, eps)` of the two moments and their corrections."""

    @around
    def jax_adam(original, betas, eps):
        import jax
        import optax

        adam = original(betas, eps)

        def update(updates, state, params=None):
            _, state = adam.update(updates, state, params)
            c1, c2 = (1 - beta**state.count for beta in betas)
            return jax.tree.map(lambda m, v: direction(m, v, c1, c2, eps), state.first, state.second), state

        return optax.GradientTransformation(adam.init, update)

    @around
    def torch_adamw(original, *args):
        import torch

        optimizer, before = original(*args), {}

        def save_weights(optimizer, *_):
            before.update({w: w.detach().clone() for group in optimizer.param_groups for w in group["params"]})

        @torch.no_grad()
        def repeat_step(optimizer, *_):
            for group in optimizer.param_groups:
                rate, decay = group["lr"], group["weight_decay"]
                for w in group["params"]:
                    state = optimizer.state[w]
                    c1, c2 = (1 - beta ** float(state["step"]) for beta in group["betas"])
                    u = direction(state["exp_avg"], state["exp_avg_sq"], c1, c2, group["eps"])
                    w.copy_(before[w] * (1 - rate * decay) - rate * u)

        optimizer.register_step_pre_hook(save_weights)
        optimizer.register_step_post_hook(repeat_step)
        return optimizer

    return lambda backend: [
        Patch("optim", "scale_by_adam", jax_adam) if backend == "jaxrun" else Patch("optim", "adamw", torch_adamw)
    ]


def _decay(jax_chain: Callable, torch_step: Callable, after: bool, *kinds: str) -> Patches:
    """Optimizers without their own decay: `jax_chain(optimizer, decay, learning_rates)` adds it to a transform, and
    `torch_step(w, rate, decay)` to each weight before or after a step of a torch optimizer."""

    @around
    def jax_optimizer(original, *args):
        call = inspect.signature(original).bind(*args)
        decay, call.arguments["decay"] = call.arguments["decay"], 0.0
        return jax_chain(original(*call.args), decay, call.arguments["learning_rates"])

    @around
    def torch_optimizer(original, *args):
        import torch

        optimizer = original(*args)
        decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0

        @torch.no_grad()
        def hook(optimizer, *_):
            for group in optimizer.param_groups:
                for w in group["params"]:
                    torch_step(w, group["lr"], decays[group["name"]])

        (optimizer.register_step_post_hook if after else optimizer.register_step_pre_hook)(hook)
        return optimizer

    return by_backend("optim", *kinds, change=lambda backend: jax_optimizer if backend == "jaxrun" else torch_optimizer)


def _before(optimizer, decay: float, learning_rates: np.ndarray):
    import optax

    return optax.chain(optax.add_decayed_weights(decay), optimizer)


def _behind_the_rate(optimizer, decay: float, learning_rates: np.ndarray):
    import optax

    return optax.chain(optimizer, optax.add_decayed_weights(-decay))


def _of_the_new_weights(optimizer, decay: float, learning_rates: np.ndarray):
    import optax

    from jaxrun import optim

    scale = optim.scale_by_learning_rate(learning_rates * decay)

    def update(updates, state, params=None):
        decays, state = scale.update(optax.apply_updates(params, updates), state)
        return optax.apply_updates(updates, decays), state

    return optax.chain(optimizer, optax.GradientTransformation(scale.init, update))


def _without_aspect(backend: str) -> Change:
    @around
    def scale_by_aspect(original, *updates):
        import optax

        return updates[0] if backend == "torchref" else optax.identity()

    return scale_by_aspect


def _stacks_flattened(backend: str) -> Change:
    def flat(u):
        return u.reshape(-1, u.shape[-1])

    @around
    def jax_orthogonalize(original, *args):
        import jax
        import optax

        right = original(*args)

        def update(updates, params):
            ortho_updates, _ = right.update(jax.tree.map(flat, updates), optax.EmptyState())
            return jax.tree.map(lambda y, u: y.reshape(u.shape), ortho_updates, updates)

        return optax.stateless(update)

    @around
    def torch_orthogonalize(original, updates, orthogonalize_fn):
        ortho_updates = original([flat(u) for u in updates], orthogonalize_fn)
        return [y.reshape(u.shape) for y, u in zip(ortho_updates, updates, strict=True)]

    return jax_orthogonalize if backend == "jaxrun" else torch_orthogonalize


@around
def late_rate(original, learning_rates):
    """`scale_by_learning_rate` of JAX, whose table is read one step late."""
    return original(np.append(learning_rates[1:], learning_rates[-1]))


eps_in_root = _adam(lambda m, v, c1, c2, eps: (m / c1) / (v / c2 + eps) ** 0.5)
no_correction = _adam(lambda m, v, c1, c2, eps: m / (v**0.5 + eps))
coupled_decay = _decay(_before, lambda w, rate, decay: w.grad.add_(w, alpha=decay), False, "adamw")
unscaled_decay = _decay(_behind_the_rate, lambda w, rate, decay: w.mul_(1 - decay), False, "adamw", "muon")
decay_after = _decay(_of_the_new_weights, lambda w, rate, decay: w.mul_(1 - rate * decay), True, "adamw", "muon")
no_nesterov = one("optim", "momentum", change=lambda original: partial(original, nesterov=False))
no_aspect = by_backend("optim", "scale_by_aspect", change=_without_aspect)
stack_as_one = by_backend("optim", "orthogonalize", change=_stacks_flattened)
