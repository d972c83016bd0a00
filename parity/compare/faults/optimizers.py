"""AdamW and Muon with one thing wrong, as each backend's own kind of optimizer: what the catalogue plants."""

from typing import Any


def faulty_adamw(backend: str, wrong: str) -> Any:
    """A stand-in for `optim.adamw` of a backend that is right but for `wrong`: "eps_in_root", "no_correction",
    "coupled_decay", "unscaled_decay", "decay_after", "late_rate", or "" for nothing."""
    return _jax_adamw(wrong) if backend == "jaxrun" else _torch_adamw(wrong)


def faulty_muon(backend: str, wrong: str) -> Any:
    """A stand-in for `optim.muon` that is right but for `wrong`: "no_nesterov", "no_aspect", "stack_as_one",
    "unscaled_decay", "decay_after", "late_rate", or ""."""
    return _jax_muon(wrong) if backend == "jaxrun" else _torch_muon(wrong)


def _root(v, eps: float, wrong: str, sqrt) -> Any:
    return sqrt(v + eps) if wrong == "eps_in_root" else sqrt(v) + eps


def _moved(w, u, rate, decay: float, wrong: str):
    """The weight after an update u: decay first and scaled by the rate, unless that is what is wrong."""
    if wrong == "coupled_decay":
        return w - rate * u
    if wrong == "decay_after":
        return (w - rate * u) * (1 - rate * decay)
    return w * (1 - (decay if wrong == "unscaled_decay" else rate * decay)) - rate * u


def _jax_adamw(wrong: str):
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxrun import optim

    def make(rates, betas, eps, decay):
        def init(weights):
            zeros = {name: jnp.zeros_like(w) for name, w in weights.items()}
            return optim.AdamWState(jnp.zeros((), jnp.int32), zeros, dict(zeros))

        def update(grads, state, weights):
            t = state.count + 1
            rate = jnp.asarray(np.append(rates, rates[-1]))[t if wrong == "late_rate" else state.count]
            updates, first, second = {}, {}, {}
            for name, g in grads.items():
                w = weights[name]
                g = g + decay * w if wrong == "coupled_decay" else g
                m = first[name] = (betas[0] * state.first[name] + (1 - betas[0]) * g).astype(w.dtype)
                v = second[name] = (betas[1] * state.second[name] + (1 - betas[1]) * g * g).astype(w.dtype)
                if wrong != "no_correction":
                    m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
                u = m / _root(v, eps, wrong, jnp.sqrt)
                updates[name] = (_moved(w, u, rate, decay, wrong) - w).astype(w.dtype)
            return updates, optim.AdamWState(t, first, second)

        return optax.GradientTransformation(init, update)

    return make


def _torch_adamw(wrong: str):
    import torch

    class AdamW(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                (b1, b2), eps, decay, rate = group["betas"], group["eps"], group["weight_decay"], group["lr"]
                for w in group["params"]:
                    kept = self.state[w]
                    if not kept:
                        kept |= {"step": 0, "exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
                    kept["step"] += 1
                    g = w.grad + decay * w if wrong == "coupled_decay" else w.grad
                    m = kept["exp_avg"].mul_(b1).add_((1 - b1) * g)
                    v = kept["exp_avg_sq"].mul_(b2).add_((1 - b2) * g * g)
                    if wrong != "no_correction":
                        m, v = m / (1 - b1 ** kept["step"]), v / (1 - b2 ** kept["step"])
                    w.copy_(_moved(w, m / _root(v, eps, wrong, torch.sqrt), rate, decay, wrong))

    def make(weights, betas, eps, decays):
        groups = [
            {"params": list(tensors.values()), "name": group, "weight_decay": decays[group]}
            for group, tensors in weights.items()
        ]
        return AdamW(groups, {"lr": 0.0, "betas": betas, "eps": eps})

    return make


def _ahead(g, m, momentum, wrong: str, summed: bool):
    if wrong == "no_nesterov":
        return m
    return g + momentum * m if summed else g + momentum * (m - g)


def _kept(g, m, momentum, summed: bool):
    return momentum * m + g if summed else m + (1 - momentum) * (g - m)


def _aspect(shape, wrong: str) -> float:
    return 1.0 if wrong == "no_aspect" else max(1.0, shape[-2] / shape[-1]) ** 0.5


def _stack(u, wrong: str):
    """One matrix or a stack of them as a stack; what is wrong may be that a stack is taken for one tall matrix."""
    return u.reshape((1, -1, u.shape[-1]) if wrong == "stack_as_one" else (-1, *u.shape[-2:]))


def _jax_muon(wrong: str):
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxrun import optim

    def make(rates, decay, momentum, steps, coefficients, dtype, divide=None, summed=False):
        momenta = np.broadcast_to(momentum, len(rates))

        def init(weights):
            return optim.MuonState(jnp.zeros((), jnp.int32), {name: jnp.zeros_like(w) for name, w in weights.items()})

        def update(grads, state, weights):
            rate = jnp.asarray(np.append(rates, rates[-1]))[state.count + (wrong == "late_rate")]
            momentum = jnp.asarray(momenta)[state.count]
            updates, kept = {}, {}
            for name, g in grads.items():
                w = weights[name]
                kept[name] = _kept(g, state.momentum[name], momentum, summed).astype(g.dtype)
                u = _stack(_ahead(g, kept[name], momentum, wrong, summed), wrong)
                u = optim.orthogonalize(u, steps, coefficients, dtype).astype(w.dtype) * _aspect(u.shape, wrong)
                updates[name] = (_moved(w, u.reshape(w.shape), rate, decay, wrong) - w).astype(w.dtype)
            return updates, optim.MuonState(state.count + 1, kept)

        return optax.GradientTransformation(init, update)

    return make


def _torch_muon(wrong: str):
    import numpy as np
    import torch

    from torchref import optim

    class Muon(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                rate, decay = group["lr"], group["weight_decay"]
                momentum = float(self.momenta[min(group["updates"], len(self.momenta) - 1)])
                group["updates"] += 1
                for w in group["params"]:
                    kept = self.state[w]
                    kept["momentum"] = _kept(w.grad, kept.get("momentum", torch.zeros_like(w)), momentum, self.summed)
                    u = _stack(_ahead(w.grad, kept["momentum"], momentum, wrong, self.summed), wrong)
                    u = optim.orthogonalize(u, *self.turn).to(w.dtype) * _aspect(u.shape, wrong)
                    w.copy_(_moved(w, u.reshape(w.shape), rate, decay, wrong))

    def make(weights, decay, momentum, steps, coefficients, dtype, compile=False, divide=None, summed=False):
        groups = [{"params": list(tensors.values()), "name": group, "updates": 0} for group, tensors in weights.items()]
        made = Muon(groups, {"lr": 0.0, "weight_decay": decay})
        made.turn, made.summed, made.momenta = (steps, coefficients, dtype), summed, np.atleast_1d(momentum)
        return made

    return make
