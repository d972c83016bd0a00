"""`nanogpt`: GPT-2 as in nanoGPT, trained with AdamW. Models: models/nanogpt.py of both backends."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable, Recipe


@dataclass(frozen=True)
class NanoGPT(Recipe):
    """GPT-2 as in nanoGPT: learned positions, LayerNorm, GELU, a tied head, biases; AdamW with a cosine schedule."""

    name: ClassVar[str] = "nanogpt"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"peak_rate": 3e-3, "warmup_steps": 6},
        "pocket": {"peak_rate": 1e-2, "warmup_steps": 26},
        "small": {"head_dim": 64, "steps": 19_380, "val_every": 250, "final_val_every": 250, "gelu": "tanh"},
    }
    optimizers: ClassVar[dict[str, str]] = {"decay": "AdamW", "no_decay": "AdamW"}
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="float32", matmul="bfloat16", residual="float32", newton_schulz="bfloat16",
        accum="float32",
    )  # fmt: skip

    gelu: Literal["exact", "tanh"] = "exact"
    """exact (erf, nanoGPT's) or tanh (GPT-2's and llm.c's)."""
    norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    init_std: float = 0.02
    """Standard deviation of matrices and embeddings; residual projections have init_std / sqrt(2 L)."""
    peak_rate: float = 6e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 700
    """Steps over which the learning rate rises linearly."""
    final_fraction: float = 0.0
    """The learning rate at the last step as a fraction of the peak (0.1 in nanoGPT)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging factors."""
    adam_eps: float = 1e-8
    """AdamW's epsilon, outside the root."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on tensors of two or more dimensions only."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def _check_hyperparameters(self) -> None:
        self._require_positive("norm_eps", "adam_eps", "clip_norm", "peak_rate")
        self._require(self.gelu in ("exact", "tanh"), "gelu", "exact or tanh", "these are the two forms in use")
        self._require(self.init_std >= 0, "init_std", "not negative", "it is a standard deviation")
        self._require(self.weight_decay >= 0, "weight_decay", "not negative", "decay shrinks weights")
        in_unit = all(0 <= beta < 1 for beta in self.betas)
        self._require(in_unit, "betas", "two numbers in [0, 1)", "they are averaging factors")
        last = f"from 0 to steps - 1 = {self.steps - 1}"
        reason = "the rate must reach its peak before the run ends"
        self._require(0 <= self.warmup_steps < self.steps, "warmup_steps", last, reason)
        self._require(0 <= self.final_fraction <= 1, "final_fraction", "in [0, 1]", "it is a fraction of the peak")

    def parameters(self) -> ParameterTable:
        """N(0, init_std); projections into the residual stream N(0, init_std / sqrt(2 L)); biases 0, gains 1."""
        D, V, T, std = self.dim, self.vocab_size, self.context, self.init_std
        residual_std = std / (2 * self.layers) ** 0.5
        table = {
            "embed.weight": Parameter((V, D), "decay", std=std),  # the head uses it too
            "positions.weight": Parameter((T, D), "decay", std=std, embedding=True),
        }
        for i in range(self.layers):
            block = f"blocks.{i}."
            table |= _layer_norm(block + "norm1", D)
            table |= _linear(block + "attn.qkv", 3 * D, D, std)
            table |= _linear(block + "attn.proj", D, D, residual_std)
            table |= _layer_norm(block + "norm2", D)
            table |= _linear(block + "mlp.fc", 4 * D, D, std)
            table |= _linear(block + "mlp.proj", D, 4 * D, residual_std)
        return table | _layer_norm("norm_out", D)

    def group_weight_decay(self, group: str) -> float:
        return self.weight_decay if group == "decay" else 0.0

    def learning_rates(self, step: int) -> dict[str, float]:
        """A linear warm-up, then a cosine, the same for all weights."""
        fraction = schedules.warmup_cosine(step, self.steps, self.warmup_steps, self.final_fraction)
        return dict.fromkeys(self.optimizers, self.peak_rate * fraction)


def _layer_norm(name: str, dim: int) -> ParameterTable:
    return {
        f"{name}.weight": Parameter((dim,), "no_decay", value=1.0),
        f"{name}.bias": Parameter((dim,), "no_decay"),
    }


def _linear(name: str, outputs: int, inputs: int, std: float) -> ParameterTable:
    return {
        f"{name}.weight": Parameter((outputs, inputs), "decay", std=std),
        f"{name}.bias": Parameter((outputs,), "no_decay"),
    }
