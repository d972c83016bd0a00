"""The levels of a comparison, in the order in which each relies on those before it; each is a module with `observe`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.levels import data, evaluation, forward, gradients, init, layout, loss, restore, trajectory, update
from parity.compare.observation import Observation


@dataclass(frozen=True)
class Level:
    """One level: its subject, the methods that it needs of a program ("x|y": either), and its observations."""

    name: str
    about: str
    needs: tuple[str, ...]
    observe: Callable[[Guarded, Case], Iterator[Observation]]
    numeric: bool = True  # depends on rounding, so that several seeds say more than one
    by_default: bool = True


_ALL = (
    Level("data", "every batch, and every rank's rows of it", ("put_global_batch",), data.observe, numeric=False),
    Level("init", "canonical initial weights", ("init", "export"), init.observe, numeric=False),
    Level("forward", "activations in their order", ("load", "activations"), forward.observe),
    Level("loss", "losses of tokens and their reduction", ("load", "token_losses|log_probs"), loss.observe),
    Level("gradients", "gradients before and after clipping", ("load", "loss_and_grads"), gradients.observe),
    Level("update", "the optimizer from equal gradients", ("load", "update", "export"), update.observe),
    Level("trajectory", "steps on real data", ("load", "step", "export"), trajectory.observe),
    Level("evaluation", "val loss by the harness", ("load", "token_losses", "put_global_batch"), evaluation.observe),
    Level(
        "restore",
        "checkpoint, export, import",
        ("load", "step", "save", "restore", "export"),
        restore.observe,
        numeric=False,
    ),
    Level(
        "layout", "1, 2, 4, 8 devices, 2 processes", ("load", "step"), layout.observe, numeric=False, by_default=False
    ),
)
LEVELS = {level.name: level for level in _ALL}
