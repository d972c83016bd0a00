"""The models of the recipes in Flax (NNX): modules named as the canonical weights, one forward each.

NNX, because its modules read like PyTorch's: attribute paths are the canonical names, so weights need no renaming. A
model is built once, empty; `apply` runs it on a flat mapping of weights. Letters: parity/recipe.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrun.attention import NEGATIVE, causal_attention, rotary, target_platform
from parity.recipe import Dtypes, Muon, NanoGPT, Recipe


class Linear(nnx.Module):
    """x W^T + b: weight (out, in), bias (out,), cast to the type of products."""

    def __init__(self, inputs: int, outputs: int, dtypes: Dtypes):
        self.weight = _empty((outputs, inputs), dtypes.weights)
        self.bias = _empty((outputs,), dtypes.weights)
        self.dtype = dtypes.products

    def __call__(self, x):
        return plus(product(x, self.weight[...], self.dtype), self.bias[...].astype(self.dtype))


class Embedding(nnx.Module):
    """Row lookup: weight (rows, D)."""

    def __init__(self, rows: int, dim: int, dtype: str, wide: str):
        self.weight = _empty((rows, dim), dtype)
        self.dtype, self.wide = dtype, wide

    def __call__(self, index):
        # Looked up in the wide type, so that its gradient, a sum over a token's places, is summed there.
        return self.weight[...].astype(self.wide)[index].astype(self.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis, variance biased, in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = _empty((dim,), dtypes.weights)
        self.bias = _empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, dtypes.wide, dtypes.stream

    def __call__(self, x):
        x = x.astype(self.wide)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * self.weight[...] + self.bias[...]).astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in the wide type."""

    def __init__(self, dim: int, eps: float, dtypes: Dtypes):
        self.weight = _empty((dim,), dtypes.weights)
        self.eps, self.wide, self.dtype = eps, dtypes.wide, dtypes.stream

    def __call__(self, x):
        return rms_norm(x, self.eps, self.wide, self.weight[...].astype(self.dtype))


class NanoAttention(nnx.Module):
    """Causal self-attention with one matrix for q, k and v, scale 1 / sqrt(K)."""

    def __init__(self, recipe: NanoGPT):
        self.qkv = Linear(recipe.dim, 3 * recipe.dim, recipe.dtypes)
        self.proj = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim = recipe.head_dim

    def __call__(self, x_BTD):
        q, k, v = (heads(x, self.head_dim) for x in jnp.split(self.qkv(x_BTD), 3, axis=-1))
        y_BTHK = causal_attention(q, k, v, self.head_dim**-0.5)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class NanoMLP(nnx.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, recipe: NanoGPT):
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)
        self.gelu = recipe.gelu

    def __call__(self, x_BTD):
        return self.proj(gelu(self.fc(x_BTD), self.gelu))


class NanoBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: NanoGPT):
        self.norm1 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = NanoAttention(recipe)
        self.norm2 = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = NanoMLP(recipe)

    def __call__(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class NanoModel(nnx.Module):
    """GPT-2: token plus position embedding, blocks, LayerNorm, head tied to the token embedding.

    Columns of the head above the tokenizer's size take no part in the softmax.
    """

    def __init__(self, recipe: NanoGPT):
        self.embed = Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding, recipe.dtypes.wide)
        self.positions = Embedding(recipe.context, recipe.dim, recipe.dtypes.weights, recipe.dtypes.wide)
        self.blocks = nnx.List([NanoBlock(recipe) for _ in range(recipe.layers)])
        self.norm_out = LayerNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.tokenizer_size, self.dtypes = recipe.tokenizer_size, recipe.dtypes

    def __call__(self, tokens_BT):
        x_BTD = self.embed(tokens_BT) + self.positions(jnp.arange(tokens_BT.shape[1]))
        return self.norm_out(through(self.blocks, x_BTD))

    def scores(self, x_BTD):
        return product(x_BTD, self.embed.weight[...], self.dtypes.products)

    def squash(self, scores_BTV):
        logits = scores_BTV.astype(self.dtypes.wide)
        if logits.shape[-1] == self.tokenizer_size:
            return logits
        return jnp.where(jnp.arange(logits.shape[-1]) < self.tokenizer_size, logits, NEGATIVE)

    def logits(self, x_BTD):
        return self.squash(self.scores(x_BTD))


class MuonAttention(nnx.Module):
    """Causal self-attention with separate q, k, v; q and k RMS-normalised per head without gain, then rotary."""

    def __init__(self, recipe: Muon):
        self.q = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.k = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.v = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.proj = Linear(recipe.dim, recipe.dim, recipe.dtypes)
        self.head_dim, self.scale, self.base = recipe.head_dim, recipe.scale, recipe.rotary_base
        self.eps, self.wide = recipe.norm_eps, recipe.dtypes.wide

    def __call__(self, x_BTD):
        q, k, v = (heads(layer(x_BTD), self.head_dim) for layer in (self.q, self.k, self.v))
        q, k = (rotary(rms_norm(x, self.eps, self.wide), self.base, self.wide) for x in (q, k))
        y_BTHK = causal_attention(q, k, v, self.scale)
        return self.proj(y_BTHK.reshape(x_BTD.shape))


class MuonMLP(nnx.Module):
    """D -> 4 D -> D with ReLU squared."""

    def __init__(self, recipe: Muon):
        self.fc = Linear(recipe.dim, 4 * recipe.dim, recipe.dtypes)
        self.proj = Linear(4 * recipe.dim, recipe.dim, recipe.dtypes)

    def __call__(self, x_BTD):
        return self.proj(jnp.square(jax.nn.relu(self.fc(x_BTD))))


class MuonBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, recipe: Muon):
        self.norm1 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.attn = MuonAttention(recipe)
        self.norm2 = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.mlp = MuonMLP(recipe)

    def __call__(self, x_BTD):
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class MuonModel(nnx.Module):
    """The public optimization track's model: normed embedding, blocks, untied head with bias, capped logits."""

    def __init__(self, recipe: Muon):
        self.embed = Embedding(recipe.vocab_size, recipe.dim, recipe.dtypes.embedding, recipe.dtypes.wide)
        self.norm_in = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.blocks = nnx.List([MuonBlock(recipe) for _ in range(recipe.layers)])
        self.norm_out = RMSNorm(recipe.dim, recipe.norm_eps, recipe.dtypes)
        self.head = Linear(recipe.dim, recipe.vocab_size, recipe.dtypes)
        self.cap, self.dtypes = recipe.logit_cap, recipe.dtypes

    def __call__(self, tokens_BT):
        x_BTD = self.norm_in(self.embed(tokens_BT))
        return self.norm_out(through(self.blocks, x_BTD))

    def scores(self, x_BTD):
        return self.head(x_BTD)

    def squash(self, scores_BTV):
        return capped(scores_BTV.astype(self.dtypes.wide), self.cap)

    def logits(self, x_BTD):
        return self.squash(self.scores(x_BTD))


def through(blocks, x_BTD):
    """Through blocks one after the other; for the gradient all that they compute is kept, or their inputs alone (see `remat`)."""
    for block in blocks:
        x_BTD = jax.checkpoint(lambda x, block=block: block(x))(x_BTD) if _remat.get() == "blocks" else block(x_BTD)
    return x_BTD


_remat: ContextVar[str] = ContextVar("remat", default="none")


@contextmanager
def remat(policy: str) -> Iterator[None]:
    """What is traced inside keeps for its gradient: "none" is computed again, or all inside "blocks" is."""
    token = _remat.set(policy)
    try:
        yield
    finally:
        _remat.reset(token)


WIDE_ROWS = 8192  # columns of logits from which on XLA's ways on the CPU change places

MODELS = {"nanogpt": NanoModel, "muon": MuonModel}


def product(x, weight, dtype: str):
    """x W^T with both cast to `dtype`; sums are kept in float32 or wider, and float32 is never narrowed."""
    return _product(x.astype(dtype), weight.astype(dtype))


@jax.custom_vjp
def _product(x, weight):
    return _dot(x, weight, (x.ndim - 1,), (1,))


def _product_forward(x, weight):
    return _product(x, weight), (x, weight)


def _product_backward(kept, dy):
    x, weight = kept
    rows = tuple(range(x.ndim - 1))
    if weight.shape[1] < weight.shape[0] <= WIDE_ROWS:  # XLA on the CPU copies the left side transposed: let it be the narrower one
        dweight = jax.lax.optimization_barrier(_dot(x, dy, rows, rows)).T  # without the barrier XLA turns it back
    else:
        dweight = _dot(dy, x, rows, rows)
    return _dot(dy, weight, (x.ndim - 1,), (0,)), dweight


_product.defvjp(_product_forward, _product_backward)


def _dot(a, b, a_axes, b_axes):
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), precision="highest", preferred_element_type=a.dtype)


@jax.custom_vjp
def plus(y, bias):
    """y + bias over the last axis, of one type; the bias' gradient is summed in float32 or wider."""
    return y + bias


def _plus_backward(_, dy):
    rows, wide = dy.reshape(-1, dy.shape[-1]), jnp.promote_types(dy.dtype, jnp.float32)
    if target_platform() == "cpu" and rows.shape[1] > WIDE_ROWS:  # XLA's sum over so long rows takes ten times as long as a product with ones
        ones = jnp.ones(len(rows), dy.dtype)
        total = jax.lax.dot_general(ones, rows, (((0,), (0,)), ((), ())), precision="highest", preferred_element_type=wide)
    else:
        total = jnp.sum(rows, axis=0, dtype=wide)
    return dy, total.astype(dy.dtype)


plus.defvjp(lambda y, bias: (plus(y, bias), None), _plus_backward)


@partial(jax.checkpoint, static_argnums=1)  # keeps x alone for the gradient
def gelu(x, form: str):
    """x Phi(x), Phi the normal distribution function by erf ("exact") or by its approximation with tanh ("tanh")."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (jax.nn.gelu(y) if form == "tanh" else 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def capped(x, cap: float):
    """cap x / sqrt(x^2 + cap^2)."""
    return cap * x * jax.lax.rsqrt(x * x + cap**2)


def _capped_forward(x, cap):
    return capped(x, cap), x  # keeps x alone for the gradient


def _capped_backward(cap, x, dy):
    return (dy * (cap * jax.lax.rsqrt(x * x + cap**2)) ** 3,)


capped.defvjp(_capped_forward, _capped_backward)


def heads(x_BTD, head_dim: int):
    """(B, T, D) -> (B, T, H, K)."""
    return x_BTD.reshape(*x_BTD.shape[:2], -1, head_dim)


def rms_norm(x, eps: float, wide: str, gain=None):
    """x / sqrt(mean(x^2) + eps), times the gain if there is one; computed in `wide`, returned in the type of x."""
    y = x.astype(wide)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y if gain is None else y * gain.astype(wide)).astype(x.dtype)


def token_losses(scores_BTV, targets_BT, squash: Callable = lambda scores: scores):
    """-log softmax(squash(scores))[target]: (B, T), in the type of what `squash` gives, nats."""
    return _token_losses(squash, scores_BTV, targets_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(squash, scores_BTV, targets_BT):
    return _token_losses_forward(squash, scores_BTV, targets_BT)[0]


def _token_losses_forward(squash, scores_BTV, targets_BT):
    logits_BTV = squash(scores_BTV)
    largest = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    logits_BTV = squash(_read_again(scores_BTV, largest))
    total = jnp.log(jnp.sum(jnp.exp(logits_BTV - largest[..., None]), axis=-1)) + largest
    target = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return total - target, (scores_BTV, total, targets_BT)


def _token_losses_backward(squash, kept, dlosses_BT):
    # softmax - 1 at the target, in one pass: the derivatives of its parts would write the logits' size several times
    scores_BTV, total, targets_BT = kept
    logits_BTV, pull = jax.vjp(squash, _read_again(scores_BTV, total))
    at_target = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    (dscores_BTV,) = pull((jnp.exp(logits_BTV - total[..., None]) - at_target) * dlosses_BT[..., None])
    return _read_again(dscores_BTV), None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def _read_again(x, *after):
    """x itself, for a pass of its own over it, after some other values: else XLA would compute something wide of it once, write it
    down for all of its readers, and a GPU's memory is slower than the arithmetic. On a CPU it is the other way round."""
    return x if target_platform() == "cpu" else jax.lax.optimization_barrier((x, *after))[0]


def make_model(recipe: Recipe, make: Callable[[Recipe], nnx.Module] | None = None):
    """The recipe's model with no memory behind its weights, split into (definition, {canonical name: empty}).

    `make` makes another one than the recipe's name stands for.
    """
    return nnx.split(nnx.eval_shape(lambda: (make or MODELS[recipe.name])(recipe)))


def apply(definition, weights, method, *args):
    """Runs `method(model, *args)` on the model that has these weights: {canonical name: array}."""
    state = nnx.from_flat_state([(_path(name), nnx.Param(value)) for name, value in weights.items()])
    return method(nnx.merge(definition, state), *args)


def _empty(shape, dtype):
    return nnx.Param(jnp.zeros(shape, dtype))


def _path(name: str):
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
