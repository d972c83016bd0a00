"""User optimizers: an optax transform, and perhaps the function `eval_params`, from module:function; what must fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.errors import InputError
from parity.recipes import Recipe
from parity.user_program import load_function, source_file, user_code

EvalParams = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
ROUNDING = 16  # epsilons of a weight's type


def load_optimizer(recipe: Recipe, spec: str) -> tuple[optax.GradientTransformation, EvalParams | None]:
    """The transform that module:function makes of a recipe, and the function of (its state, weights) that returns the
    weights to evaluate, where it returns both. Raises InputError for anything else."""
    make = load_function(spec, "--optimizer")
    with user_code(source_file(spec), "the function"):
        result = make(recipe)
    if isinstance(result, optax.GradientTransformation):
        return result, None
    parts = tuple(result) if isinstance(result, tuple | list) else ()
    if len(parts) == 2 and isinstance(parts[0], optax.GradientTransformation) and callable(parts[1]):
        return parts
    found = ", ".join(type(part).__name__ for part in parts) or type(result).__name__
    raise InputError(
        f"--optimizer {spec}: expected an optax.GradientTransformation, or that and a function "
        f"eval_params(opt_state, params), found {found}: return what optax's optimizers return"
    )


def stated_rates(optimizer: Any) -> dict[str, Any]:
    """The learning rates that a user optimizer's state names, as that of optax.inject_hyperparams does."""
    found = optax.tree_utils.tree_get_all_with_path(optimizer, "learning_rate")
    rates = [value for _, value in found if getattr(value, "shape", None) == ()]
    return {f"learning_rate{number or ''}": rate for number, rate in enumerate(rates)}


def idle_weights(optimizer: optax.GradientTransformation, weights: dict[str, Any]) -> tuple[str, ...]:
    """Names of the weights whose update depends on no gradient, as those that optax.set_to_zero freezes."""
    state = jax.eval_shape(optimizer.init, weights)
    traced = jax.make_jaxpr(lambda g, w, state: optimizer.update(g, state, w)[0])(weights, weights, state)
    depends = _depends(traced.jaxpr, [at < len(weights) for at in range(len(traced.jaxpr.invars))])
    return tuple(name for name, on_gradients in zip(sorted(weights), depends, strict=True) if not on_gradients)


def _depends(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Which results depend on the chosen inputs; whatever is neither plain nor jitted counts as one whole."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> bool:
        return not hasattr(atom, "val") and known.get(atom, False)

    for equation in jaxpr.eqns:
        arguments, inner = [of(atom) for atom in equation.invars], equation.params.get("jaxpr")
        if inner is not None and equation.primitive.name in ("jit", "pjit"):
            results = _depends(inner.jaxpr, arguments)
        else:
            results = [any(arguments)] * len(equation.outvars)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def check_updates(updates: Any, weights: dict[str, jax.Array]) -> None:
    """Raises InputError unless an optimizer's updates have the names and shapes of the weights, and real numbers of no
    narrower type."""
    expected = "one of every weight, by its name"
    _check_names(updates, weights, "updates", expected, "return what optax.apply_updates adds to the weights")
    for name, weight in weights.items():
        update = jax.tree.leaves(updates[name])
        shape = update[0].shape if len(update) == 1 and hasattr(update[0], "shape") else None
        if shape != weight.shape or not jnp.issubdtype(update[0].dtype, jnp.floating):
            kind = f"{update[0].dtype} of shape {shape}" if shape is not None else type(updates[name]).__name__
            raise InputError(
                f"the optimizer's update of {name}: expected real numbers of shape {weight.shape}, found {kind}: an "
                "update has the shape of its weight"
            )
        if jnp.finfo(update[0].dtype).bits < jnp.finfo(weight.dtype).bits:
            raise InputError(
                f"the optimizer's update of {name}: expected {weight.dtype} like its weight, found the narrower "
                f"{update[0].dtype}, which rounds it away: compute updates in the weights' type"
            )


def check_eval_params(chosen: Any, weights: dict[str, Any]) -> None:
    """Raises InputError unless eval_params returned the names, shapes and types of the weights."""
    _check_names(chosen, weights, "eval_params", "every weight, by its name", "return params or an average of them")
    for name, weight in weights.items():
        value = chosen[name]
        if getattr(value, "shape", None) != weight.shape or value.dtype != weight.dtype:
            kind = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
            raise InputError(
                f"the optimizer's eval_params: expected {name} as {weight.dtype} of shape {weight.shape}, found "
                f"{kind}: return arrays like the params"
            )


def check_first_eval_params(chosen: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    """Raises InputError unless eval_params of a first optimizer state is the weights themselves, to rounding."""
    for name, weight in weights.items():
        allowed = ROUNDING * float(jnp.finfo(weight.dtype).eps) * float(np.abs(weight).max())
        apart = float(np.abs(chosen[name].astype(np.float64) - weight.astype(np.float64)).max())
        if not apart <= allowed:
            raise InputError(
                f"the optimizer's eval_params: expected the params themselves before the first update, found {name} "
                f"{apart:.2g} apart: start averages at the params"
            )


def _check_names(values: Any, weights: dict[str, Any], what: str, expected: str, remedy: str) -> None:
    if isinstance(values, dict) and values.keys() == weights.keys():
        return
    names = values.keys() if isinstance(values, dict) else set()
    first = min(names ^ weights.keys(), default=type(values).__name__, key=str)
    missing = "none for" if first in weights else "an unknown"
    raise InputError(f"the optimizer's {what}: expected {expected}, found {missing} {first}: {remedy}")
