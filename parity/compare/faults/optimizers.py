"""Single mistakes in AdamW and Muon: a piece of `optim.py` is replaced, or something added before or after a step.

Each is a function from a backend to its patches.
"""

import inspect
from collections.abc import Callable
from functools import partial

import numpy as np

from parity.compare.faults.plant import Change, Patch, Patches, around, by_backend, in_module


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

    patches = {"jaxrun": Patch("optim", "scale_by_adam", jax_adam), "torchref": Patch("optim", "adamw", torch_adamw)}
    return lambda backend: [patches[backend]]


def _decay(jax_chain: Callable, torch_step: Callable, *kinds: str, after: bool = False) -> Patches:
    """Optimizers with another decay: in JAX `jax_chain(optax, optimizer, decay, rate)` with `rate(count)`, in PyTorch
    `torch_step(w, rate, decay)` of each weight before or after a step; both get the optimizer without decay."""

    @around
    def jax_optimizer(original, *args):
        import jax.numpy as jnp
        import optax

        call = inspect.signature(original).bind(*args)
        rates, decay = jnp.asarray(call.arguments["learning_rates"]), call.arguments["decay"]
        call.arguments["decay"] = 0.0
        return jax_chain(optax, original(*call.args), decay, lambda count: rates[count])

    @around
    def torch_optimizer(original, *args):
        import torch

        optimizer = original(*args)
        decays = {group["name"]: group.pop("weight_decay") for group in optimizer.param_groups}

        @torch.no_grad()
        def hook(optimizer, *_):
            for group in optimizer.param_groups:
                for w in group["params"]:
                    torch_step(w, group["lr"], decays[group["name"]])

        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        (optimizer.register_step_post_hook if after else optimizer.register_step_pre_hook)(hook)
        return optimizer

    return by_backend("optim", *kinds, change=lambda backend: jax_optimizer if backend == "jaxrun" else torch_optimizer)


def _decay_after(optax, optimizer, decay: float, rate: Callable):
    """(w + update) (1 - rate decay) - w."""
    factor = optax.scale_by_schedule(lambda count: 1 - decay * rate(count))
    return optax.chain(optimizer, optax.add_decayed_weights(1.0), factor, optax.add_decayed_weights(-1.0))


@around
def _jax_without_aspect(original):
    import optax

    return optax.identity()


@around
def _jax_flattened(original, *args):
    import jax
    import optax

    right = original(*args)

    def update(updates, params):
        flat = jax.tree.map(lambda u: u.reshape(-1, u.shape[-1]), updates)
        return jax.tree.map(lambda y, u: y.reshape(u.shape), right.update(flat, optax.EmptyState())[0], updates)

    return optax.stateless(update)


@around
def _torch_flattened(original, updates, orthogonalize_fn):
    ortho_updates = original([u.reshape(-1, u.shape[-1]) for u in updates], orthogonalize_fn)
    return [y.reshape(u.shape) for y, u in zip(ortho_updates, updates, strict=True)]


def _piece(name: str, jax_change: Change, torch_change: Change) -> Patches:
    return by_backend("optim", name, change=lambda backend: jax_change if backend == "jaxrun" else torch_change)


@around
def late_rate(original, learning_rates):
    """`scale_by_learning_rate` of JAX, whose table is read one step late."""
    return original(np.append(learning_rates[1:], learning_rates[-1]))


eps_in_root = _adam(lambda m, v, c1, c2, eps: (m / c1) / (v / c2 + eps) ** 0.5)
no_correction = _adam(lambda m, v, c1, c2, eps: m / (v**0.5 + eps))
coupled_decay = _decay(
    lambda optax, optimizer, decay, rate: optax.chain(optax.add_decayed_weights(decay), optimizer),
    lambda w, rate, decay: w.grad.add_(w, alpha=decay),
    "adamw",
)
unscaled_decay = _decay(
    lambda optax, optimizer, decay, rate: optax.chain(optimizer, optax.add_decayed_weights(-decay)),
    lambda w, rate, decay: w.mul_(1 - decay),
    *("adamw", "muon"),
)
decay_after = _decay(_decay_after, lambda w, rate, decay: w.mul_(1 - rate * decay), "adamw", "muon", after=True)
no_nesterov = in_module("optim", "momentum", change=lambda original: partial(original, nesterov=False))
no_aspect = _piece("scale_by_aspect", _jax_without_aspect, lambda original: lambda updates: updates)
stack_as_one = _piece("orthogonalize", _jax_flattened, _torch_flattened)
