"""`muon`: the public optimization track's baseline (its result 36). Models: models/muon.py of both backends."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable
from parity.recipes.speedrun import SpeedrunRecipe, spread_scale


@dataclass(frozen=True)
class Muon(SpeedrunRecipe):
    """RMS norm with gains, half-truncated rotary, ReLU squared, an untied head, biases; Muon and AdamW; summed loss."""

    name: ClassVar[str] = "muon"
    optimizers: ClassVar[dict[str, str]] = {"embed": "AdamW", "head": "AdamW", "vector": "AdamW", "matrix": "Muon"}
    peak_rates: ClassVar[dict[str, str]] = {
        "embed": "embed_rate", "head": "head_rate", "vector": "vector_rate", "matrix": "muon_rate",
    }  # fmt: skip
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "sum"
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="bfloat16", matmul="bfloat16", residual="bfloat16", newton_schulz="bfloat16",
        accum="float32",
    )  # fmt: skip
    init_variance: ClassVar[float] = 0.33

    attention_scale: float | None = None
    """Factor of q k^T; None: 0.12 * sqrt(128 / head_dim)."""
    logit_cap: float = 15.0
    """Logits z become c z / sqrt(z^2 + c^2)."""
    embed_rate: float = 0.7
    head_rate: float = 0.004
    vector_rate: float = 0.015
    """Peak learning rate of every 1-D tensor (AdamW)."""
    betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10
    adam_decay: float = 0.001
    """AdamW's decoupled weight decay, on all of its groups."""
    muon_rate: float = 0.025
    muon_decay: float = 0.05
    """Muon's decoupled weight decay."""
    newton_schulz_steps: int = 12
    newton_schulz: tuple[float, float, float] = (2.0, -1.5, 0.5)
    cooldown: float = 0.7

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        self._require(self.softmax_scale > 0, "attention_scale", "positive", "it scales the scores")
        for name in ("adam_decay", "muon_decay"):
            self._require(getattr(self, name) >= 0, name, "not negative", "decay shrinks weights")
        self._require_rotary(multiple=4, least=8)

    @property
    def softmax_scale(self) -> float:
        return spread_scale(self.head_dim) if self.attention_scale is None else self.attention_scale

    def parameters(self) -> ParameterTable:
        """Embedding N(0, 1), matrices N(0, 0.33 / fan_in) (a variance); projections, head and biases 0; gains 1."""
        D, V = self.dim, self.vocab_size
        std = (self.init_variance / D) ** 0.5
        table = {"embed.weight": Parameter((V, D), "embed", std=1.0, embedding=True)} | _gain("norm_in", D)
        for i in range(self.layers):
            block = f"blocks.{i}."
            table |= _gain(block + "norm1", D)
            for name in ("attn.q", "attn.k", "attn.v"):
                table |= _linear(block + name, D, D, std)
            table |= _linear(block + "attn.proj", D, D)
            table |= _gain(block + "norm2", D)
            table |= _linear(block + "mlp.fc", 4 * D, D, std)
            table |= _linear(block + "mlp.proj", D, 4 * D)
        return table | _gain("norm_out", D) | _linear("head", V, D, group="head")

    def group_weight_decay(self, group: str) -> float:
        return self.muon_decay if group == "matrix" else self.adam_decay

    def learning_rates(self, step: int) -> dict[str, float]:
        """Each group's peak, falling in a line to 0 over the last `cooldown` of the run."""
        fraction = schedules.stable_then_decay(step, self.steps, self.cooldown)
        return {group: getattr(self, field) * fraction for group, field in self.peak_rates.items()}


def _gain(name: str, dim: int) -> ParameterTable:
    return {f"{name}.weight": Parameter((dim,), "vector", value=1.0)}


def _linear(name: str, outputs: int, inputs: int, std: float | None = None, group: str = "matrix") -> ParameterTable:
    return {
        f"{name}.weight": Parameter((outputs, inputs), group, std=std),
        f"{name}.bias": Parameter((outputs,), "vector"),
    }
