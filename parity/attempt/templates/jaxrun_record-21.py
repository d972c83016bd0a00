"""An attempt in JAX: the recipe `record-21` as its parts, optimizer and schedules, in one file, to be edited.

The harness owns the data, the clock, the evaluation and the log; this file owns the model, the optimizer and the schedules.
docs/techniques.md says which parts there are, and how to write one of your own: a class here, put in place of the model's.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxrun import model, optim
from jaxrun.program import JaxProgram, keep_compiled
from jaxrun.sharding import pick_devices
from parity.recipes import Record21, schedules


@dataclass(frozen=True, kw_only=True)
class Mine(Record21):
    """Parts, sizes, rates and steps. A field given here, such as `steps: int = 200`, is what runs, before what the track or the command
    line says; `parameters` names every weight with its shape, first value and optimizer group."""

    name: ClassVar[str] = "mine"
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

    def momentum_at(self, step: int) -> float:
        """Muon's momentum at a step."""
        return schedules.warmed(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of every optimizer group at a step."""
        fraction = schedules.cooldown(step, self.steps, self.cooldown, self.final_fraction)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "scalar": self.scalar_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


class Model(model.Model):
    """The recipe's parts put together: maps (B, T) tokens to (B, T, D); its `scores` and `squash` make logits of those."""


def make_optimizer(recipe: Mine):
    """An optax transform of {name: gradient}: Muon on the blocks' matrices, Adam on the rest."""
    return optim.make_optimizer(recipe)


def make_recipe(base: Record21) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> JaxProgram:
    """What the harness runs."""
    keep_compiled()  # so that the next run starts sooner
    return JaxProgram(recipe, pick_devices(device, devices), make_optimizer(recipe), Model)
