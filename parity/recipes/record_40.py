"""`record-40`: the speedrun's record of October 2025 (141.5 s). Models: models/record_40.py of both backends."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from parity.data.stream import Segment
from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable
from parity.recipes.record_11 import check_momentum_warmup, learned_scalars
from parity.recipes.speedrun import SpeedrunRecipe, spread_scale

# a, b, c of five steps, as in the public program (Polar Express, Amsel et al., arXiv 2505.16932).
POLAR_EXPRESS = (
    8.156554524902461, -22.48329292557795, 15.878769915207462,
    4.042929935166739, -2.808917465908714, 0.5000178451051316,
    3.8916678022926607, -2.772484153217685, 0.5060648178503393,
    3.285753657755655, -2.3681294933425376, 0.46449024233003106,
    2.3465413258596377, -1.7097828382687081, 0.42323551169305323,
)  # fmt: skip
GATE_INPUTS = 12  # channels that a gate reads, the first ones


class AttentionStage(NamedTuple):
    """Attention in a part of the run: the long and the short window, in positions before a query's own; the rotary
    frequencies of a head's K / 2 pairs; the factor of q k^T."""

    long: int
    short: int
    frequencies: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class Record40(SpeedrunRecipe):
    """Rows from documents' starts, windows in stages with YaRN, gates, smear, backout; Polar Express, Adam on odd
    steps."""

    name: ClassVar[str] = "record-40"
    # At pocket documents are cut by rows alone: the slice has too few to cut them earlier.
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "layers": 6, "context": 128, "val_context": 512, "max_len": 64, "block": 4, "momentum_steps": 8,
            "momentum_cooldown": 2, "extension": 1,
        },
        "pocket": {
            "layers": 6, "context": 512, "val_context": 4096, "max_len": 1024, "block": 32, "momentum_steps": 33,
            "momentum_cooldown": 5, "extension": 4,
        },
        "small": {
            "context": 32 * 1024, "val_context": 256 * 1024, "batch_tokens": 8 * 32 * 1024, "steps": 2330,
            "val_every": 250, "final_val_every": 250,
        },
    }  # fmt: skip
    optimizers: ClassVar[dict[str, str]] = {
        "embed": "OddAdam", "head": "OddAdam", "scalar": "OddAdam", "matrix": "MuonUnscaled",
    }  # fmt: skip
    peak_rates: ClassVar[dict[str, str]] = {
        "embed": "embed_rate", "head": "head_rate", "scalar": "scalar_rate", "matrix": "muon_rate",
    }  # fmt: skip
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="bfloat16", matmul="bfloat16", residual="bfloat16", newton_schulz="bfloat16",
        accum="float32", rotary="bfloat16", softcap="bfloat16", moments="bfloat16", fp8=True,
    )  # fmt: skip
    loss_reduction: ClassVar[Any] = "rows"
    newton_schulz_norm: ClassVar[tuple[float, float]] = (1.02, 1e-6)
    init_bound: ClassVar[float] = 0.5 * 3**0.5  # uniform within b / sqrt(D): standard deviation 0.5 / sqrt(D)

    max_len: int = 2048
    """Tokens that a document is cut to in a row of training."""
    block: int = 128
    """Positions that windows are counted in."""
    windows: tuple[int, ...] = (3, 7, 11)
    """The long window in blocks, in equal parts of the run without its extension; the short one has half of them."""
    final_window: int = 13
    """The long window in blocks that rotary is adapted to, and the short one halves, after the last step."""
    eval_window: int = 20
    """The long window in blocks of the evaluation after the last step."""
    attention_scale: float | None = None
    """Factor of q k^T in the first stage; None: 0.1 * sqrt(128 / head_dim)."""
    val_context: int | None = None
    """Tokens of a row in evaluation; None: 8 rows' worth."""
    logit_cap: float = 30.0
    """Logits z become c sigmoid(z / s)."""
    logit_slope: float = 7.5
    """The s of the softcap."""
    fp8: bool = True
    """Round the operands of the head's product to 8 bits in training, at precision bfloat16."""
    embed_rate: float = 0.6
    head_rate: float = 0.008
    scalar_rate: float = 0.04
    """Peak learning rate of the learned scalars (Adam)."""
    muon_rate: float = 0.06
    betas: tuple[float, float] = (0.65, 0.95)
    adam_eps: float = 1e-8
    newton_schulz: tuple[float, ...] = POLAR_EXPRESS
    """Coefficients a, b, c of every step of the orthogonalisation in turn, or of all."""
    momentum_start: float = 0.85
    """Muon's momentum at the first step, and after the last."""
    momentum: float = 0.95
    momentum_steps: int = 300
    """Steps over which the momentum rises in a line."""
    momentum_cooldown: int = 50
    """Steps over which it falls again, at the end."""
    extension: int = 40
    """Steps at the end that the schedules of rates and windows do not count."""
    cooldown: float = 0.45
    final_fraction: float = 0.1
    """The learning rates at the end as a fraction of their peaks."""

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_momentum_warmup(self)
        self._require_rotary(multiple=4, least=8)
        self._require_positive("logit_slope", "block")
        self._require(0 <= self.final_fraction <= 1, "final_fraction", "in [0, 1]", "it is a fraction of the peak")
        self._require(self.first_scale > 0, "attention_scale", "positive", "it scales the scores")
        self._require(self.dim >= GATE_INPUTS, "dim", f"at least {GATE_INPUTS}", "gates read so many channels")
        reason = "an input and a target are two tokens"
        self._require(self.max_len >= 2, "max_len", "at least 2", reason)
        self._require(bool(self.windows), "windows", "at least one window", "attention sees something")
        rising = all(a <= b for a, b in zip((1, *self.windows), (*self.windows, self.final_window), strict=True))
        self._require(rising, "windows", "positive, rising, at most --final-window", "rotary is adapted to wider ones")
        fits = self.block * max(self.windows) <= self.context
        self._require(fits, "windows", f"at most the context, {self.context}", "no window is wider than a row")
        self._require(0 <= self.extension < self.steps, "extension", f"below {self.steps}", "the run has so many steps")
        reason = "the momentum falls over so many steps of the run"
        self._require(0 < self.momentum_cooldown <= self.steps, "momentum_cooldown", f"1 to {self.steps}", reason)
        steps, given = self.newton_schulz_steps, len(self.newton_schulz)
        self._require(given in (3, 3 * steps), "newton_schulz", f"3 or {3 * steps} numbers", "each step takes three")
        self._check_layers()

    def _check_layers(self) -> None:
        even = self.layers % 2 == 0 and self.layers >= 6
        self._require(even, "layers", "even, at least 6", "each block of the second half but the last adds one before")

    @property
    def first_scale(self) -> float:
        """The factor of q k^T in the first stage."""
        return spread_scale(self.head_dim, 0.1) if self.attention_scale is None else self.attention_scale

    @property
    def eval_context(self) -> int:
        return 8 * self.context if self.val_context is None else self.val_context

    @property
    def separate_documents(self) -> bool:
        return True

    @property
    def seen_before_document(self) -> int | None:
        return 1  # smear

    @property
    def plan(self) -> tuple[Segment, ...]:
        return (Segment(self.steps, self.batch_tokens, self.context, self.max_len),)

    @property
    def fp8_scales(self) -> tuple[float, float, float]:
        """Factors of x, the weight and the gradient (of the sum of a row's losses), before 8-bit rounding."""
        return 448 / self.dim**0.5, 2.0**9, 448.0

    @property
    def no_attention_layer(self) -> int:
        """The block that has no attention; block 0 is empty altogether."""
        return 7 * self.layers // 12

    @property
    def long_window_layers(self) -> frozenset[int]:
        """The blocks of the model that have the long window."""
        return frozenset((self.layers // 3, self.layers - 1))

    @property
    def backout_layer(self) -> int:
        """The block whose output is taken out of the last activations."""
        return 2 * self.layers // 3

    @property
    def value_embedding_count(self) -> int:
        """How many embeddings of values there are."""
        return max(1, self.layers // 4)

    @property
    def value_embedding_of(self) -> dict[int, int]:
        """Block -> the number of the value embedding that it uses: the first blocks but the empty one, and the last."""
        count, last = self.value_embedding_count, self.layers - self.value_embedding_count
        return {i: i for i in range(1, count)} | {last + i: i for i in range(count)}

    def parameters(self) -> ParameterTable:
        """Embeddings N(0, 1), matrices uniform with deviation 0.5 / sqrt(D); projections, gates and head 0."""
        D, V, rows, bound = self.dim, self.vocab_size, self.tokenizer_size, self.init_bound / self.dim**0.5
        table = {"embed.weight": Parameter((rows, D), "embed", std=1.0, embedding=True)}
        table["smear.gate.weight"] = Parameter((1, GATE_INPUTS), "matrix", narrow=True)
        table |= learned_scalars("smear.factor", 0.0)
        for i in range(self.value_embedding_count):
            table[f"value_embeds.{i}.weight"] = Parameter((rows, D), "embed", std=1.0, embedding=True)
        for i in range(1, self.layers):
            block = f"blocks.{i}."
            table |= learned_scalars(block + "lambdas", 1.0, 0.0)
            if i != self.no_attention_layer:
                table[f"{block}attn.qkv.weight"] = Parameter((3, D, D), "matrix", bound=bound)
                table |= learned_scalars(block + "attn.lambdas", 0.5, 0.5)
                table[f"{block}attn.gate.weight"] = Parameter((self.heads, GATE_INPUTS), "matrix", narrow=True)
                table[f"{block}attn.proj.weight"] = Parameter((D, D), "matrix")
            table[f"{block}mlp.fc.weight"] = Parameter((4 * D, D), "matrix", bound=bound)
            table[f"{block}mlp.proj.weight"] = Parameter((D, 4 * D), "matrix")
        table |= learned_scalars("skips", *[-1.5] * (self.layers // 2 - 1))
        table |= learned_scalars("backout", 0.5)
        return table | {"head.weight": Parameter((V, D), "head", narrow=True)}

    @functools.cached_property
    def attention_stages(self) -> tuple[AttentionStage, ...]:
        """The stages of training in order, and that of the evaluation after the last step."""
        *stages, last = self.adapted_stages()
        return *stages, last._replace(long=self.eval_window * self.block)

    def adapted_stages(self) -> list[AttentionStage]:
        """Those of `windows` and of `final_window`.

        Rotary begins with K / 4 frequencies base^(-i / (K / 4 - 1)) and as many zeros; YaRN (record 31) adapts them,
        and the scale, to every wider window.
        """
        turning = self.head_dim // 4
        frequencies = [self.rotary_base ** (-i / (turning - 1)) for i in range(turning)] + [0.0] * turning
        scale, stages = self.first_scale, []
        for before, blocks in zip((self.windows[0], *self.windows), (*self.windows, self.final_window), strict=True):
            frequencies = [schedules.yarn(f, before * self.block, blocks * self.block) for f in frequencies]
            scale *= 1 + 0.2 * math.log(blocks / before)
            long, short = blocks * self.block, blocks // 2 * self.block
            stages.append(AttentionStage(long, short, tuple(frequencies), scale))
        return stages

    def attention_stage(self, step: int) -> int:
        """Equal parts of the steps that the schedules count; after the last step that of evaluation."""
        parts = len(self.windows)
        if step >= self.steps:
            return parts
        return min(parts - 1, parts * step // (self.steps - self.extension + 1))

    def attention_window(self, step: int) -> int:
        """The long window in blocks."""
        return self.attention_stages[self.attention_stage(step)].long // self.block

    def window_stages(self) -> list[int]:
        stages = [self.attention_stage(step) for step in range(self.steps + 1)]
        return [step for step, stage in enumerate(stages) if step == 0 or stage != stages[step - 1]]

    def attention_spans(self) -> list[int]:
        widest = self.attention_stages[len(self.windows) - 1]
        return [
            min(self.context, 1 + (widest.long if i in self.long_window_layers else widest.short))
            for i in range(1, self.layers)
            if i != self.no_attention_layer
        ]

    def momentum_at(self, step: int) -> float:
        """It rises in a line, keeps its last value, which is short of `momentum`, and falls from that at the end."""
        fallen = step - (self.steps - self.momentum_cooldown)
        if fallen > 0:
            return self.momentum + (self.momentum_start - self.momentum) * fallen / self.momentum_cooldown
        risen = min(step, max(0, self.momentum_steps - 1))
        return schedules.linear_warmup(risen, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Each group's peak, falling in a line to `final_fraction` of it over the last `cooldown` of the scheduled
        steps, and all but there in the extension."""
        progress = min(0.9999, step / (self.steps - self.extension))
        fraction = schedules.stable_then_decay(progress, 1, self.cooldown, self.final_fraction)
        return {group: getattr(self, field) * fraction for group, field in self.peak_rates.items()}
