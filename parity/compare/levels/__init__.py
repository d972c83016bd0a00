"""The levels of a comparison, in the order in which each relies on those before it; each is a module with `observe`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.levels import data, evaluation, forward, gradients, init, layout, loss, restore, trajectory, update
from parity.compare.observation import Observation


@dataclass(frozen=True)
class Level:
    """One level: the methods that it needs of a program ("x|y": either), and its observations."""

    name: str
    needs: tuple[str, ...]
    observe: Callable[[Guarded, Case], Iterator[Observation]]
    numeric: bool = True  # depends on rounding, so that several seeds say more than one
    by_default: bool = True


_ALL = (
    Level("data", ("put_global_batch",), data.observe, numeric=False),
    Level("init", ("init", "export"), init.observe, numeric=False),
    Level("forward", ("load", "activations"), forward.observe),
    Level("loss", ("load", "token_losses|log_probs"), loss.observe),
    Level("gradients", ("load", "loss_and_grads"), gradients.observe),
    Level("update", ("load", "update", "export"), update.observe),
    Level("trajectory", ("load", "step", "export"), trajectory.observe),
    Level("evaluation", ("load", "token_losses", "put_global_batch"), evaluation.observe),
    Level("restore", ("load", "step", "save", "restore", "export"), restore.observe, numeric=False),
    Level("layout", ("load", "step"), layout.observe, numeric=False, by_default=False),
)
LEVELS = {level.name: level for level in _ALL}
