"""`record-11`: the speedrun's record of 2024-11-10 (7.2 minutes). Models: models/record_11.py of both backends."""

from dataclasses import dataclass
from typing import Any, ClassVar

from parity.recipes import schedules
from parity.recipes.base import Dtypes, Parameter, ParameterTable
from parity.recipes.speedrun import SpeedrunRecipe


@dataclass(frozen=True)
class Record11(SpeedrunRecipe):
    """U-net skips, residuals from the embedding and from the first block's values, full rotary; Muon (SGD) and Adam."""

    name: ClassVar[str] = "record-11"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"momentum_steps": 10},
        "pocket": {"momentum_steps": 43},
        "small": {"steps": 3000},
    }
    optimizers: ClassVar[dict[str, str]] = {
        "embed": "AdamW", "head": "AdamW", "scalar": "AdamW", "matrix": "MuonSGD",
    }  # fmt: skip
    peak_rates: ClassVar[dict[str, str]] = {
        "embed": "embed_rate", "head": "head_rate", "scalar": "scalar_rate", "matrix": "muon_rate",
    }  # fmt: skip
    bfloat16: ClassVar[Dtypes] = Dtypes(
        weights="float32", embedding="bfloat16", matmul="bfloat16", residual="bfloat16", newton_schulz="bfloat16",
        accum="float32", scalars="bfloat16", rotary="bfloat16", softcap="bfloat16",
    )  # fmt: skip
    init_bound: ClassVar[float] = 1.0

    rotary_base: float = 10_000.0
    logit_cap: float = 30.0
    """Logits z become c tanh(z / c)."""
    embed_rate: float = 0.6
    head_rate: float = 0.008
    scalar_rate: float = 0.04
    """Peak learning rate of the learned scalars (Adam)."""
    muon_rate: float = 0.04
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-8
    momentum_start: float = 0.85
    """Muon's momentum at the first step."""
    momentum: float = 0.95
    momentum_steps: int = 500
    """Steps over which the momentum rises in a line."""
    cooldown: float = 0.3

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_momentum_warmup(self)
        self._require(self.layers % 2 == 0, "layers", "even", "each block of the second half adds one of the first's")
        self._require_rotary(multiple=2, least=2)

    def parameters(self) -> ParameterTable:
        """Embedding N(0, 1), matrices uniform within 1 / sqrt(fan_in); projections and head 0; scalars as below."""
        D, V, bound = self.dim, self.vocab_size, self.init_bound / self.dim**0.5
        table = {"embed.weight": Parameter((V, D), "embed", std=1.0, embedding=True)}
        for i in range(self.layers):
            block = f"blocks.{i}."
            table |= learned_scalars(block + "lambdas", 1.0, 0.0)
            for name in ("q", "k", "v"):
                table[f"{block}attn.{name}.weight"] = Parameter((D, D), "matrix", bound=bound)
            table |= learned_scalars(block + "attn.lambdas", 0.5)
            table[f"{block}attn.proj.weight"] = Parameter((D, D), "matrix")
            table[f"{block}mlp.fc.weight"] = Parameter((4 * D, D), "matrix", bound=bound)
            table[f"{block}mlp.proj.weight"] = Parameter((D, 4 * D), "matrix")
        table |= learned_scalars("skips", *[1.0] * (self.layers // 2))
        return table | {"head.weight": Parameter((V, D), "head")}

    def momentum_at(self, step: int) -> float:
        return schedules.linear_warmup(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Each group's peak, falling in a line to 0 over the last `cooldown` of the run."""
        fraction = schedules.stable_then_decay(step, self.steps, self.cooldown)
        return {group: getattr(self, field) * fraction for group, field in self.peak_rates.items()}


def learned_scalars(name: str, *values: float) -> ParameterTable:
    """A few learned scalars as one weight, with their first values."""
    return {f"{name}.weight": Parameter((len(values),), "scalar", value=values, scalar=True)}


def check_momentum_warmup(recipe: Any) -> None:
    """Raises InputError for impossible values of `momentum_start` and `momentum_steps`."""
    recipe._require(0 <= recipe.momentum_start < 1, "momentum_start", "in [0, 1)", "it is an averaging factor")
    reason = "the momentum rises over so many steps"
    recipe._require(recipe.momentum_steps >= 0, "momentum_steps", "not negative", reason)
