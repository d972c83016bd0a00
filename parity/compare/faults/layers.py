"""Replacements for functions of the backends with one thing wrong, written once for both where their arrays allow
it."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from parity.compare.faults.plant import MODELS, Change, Patch


def arrays(backend: str) -> ModuleType:
    """The backend's functions on arrays."""
    return importlib.import_module("jax.numpy" if backend == "jaxrun" else "torch")


LAYERS = (
    *("Embedding", "Gate", "InputResidual", "LayerNorm", "Linear", "Norm", "RMSNorm", "Scalars", "SkipConnections"),
    "StackedLinear",
)


def forward_of(backend: str, kind: str, change: Change) -> Patch:
    """A patch of the forward pass of a class of layers, or of the models' classes: `change(original)(module, x,
    ...)`."""
    method = "__call__" if backend == "jaxrun" else "forward"
    return Patch("layers" if kind in LAYERS else MODELS, f"{kind}.{method}", change)


def forward(kinds: tuple[str, ...], change: Callable[[str], Change]) -> Callable[[str], list[Patch]]:
    """A patch of the forward pass of several classes; `change(backend)` makes it."""
    return lambda backend: [forward_of(backend, kind, change(backend)) for kind in kinds]


@contextmanager
def shadowed(module: Any, name: str, function: Callable) -> Iterator[None]:
    """A submodule of a module is this function while this is entered."""
    attributes = vars(module)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = function
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(before)


def norm(
    centred: bool, axis: int = -1, unbiased: bool = False, constant: bool = False, gain: bool = True, bias: bool = True
) -> Change:
    """A norm from its formula."""

    def change(original):
        def call(self, x):
            y = x - x.mean(axis=axis, keepdims=True) if centred else x
            variance = (y * y).mean(axis=axis, keepdims=True)
            if unbiased:
                variance = variance * (x.shape[-1] / (x.shape[-1] - 1))
            rms = (variance + self.eps) ** 0.5
            y = y / (detached(rms) if constant else rms)
            y = y * self.weight[...] if gain and hasattr(self, "weight") else y
            return y + self.bias[...] if bias and hasattr(self, "bias") else y

        return call

    return change


def attention(backend: str, ahead: int = 0, masked: float = -1e30) -> Change:
    """Attention from its formula, each position seeing those up to `ahead` behind itself."""
    np_ = arrays(backend)

    def change(original):
        def causal_attention(q, k, v, scale):
            T = q.shape[1]
            scores = np_.einsum("bthk,bshk->bhts", q, k) * scale
            seen = np_.arange(T)[None, :] <= np_.arange(T)[:, None] + ahead
            scores = np_.where(seen, scores, _like(scores, masked))
            scores = scores - detached(scores.max(-1) if backend == "jaxrun" else scores.amax(-1))[..., None]
            probs = np_.exp(scores)
            return np_.einsum("bhts,bshk->bthk", probs / probs.sum(-1)[..., None], v)

        return causal_attention

    return change


def rotary(backend: str, sign: float = 1.0, first: int = 0, spread: bool = False, pairs: bool = False) -> Change:
    """Rotary embedding from its formula. `spread`: the half-truncated one's frequencies over all channels."""
    np_ = arrays(backend)

    def change(original):
        def rotate(x, base, accum, full=False, table_dtype=None):
            T, K = x.shape[1], x.shape[3]
            count = K // 2 if full or spread else K // 4
            frequency = (1 / base) ** (np.arange(count) * 2 / K if full else np.arange(count) / (count - 1))
            theta = np.arange(first, first + T)[:, None, None] * np.append(frequency, np.zeros(K // 2 - count))
            cos, sin = (_like(x, f(theta)) for f in (np.cos, np.sin))
            sin = sin * sign
            if pairs:
                x1, x2 = x[..., 0::2], x[..., 1::2]
                return np_.stack([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], -1).reshape(x.shape)
            x1, x2 = x[..., : K // 2], x[..., K // 2 :]
            return np_.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], -1)

        return rotate

    return change


def narrowed(x):
    """The array rounded to bfloat16, in its own type."""
    if hasattr(x, "numpy"):
        import torch

        return x.to(torch.bfloat16).to(x.dtype)
    return x.astype("bfloat16").astype(x.dtype)


def block(change: str) -> Change:
    """A block whose attention and MLP are put together in another way: "scaled", "parallel" or "post" norm."""

    def make(original):
        def call(self, x, *context):
            if hasattr(self, "lambdas"):
                x, context = self.lambdas(x, context[0]), context[1:]
            scale, y, values = (0.5 if change == "scaled" else 1), 0.0, ()
            if self.attn is not None:
                y = self.attn(x if change == "post" else self.norm1(x), *context)
                y, *values = y if isinstance(y, tuple) else (y,)
            if change == "post":
                x = x if self.attn is None else self.norm1(x + y)
                x = self.norm2(x + self.mlp(x))
            elif change == "parallel":
                x = x + y + self.mlp(self.norm2(x))
            else:
                x = x + scale * y
                x = x + scale * self.mlp(self.norm2(x))
            return (x, *values) if values else x

        return call

    return make


def orthogonalize_untransposed(original):
    """Newton-Schulz on tall matrices as they are: the same numbers, from Gram matrices of the longer side."""

    def orthogonalize(x, steps, coefficients, dtype, observe=None):
        a, b, c = coefficients
        x = x / ((x * x).sum((-2, -1))[..., None, None] ** 0.5 + 1e-7)
        for _ in range(steps):
            gram = x @ x.mT
            if observe:
                observe(gram)
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    return orthogonalize


def orthogonalize_with_epsilon(factor: float) -> Change:
    """Newton-Schulz with 1e-7 x factor beside the norm: x / factor / (norm / factor + 1e-7) = x / (norm + 1e-7
    factor)."""
    return lambda original: lambda x, *rest: original(x / factor, *rest)


def with_fields(**fields: Any) -> Change:
    """The recipe with other values."""
    return lambda recipe: dataclasses.replace(recipe, **fields)


def with_optimizer(group: str, kind: str) -> Change:
    """The recipe with another optimizer for a group."""
    return lambda recipe: with_class(recipe, optimizers=recipe.optimizers | {group: kind})


def other_reduction(recipe):
    """The recipe whose loss is summed instead of averaged, or the other way round."""
    return with_class(recipe, loss_reduction="mean" if recipe.loss_reduction == "sum" else "sum")


def with_class(recipe, **changed: Any):
    """The recipe with other class attributes."""
    kind = type(type(recipe).__name__, (type(recipe),), changed)
    return kind(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)})


def table(change) -> Change:
    """A patch of `optim.learning_rates`: `change(recipe, rates)` gives the wrong table."""
    return lambda original: lambda recipe, group: change(recipe, original(recipe, group))


def _like(x, values):
    """Numbers in the array's kind and type."""
    if hasattr(x, "numpy"):
        import torch

        return torch.as_tensor(values, dtype=x.dtype)
    import jax.numpy as jnp

    return jnp.asarray(values, x.dtype)


def detached(x):
    if hasattr(x, "detach"):
        return x.detach()
    import jax

    return jax.lax.stop_gradient(x)
