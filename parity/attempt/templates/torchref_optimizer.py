"""An attempt in PyTorch at the optimizer alone, to be edited: data, batch and model are the track's.

It starts as the optimizer of the recipe `muon`. Gradients are those of the recipe's loss, the sum over the batch's
tokens.
"""

import torch

from parity.recipes import Muon
from torchref import optim
from torchref.layers import torch_dtype


class Together(torch.optim.Optimizer):
    """Several optimizers as one: a step is a step of each."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]):
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def step(self, closure=None):
        for part in self.parts.values():
            part.step()

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict):
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share()

    def _share(self) -> None:
        """The groups are those of the parts, so that a rate that is set here is theirs."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def make(recipe: Muon, weights: dict[str, torch.nn.Parameter]):
    """A torch optimizer and its scheduler: Muon on the blocks' matrices, AdamW on the rest. Any others will do."""
    peaks = {
        "embed": recipe.embed_rate,
        "head": recipe.head_rate,
        "vector": recipe.vector_rate,
        "matrix": recipe.muon_rate,
    }
    of = {name: weight.group for name, weight in recipe.parameters().items()}
    groups = {group: {name: w for name, w in weights.items() if of[name] == group} for group in peaks}
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
    for part in (adamw, muon):
        for group in part.param_groups:
            group["lr"] = peaks[group["name"]]
    both = Together({"adamw": adamw, "muon": muon})

    def fall(step: int) -> float:
        return min(1.0, (1 - step / recipe.steps) / recipe.cooldown)

    return both, torch.optim.lr_scheduler.LambdaLR(both, fall)
