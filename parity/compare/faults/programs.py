"""Faults of whole programs, whose code differs between the backends: name -> backend -> patches."""

from typing import Any

import numpy as np

from parity.compare.faults.layers import detached, forward_of
from parity.compare.faults.optimizers import faulty_adamw, faulty_muon
from parity.compare.faults.plant import MODELS, Change, Patch
from parity.weights import round_to

CLASSES = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}
FROZEN = "blocks.1.mlp.fc.weight"


def _methods(**changes: Change) -> dict[str, list[Patch]]:
    """Patches of methods of the program's class, alike in both backends."""
    return {
        backend: [Patch("program", f"{kind}.{name}", change) for name, change in changes.items()]
        for backend, kind in CLASSES.items()
    }


def _exported(change) -> dict[str, list[Patch]]:
    return _methods(
        export=lambda original: (
            lambda self, state: {
                name: np.ascontiguousarray(change(w).astype(w.dtype)) for name, w in original(self, state).items()
            }
        )
    )


def step_of(state: Any) -> Any:
    """The number of updates of a backend's state."""
    return state["step"] if isinstance(state, dict) else state.step


def _dropout(original):
    def token_losses(self, state, batch):
        weights = self.export(state)
        kept = np.random.default_rng(0).random(weights["embed.weight"].shape) > 0.1
        dropped = weights | {"embed.weight": weights["embed.weight"] * kept / 0.9}
        return original(self, self.with_step(self.load(dropped), step_of(state)), batch)

    return token_losses


def _keeping_stale(original):
    def step(self, state, batch):
        self.stale = self.export(state), int(step_of(state))  # the state itself is given up to the step
        return original(self, state, batch)

    return step


def _forgetting_stale(original):
    def load(self, weights):
        self.stale = None
        return original(self, weights)

    return load


def _scoring_stale(original):
    def token_losses(self, state, batch):
        stale = getattr(self, "stale", None)
        return original(self, state if stale is None else self.with_step(self.load(stale[0]), stale[1]), batch)

    return token_losses


def _first_batch(original):
    def step(self, state, batch):
        self.batch = getattr(self, "batch", batch)
        return original(self, state, self.batch)

    return step


def _is_head(weight) -> bool:
    return weight.shape[0] > 4 * weight.shape[1]


def _untied(original):
    return lambda x, weight, *rest: original(x, detached(weight) if _is_head(weight) else weight, *rest)


def _without_head_bias(original):
    return lambda self, x: original(self, x) - self.bias[...] if _is_head(self.weight) else original(self, x)


def _jax_clip(factor) -> Change:
    """`factor(jnp, norms by name, global norm, largest)` gives what every gradient is multiplied by."""

    def change(original):
        def clip_by_global_norm(largest):
            import jax.numpy as jnp
            import optax

            def update(grads, state, weights=None):
                each = {name: jnp.sqrt(jnp.sum(g * g)) for name, g in grads.items()}
                whole = jnp.sqrt(sum(n * n for n in each.values()))
                return {name: g * factor(jnp.minimum, each[name], whole, largest) for name, g in grads.items()}, state

            return optax.GradientTransformation(lambda weights: optax.EmptyState(), update)

        return clip_by_global_norm

    return change


def _torch_clip(factor) -> Change:
    def change(original):
        def clip_by_global_norm(grads, largest, norm):
            for g in grads:
                g.mul_(factor(lambda one, x: x.clamp(max=one), g.norm(), norm, largest))

        return clip_by_global_norm

    return change


def _clip(factor) -> dict[str, list[Patch]]:
    return {
        "jaxrun": [Patch("optim", "clip_by_global_norm", _jax_clip(factor))],
        "torchref": [Patch("optim", "clip_by_global_norm", _torch_clip(factor))],
    }


def _jax_late() -> list[Patch]:
    return [
        Patch("optim", "adamw", lambda original: faulty_adamw("jaxrun", "late_rate")),
        Patch("optim", "muon", lambda original: faulty_muon("jaxrun", "late_rate")),
    ]


def _torch_late(original):
    return lambda self, step, grads, norm: original(self, step + 1, grads, norm)


def _jax_two_groups(original):
    def by_group(transforms, groups):
        import optax

        def part(tensors, group):
            return {
                name: x
                for name, x in tensors.items()
                if groups[name] == group or (group, name) == ("matrix", "embed.weight")
            }

        def init(weights):
            return {group: transform.init(part(weights, group)) for group, transform in transforms.items()}

        def update(grads, state, weights):
            done = {
                group: transform.update(part(grads, group), state[group], part(weights, group))
                for group, transform in transforms.items()
            }
            updates: dict[str, Any] = {}
            for found, _ in done.values():
                for name, x in found.items():
                    updates[name] = updates[name] + x if name in updates else x
            return {name: updates[name] for name in grads}, {group: new for group, (_, new) in done.items()}

        return optax.GradientTransformation(init, update)

    return by_group


def _torch_two_groups(original):
    def parts(recipe, weights, groups):
        found = original(recipe, weights, groups)
        if "matrix" in found:
            found["matrix"]["embed.weight"] = weights["embed.weight"]
        return found

    return parts


def _jax_frozen(original):
    def apply(self, grads, state):
        updates, new = original(self, grads, state)
        return updates, new | {"weights": new["weights"] | {FROZEN: state["weights"][FROZEN]}}

    return apply


def _torch_frozen(original):
    def apply(self, state, grads, norm):
        weight = dict(state.model.named_parameters())[FROZEN]
        before = weight.detach().clone()
        original(self, state, grads, norm)
        weight.data.copy_(before)

    return apply


def _jax_restored(wanted_kind: str) -> Change:
    """A restore that gives zeros for the optimizer's arrays of a kind: "f" floating, "i" counts."""

    def change(original):
        def restore(self, directory):
            import jax
            import jax.numpy as jnp

            state = original(self, directory)
            return state | jax.tree.map(
                lambda x: jnp.zeros_like(x) if x.dtype.kind == wanted_kind else x,
                {name: state[name] for name in ("optimizer", "step")},
            )

        return restore

    return change


def _torch_restored(names: tuple[str, ...]) -> Change:
    def change(original):
        def restore(self, directory):
            state = original(self, directory)
            for part in state.optimizer.parts.values():
                for kept in part.state.values():
                    for name in names:
                        if name in kept:
                            kept[name].zero_()
                for group in part.param_groups:
                    if "step" in names and "updates" in group:
                        group["updates"] = 0
            state.step = 0 if "step" in names else state.step
            return state

        return restore

    return change


def _jax_reduced(change) -> list[Patch]:
    """`change(grads, ranks, reduce)` reduces gradients; `reduce(grads)` does so rightly."""

    def make(original):
        def reduce_gradients(mesh, loss, grads):
            loss_all, _ = original(mesh, loss, {})
            return loss_all, change(grads, mesh.size, lambda grads: original(mesh, loss, grads)[1])

        return reduce_gradients

    return [Patch("sharding", "reduce_gradients", make)]


def _jax_scaled(power: int):
    return lambda grads, ranks, reduce: {name: g * float(ranks) ** power for name, g in reduce(grads).items()}


def _jax_clipped_early(grads, ranks, reduce):
    if ranks > 1:  # a part's gradient, before it is averaged
        norm = sum((g * g).sum() for g in grads.values()) ** 0.5 * ranks
        grads = {name: g / norm.clip(1.0) for name, g in grads.items()}
    return reduce(grads)


def _torch_reduced(change) -> list[Patch]:
    """`change(tensors, reduction, ranks, original)` reduces loss and gradients."""

    def make(original):
        def reduce_gradients(tensors, reduction):
            from torchref.sharding import world_size

            change(tensors, reduction, world_size(), original)

        return reduce_gradients

    return [Patch("sharding", "reduce_gradients", make)]


def _torch_averaged_twice(tensors, reduction, ranks, original):
    original(tensors, reduction)
    for g in tensors[1:]:
        g /= ranks


def _torch_not_averaged(tensors, reduction, ranks, original):
    original(tensors, reduction)
    for g in tensors[1:]:
        g *= ranks


def _torch_clipped_early(tensors, reduction, ranks, original):
    if ranks > 1:
        norm = sum(float((g * g).sum()) for g in tensors[1:]) ** 0.5
        for g in tensors[1:]:
            g *= min(1.0, 1.0 / norm)
    original(tensors, reduction)


def _jax_one_part(original):
    def put_global_batch(self, inputs, targets):
        parts = self.mesh.size
        return original(self, *(np.tile(x[: len(x) // parts], (parts, 1)) for x in (inputs, targets)))

    return put_global_batch


PROGRAM_PATCHES: dict[str, dict[str, list[Patch]]] = {
    "export-bfloat16": _exported(lambda w: round_to(w.astype(np.float64), "bfloat16")),
    "export-transposed": _exported(lambda w: w.swapaxes(-1, -2) if w.ndim >= 2 and w.shape[-2] == w.shape[-1] else w),
    "head-bias": {backend: [forward_of(backend, "Linear", _without_head_bias)] for backend in CLASSES},
    "dropout": _methods(token_losses=_dropout),
    "untied": {backend: [Patch(MODELS, "matmul_t", _untied)] for backend in CLASSES},
    "clip-per-tensor": _clip(lambda least, own, whole, largest: least(1.0, largest / (own + 1e-6))),
    "clip-always": _clip(lambda least, own, whole, largest: largest / (whole + 1e-6)),
    "clip-epsilon": _clip(lambda least, own, whole, largest: least(1.0, largest / whole)),
    "late-rate": {"jaxrun": _jax_late(), "torchref": [Patch("optim", "ByGroup.update", _torch_late)]},
    "two-groups": {
        "jaxrun": [Patch("optim", "by_group", _jax_two_groups)],
        "torchref": [Patch("optim", "_parts", _torch_two_groups)],
    },
    "frozen": {
        "jaxrun": [Patch("program", "JaxProgram._apply", _jax_frozen)],
        "torchref": [Patch("program", "TorchProgram._apply", _torch_frozen)],
    },
    "stale": _methods(step=_keeping_stale, load=_forgetting_stale, token_losses=_scoring_stale),
    "first-batch": _methods(step=_first_batch),
    "no-moments": {
        "jaxrun": [Patch("program", "JaxProgram.restore", _jax_restored("f"))],
        "torchref": [Patch("program", "TorchProgram.restore", _torch_restored(("exp_avg", "exp_avg_sq", "momentum")))],
    },
    "no-step": {
        "jaxrun": [Patch("program", "JaxProgram.restore", _jax_restored("i"))],
        "torchref": [Patch("program", "TorchProgram.restore", _torch_restored(("step",)))],
    },
    "averaged-twice": {"jaxrun": _jax_reduced(_jax_scaled(-1)), "torchref": _torch_reduced(_torch_averaged_twice)},
    "not-averaged": {"jaxrun": _jax_reduced(_jax_scaled(1)), "torchref": _torch_reduced(_torch_not_averaged)},
    "clipped-early": {"jaxrun": _jax_reduced(_jax_clipped_early), "torchref": _torch_reduced(_torch_clipped_early)},
    "one-part": {
        "jaxrun": [Patch("program", "JaxProgram.put_global_batch", _jax_one_part)],
        "torchref": [Patch("sharding", "by_row", lambda original: lambda x: x[: len(original(x))])],
    },
}
