"""Recipes: model, optimizer, schedules and batch plan as frozen dataclasses that name no framework.

Letters in array names, used in both backends:

    B rows of a batch    T tokens of a row (context)    D width of the model    L blocks
    H heads              K width of a head              F width of the MLP      V rows of the head (vocabulary, padded)

Steps count from 0. A rate is a learning rate. `recipe_for(name, scale)` builds one; every field can be replaced, and
`__post_init__` says why a value cannot be.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from parity.data.stream import Segment
from parity.errors import InputError, nearest

Precision = Literal["float32", "bfloat16", "float64"]
RMS_EPS = 1.1920929e-07  # float32 machine epsilon, the same number in every precision


@dataclass(frozen=True)
class Parameter:
    """One weight by its canonical name: shape (matrices as (out, in)), first value, and the optimizer group it is in.

    `std` is the standard deviation of the normal distribution it is drawn from; None means the constant `value`.
    """

    shape: tuple[int, ...]
    group: str
    std: float | None = None
    value: float = 0.0
    embedding: bool = False


@dataclass(frozen=True)
class Dtypes:
    """Which type each part of a program computes in. The one switch for precision, read by both backends."""

    weights: str  # as stored, with their optimizer state
    embedding: str  # the token embedding's weight as stored
    products: str  # operands and results of matrix products and of attention
    stream: str  # the activations between the blocks
    newton_schulz: str
    wide: str  # norms, softmax, rotary, logits, loss


@dataclass(frozen=True)
class Recipe(abc.ABC):
    """What every recipe has: sizes, batch plan, evaluation and checkpoint steps, precision."""

    name: ClassVar[str] = ""
    bfloat16: ClassVar[Dtypes]
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "mean"

    tokenizer_size: int
    """Token ids that occur: 0 .. tokenizer_size - 1."""
    vocab_size: int
    """V: rows of the embedding and of the head, at least tokenizer_size."""
    dim: int
    """D: width of the model."""
    layers: int
    """L: number of blocks."""
    head_dim: int
    """K: width of an attention head; D / K heads."""
    context: int
    """T: tokens of a row."""
    batch_tokens: int
    """Tokens in a global batch, over all devices."""
    steps: int
    """Optimizer steps in the run."""
    val_every: int
    """Evaluate after every so many steps (and before the first and after the last)."""
    final_val_every: int
    """The same within the last tenth of the steps."""
    checkpoints: int = 5
    """Checkpoints kept: the start, the end and at least three between, evenly spaced."""
    precision: Precision = "float32"
    """float32, bfloat16 (narrow products, float32 master weights) or float64 (for parity)."""

    def __post_init__(self) -> None:
        for field in ("tokenizer_size", "vocab_size", "dim", "layers", "head_dim", "context", "batch_tokens", "steps",
                      "val_every", "final_val_every"):
            self._need(getattr(self, field) > 0, field, "a positive number", "a run cannot be made of none")
        for field in dataclasses.fields(self):
            numbers = [value for value in np.ravel(getattr(self, field.name)) if isinstance(value, float)]
            self._need(all(map(math.isfinite, numbers)), field.name, "finite", "nothing can be computed with it")
        self._need(self.vocab_size >= self.tokenizer_size, "vocab_size", f"at least tokenizer_size {self.tokenizer_size}",
                   "every token needs a row of the embedding")
        self._need(self.vocab_size <= 65536, "vocab_size", "at most 65536", "shards hold tokens as 16-bit numbers")
        self._need(self.dim % self.head_dim == 0, "head_dim", f"a divisor of dim {self.dim}", "heads have equal widths")
        self._need(self.batch_tokens % self.context == 0, "batch_tokens", f"a multiple of context {self.context}",
                   "a batch is made of whole rows")
        self._need(self.checkpoints >= 5, "checkpoints", "at least 5",
                   "a replay needs the start, the end and three between")
        self._need(self.precision in ("float32", "bfloat16", "float64"), "precision",
                   "float32, bfloat16 or float64", "no other precision is described by the recipes")

    def _need(self, holds: bool, field: str, expected: str, reason: str) -> None:
        if not holds:
            option = "--" + field.replace("_", "-")
            raise InputError(f"recipe {self.name}: {option} must be {expected} ({reason}), found {getattr(self, field)!r}")

    @classmethod
    def derived(cls, base: "Recipe") -> "Recipe":
        """A recipe of this class from one of a class that it derives from: fields that it gives itself as it gives them, the
        others as in `base`, whoever chose those."""
        given = {name for own in cls.__mro__ if not issubclass(type(base), own) for name in vars(own).get("__annotations__", ())}
        return cls(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name not in given})

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def plan(self) -> tuple[Segment, ...]:
        """The batch plan: segments of (steps, tokens a batch, row length)."""
        return (Segment(self.steps, self.batch_tokens, self.context),)

    @property
    def dtypes(self) -> Dtypes:
        if self.precision == "bfloat16":
            return self.bfloat16
        return Dtypes(*[self.precision] * len(dataclasses.fields(Dtypes)))

    def eval_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which the val loss is taken: 0, every val_every, denser in the last tenth, the last."""
        last_tenth = self.steps - self.steps // 10
        return tuple(n for n in range(self.steps + 1) if n == self.steps
                     or n % (self.final_val_every if n >= last_tenth else self.val_every) == 0)

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which a checkpoint is kept, evenly spaced from 0 to the last."""
        return tuple(sorted({round(i * self.steps / (self.checkpoints - 1)) for i in range(self.checkpoints)}))

    @abc.abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """Every weight by its canonical name, in the model's order."""

    @abc.abstractmethod
    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of every group at a step, computed in Python floats."""

    def product_weights(self) -> int:
        """Weights that take part in a matrix product for every token: all matrices, the tied or untied head once."""
        return sum(math.prod(p.shape) for p in self.parameters().values() if len(p.shape) == 2 and not p.embedding)

    def model_flops_per_token(self) -> float:
        """6 N + 12 L D T: forward and backward of the matrix products and of unmasked attention (PaLM, appendix B)."""
        return 6 * self.product_weights() + 12 * self.layers * self.dim * self.context


@dataclass(frozen=True)
class NanoGPT(Recipe):
    """`nanogpt`: GPT-2 as in nanoGPT, trained with AdamW."""

    name: ClassVar[str] = "nanogpt"
    bfloat16: ClassVar[Dtypes] = Dtypes("float32", "float32", "bfloat16", "float32", "bfloat16", "float32")

    gelu: Literal["exact", "tanh"] = "exact"
    """exact (erf, nanoGPT's) or tanh (GPT-2's and llm.c's)."""
    norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    init_std: float = 0.02
    """Standard deviation of matrices and embeddings; residual projections have init_std / sqrt(2 L)."""
    peak_rate: float = 6e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 700
    """Steps over which the rate rises linearly."""
    final_fraction: float = 0.0
    """The rate at the last step as a fraction of the peak (0.1 in nanoGPT)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging factors."""
    adam_eps: float = 1e-8
    """AdamW's epsilon, outside the root."""
    weight_decay: float = 0.1
    """Decoupled, on tensors of two or more dimensions only."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.gelu in ("exact", "tanh"), "gelu", "exact or tanh", "these are the two forms in use")
        self._need(0 <= self.warmup_steps < self.steps, "warmup_steps", f"from 0 to steps - 1 = {self.steps - 1}",
                   "the rate must reach its peak before the run ends")
        self._need(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", "they are averaging factors")
        self._need(self.init_std >= 0, "init_std", "not negative", "it is a standard deviation")
        for field in ("peak_rate", "clip_norm", "norm_eps", "adam_eps"):
            self._need(getattr(self, field) > 0, field, "positive", "it divides, or scales the update")
        self._need(self.weight_decay >= 0, "weight_decay", "not negative", "decay shrinks weights")
        self._need(0 <= self.final_fraction <= 1, "final_fraction", "in [0, 1]", "it is a fraction of the peak")

    def parameters(self) -> dict[str, Parameter]:
        d, matrix, residual = self.dim, self.init_std, self.init_std / math.sqrt(2 * self.layers)
        table = {"embed.weight": Parameter((self.vocab_size, d), "decay", matrix),  # the head too, so not a mere lookup
                 "positions.weight": Parameter((self.context, d), "decay", matrix, embedding=True)}
        for i in range(self.layers):
            block = f"blocks.{i}."
            for norm, layers in (("norm1", (("attn.qkv", (3 * d, d), matrix), ("attn.proj", (d, d), residual))),
                                 ("norm2", (("mlp.fc", (4 * d, d), matrix), ("mlp.proj", (d, 4 * d), residual)))):
                table |= _norm(block + norm, d, "no_decay")
                for name, shape, std in layers:
                    table |= _linear(block + name, shape, std, "decay", "no_decay")
        return table | _norm("norm_out", d, "no_decay")

    def rates(self, step: int) -> dict[str, float]:
        if step < self.warmup_steps:
            rate = self.peak_rate * (step + 1) / self.warmup_steps
        else:
            progress = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
            fraction = self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
            rate = self.peak_rate * fraction
        return {"decay": rate, "no_decay": rate}


@dataclass(frozen=True)
class Muon(Recipe):
    """`muon`: the public optimization track's baseline, rotary and ReLU squared, trained with Muon and AdamW."""

    name: ClassVar[str] = "muon"
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "sum"
    bfloat16: ClassVar[Dtypes] = Dtypes("float32", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "float32")

    norm_eps: float = RMS_EPS
    """Epsilon of RMSNorm."""
    attention_scale: float | None = None
    """Factor of q k^T; None: 0.12 * sqrt(128 / head_dim)."""
    rotary_base: float = 1024.0
    """The slowest rotating pair turns by 1 / rotary_base a token."""
    logit_cap: float = 15.0
    """Logits z become c z / sqrt(z^2 + c^2)."""
    embed_rate: float = 0.7
    """Peak rate of the embedding (AdamW)."""
    head_rate: float = 0.004
    """Peak rate of the head's weight (AdamW)."""
    vector_rate: float = 0.015
    """Peak rate of every 1-D tensor (AdamW)."""
    betas: tuple[float, float] = (0.8, 0.95)
    """AdamW's averaging factors."""
    adam_eps: float = 1e-10
    """AdamW's epsilon, outside the root."""
    adam_decay: float = 0.001
    """AdamW's decoupled weight decay, on all of its groups."""
    muon_rate: float = 0.025
    """Peak rate of the blocks' matrices (Muon)."""
    muon_decay: float = 0.05
    """Muon's decoupled weight decay."""
    momentum: float = 0.95
    """Muon's momentum, by interpolation, and Nesterov's look ahead with the same factor."""
    newton_schulz_steps: int = 12
    """Steps of the orthogonalisation."""
    newton_schulz: tuple[float, float, float] = (2.0, -1.5, 0.5)
    """Its coefficients a, b, c."""
    cooldown: float = 0.7
    """Every rate is its peak times min(1, (1 - step / steps) / cooldown)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.head_dim % 4 == 0, "head_dim", "a multiple of 4", "rotary turns a quarter of the head against another")
        self._need(self.head_dim >= 8, "head_dim", "at least 8", "rotary's frequencies need two or more pairs")
        self._need(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", "they are averaging factors")
        self._need(0 <= self.momentum < 1, "momentum", "in [0, 1)", "it is an averaging factor")
        self._need(0 < self.cooldown <= 1, "cooldown", "in (0, 1]", "it is the fraction of the run over which rates fall")
        self._need(self.newton_schulz_steps > 0, "newton_schulz_steps", "positive", "without it nothing is orthogonalised")
        for field in ("embed_rate", "head_rate", "vector_rate", "muon_rate", "logit_cap", "norm_eps", "adam_eps",
                      "rotary_base"):
            self._need(getattr(self, field) > 0, field, "positive", "it divides, or scales the update")
        self._need(self.scale > 0, "attention_scale", "positive", "it scales the scores")
        for field in ("adam_decay", "muon_decay"):
            self._need(getattr(self, field) >= 0, field, "not negative", "decay shrinks weights")

    @property
    def scale(self) -> float:
        """Factor of q k^T before the softmax."""
        return self.attention_scale if self.attention_scale is not None else 0.12 * math.sqrt(128 / self.head_dim)

    def parameters(self) -> dict[str, Parameter]:
        d = self.dim
        table = {"embed.weight": Parameter((self.vocab_size, d), "embed", 1.0, embedding=True)}
        table |= _gain("norm_in", d)
        for i in range(self.layers):
            block = f"blocks.{i}."
            table |= _gain(block + "norm1", d)
            for name in ("q", "k", "v"):
                table |= _linear(f"{block}attn.{name}", (d, d), math.sqrt(0.33 / d), "matrix", "vector")
            table |= _linear(block + "attn.proj", (d, d), None, "matrix", "vector")
            table |= _gain(block + "norm2", d)
            table |= _linear(block + "mlp.fc", (4 * d, d), math.sqrt(0.33 / d), "matrix", "vector")
            table |= _linear(block + "mlp.proj", (d, 4 * d), None, "matrix", "vector")
        return table | _gain("norm_out", d) | _linear("head", (self.vocab_size, d), None, "head", "vector")

    def rates(self, step: int) -> dict[str, float]:
        fraction = min(1.0, (1 - step / self.steps) / self.cooldown)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "vector": self.vector_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


def _linear(name: str, shape: tuple[int, int], std: float | None, matrix: str, bias: str) -> dict[str, Parameter]:
    return {f"{name}.weight": Parameter(shape, matrix, std), f"{name}.bias": Parameter(shape[:1], bias)}


def _gain(name: str, dim: int, group: str = "vector") -> dict[str, Parameter]:
    return {f"{name}.weight": Parameter((dim,), group, value=1.0)}


def _norm(name: str, dim: int, group: str) -> dict[str, Parameter]:
    return _gain(name, dim, group) | {f"{name}.bias": Parameter((dim,), group)}


# Checkpoints cost disk (23 MB each at pocket), and save the verifier time: it makes whole stretches between them again.
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(tokenizer_size=512, vocab_size=512, dim=64, layers=4, head_dim=16, context=64, batch_tokens=1024,
                 steps=60, val_every=20, final_val_every=20),
    "pocket": dict(tokenizer_size=4096, vocab_size=4096, dim=128, layers=4, head_dim=32, context=256,
                   batch_tokens=4096, steps=256, val_every=32, final_val_every=32, checkpoints=17),
    "small": dict(tokenizer_size=50257, vocab_size=50304, dim=768, layers=12, head_dim=128, context=1024,
                  batch_tokens=524_288, steps=3250, val_every=125, final_val_every=25),
}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("nanogpt", "tiny"): dict(peak_rate=3e-3, warmup_steps=6),
    ("nanogpt", "pocket"): dict(peak_rate=1e-2, warmup_steps=26),
    ("nanogpt", "small"): dict(head_dim=64, steps=19_380, val_every=250, final_val_every=250, gelu="tanh"),
}
RECIPES: dict[str, Callable[..., Recipe]] = {"nanogpt": NanoGPT, "muon": Muon}


def recipe_for(name: str, scale: str) -> Recipe:
    """The recipe of a name at a scale (tiny, pocket, small); InputError with the nearest name where there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    if scale not in SIZES:
        raise InputError(f"unknown scale {scale!r}; {nearest(scale, SIZES)}")
    return RECIPES[name](**(SIZES[scale] | CHANGES.get((name, scale), {})))


def to_fields(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values: its name and its fields."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}
    return {"name": recipe.name, "fields": fields}


def from_fields(data: dict[str, Any]) -> Recipe:
    """The recipe that `to_fields` wrote; InputError where a name or a field is not known here."""
    name, fields = data["name"], data["fields"]
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    known = {f.name for f in dataclasses.fields(RECIPES[name])}
    if strange := set(fields) - known:
        field = min(strange)
        raise InputError(f"recipe {name} has no field {field!r}; {nearest(field, known)}")
    return RECIPES[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
