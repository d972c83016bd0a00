"""Faults of whole programs: name -> backend -> patches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from parity.compare.faults.layers import detached, forward_of
from parity.compare.faults.optimizers import late_rate
from parity.compare.faults.plant import MODELS, Change, Patch, around
from parity.weights import round_to

CLASSES = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}
FROZEN = "blocks.1.mlp.fc.weight"

ByBackend = dict[str, list[Patch]]


def _methods(**changes: Change) -> ByBackend:
    """Patches of methods of the program's class, the same in both backends."""
    return {
        backend: [Patch("program", f"{kind}.{name}", change) for name, change in changes.items()]
        for backend, kind in CLASSES.items()
    }


def _by_backend(module: str, name: str, jax: Change, torch: Change) -> ByBackend:
    """Patches of a function that has the same name in both backends, or of a program's method, written for each."""
    names = [f"{kind}.{name}" if module == "program" else name for kind in CLASSES.values()]
    return {
        backend: [Patch(module, full_name, change)]
        for backend, full_name, change in zip(CLASSES, names, (jax, torch), strict=True)
    }


def step_of(state: Any) -> Any:
    """The number of updates of a backend's state."""
    return state["step"] if isinstance(state, dict) else state.step


def _exported(change: Callable[[np.ndarray], np.ndarray]) -> ByBackend:
    @around
    def export(original, self, state):
        weights = original(self, state)
        return {name: np.ascontiguousarray(change(w).astype(w.dtype)) for name, w in weights.items()}

    return _methods(export=export)


@around
def _dropout(original, self, state, batch):
    weights = self.export(state)
    mask = np.random.default_rng(0).random(weights["embed.weight"].shape) > 0.1
    dropped = weights | {"embed.weight": weights["embed.weight"] * mask / 0.9}
    return original(self, self.with_step(self.load(dropped), step_of(state)), batch)


@around
def _keeping_stale(original, self, state, batch):
    self.stale = self.export(state), int(step_of(state))  # the state itself is donated to the step
    return original(self, state, batch)


@around
def _forgetting_stale(original, self, weights):
    self.stale = None
    return original(self, weights)


@around
def _scoring_stale(original, self, state, batch):
    if stale := getattr(self, "stale", None):
        weights, step = stale
        state = self.with_step(self.load(weights), step)
    return original(self, state, batch)


@around
def _first_batch(original, self, state, batch):
    self.batch = getattr(self, "batch", batch)
    return original(self, state, self.batch)


@around
def _first_rows(original, self, inputs, targets):
    count = len(self.devices)
    return original(self, *(np.tile(x[: len(x) // count], (count, 1)) for x in (inputs, targets)))


def _is_head(weight) -> bool:
    return weight.shape[0] > 4 * weight.shape[1]


@around
def _untied(original, x, weight, *rest):
    return original(x, detached(weight) if _is_head(weight) else weight, *rest)


@around
def _without_head_bias(original, self, x):
    y = original(self, x)
    return y - self.bias[...] if _is_head(self.weight) else y


def _clip(factor: Callable) -> ByBackend:
    """Every gradient times `factor(at_most_1, norm of the gradient, global norm, largest)` as clipping."""

    @around
    def jax(original, largest):
        import jax.numpy as jnp
        import optax

        def update(updates, state, params=None):
            norms = {name: jnp.sqrt(jnp.sum(g * g)) for name, g in updates.items()}
            norm = jnp.sqrt(sum(n * n for n in norms.values()))
            factors = {name: factor(partial(jnp.minimum, 1.0), n, norm, largest) for name, n in norms.items()}
            return {name: g * factors[name] for name, g in updates.items()}, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    @around
    def torch(original, grads, largest, norm):
        for g in grads:
            g.mul_(factor(lambda x: x.clamp(max=1.0), g.norm(), norm, largest))

    return _by_backend("optim", "clip_by_global_norm", jax, torch)


@around
def _late_update(original, self, step, grads, norm):
    return original(self, step + 1, grads, norm)


LATE_RATE: ByBackend = {
    "jaxrun": [Patch("optim", "scale_by_learning_rate", late_rate)],
    "torchref": [Patch("optim", "ByGroup.update", _late_update)],
}


@around
def _jax_two_groups(original, transforms, groups):
    import optax

    def own(tensors, group):
        return {n: x for n, x in tensors.items() if groups[n] == group or (group, n) == ("matrix", "embed.weight")}

    def init(params):
        return {group: transform.init(own(params, group)) for group, transform in transforms.items()}

    def update(updates, state, params=None):
        total, states = dict.fromkeys(updates, 0.0), {}
        for group, transform in transforms.items():
            own_updates, states[group] = transform.update(own(updates, group), state[group], own(params, group))
            total |= {name: total[name] + x for name, x in own_updates.items()}
        return total, states

    return optax.GradientTransformation(init, update)


@around
def _torch_two_groups(original, recipe, weights, groups):
    tensors = original(recipe, weights, groups)
    if "matrix" in tensors:
        tensors["matrix"]["embed.weight"] = weights["embed.weight"]
    return tensors


@around
def _jax_frozen(original, self, state, grads):
    new, updates = original(self, state, grads)
    return new | {"weights": new["weights"] | {FROZEN: state["weights"][FROZEN]}}, updates


@around
def _torch_frozen(original, self, state, grads, norm):
    before = state.weights[FROZEN].clone()
    state, updates = original(self, state, grads, norm)
    state.weights[FROZEN].copy_(before)
    return state, updates


def _jax_restored(dtype_kind: str) -> Change:
    """A restore that returns zeros for the optimizer's arrays of a kind: "f" floating, "i" counts."""

    @around
    def restore(original, self, directory):
        import jax
        import jax.numpy as jnp

        state = original(self, directory)
        tree = {name: state[name] for name in ("optimizer", "step")}
        return state | jax.tree.map(lambda x: jnp.zeros_like(x) if x.dtype.kind == dtype_kind else x, tree)

    return restore


def _torch_restored(*names: str) -> Change:
    """A restore that returns zeros for the optimizer's tensors of these names."""

    @around
    def restore(original, self, directory):
        state = original(self, directory)
        for part in state.optimizer.optimizers.values():
            for tensors in part.state.values():
                for name in tensors.keys() & {*names}:
                    tensors[name].zero_()
            for group in part.param_groups:
                if "step" in names and "updates" in group:
                    group["updates"] = 0
        state.step = 0 if "step" in names else state.step
        return state

    return restore


def _reduced(change: Callable) -> ByBackend:
    """Another reduction: `change(reduce, ranks, scale, loss, grads)`; a rank has `scale` times its gradients."""

    @around
    def jax(original, mesh, loss, grads):
        return change(partial(original, mesh), mesh.size, 1 / mesh.size, loss, grads)

    @around
    def torch(original, loss, grads):
        from torchref.sharding import world_size

        return change(original, world_size(), 1.0, loss, grads)

    return _by_backend("sharding", "reduce_gradients", jax, torch)


def _averaged_twice(reduce, ranks, scale, loss, grads):
    loss, grads = reduce(loss, grads)
    return loss, {name: g / ranks for name, g in grads.items()}


def _not_averaged(reduce, ranks, scale, loss, grads):
    loss, grads = reduce(loss, grads)
    return loss, {name: g * float(ranks) for name, g in grads.items()}


def _clipped_early(reduce, ranks, scale, loss, grads):
    if ranks > 1:
        norm = sum((g * g).sum() for g in grads.values()) ** 0.5 / scale
        grads = {name: g / norm.clip(1.0) for name, g in grads.items()}
    return reduce(loss, grads)


PROGRAM_PATCHES: dict[str, ByBackend] = {
    "export-bfloat16": _exported(lambda w: round_to(w.astype(np.float64), "bfloat16")),
    "export-transposed": _exported(lambda w: w.swapaxes(-1, -2) if w.ndim >= 2 and w.shape[-2] == w.shape[-1] else w),
    "head-bias": {backend: [forward_of(backend, "Linear", _without_head_bias)] for backend in CLASSES},
    "dropout": _methods(token_losses=_dropout),
    "untied": {backend: [Patch(MODELS, "matmul_t", _untied)] for backend in CLASSES},
    "clip-per-tensor": _clip(lambda at_most_1, own, norm, largest: at_most_1(largest / (own + 1e-6))),
    "clip-always": _clip(lambda at_most_1, own, norm, largest: largest / (norm + 1e-6)),
    "clip-epsilon": _clip(lambda at_most_1, own, norm, largest: at_most_1(largest / norm)),
    "late-rate": LATE_RATE,
    "two-groups": {
        "jaxrun": [Patch("optim", "by_group", _jax_two_groups)],
        "torchref": [Patch("optim", "_by_group", _torch_two_groups)],
    },
    "frozen": _by_backend("program", "_apply", _jax_frozen, _torch_frozen),
    "stale": _methods(step=_keeping_stale, load=_forgetting_stale, token_losses=_scoring_stale),
    "first-batch": _methods(step=_first_batch),
    "no-moments": _by_backend(
        "program", "restore", _jax_restored("f"), _torch_restored("exp_avg", "exp_avg_sq", "momentum")
    ),
    "no-step": _by_backend("program", "restore", _jax_restored("i"), _torch_restored("step")),
    "averaged-twice": _reduced(_averaged_twice),
    "not-averaged": _reduced(_not_averaged),
    "clipped-early": _reduced(_clipped_early),
    "one-part": _methods(put_global_batch=_first_rows),
}
