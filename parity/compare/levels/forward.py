"""Level 3: activations of every module in the order in which they are computed."""

from collections.abc import Iterator, Sequence
from typing import Any

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import half_trained
from parity.recipes import Recipe

AXES = {
    1: ("channel",),
    2: ("position", "channel"),
    3: ("row", "position", "channel"),
    4: ("row", "position", "head", "channel"),
}


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """The program's activations, of logits those of the tokenizer's tokens."""
    recipe = case.recipe
    activations = program.activations(half_trained(program, case), program.put(case.batch))
    for path, activation in activations.items():
        if not _is_float(activation):  # tokens, positions and masks
            continue
        value = program.array(activation, path)
        if path == "logits":
            value = value[..., : recipe.tokenizer_size]
        modules = path.split(":")[0].split(".")
        bound = bounds.forward(recipe, _blocks(recipe, modules))
        yield Observation(_line(modules), path, value, bound, axes=AXES.get(value.ndim, ()))


def _is_float(activation: Any) -> bool:
    """Whether values are to be compared; of what has no type `Guarded.array` decides."""
    return "float" in str(getattr(activation, "dtype", "float"))


def _line(modules: Sequence[str]) -> str:
    if modules[0] == "logits":
        return "logits"
    return modules[2] if len(modules) > 2 and modules[2] in ("attn", "mlp") else "stream"


def _blocks(recipe: Recipe, modules: Sequence[str]) -> int:
    """How many blocks a module's values have gone through."""
    if modules[0] == "blocks" and len(modules) > 1 and modules[1].isdecimal():
        return int(modules[1]) + 1
    return 0 if modules[0] in ("embed", "positions", "norm_in") else recipe.layers
