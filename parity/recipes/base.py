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
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from parity import parts
from parity.data.stream import Segment
from parity.errors import InputError, nearest
from parity.parts import Parameter
from parity.recipes import schedules

Precision = Literal["float32", "bfloat16", "float64"]
RMS_EPS = 1.1920929e-07  # float32 machine epsilon, the same number in every precision
QUINTIC = (3.4445, -4.7750, 2.0315)  # the public speedrun's Newton-Schulz coefficients


@dataclass(frozen=True)
class Dtypes:
    """Which type each part of a program computes in. The one switch for precision, read by both backends."""

    weights: str  # as stored, with their optimizer state
    embedding: str  # the embeddings' weights as stored
    products: str  # operands and results of matrix products and of attention
    stream: str  # the activations between the blocks
    newton_schulz: str
    wide: str  # norms, softmax, rotary, logits, loss
    scalars: str = "float32"  # learned factors as stored
    tables: str = "float32"  # rotary's cosines and sines
    capped: str = "float32"  # logits as the cap leaves them, before they are widened
    fp8: bool = False  # whether an FP8 head rounds to 8 bits


@dataclass(frozen=True)
class Recipe(abc.ABC):
    """What every recipe has: its parts, sizes, batch plan, evaluation and checkpoint steps, precision.

    `parts` names a part (parity/parts.py) for each slot; `groups` the optimizer group of each kind of weight (embedding, head, matrix,
    vector, scalar); `optimizers` the optimizer of each group.
    """

    name: ClassVar[str] = ""
    parts: ClassVar[dict[str, str]] = {}
    biases: ClassVar[bool] = False
    groups: ClassVar[dict[str, str]] = {}
    optimizers: ClassVar[dict[str, str]] = {}
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
        for field in (
            "tokenizer_size",
            "vocab_size",
            "dim",
            "layers",
            "head_dim",
            "context",
            "batch_tokens",
            "steps",
            "val_every",
            "final_val_every",
        ):
            self._need(getattr(self, field) > 0, field, "a positive number", "a run cannot be made of none")
        for field in dataclasses.fields(self):
            numbers = [value for value in np.ravel(getattr(self, field.name)) if isinstance(value, float)]
            self._need(all(map(math.isfinite, numbers)), field.name, "finite", "nothing can be computed with it")
        self._need(
            self.vocab_size >= self.tokenizer_size,
            "vocab_size",
            f"at least tokenizer_size {self.tokenizer_size}",
            "every token needs a row of the embedding",
        )
        self._need(self.vocab_size <= 65536, "vocab_size", "at most 65536", "shards hold tokens as 16-bit numbers")
        self._need(self.dim % self.head_dim == 0, "head_dim", f"a divisor of dim {self.dim}", "heads have equal widths")
        self._need(
            self.batch_tokens % self.context == 0,
            "batch_tokens",
            f"a multiple of context {self.context}",
            "a batch is made of whole rows",
        )
        self._need(
            self.checkpoints >= 5, "checkpoints", "at least 5", "a replay needs the start, the end and three between"
        )
        self._need(
            self.precision in ("float32", "bfloat16", "float64"),
            "precision",
            "float32, bfloat16 or float64",
            "no other precision is described by the recipes",
        )
        for field in (
            "norm_eps",
            "adam_eps",
            "logit_cap",
            "logit_slope",
            "rotary_base",
            "clip_norm",
            "block",
            *self._rates,
        ):
            self._need(getattr(self, field, 1) > 0, field, "positive", "it divides, or scales the update")
        for field in ("weight_decay", "adam_decay", "muon_decay"):
            self._need(getattr(self, field, 0) >= 0, field, "not negative", "decay shrinks weights")
        self._need(
            all(0 <= beta < 1 for beta in getattr(self, "betas", ())),
            "betas",
            "two numbers in [0, 1)",
            "they are averaging factors",
        )
        for field in ("momentum", "momentum_start"):
            self._need(0 <= getattr(self, field, 0) < 1, field, "in [0, 1)", "it is an averaging factor")
        self._need(
            getattr(self, "momentum_steps", 0) >= 0,
            "momentum_steps",
            "not negative",
            "the momentum rises over so many steps",
        )
        self._need(
            0 < getattr(self, "cooldown", 1) <= 1,
            "cooldown",
            "in (0, 1]",
            "it is the fraction of the run over which rates fall",
        )
        self._need(
            getattr(self, "newton_schulz_steps", 1) > 0,
            "newton_schulz_steps",
            "positive",
            "without it nothing is orthogonalised",
        )
        self._need(
            0 <= getattr(self, "final_fraction", 0) <= 1, "final_fraction", "in [0, 1]", "it is a fraction of the peak"
        )
        self._check_fields()
        parts.check(self)

    def _check_fields(self) -> None:
        """Raises InputError where a class names a field that it does not have, since it was not made a dataclass."""
        known = {field.name for field in dataclasses.fields(self)}
        for kind in type(self).__mro__:
            for name, hint in vars(kind).get("__annotations__", {}).items():
                if name not in known and "ClassVar" not in str(hint):
                    raise InputError(
                        f"recipe {self.name}: {kind.__name__}.{name} is no field yet: put @dataclass(frozen=True) above the class"
                    )

    def _need(self, holds: bool, field: str, expected: str, reason: str) -> None:
        if not holds:
            option = "--" + field.replace("_", "-")
            raise InputError(
                f"recipe {self.name}: {option} must be {expected} ({reason}), found {getattr(self, field)!r}"
            )

    @classmethod
    def from_base(cls, base: "Recipe") -> "Recipe":
        """A recipe of this class from one of a class that it derives from: fields that it gives itself as it gives them, the
        others as in `base`, whoever chose those."""
        given = {
            name
            for own in cls.__mro__
            if not issubclass(type(base), own)
            for name in vars(own).get("__annotations__", ())
        }
        return cls(
            **{field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.name not in given}
        )

    @property
    def _rates(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if field.name.endswith("_rate")]

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def scale(self) -> float:
        """Factor of q k^T before the softmax."""
        return self.head_dim**-0.5

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding."""
        return self.vocab_size

    @property
    def end_of_text(self) -> int:
        """The token that a document starts with: the tokenizer's last."""
        return self.tokenizer_size - 1

    @property
    def bare(self) -> int | None:
        """The block that has no attention."""
        return None

    @property
    def eval_context(self) -> int:
        """Tokens of a row in evaluation."""
        return self.context

    @property
    def separate_documents(self) -> bool:
        """Whether no position sees another document."""
        return self.parts.get("mask") == "DocumentWindow"

    def window_stages(self) -> list[int]:
        """The steps at which PyTorch compiles anew for a wider window: the first, and each whose window passes a power of two."""
        widths = {step: ((self.attention_window(step) or 1) - 1).bit_length() for step in range(self.steps)}
        return [step for step, width in widths.items() if step == 0 or width > widths[step - 1]]

    def attention_window(self, step: int) -> int | None:
        """The window of attention, in blocks, after so many updates; None where attention has none."""
        return None

    def momentum_at(self, step: int) -> float:
        """Muon's momentum at a step."""
        return self.momentum

    def decay(self, group: str) -> float:
        """Weight decay of an optimizer group."""
        return 0.0

    @property
    def plan(self) -> tuple[Segment, ...]:
        """The batch plan: segments of (steps, tokens a batch, row length)."""
        return (Segment(self.steps, self.batch_tokens, self.context),)

    @property
    def dtypes(self) -> Dtypes:
        if self.precision == "bfloat16":
            return self.bfloat16
        return Dtypes(**{field.name: self.precision for field in dataclasses.fields(Dtypes) if field.name != "fp8"})

    def storage_dtype(self, name: str) -> str:
        """The type that a weight is stored in."""
        parameter = self.parameters()[name]
        return (
            self.dtypes.embedding
            if parameter.embedding
            else self.dtypes.scalars
            if parameter.scalar
            else self.dtypes.weights
        )

    def eval_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which the val loss is taken: 0, every val_every, denser in the last tenth, the last."""
        last_tenth = self.steps - self.steps // 10
        return tuple(
            n
            for n in range(self.steps + 1)
            if n == self.steps or n % (self.final_val_every if n >= last_tenth else self.val_every) == 0
        )

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which a checkpoint is kept, evenly spaced from 0 to the last."""
        return tuple(sorted({round(i * self.steps / (self.checkpoints - 1)) for i in range(self.checkpoints)}))

    def parameters(self) -> dict[str, Parameter]:
        """Every weight by its canonical name, in the model's order."""
        return parts.weights(self)

    def group(self, kind: str) -> str:
        """The optimizer group of a kind of weight. InputError where the recipe's parts have a kind that it gives no group."""
        if kind not in self.groups:
            raise InputError(
                f"recipe {self.name}: its parts have weights of the kind {kind}, for which `groups` has no optimizer group: "
                "name one"
            )
        return self.groups[kind]

    @abc.abstractmethod
    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate of every group at a step, computed in Python floats."""

    def matmul_params(self) -> int:
        """Weights that take part in a matrix product for every token: all matrices, the tied or untied head once."""
        return sum(math.prod(p.shape) for p in self.parameters().values() if len(p.shape) > 1 and not p.embedding)

    def attention_spans(self) -> list[int]:
        """How many positions attention sees at most, for every block that has it."""
        return [self.context for i in range(self.layers) if i != self.bare]

    def model_flops_per_token(self) -> float:
        """6 N + 12 D (sum of `spans`): forward and backward of the matrix products and of unmasked attention (PaLM, appendix B)."""
        return 6 * self.matmul_params() + 12 * self.dim * sum(self.attention_spans())


@dataclass(frozen=True)
class NanoGPT(Recipe):
    """`nanogpt`: GPT-2 as in nanoGPT, trained with AdamW."""

    name: ClassVar[str] = "nanogpt"
    parts: ClassVar[dict[str, str]] = {
        "init": "GPT2Init",
        "positions": "LearnedPositions",
        "norm": "LayerNorm",
        "qkv": "MergedQKV",
        "mask": "Causal",
        "mlp": "GELU",
        "head": "TiedHead",
        "cap": "MaskedPadding",
    }
    biases: ClassVar[bool] = True
    groups: ClassVar[dict[str, str]] = {"embedding": "decay", "matrix": "decay", "vector": "no_decay"}
    optimizers: ClassVar[dict[str, str]] = {"decay": "AdamW", "no_decay": "AdamW"}
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
        self._need(
            0 <= self.warmup_steps < self.steps,
            "warmup_steps",
            f"from 0 to steps - 1 = {self.steps - 1}",
            "the rate must reach its peak before the run ends",
        )
        self._need(self.init_std >= 0, "init_std", "not negative", "it is a standard deviation")

    def decay(self, group: str) -> float:
        return self.weight_decay if group == "decay" else 0.0

    def learning_rates(self, step: int) -> dict[str, float]:
        rate = self.peak_rate * schedules.warmup_cosine(step, self.steps, self.warmup_steps, self.final_fraction)
        return dict.fromkeys(self.optimizers, rate)


@dataclass(frozen=True)
class Muon(Recipe):
    """`muon`: the public optimization track's baseline, rotary and ReLU squared, trained with Muon and AdamW."""

    name: ClassVar[str] = "muon"
    parts: ClassVar[dict[str, str]] = {
        "init": "NormalInit",
        "norm_in": "RMSNorm",
        "norm": "RMSNorm",
        "qkv": "SeparateQKV",
        "turn": "HalfRotary",
        "mask": "Causal",
        "mlp": "ReLUSquared",
        "head": "Head",
        "cap": "RationalCap",
    }
    biases: ClassVar[bool] = True
    groups: ClassVar[dict[str, str]] = {"embedding": "embed", "head": "head", "vector": "vector", "matrix": "matrix"}
    optimizers: ClassVar[dict[str, str]] = {"embed": "AdamW", "head": "AdamW", "vector": "AdamW", "matrix": "Muon"}
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
    init_variance: ClassVar[float] = 0.33
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
        self._need(self.scale > 0, "attention_scale", "positive", "it scales the scores")

    @property
    def scale(self) -> float:
        """Factor of q k^T before the softmax."""
        return _scale(self)

    def decay(self, group: str) -> float:
        return self.muon_decay if group == "matrix" else self.adam_decay

    def learning_rates(self, step: int) -> dict[str, float]:
        fraction = schedules.cooldown(step, self.steps, self.cooldown)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "vector": self.vector_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


@dataclass(frozen=True)
class Record11(Recipe):
    """`record-11`: the public speedrun's record of 2024-11-10, with U-net skips, value and embedding residuals, and Muon."""

    name: ClassVar[str] = "record-11"
    parts: ClassVar[dict[str, str]] = {
        "init": "UniformInit",
        "norm_in": "Norm",
        "norm": "Norm",
        "qkv": "SeparateQKV",
        "turn": "FullRotary",
        "values": "FirstValues",
        "mask": "Causal",
        "mlp": "ReLUSquared",
        "residual": "InputResidual",
        "skips": "UNet",
        "head": "Head",
        "cap": "TanhCap",
    }
    groups: ClassVar[dict[str, str]] = {"embedding": "embed", "head": "head", "scalar": "scalar", "matrix": "matrix"}
    optimizers: ClassVar[dict[str, str]] = {
        "embed": "AdamW",
        "head": "AdamW",
        "scalar": "AdamW",
        "matrix": "SummedMuon",
    }
    bfloat16: ClassVar[Dtypes] = Dtypes(
        "float32",
        "bfloat16",
        "bfloat16",
        "bfloat16",
        "bfloat16",
        "float32",
        scalars="bfloat16",
        tables="bfloat16",
        capped="bfloat16",
    )
    init_bound: ClassVar[float] = 1.0

    norm_eps: float = RMS_EPS
    """Epsilon of every norm."""
    rotary_base: float = 10_000.0
    """The slowest pair turns by about 1 / rotary_base a token."""
    logit_cap: float = 30.0
    """Logits z become c tanh(z / c)."""
    embed_rate: float = 0.6
    """Peak rate of the embedding (Adam)."""
    head_rate: float = 0.008
    """Peak rate of the head (Adam)."""
    scalar_rate: float = 0.04
    """Peak rate of the learned factors (Adam)."""
    muon_rate: float = 0.04
    """Peak rate of the blocks' matrices (Muon)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averaging factors."""
    adam_eps: float = 1e-8
    """Adam's epsilon, outside the root."""
    momentum_start: float = 0.85
    """Muon's momentum at the first step."""
    momentum: float = 0.95
    """Muon's momentum, as a sum, after the first momentum_steps, and Nesterov's look ahead with the same factor."""
    momentum_steps: int = 500
    """Steps over which the momentum rises in a line."""
    newton_schulz_steps: int = 5
    """Steps of the orthogonalisation."""
    newton_schulz: tuple[float, float, float] = QUINTIC
    """Its coefficients a, b, c."""
    cooldown: float = 0.3
    """Every rate is its peak times min(1, (1 - step / steps) / cooldown)."""

    def momentum_at(self, step: int) -> float:
        return schedules.warmed(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        fraction = schedules.cooldown(step, self.steps, self.cooldown)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "scalar": self.scalar_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


@dataclass(frozen=True)
class Record21(Recipe):
    """`record-21`: the public speedrun's record of January 2025, with document masks, growing windows and value embeddings."""

    name: ClassVar[str] = "record-21"
    parts: ClassVar[dict[str, str]] = {
        "init": "UniformInit",
        "norm_in": "Norm",
        "norm": "Norm",
        "qkv": "StackedQKV",
        "turn": "HalfRotary",
        "values": "ValueEmbeddings",
        "mask": "DocumentWindow",
        "mlp": "ReLUSquared",
        "residual": "InputResidual",
        "skips": "UNet",
        "head": "FP8Head",
        "cap": "SigmoidCap",
    }
    groups: ClassVar[dict[str, str]] = Record11.groups
    optimizers: ClassVar[dict[str, str]] = Record11.optimizers | {"matrix": "Muon"}
    bfloat16: ClassVar[Dtypes] = Dtypes("float32", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "float32", fp8=True)
    init_bound: ClassVar[float] = 0.5 * 3**0.5

    norm_eps: float = RMS_EPS
    """Epsilon of every norm."""
    attention_scale: float | None = None
    """Factor of q k^T; None: 0.12 * sqrt(128 / head_dim)."""
    rotary_base: float = 1024.0
    """The slowest rotating pair turns by 1 / rotary_base a token."""
    window: int = 1728
    """Tokens that the long window grows to over the run, in whole blocks; the short one has half of the blocks."""
    block: int = 128
    """Tokens of a block of attention."""
    long_blocks: tuple[int, ...] | None = None
    """Blocks of the model with the long window; None: the first, the last, and of six or more those at L / 3 and 7 L / 12."""
    bare_block: int | None = None
    """The block without attention; None: 7 L / 12, and none of fewer than four; -1: none."""
    value_embeddings: int | None = None
    """How many embeddings of values the first, and again the last, blocks use; None: L / 4, at least one."""
    val_context: int | None = None
    """Tokens of a row in evaluation; None: 4 rows' worth."""
    logit_cap: float = 30.0
    """Logits z become c sigmoid(z / s)."""
    logit_slope: float = 7.5
    """The s of the cap."""
    fp8: bool = True
    """Round the head's operands to 8 bits in training, at precision bfloat16."""
    fp8_scales: tuple[float, float, float] = (2.0, 2.0**9, 2.0**19)
    """What x, the weight and the gradient (of a row's mean loss) are multiplied by before they are rounded to 8 bits."""
    embed_rate: float = 0.6
    """Peak rate of the embedding and the value embeddings (Adam)."""
    head_rate: float = 0.008
    """Peak rate of the head (Adam)."""
    scalar_rate: float = 0.04
    """Peak rate of the learned factors (Adam)."""
    muon_rate: float = 0.05
    """Peak rate of the blocks' matrices (Muon)."""
    betas: tuple[float, float] = (0.8, 0.95)
    """Adam's averaging factors."""
    adam_eps: float = 1e-10
    """Adam's epsilon, outside the root."""
    momentum_start: float = 0.85
    """Muon's momentum at the first step."""
    momentum: float = 0.95
    """Muon's momentum, by interpolation, after the first momentum_steps, and Nesterov's look ahead with the same factor."""
    momentum_steps: int = 300
    """Steps over which the momentum rises in a line."""
    newton_schulz_steps: int = 5
    """Steps of the orthogonalisation."""
    newton_schulz: tuple[float, float, float] = QUINTIC
    """Its coefficients a, b, c."""
    cooldown: float = 0.4
    """Every rate is its peak, and over the last part of the run falls in a line to final_fraction of it."""
    final_fraction: float = 0.1
    """The rate at the end as a fraction of the peak."""

    def __post_init__(self) -> None:
        self._need(
            all(0 <= i < self.layers for i in self.long_blocks or ()),
            "long_blocks",
            f"from 0 to {self.layers - 1}",
            f"the model has {self.layers} blocks",
        )
        self._need(
            -1 <= (self.bare or 0) < self.layers,
            "bare_block",
            f"-1, or from 0 to {self.layers - 1}",
            f"the model has {self.layers} blocks",
        )
        for field in ("block", "window"):
            self._need(getattr(self, field) > 0, field, "positive", "attention sees at least its own block")
        self._need(
            self.val_context is None or self.val_context > 0,
            "val_context",
            "positive",
            "evaluation reads rows of so many tokens",
        )
        self._need(
            all(scale > 0 for scale in self.fp8_scales),
            "fp8_scales",
            "three positive numbers",
            "they are divided by again",
        )
        super().__post_init__()
        self._need(self.scale > 0, "attention_scale", "positive", "it scales the scores")

    @property
    def scale(self) -> float:
        return _scale(self)

    @property
    def embedding_rows(self) -> int:
        return self.tokenizer_size

    @property
    def bare(self) -> int | None:
        if self.bare_block is None:
            return 7 * self.layers // 12 if self.layers >= 4 else None
        return None if self.bare_block == -1 else self.bare_block

    @property
    def eval_context(self) -> int:
        return 4 * self.context if self.val_context is None else self.val_context

    @property
    def long(self) -> frozenset[int]:
        """The blocks of the model that have the long window."""
        if self.long_blocks is not None:
            return frozenset(self.long_blocks)
        ends = {0, self.layers - 1}
        return frozenset(ends if self.layers < 6 else ends | {self.layers // 3, 7 * self.layers // 12})

    @property
    def value_count(self) -> int:
        """How many embeddings of values there are."""
        return max(1, self.layers // 4) if self.value_embeddings is None else self.value_embeddings

    @property
    def value_embedding_of(self) -> dict[int, int]:
        """Block -> the number of the value embedding that it uses."""
        last = self.layers - self.value_count
        return {
            i if i < self.value_count else last + i - self.value_count: i % self.value_count
            for i in range(2 * self.value_count)
        }

    def attention_window(self, step: int) -> int:
        return schedules.grown(min(step, self.steps), self.steps, self.window, self.block)

    def attention_spans(self) -> list[int]:
        widest = self.attention_window(self.steps)
        return [
            min(self.context, self.block * (widest if i in self.long else max(1, widest // 2)))
            for i in range(self.layers)
            if i != self.bare
        ]

    def momentum_at(self, step: int) -> float:
        return schedules.warmed(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        fraction = schedules.cooldown(step, self.steps, self.cooldown, self.final_fraction)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "scalar": self.scalar_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


def _scale(recipe: Any) -> float:
    return recipe.attention_scale if recipe.attention_scale is not None else 0.12 * math.sqrt(128 / recipe.head_dim)


# Checkpoints cost disk (23 MB each at pocket), and save the verifier time: it makes whole stretches between them again.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "tokenizer_size": 512,
        "vocab_size": 512,
        "dim": 64,
        "layers": 4,
        "head_dim": 16,
        "context": 64,
        "batch_tokens": 1024,
        "steps": 60,
        "val_every": 20,
        "final_val_every": 20,
    },
    "pocket": {
        "tokenizer_size": 4096,
        "vocab_size": 4096,
        "dim": 128,
        "layers": 4,
        "head_dim": 32,
        "context": 256,
        "batch_tokens": 4096,
        "steps": 256,
        "val_every": 32,
        "final_val_every": 32,
        "checkpoints": 17,
    },
    "small": {
        "tokenizer_size": 50257,
        "vocab_size": 50304,
        "dim": 768,
        "layers": 12,
        "head_dim": 128,
        "context": 1024,
        "batch_tokens": 524_288,
        "steps": 3250,
        "val_every": 125,
        "final_val_every": 25,
    },
}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("nanogpt", "tiny"): {"peak_rate": 3e-3, "warmup_steps": 6},
    ("nanogpt", "pocket"): {"peak_rate": 1e-2, "warmup_steps": 26},
    ("nanogpt", "small"): {"head_dim": 64, "steps": 19_380, "val_every": 250, "final_val_every": 250, "gelu": "tanh"},
    ("record-11", "tiny"): {"momentum_steps": 10},
    ("record-11", "pocket"): {"momentum_steps": 43},
    ("record-11", "small"): {"steps": 3000},
    ("record-21", "tiny"): {"context": 128, "val_context": 512, "window": 54, "block": 4, "momentum_steps": 10},
    ("record-21", "pocket"): {"context": 1024, "val_context": 4096, "window": 432, "block": 32, "momentum_steps": 43},
    ("record-21", "small"): {
        "context": 48 * 1024,
        "val_context": 256 * 1024,
        "batch_tokens": 8 * 48 * 1024,
        "steps": 1770,
    },
}
RECIPES: dict[str, type[Recipe]] = {kind.name: kind for kind in (NanoGPT, Muon, Record11, Record21)}


def recipe_for(name: str, scale: str) -> Recipe:
    """The recipe of a name at a scale (tiny, pocket, small); InputError with the nearest name where there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    if scale not in SIZES:
        raise InputError(f"unknown scale {scale!r}; {nearest(scale, SIZES)}")
    names = [
        kind.name for kind in RECIPES[name].__mro__ if "name" in vars(kind)
    ]  # a recipe that derives from another has its sizes
    changes = next((CHANGES[own, scale] for own in names if (own, scale) in CHANGES), {})
    return RECIPES[name](**(SIZES[scale] | changes))


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
