"""User optimizers: torch optimizers with their schedulers, and perhaps `eval_params`, from module:function."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.errors import InputError
from parity.recipes import Recipe
from parity.user_program import load_function, source_file, user_code
from torchref import optim

EvalParams = Callable[[], dict[str, torch.Tensor]]
ROUNDING = 16  # epsilons of a weight's type


def load_optimizer(recipe: Recipe, spec: str) -> Callable[[dict[str, nn.Parameter]], optim.ByGroup]:
    """What makes an optimizer of {name: parameter} as module:function does: of one or several torch optimizers,
    perhaps their schedulers, and perhaps a function without arguments that returns the weights to evaluate by name.

    It raises InputError for anything else.
    """
    function = load_function(spec, "--optimizer")

    def make(weights: dict[str, nn.Parameter]) -> optim.ByGroup:
        with user_code(source_file(spec), "the function"):
            result = function(recipe, weights)
        parts = list(result) if isinstance(result, tuple | list) else [result]
        optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
        schedulers = [part for part in parts if isinstance(part, torch.optim.lr_scheduler.LRScheduler)]
        rest = [part for part in parts if not any(part is known for known in (*optimizers, *schedulers))]
        if not optimizers or len(rest) > 1 or not all(map(callable, rest)):
            raise InputError(
                f"--optimizer {spec}: expected a torch.optim.Optimizer, or several, and perhaps LRSchedulers of "
                "them and a function eval_params(), found "
                f"{', '.join(type(part).__name__ for part in parts)}: return what torch's optimizers are"
            )
        if needing := [part for part in optimizers if _needs_closure(part)]:
            raise InputError(
                f"--optimizer {spec}: expected an optimizer whose step() needs no closure, found "
                f"{type(needing[0]).__name__}: choose one that makes a step from the gradients alone"
            )
        named = {f"optimizer{number or ''}": part for number, part in enumerate(optimizers)}
        named |= {f"scheduler{number or ''}": part for number, part in enumerate(schedulers)}
        return optim.ByGroup(named, {}, eval_params=rest[0] if rest else None)

    return make


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step needs a function that computes the loss again, as that of LBFGS does."""
    try:
        parameters = list(inspect.signature(type(optimizer).step).parameters.values())  # a scheduler replaces its own
    except (TypeError, ValueError):  # no Python function
        return False
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters[1:])


def stated_rates(optimizer: Any) -> dict[str, float]:
    """The learning rates of the parameter groups of user optimizers, by optimizer and number of the group."""
    if getattr(optimizer, "learning_rates", True):
        return {}  # the recipe's own, which it has for every step
    return {
        f"{name}/{number}": float(group["lr"])
        for name, part in optimizer.optimizers.items()
        for number, group in enumerate(getattr(part, "param_groups", []))
        if "lr" in group
    }


def idle_weights(optimizer: Any, weights: dict[str, nn.Parameter]) -> tuple[str, ...]:
    """Names of the weights that no optimizer updates. Raises InputError for an optimizer of other tensors than the
    model's parameters, such as copies of them, which would train nothing."""
    names = {id(parameter): name for name, parameter in weights.items()}
    updated = set()
    for part, inner in getattr(optimizer, "optimizers", {}).items():
        for number, group in enumerate(getattr(inner, "param_groups", [])):
            for tensor in group["params"]:
                if id(tensor) not in names:
                    raise InputError(
                        f"{part}: expected the model's parameters, found in its group {number} another tensor of "
                        f"shape {tuple(tensor.shape)}: pass the parameters themselves, not copies or views of them"
                    )
                updated.add(names[id(tensor)])
    return tuple(name for name in names.values() if name not in updated)


def check_eval_params(chosen: Any, weights: dict[str, torch.Tensor]) -> None:
    """Raises InputError unless eval_params returned the names, shapes and types of the weights."""
    if not isinstance(chosen, dict) or chosen.keys() != weights.keys():
        names = chosen.keys() if isinstance(chosen, dict) else set()
        first = min(names ^ weights.keys(), default=type(chosen).__name__, key=str)
        raise InputError(
            f"the optimizer's eval_params: expected every weight, by its name, found "
            f"{'none for' if first in weights else 'an unknown'} {first}: return the weights or an average of them"
        )
    for name, weight in weights.items():
        value = chosen[name]
        if getattr(value, "shape", None) != weight.shape or value.dtype != weight.dtype:
            kind = type(value).__name__
            if isinstance(value, torch.Tensor):
                kind = f"{_name(value)} of shape {tuple(value.shape)}"
            raise InputError(
                f"the optimizer's eval_params: expected {name} as {_name(weight)} of shape {tuple(weight.shape)}, "
                f"found {kind}: return tensors like the weights"
            )


def check_first_eval_params(chosen: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    """Raises InputError unless eval_params of a first optimizer state is the weights themselves, to rounding."""
    for name, weight in weights.items():
        allowed = ROUNDING * float(np.finfo(weight.dtype).eps) * float(np.abs(weight).max())
        apart = float(np.abs(chosen[name].astype(np.float64) - weight.astype(np.float64)).max())
        if not apart <= allowed:
            raise InputError(
                f"the optimizer's eval_params: expected the weights themselves before the first update, found {name} "
                f"{apart:.2g} apart: start averages at the weights"
            )


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
