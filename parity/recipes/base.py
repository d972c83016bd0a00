"""What every recipe has: model sizes, batch plan, evaluation, precision, weights, schedules. Names no framework.

Letters in array names, used in both backends:

    B rows of a batch    T tokens of a row (context)    D width of the model    L blocks
    H heads              K width of a head              F width of the MLP      V rows of the head (vocabulary, padded)

Steps count from 0. A recipe is a frozen dataclass; `__post_init__` refuses impossible values with the reason.
"""

import abc
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from parity.data.stream import Segment
from parity.errors import InputError, nearest

Precision = Literal["float32", "bfloat16", "float64"]
RMS_EPS = 1.1920929e-07  # float32 machine epsilon, the same number in every precision
# Implemented in `optim.py` of both backends; those after MuonSGD are of the records from 39 on.
OPTIMIZERS = ("AdamW", "Muon", "MuonSGD", "OddAdam", "MuonUnscaled", "NorMuon", "NorMuonColumns")


@dataclass(frozen=True)
class Dtypes:
    """The type that each part of a program computes in: the one switch for precision, read by both backends."""

    weights: str  # weights as stored, with their optimizer state
    embedding: str  # embeddings as stored
    matmul: str  # operands and results of matrix products and of attention
    residual: str  # the activations between the blocks
    newton_schulz: str
    accum: str  # norms, softmax, rotary, logits, loss
    scalars: str = "float32"  # learned scalars as stored
    rotary: str = "float32"  # rotary's cosines and sines
    softcap: str = "float32"  # logits as the softcap leaves them, before they are widened to `accum`
    moments: str = "float32"  # OddAdam's moments
    fp8: bool = False  # whether an FP8 head rounds to 8 bits
    truncate: bool = False  # whether matrices lose their lower 16 bits, unrounded, where they are cast to `matmul`

    @property
    def narrow(self) -> "Dtypes":
        """Those of a layer whose weights are stored in the type of embeddings."""
        return dataclasses.replace(self, weights=self.embedding, truncate=False)


@dataclass(frozen=True)
class Parameter:
    """One weight: shape (matrices as (out, in)), optimizer group, and first value.

    The first value is drawn from N(0, std) or uniformly from [-bound, bound]; where both are None it is the constant
    `value`. `embedding`: a table whose rows are only looked up. `scalar`: a few learned scalars. `narrow`: no
    embedding, but stored in their type. `like`: the weight whose random numbers it is drawn from, too.
    """

    shape: tuple[int, ...]
    group: str
    std: float | None = None
    value: float | tuple[float, ...] = 0.0
    embedding: bool = False
    bound: float | None = None
    scalar: bool = False
    narrow: bool = False
    like: str | None = None


ParameterTable = dict[str, Parameter]

# Sizes that all recipes share at a scale. More checkpoints cost disk (18 MB each at pocket) and save the verifier time,
# which repeats whole segments between them. Those of pocket are at its evaluations, which are recomputed from them.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "tokenizer_size": 512, "vocab_size": 512, "dim": 64, "layers": 4, "head_dim": 16, "context": 64,
        "batch_tokens": 1024, "steps": 60, "val_every": 20, "final_val_every": 20,
    },
    "pocket": {
        "tokenizer_size": 4096, "vocab_size": 4096, "dim": 128, "layers": 4, "head_dim": 32, "context": 256,
        "batch_tokens": 4096, "steps": 256, "val_every": 32, "final_val_every": 32, "checkpoints": 9,
    },
    "small": {
        "tokenizer_size": 50257, "vocab_size": 50304, "dim": 768, "layers": 12, "head_dim": 128, "context": 1024,
        "batch_tokens": 524_288, "steps": 3250, "val_every": 125, "final_val_every": 25,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Recipe(abc.ABC):
    """Sizes, batch plan, evaluation and checkpoint steps, precision; a subclass adds hyperparameters, weights,
    schedules.

    `sizes` holds what a recipe changes of `SIZES` at each scale, `optimizers` the optimizer of each parameter group,
    `bfloat16` the types at that precision.
    """

    name: ClassVar[str] = ""
    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    optimizers: ClassVar[dict[str, str]] = {}
    bfloat16: ClassVar[Dtypes]
    loss_reduction: ClassVar[Literal["mean", "sum", "rows"]] = "mean"
    """The loss whose gradient is taken: of all tokens' losses the mean, the sum, or the sum divided by the rows."""
    newton_schulz_norm: ClassVar[tuple[float, float]] = (1.0, 1e-7)
    """f and e of the norm that a matrix is divided by before it is orthogonalized, f ||X|| + e."""

    tokenizer_size: int
    """Token ids that occur: 0 .. tokenizer_size - 1."""
    vocab_size: int
    """V: rows of the head, at least tokenizer_size."""
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
    """float32, bfloat16 (products in bfloat16, float32 master weights) or float64 (for parity)."""

    def __post_init__(self) -> None:
        self._check_annotations()
        for field in dataclasses.fields(self):
            numbers = [value for value in np.ravel(getattr(self, field.name)) if isinstance(value, float)]
            self._require(all(map(math.isfinite, numbers)), field.name, "finite", "nothing can be computed with it")
        for name in ("tokenizer_size", "vocab_size", "dim", "layers", "head_dim", "context", "batch_tokens", "steps"):
            self._require(getattr(self, name) > 0, name, "a positive number", "a run needs at least one")
        for name in ("val_every", "final_val_every"):
            self._require(getattr(self, name) > 0, name, "a positive number", "evaluations are so many steps apart")
        size = self.tokenizer_size
        self._require(
            self.vocab_size >= size, "vocab_size", f"at least tokenizer_size {size}", "every token needs a logit"
        )
        self._require(self.vocab_size <= 65536, "vocab_size", "at most 65536", "shards hold tokens as 16-bit numbers")
        self._require(
            self.dim % self.head_dim == 0, "head_dim", f"a divisor of dim {self.dim}", "heads have equal widths"
        )
        rows = f"a multiple of context {self.context}"
        self._require(self.batch_tokens % self.context == 0, "batch_tokens", rows, "a batch is made of whole rows")
        replay = "a replay needs the start, the end and three between"
        self._require(self.checkpoints >= 5, "checkpoints", "at least 5", replay)
        precisions = ("float32", "bfloat16", "float64")
        self._require(
            self.precision in precisions, "precision", "float32, bfloat16 or float64", "recipes describe no other"
        )
        self._check_hyperparameters()
        self._check_groups()

    @abc.abstractmethod
    def _check_hyperparameters(self) -> None:
        """Raises InputError for impossible values of the fields that a subclass adds."""

    def _check_groups(self) -> None:
        """Raises InputError where a weight's group has no optimizer, or one that does not fit its shape."""
        for group, optimizer in self.optimizers.items():
            if optimizer not in OPTIMIZERS:
                hint = nearest(optimizer, OPTIMIZERS)
                raise InputError(f"recipe {self.name}: the optimizer {optimizer} of {group} is unknown; {hint}")
        for name, parameter in self.parameters().items():
            where = f"recipe {self.name}: {name}"
            if parameter.group not in self.optimizers:
                raise InputError(f"{where} is of the group {parameter.group}, which has no optimizer: name one for it")
            optimizer = self.optimizers[parameter.group]
            if optimizer not in ("AdamW", "OddAdam") and len(parameter.shape) < 2:
                raise InputError(
                    f"{where}: the optimizer {optimizer} needs matrices, found shape {parameter.shape}: "
                    "give its group AdamW"
                )

    def _check_annotations(self) -> None:
        """Raises InputError where a subclass annotates a field but is no dataclass, so that the field is not there."""
        fields = {field.name for field in dataclasses.fields(self)}
        for kind in type(self).__mro__:
            for name, hint in vars(kind).get("__annotations__", {}).items():
                if name not in fields and "ClassVar" not in str(hint):
                    raise InputError(
                        f"recipe {self.name}: {kind.__name__}.{name} is no field yet: put @dataclass(frozen=True) "
                        "above the class"
                    )

    def _require(self, holds: bool, field: str, expected: str, reason: str) -> None:
        if not holds:
            option = "--" + field.replace("_", "-")
            value = getattr(self, field)
            raise InputError(f"recipe {self.name}: {option} must be {expected} ({reason}), found {value!r}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) > 0, name, "positive", "it divides, or scales the update")

    @classmethod
    def from_base(cls, base: "Recipe") -> Self:
        """A recipe of this class from one of a class that it derives from.

        Fields that this class declares itself have its defaults, the others the values of `base`.
        """
        own = {
            name
            for kind in cls.__mro__
            if not issubclass(type(base), kind)
            for name in vars(kind).get("__annotations__", ())
        }
        return cls(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base) if f.name not in own})

    @property
    def heads(self) -> int:
        """H: number of attention heads."""
        return self.dim // self.head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor of q k^T before the softmax."""
        return self.head_dim**-0.5

    @property
    def end_of_text(self) -> int:
        """The token that a document starts with: the tokenizer's last."""
        return self.tokenizer_size - 1

    @property
    def eval_context(self) -> int:
        """Tokens of a row in evaluation."""
        return self.context

    @property
    def separate_documents(self) -> bool:
        """Whether attention sees no other document."""
        return False

    @property
    def seen_before_document(self) -> int | None:
        """How many tokens before a document's start its positions may depend on; None: any number."""
        return 0 if self.separate_documents else None

    def attention_window(self, step: int) -> int | None:
        """The window of attention in blocks after so many updates; None where attention has no window."""
        return None

    def attention_stage(self, step: int) -> int | None:
        """The number of the stage of attention after so many updates; None where attention has no stages."""
        return None

    def loss_per_token(self, rows: int, length: int) -> float:
        """What the recipe's loss of a batch is multiplied by to be the mean in nats per token."""
        return {"mean": 1.0, "sum": 1 / (rows * length), "rows": 1 / length}[self.loss_reduction]

    def row_loss_factor(self, length: int) -> float:
        """What the sum of a row's losses is multiplied by to be the loss whose gradient 8-bit numbers hold."""
        return 1 / length if self.loss_reduction == "mean" else 1.0

    def target_weights(self, step: int) -> tuple[float, ...]:
        """What a position's losses of the next target, the one after it and so on count in training."""
        return (1.0,)

    def window_stages(self) -> list[int]:
        """The steps at which PyTorch compiles again for a wider window: 0, and where it passes a power of two."""
        widths = {step: ((self.attention_window(step) or 1) - 1).bit_length() for step in range(self.steps)}
        return [step for step, width in widths.items() if step == 0 or width > widths[step - 1]]

    def attention_spans(self) -> list[int]:
        """The most positions that a query sees, for every block that has attention."""
        return [self.context] * self.layers

    @abc.abstractmethod
    def parameters(self) -> ParameterTable:
        """Every weight by its canonical name, in the order of the forward pass."""

    @abc.abstractmethod
    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate of every parameter group at a step, computed in Python floats."""

    def group_weight_decay(self, group: str) -> float:
        """Decoupled weight decay of a parameter group."""
        return 0.0

    def cautious_decay(self, group: str, step: int) -> float:
        """Decoupled weight decay of a parameter group where weight and update have one sign."""
        return 0.0

    @property
    def plan(self) -> tuple[Segment, ...]:
        """The batch plan: segments of (steps, tokens a batch, row length)."""
        return (Segment(self.steps, self.batch_tokens, self.context),)

    @property
    def dtypes(self) -> Dtypes:
        """The types at this recipe's precision."""
        if self.precision == "bfloat16":
            return self.bfloat16
        names = (field.name for field in dataclasses.fields(Dtypes) if field.type is str)
        types: dict[str, Any] = dict.fromkeys(names, self.precision)
        return Dtypes(**types)

    def storage_dtype(self, name: str) -> str:
        """The type that a weight is stored in."""
        parameter = self.parameters()[name]
        if parameter.embedding or parameter.narrow:
            return self.dtypes.embedding
        return self.dtypes.scalars if parameter.scalar else self.dtypes.weights

    def first_dtype(self, name: str) -> str:
        """The type that a weight's first value is rounded to."""
        stored = self.storage_dtype(name)
        truncated = self.dtypes.truncate and stored == self.dtypes.weights and not self.parameters()[name].scalar
        return self.dtypes.matmul if truncated else stored

    def eval_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which the val loss is computed: 0, every val_every, denser in the last tenth."""
        last_tenth = self.steps - self.steps // 10

        def evaluates(updates: int) -> bool:
            every = self.final_val_every if updates >= last_tenth else self.val_every
            return updates == self.steps or updates % every == 0

        return tuple(filter(evaluates, range(self.steps + 1)))

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Numbers of updates after which a checkpoint is kept, evenly spaced from 0 to the last."""
        return tuple(sorted({round(i * self.steps / (self.checkpoints - 1)) for i in range(self.checkpoints)}))

    def matmul_params(self) -> int:
        """Weights in a matrix product with every token: all matrices, the tied or untied head once."""
        return sum(math.prod(p.shape) for p in self.parameters().values() if len(p.shape) > 1 and not p.embedding)

    def model_flops_per_token(self) -> float:
        """6 N + 12 D sum(attention_spans): matrix products and unmasked attention, forward and backward (PaLM, B)."""
        return 6 * self.matmul_params() + 12 * self.dim * sum(self.attention_spans())
