"""`record-21`: the speedrun's record of January 2025 (2.997 minutes). Models: models/record_21.py of both backends."""

from dataclasses import dataclass
from typing import Any, ClassVar

from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable
from parity.recipes.record_11 import check_momentum_warmup, learned_scalars
from parity.recipes.speedrun import SpeedrunRecipe, spread_scale


@dataclass(frozen=True)
class Record21(SpeedrunRecipe):
    """Document masks, windows that grow, value embeddings, U-net skips, one block without attention, an FP8 head."""

    name: ClassVar[str] = "record-21"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"context": 128, "val_context": 512, "window": 54, "block": 4, "momentum_steps": 10},
        "pocket": {"context": 1024, "val_context": 4096, "window": 432, "block": 32, "momentum_steps": 43},
        "small": {
            "context": 48 * 1024, "val_context": 256 * 1024, "batch_tokens": 8 * 48 * 1024, "steps": 1770,
        },
    }  # fmt: skip
    optimizers: ClassVar[dict[str, str]] = {"embed": "AdamW", "head": "AdamW", "scalar": "AdamW", "matrix": "Muon"}
    peak_rates: ClassVar[dict[str, str]] = {
        "embed": "embed_rate", "head": "head_rate", "scalar": "scalar_rate", "matrix": "muon_rate",
    }  # fmt: skip
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="bfloat16", matmul="bfloat16", residual="bfloat16", newton_schulz="bfloat16",
        accum="float32", fp8=True,
    )  # fmt: skip
    init_bound: ClassVar[float] = 0.5 * 3**0.5  # uniform within b / sqrt(fan_in): standard deviation 0.5 / sqrt(fan_in)

    attention_scale: float | None = None
    """Factor of q k^T; None: 0.12 * sqrt(128 / head_dim)."""
    window: int = 1728
    """Tokens that the long window grows to over the run, in whole blocks; the short one has half of the blocks."""
    block: int = 128
    """Tokens of a block of attention."""
    long_blocks: tuple[int, ...] | None = None
    """Blocks of the model with the long window; None: the first, the last, and of six or more those at L / 3 and
    7 L / 12."""
    bare_block: int | None = None
    """The block without attention; None: 7 L / 12, and none of fewer than four; -1: none."""
    value_embeddings: int | None = None
    """How many embeddings of values the first, and again the last, blocks use; None: L / 4, at least one."""
    val_context: int | None = None
    """Tokens of a row in evaluation; None: 4 rows' worth."""
    logit_cap: float = 30.0
    """Logits z become c sigmoid(z / s)."""
    logit_slope: float = 7.5
    """The s of the softcap."""
    fp8: bool = True
    """Round the operands of the head's product to 8 bits in training, at precision bfloat16."""
    fp8_scales: tuple[float, float, float] = (2.0, 2.0**9, 2.0**19)
    """Factors of x, the weight and the gradient (of a row's mean loss) before they are rounded to 8 bits."""
    embed_rate: float = 0.6
    head_rate: float = 0.008
    scalar_rate: float = 0.04
    """Peak learning rate of the learned scalars (Adam)."""
    muon_rate: float = 0.05
    betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10
    momentum_start: float = 0.85
    """Muon's momentum at the first step."""
    momentum: float = 0.95
    momentum_steps: int = 300
    """Steps over which the momentum rises in a line."""
    cooldown: float = 0.4
    final_fraction: float = 0.1
    """The learning rates at the end as a fraction of their peaks."""

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_momentum_warmup(self)
        self._require_rotary(multiple=4, least=8)
        self._require_positive("logit_slope")
        self._require(0 <= self.final_fraction <= 1, "final_fraction", "in [0, 1]", "it is a fraction of the peak")
        self._require(
            all(scale > 0 for scale in self.fp8_scales), "fp8_scales", "three positive numbers", "they divide"
        )
        self._require(self.softmax_scale > 0, "attention_scale", "positive", "it scales the scores")
        self._check_windows()
        self._check_blocks()

    def _check_windows(self) -> None:
        for name in ("block", "window"):
            self._require(getattr(self, name) > 0, name, "positive", "attention sees at least its own block")
        positive = self.val_context is None or self.val_context > 0
        self._require(positive, "val_context", "positive", "evaluation reads rows of so many tokens")
        whole, reason = f"a multiple of --block {self.block}", "rows are made of whole blocks"
        self._require(self.context % self.block == 0, "context", whole, reason)
        self._require(self.eval_context % self.block == 0, "val_context", whole, reason)
        fits = self.window <= self.context
        self._require(fits, "window", f"at most the context, {self.context}", "no window is wider than a row")

    def _check_blocks(self) -> None:
        L = self.layers
        self._require(L % 2 == 0, "layers", "even", "each block of the second half adds one of the first's")
        inside = all(0 <= i < L for i in self.long_blocks or ())
        self._require(inside, "long_blocks", f"from 0 to {L - 1}", f"the model has {L} blocks")
        inside = -1 <= (self.no_attention_layer or 0) < L
        self._require(inside, "bare_block", f"-1, or from 0 to {L - 1}", f"the model has {L} blocks")
        fits = 0 < self.value_embedding_count <= L // 2
        reason = f"the first and the last so many of {L} blocks use them, each one"
        self._require(fits, "value_embeddings", f"from 1 to {L // 2}", reason)
        without = self.no_attention_layer not in self.value_embedding_of
        reason = "value embeddings need the block's attention"
        self._require(without, "bare_block", "a block without a value embedding", reason)

    @property
    def softmax_scale(self) -> float:
        return spread_scale(self.head_dim) if self.attention_scale is None else self.attention_scale

    @property
    def eval_context(self) -> int:
        return 4 * self.context if self.val_context is None else self.val_context

    @property
    def separate_documents(self) -> bool:
        return True

    @property
    def no_attention_layer(self) -> int | None:
        """The block that has no attention."""
        if self.bare_block is None:
            return 7 * self.layers // 12 if self.layers >= 4 else None
        return None if self.bare_block == -1 else self.bare_block

    @property
    def long_window_layers(self) -> frozenset[int]:
        """The blocks of the model that have the long window."""
        if self.long_blocks is not None:
            return frozenset(self.long_blocks)
        ends = {0, self.layers - 1}
        return frozenset(ends if self.layers < 6 else ends | {self.layers // 3, 7 * self.layers // 12})

    @property
    def value_embedding_count(self) -> int:
        """How many embeddings of values there are."""
        return max(1, self.layers // 4) if self.value_embeddings is None else self.value_embeddings

    @property
    def value_embedding_of(self) -> dict[int, int]:
        """Block -> the number of the value embedding that it uses: the first blocks in order, and the last."""
        count, last = self.value_embedding_count, self.layers - self.value_embedding_count
        return {i: i for i in range(count)} | {last + i: i for i in range(count)}

    def parameters(self) -> ParameterTable:
        """Embeddings N(0, 1), matrices uniform with deviation 0.5 / sqrt(fan_in); projections and head 0."""
        D, V, rows, bound = self.dim, self.vocab_size, self.tokenizer_size, self.init_bound / self.dim**0.5
        table = {"embed.weight": Parameter((rows, D), "embed", std=1.0, embedding=True)}
        for i in range(self.value_embedding_count):
            table[f"value_embeds.{i}.weight"] = Parameter((rows, D), "embed", std=1.0, embedding=True)
        for i in range(self.layers):
            block = f"blocks.{i}."
            table |= learned_scalars(block + "lambdas", 1.0, 0.0)
            if i != self.no_attention_layer:
                table[f"{block}attn.qkv.weight"] = Parameter((3, D, D), "matrix", bound=bound)
                table |= learned_scalars(block + "attn.lambdas", 0.5, 0.5)
                table[f"{block}attn.proj.weight"] = Parameter((D, D), "matrix")
            table[f"{block}mlp.fc.weight"] = Parameter((4 * D, D), "matrix", bound=bound)
            table[f"{block}mlp.proj.weight"] = Parameter((D, 4 * D), "matrix")
        table |= learned_scalars("skips", *[1.0] * (self.layers // 2))
        return table | {"head.weight": Parameter((V, D), "head")}

    def attention_window(self, step: int) -> int:
        """The long window in blocks: it grows from one block to `window` tokens over the run."""
        return schedules.window_schedule(min(step, self.steps), self.steps, self.window, self.block)

    def attention_spans(self) -> list[int]:
        widest = self.attention_window(self.steps)
        blocks = [widest if i in self.long_window_layers else max(1, widest // 2) for i in range(self.layers)]
        return [min(self.context, self.block * n) for i, n in enumerate(blocks) if i != self.no_attention_layer]

    def momentum_at(self, step: int) -> float:
        return schedules.linear_warmup(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Each group's peak, falling in a line to `final_fraction` of it over the last `cooldown` of the run."""
        fraction = schedules.stable_then_decay(step, self.steps, self.cooldown, self.final_fraction)
        return {group: getattr(self, field) * fraction for group, field in self.peak_rates.items()}
