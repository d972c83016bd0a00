"""An attempt in PyTorch at the optimizer alone, to be edited: data, batch and model are the track's.

It starts as the optimizer of the recipe `muon`. Gradients are those of the recipe's loss, the sum over the batch's
tokens.
"""

import torch

from parity.recipes import Muon
from torchref import optim
from torchref.layers import torch_dtype


class Combined(torch.optim.Optimizer):
    """Several optimizers as one: a step is a step of each."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer]):
        super().__init__([group for one in optimizers.values() for group in one.param_groups], {})
        self.optimizers = optimizers
        self._share_groups()

    def step(self, closure=None):
        for optimizer in self.optimizers.values():
            optimizer.step()

    def state_dict(self):
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict):
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self._share_groups()

    def _share_groups(self) -> None:
        """A learning rate that a scheduler sets in these groups is that of the optimizers' own."""
        self.param_groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]


def make(recipe: Muon, weights: dict[str, torch.Tensor]):
    """A torch optimizer and its scheduler: Muon on the blocks' matrices, AdamW on the rest. Any others will do."""
    peaks = {group: getattr(recipe, field) for group, field in recipe.peak_rates.items()}
    group_of = {name: parameter.group for name, parameter in recipe.parameters().items()}
    groups = {group: {name: w for name, w in weights.items() if group_of[name] == group} for group in peaks}
    matrix = {"matrix": groups.pop("matrix")}
    adamw = optim.adamw(groups, recipe.betas, recipe.adam_eps, dict.fromkeys(groups, recipe.adam_decay))
    muon = optim.muon(
        matrix,
        recipe.muon_decay,
        recipe.momentum,
        recipe.newton_schulz_steps,
        recipe.newton_schulz,
        torch_dtype(recipe.dtypes.newton_schulz),
    )
    for optimizer in (adamw, muon):
        for group in optimizer.param_groups:
            group["lr"] = peaks[group["name"]]
    both = Combined({"adamw": adamw, "muon": muon})

    def stable_then_decay(step: int) -> float:
        return min(1.0, (1 - step / recipe.steps) / recipe.cooldown)

    return both, torch.optim.lr_scheduler.LambdaLR(both, stable_then_decay)
