"""Canonical weights: names, first values, digests, and the neutral file format (safetensors).

Programs exchange weights as one flat mapping from canonical name to numpy array, matrices as (out, in), in float32, or
float64 at that precision. A weight that a program stores in bfloat16 is exact in float32.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats.files import write_file
from parity.recipes import Recipe

Weights = dict[str, np.ndarray]


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of one weight: Philox keyed by the first 16 bytes of sha256("seed:name")."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def initial_weights(recipe: Recipe, seed: int) -> Weights:
    """The first values of every weight of a recipe, drawn in float64 and rounded once to the type of the weight."""
    weights = {}
    for name, parameter in recipe.parameters().items():
        if parameter.std is not None:
            value = generator(seed, parameter.like or name).standard_normal(parameter.shape) * parameter.std
        elif parameter.bound is not None:
            value = generator(seed, name).uniform(-1, 1, parameter.shape) * parameter.bound
        else:
            value = np.full(parameter.shape, parameter.value, np.float64)
        weights[name] = round_to(value, recipe.first_dtype(name))
    return weights


def round_to(value: np.ndarray, dtype: str) -> np.ndarray:
    """A float64 array rounded (nearest, ties to even) to float64, float32, or bfloat16 held in float32."""
    if dtype != "bfloat16":
        return value.astype(dtype)
    # bfloat16 keeps 7 of float64's 52 fraction bits; rounded in one step: float32 in between could round twice.
    bits = value.astype(np.float64).view(np.uint64)
    dropped = np.uint64(45)
    half = np.uint64((1 << 44) - 1) + ((bits >> dropped) & np.uint64(1))
    return (((bits + half) >> dropped) << dropped).view(np.float64).astype(np.float32)


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and little-endian bytes of all weights, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        total.update(f"{name}:{array.dtype.name}:{array.shape};".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()


def check(weights: Mapping[str, Any], recipe: Recipe, where: str, remedy: str = "use the recipe that wrote it") -> None:
    """Raises InputError, naming `where`, unless names and shapes of the weights (arrays) are those of the recipe."""
    wanted = recipe.parameters()
    if missing := wanted.keys() - weights.keys():
        raise InputError(
            f"{where}: weight {min(missing)} is missing; recipe {recipe.name} has {len(wanted)} weights, "
            f"found {len(weights)}: {remedy}"
        )
    if extra := weights.keys() - wanted.keys():
        raise InputError(f"{where}: weight {min(extra)} is not part of recipe {recipe.name}: {remedy}")
    for name, parameter in wanted.items():
        if tuple(weights[name].shape) != parameter.shape:
            raise InputError(
                f"{where}: weight {name} expected shape {parameter.shape}, found {tuple(weights[name].shape)}: {remedy}"
            )


def save(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes weights as safetensors, in the order of their names so that equal weights give equal bytes.

    Raises InputError where the file cannot be written, as on a full disk.
    """
    from safetensors.numpy import save as serialise

    write_file(path, serialise({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}))


def load(path: Path) -> Weights:
    """Reads a safetensors file; InputError where it is missing or not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise InputError(f"{path}: no weights here; a finished run has them, so finish it with --resume first")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found something else ({error}): it is damaged"
        ) from error
