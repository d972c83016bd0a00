"""An attempt in PyTorch: the recipe `record-11` as its parts, optimizer and schedules, in one file, to be edited.

The harness owns the data, the clock, the evaluation and the log; this file owns the model, the optimizer and the schedules.
docs/techniques.md says which parts there are, and how to write one of your own: a class here, put in place of the model's.
"""

from dataclasses import dataclass
from typing import ClassVar

from parity.recipes import Record11, schedules
from torchref import model, optim, sharding
from torchref.program import TorchProgram


@dataclass(frozen=True, kw_only=True)
class Mine(Record11):
    """Parts, sizes, rates and steps. A field given here, such as `steps: int = 200`, is what runs, before what the track or the command
    line says; `parameters` names every weight with its shape, first value and optimizer group."""

    name: ClassVar[str] = "mine"
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

    def momentum_at(self, step: int) -> float:
        """Muon's momentum at a step."""
        return schedules.warmed(step, self.momentum_steps, self.momentum_start, self.momentum)

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rate of every optimizer group at a step."""
        fraction = schedules.cooldown(step, self.steps, self.cooldown)
        peaks = {"embed": self.embed_rate, "head": self.head_rate, "scalar": self.scalar_rate, "matrix": self.muon_rate}
        return {group: peak * fraction for group, peak in peaks.items()}


class Model(model.Model):
    """The recipe's parts put together: maps (B, T) tokens to (B, T, D); its `scores` and `squash` make logits of those."""


def make_optimizer(recipe: Mine, weights) -> optim.ByGroup:
    """Torch optimizers of {name: parameter}, with their rates: Muon on the blocks' matrices, Adam on the rest."""
    return optim.make_optimizer(recipe, weights)


def make_recipe(base: Record11) -> Mine:
    """The recipe that is run, from the one that the track and the command line give."""
    return Mine.from_base(base)


def build(recipe: Mine, *, device: str = "auto", devices: int | None = None) -> TorchProgram:
    """What the harness runs."""
    chosen = sharding.pick_device(device, devices)
    return TorchProgram(recipe, chosen, lambda weights: make_optimizer(recipe, weights), make_model=Model)
