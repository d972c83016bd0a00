"""`record-58`: the speedrun's record of January 2026 (109.2 s). Models: models/record_58.py of both backends."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from parity.data.stream import Segment
from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable
from parity.recipes.record_11 import learned_scalars
from parity.recipes.record_40 import GATE_INPUTS, AttentionStage, Record40


@dataclass(frozen=True)
class Record58(Record40):
    """record-40 with paired heads, a key offset, a head tied for two thirds of the run and several targets a position;
    batches, rows and rates in stages; NorMuon and cautious decay."""

    name: ClassVar[str] = "record-58"
    # Rows grow as 1 : 2 : 3, so that pocket's budget is met but for 0.4% of its tokens.
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "layers": 5, "context": 192, "batch_tokens": 8 * 192, "val_context": 512, "max_len": 64, "block": 4,
            "paired_layers": (0, 3), "momentum_steps": 10, "momentum_cooldown": 2, "extension": 1,
        },
        "pocket": {
            "layers": 5, "context": 768, "batch_tokens": 8 * 768, "val_context": 4096, "max_len": 1024, "block": 32,
            "paired_layers": (0, 3), "steps": 252, "val_every": 28, "final_val_every": 28, "checkpoints": 10,
            "momentum_steps": 43, "momentum_cooldown": 7, "extension": 6,
        },
        "small": {
            "layers": 11, "context": 48 * 1024, "batch_tokens": 8 * 48 * 1024, "val_context": 256 * 1024,
            "steps": 1775, "val_every": 250, "final_val_every": 250,
        },
    }  # fmt: skip
    optimizers: ClassVar[dict[str, str]] = {
        "head": "OddAdam", "value": "OddAdam", "scalar": "OddAdam", "input": "OddAdam", "gate": "OddAdam",
        "smear": "OddAdam", "skip": "OddAdam", "matrix": "NorMuon", "down": "NorMuonColumns",
    }  # fmt: skip
    peak_rates: ClassVar[dict[str, str]] = {
        "head": "head_rate", "value": "embed_rate", "scalar": "scalar_rate", "input": "scalar_rate",
        "gate": "gate_rate", "smear": "smear_rate", "skip": "skip_rate", "matrix": "muon_rate", "down": "muon_rate",
    }  # fmt: skip
    rate_factors: ClassVar[dict[str, float]] = {"matrix": 2.0, "down": 4.0}
    """What a group's learning rate is multiplied by, but not that in Muon's decay."""
    betas_of: ClassVar[dict[str, tuple[float, float]]] = {
        "head": (0.5, 0.95), "value": (0.75, 0.95), "input": (0.65, 0.95),
    }  # fmt: skip
    """Adam's averaging factors in groups that have others than `betas`."""
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="bfloat16", matmul="bfloat16", residual="bfloat16", newton_schulz="bfloat16",
        accum="float32", rotary="bfloat16", softcap="bfloat16", fp8=True, truncate=True,
    )  # fmt: skip
    row_parts: ClassVar[tuple[int, ...]] = (1, 2, 3)
    """The lengths of rows in the stages, as parts of the last; batches have eight rows throughout."""

    paired_layers: tuple[int, ...] = (0, 2, 5, 9)
    """The blocks of the model whose heads attend in pairs."""
    offset_standing: bool = False
    """Whether the key offset is of the channels that rotary leaves alone; as published it is of others."""
    logit_cap: float = 23.0
    """Logits z become c sigmoid((z + h) / s)."""
    logit_shift: float = 5.0
    """The h of the softcap."""
    tokens_ahead: int = 3
    """How many tokens ahead a position predicts in the first stage; one fewer in every stage after it."""
    untie: float = 2 / 3
    """The fraction of the scheduled steps after which head and embedding go their own ways."""
    rate_steps: tuple[float, ...] = (1.0, 1.52, 1.73)
    """What the learning rates are multiplied by in the stages, before they fall."""
    embed_rate: float = 0.6
    """Peak learning rate of the value embeddings (Adam)."""
    head_rate: float = 0.008
    """Peak learning rate of the head and the embedding (Adam)."""
    gate_rate: float = 0.008
    """Peak learning rate of the gates of heads and of value embeddings (Adam)."""
    smear_rate: float = 0.00008
    skip_rate: float = 0.0004
    muon_rate: float = 0.023
    betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-10
    muon_decay: float = 1.2
    """Cautious decay of Muon's matrices, times the learning rate."""
    head_decay: float = 0.75
    """Cautious decay of head and embedding (Adam), times the learning rate; also below."""
    embed_decay: float = 0.025
    gate_decay: float = 0.005
    equalizer: float = 0.95
    """NorMuon's averaging factor."""
    cooldown: float = 0.5

    def _check_layers(self) -> None:
        self._require(self.layers >= 5, "layers", "at least 5", "four of them have parts of their own")
        self._require(self.heads % 2 == 0, "head_dim", f"an even part of dim {self.dim}", "heads attend in pairs")
        paired, no = set(self.paired_layers), {self.no_attention_layer, *self.long_window_layers}
        inside = all(0 <= i < self.layers for i in paired) and not paired & no
        reason = "they have attention with the short window"
        self._require(inside, "paired_layers", f"from 0 to {self.layers - 1}, none of {sorted(no)}", reason)
        whole = self.context % self.row_parts[-1] == 0
        self._require(whole, "context", f"a multiple of {self.row_parts[-1]}", "rows grow to it in equal steps")
        self._require(len(self.windows) == len(self.row_parts), "windows", "three", "each stage of rows has one")
        self._require(len(self.rate_steps) == len(self.row_parts), "rate_steps", "three numbers", "one a stage")
        stages = len(self.row_parts)
        self._require(self.tokens_ahead in (1, 2, 3), "tokens_ahead", "1, 2 or 3", f"the run has {stages} stages")
        self._require(self.scheduled_steps >= stages, "steps", f"at least {stages} more", "every stage has one")
        self._require(0 <= self.equalizer < 1, "equalizer", "in [0, 1)", "it is an averaging factor")
        for name in ("muon_decay", "head_decay", "embed_decay", "gate_decay"):
            self._require(getattr(self, name) >= 0, name, "not negative", "weights decay towards 0")
        self._require(0 <= self.untie < 1, "untie", "in [0, 1)", "the head is untied before the end")

    @property
    def scheduled_steps(self) -> int:
        """S: the steps that schedules count."""
        return self.steps - self.extension

    def part(self, step: int) -> int:
        """The third of the scheduled steps that a step is in: 0, 1, 2; the steps after them are in the last."""
        parts = len(self.row_parts)
        return min(parts - 1, parts * step // self.scheduled_steps)

    @property
    def plan(self) -> tuple[Segment, ...]:
        parts = [self.part(step) for step in range(self.steps)]
        rows = self.batch_tokens // self.context
        lengths = [part * self.context // self.row_parts[-1] for part in self.row_parts]
        return tuple(Segment(parts.count(i), rows * T, T, self.max_len) for i, T in enumerate(lengths))

    @property
    def fp8_scales(self) -> tuple[float, float, float]:
        return 448 / 100, 448 / 1.6, 448 / 0.75

    @property
    def seen_before_document(self) -> int | None:
        return None  # by the key offset, which takes from a key that has seen the document before

    @property
    def no_attention_layer(self) -> int:
        """The block that has no attention, to which the output of another is added."""
        return 7 * (self.layers + 1) // 12 - 1

    @property
    def skip_layer(self) -> int:
        """The block whose output is added before the one without attention."""
        return (self.layers + 1) // 3 - 1

    @property
    def long_window_layers(self) -> frozenset[int]:
        return frozenset((self.skip_layer, self.layers - 1))

    @property
    def backout_layer(self) -> int:
        return 2 * (self.layers + 1) // 3 - 1

    @property
    def value_embedding_count(self) -> int:
        return max(1, (self.layers + 1) // 4)

    @property
    def value_embedding_of(self) -> dict[int, int]:
        """Block -> the number of the value embedding that it uses: the first blocks all but number 0, the last all."""
        count, last = self.value_embedding_count, self.layers - self.value_embedding_count
        return {i: i + 1 for i in range(count - 1)} | {last + i: i for i in range(count)}

    @property
    def offset_channels(self) -> tuple[tuple[int, int], ...]:
        """The ranges of a head's channels that keys have from the position before."""
        K = self.head_dim
        return ((K // 2, K),) if self.offset_standing else ((K // 4, K // 2), (3 * K // 4, K))

    def parameters(self) -> ParameterTable:
        """Embedding and head N(0, 0.005), alike; q, k, v uniform with deviation 1 / sqrt(D), the MLP's first with half
        of it; everything else 0, but for scalars."""
        D, V, rows, bound = self.dim, self.vocab_size, self.tokenizer_size, (3 / self.dim) ** 0.5
        table = {"embed.weight": Parameter((V, D), "head", std=0.005, embedding=True, like="head.weight")}
        table["smear.gate.weight"] = Parameter((1, GATE_INPUTS), "smear", narrow=True)
        table |= learned_scalars("smear.factor", 0.0)
        for i in range(self.value_embedding_count):
            table[f"value_embeds.{i}.weight"] = Parameter((rows, D), "value", embedding=True)
        table |= learned_scalars("residual", *[1.1] * self.layers)
        table["input_residual.weight"] = Parameter((self.layers,), "input", scalar=True)
        table["skip.gate.weight"] = Parameter((1, GATE_INPUTS), "skip", narrow=True)
        table |= learned_scalars("skip.factor", -1.5)
        for i in range(self.layers):
            block = f"blocks.{i}."
            if i != self.no_attention_layer:
                table[f"{block}attn.qkv.weight"] = Parameter((3, D, D), "matrix", bound=bound)
                table |= learned_scalars(block + "attn.factors", 0.5, 1.0)
                table[f"{block}attn.gate.weight"] = Parameter((self.heads, GATE_INPUTS), "gate", narrow=True)
                if i in self.value_embedding_of:
                    table[f"{block}attn.value_gate.weight"] = Parameter((self.heads, GATE_INPUTS), "gate", narrow=True)
                table[f"{block}attn.proj.weight"] = Parameter((D, D), "matrix")
            table[f"{block}mlp.fc.weight"] = Parameter((4 * D, D), "matrix", bound=bound / 2)
            table[f"{block}mlp.proj.weight"] = Parameter((D, 4 * D), "down")
        table |= learned_scalars("backout", 0.5)
        return table | {"head.weight": Parameter((V, D), "head", std=0.005, narrow=True)}

    @functools.cached_property
    def attention_stages(self) -> tuple[AttentionStage, ...]:
        """Those of the three parts, of the extension, and of the evaluation after the last step."""
        stages = self.adapted_stages()
        return *stages, stages[-1]._replace(long=self.eval_window * self.block)

    def attention_stage(self, step: int) -> int:
        if step >= self.steps:
            return len(self.windows) + 1
        return len(self.windows) if step >= self.scheduled_steps else self.part(step)

    def attention_spans(self) -> list[int]:
        widest = self.attention_stages[len(self.windows)]
        return [
            min(self.context, 1 + (widest.long if i in self.long_window_layers else widest.short))
            for i in range(self.layers)
            if i != self.no_attention_layer
        ]

    def target_weights(self, step: int) -> tuple[float, ...]:
        """In the first third 1, 1/2, and 1/4 falling to 0; in the second 1, and 1/2 falling to 0; then 1."""
        part, within = self.part(step), len(self.row_parts) * step / self.scheduled_steps
        count = self.tokens_ahead - part
        weights = [0.5**k for k in range(max(1, count))]
        if count > 1:
            weights[-1] *= part + 1 - within
        return *weights, *[0.0] * (self.tokens_ahead - len(weights))

    def tied_until(self, group: str) -> int:
        """That fraction of the scheduled steps, up to an odd one, at which Adam acts."""
        return math.ceil(self.untie * self.scheduled_steps) | 1 if group == "head" else -1

    def momentum_at(self, step: int) -> float:
        """It rises in a line, and falls in one at the end."""
        fallen = step - (self.steps - self.momentum_cooldown)
        if fallen > 0:
            return self.momentum + (self.momentum_start - self.momentum) * fallen / self.momentum_cooldown
        return schedules.linear_warmup(step, self.momentum_steps, self.momentum_start, self.momentum)

    def rate_fraction(self, step: int) -> float:
        """The stage's multiple; over the last `cooldown` of the scheduled steps a line from it to `final_fraction`."""
        down = schedules.stable_then_decay(min(step, self.scheduled_steps), self.scheduled_steps, self.cooldown)
        return self.rate_steps[self.part(step)] * down + self.final_fraction * (1 - down)

    def learning_rates(self, step: int) -> dict[str, float]:
        fraction = self.rate_fraction(step)
        return {
            group: getattr(self, field) * self.rate_factors.get(group, 1.0) * fraction
            for group, field in self.peak_rates.items()
        }

    def group_betas(self, group: str) -> tuple[float, float]:
        return self.betas_of.get(group, self.betas)

    def cautious_decay(self, group: str, step: int) -> float:
        """A decay times the learning rate: for Muon's matrices the rate without the group's factor."""
        decay = {
            "matrix": self.muon_decay, "down": self.muon_decay, "head": self.head_decay, "value": self.embed_decay,
            "gate": self.gate_decay,
        }.get(group, 0.0)  # fmt: skip
        rate = self.learning_rates(step)[group]
        return decay * rate / self.rate_factors.get(group, 1.0)
