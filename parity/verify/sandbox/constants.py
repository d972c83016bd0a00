"""Arrays and tables that a program carries beside its state: captured in its functions, or held by its objects."""

import functools
import hashlib
import itertools
import math
import os
import sys
import types
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

LEAST_BYTES = 256  # of an array, or of a list or string; smaller ones are settings
MOST_BYTES = 1 << 26  # of an array that is compressed whole; of a larger one its beginning counts for all
MOST_OBJECTS = 200_000  # that are looked at
FRAMEWORKS = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "parity", "jaxrun", "torchref")
CONTAINERS = dict | list | tuple | set | frozenset
LEAVES = bool | int | float | complex | type(None) | types.ModuleType


def constants(program: Any, state: Any, batch: Any) -> list[dict[str, Any]]:
    """Every constant of at least LEAST_BYTES: name, shape, type, and bytes once compressed; the largest first.

    What is found: arrays in the traced step and scoring (JAX); and what can be reached from the program's object, from
    the modules of its own code, and from buffers of its model (PyTorch).
    """
    found: dict[bytes, dict[str, Any]] = {}
    held = {id(leaf) for leaf in _state_leaves(program, state)}
    reached = itertools.islice(_reachable(program, state), MOST_OBJECTS)
    for name, value in itertools.chain(_captured(program, state, batch), reached):
        if id(value) not in held and (data := _bytes(value)) is not None:
            found.setdefault(hashlib.blake2b(data).digest(), _described(name, value, data))
    return sorted(found.values(), key=lambda constant: -constant["bytes"])


def _described(name: str, value: Any, data: bytes) -> dict[str, Any]:
    whole = len(data)
    compressed = len(zlib.compress(data[:MOST_BYTES], 6)) * max(1.0, whole / MOST_BYTES)
    shape = [int(size) for size in value.shape] if hasattr(value, "shape") else [len(value)]
    kind = str(value.dtype) if hasattr(value, "dtype") else type(value).__name__
    return {"name": name[:120], "shape": shape, "type": kind, "bytes": math.ceil(compressed)}


def _bytes(value: Any) -> bytes | None:
    """The content of an array, a string, or a container of numbers and strings; None for anything else, or small."""
    if isinstance(value, str | bytes | bytearray):
        data = value.encode(errors="replace") if isinstance(value, str) else bytes(value)
    elif isinstance(value, CONTAINERS):
        data = repr(_plain(value)).encode()
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        try:
            data = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value).tobytes()
        except (TypeError, ValueError, RuntimeError):  # a traced or empty one, or of a type that numpy lacks
            return None
    else:
        return None
    return data if len(data) >= LEAST_BYTES else None


def _plain(value: Any) -> list[Any]:
    """The numbers and strings of a container and of those in it; [] where there is anything else in it."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, CONTAINERS):
            waiting += item
        elif isinstance(item, bool | int | float | str | bytes | type(None)) and len(found) + len(waiting) < MOST_BYTES:
            found.append(item)
        else:
            return []
    return found


def _captured(program: Any, state: Any, batch: Any) -> Iterator[tuple[str, Any]]:
    """Constants of the step and of scoring, as JAX traces them."""
    if getattr(program, "framework", "") != "jax":
        return
    import jax

    for name, function in (("step", program.step), ("token_losses", program.token_losses)):
        try:
            traced = jax.make_jaxpr(function)(state, batch)
        except Exception:  # untrusted, and perhaps no function that can be traced
            continue
        yield from ((f"{name}: a captured array", value) for value in _of_jaxpr(traced))


def _of_jaxpr(traced: Any) -> Iterator[Any]:
    yield from getattr(traced, "consts", ())
    for equation in getattr(traced, "jaxpr", traced).eqns:
        yield from (atom.val for atom in equation.invars if hasattr(atom, "val"))
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _of_jaxpr(inner)


def _reachable(program: Any, state: Any) -> Iterator[tuple[str, Any]]:
    """What hangs on the program's object, on the modules of user code and on the state's model, by path."""
    modules = [module for name, module in sys.modules.items() if _is_own(module, name)]
    waiting: list[tuple[str, Any]] = [("program", program), *((module.__name__, vars(module)) for module in modules)]
    if hasattr(state, "model"):
        waiting.append(("model", state.model))
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen or isinstance(value, LEAVES):
            continue
        seen.add(id(value))
        yield name, value
        if not isinstance(value, CONTAINERS) or _bytes(value) is None:  # what is counted whole is not counted again
            waiting += _inside(name, value)


def _is_own(module: Any, name: str) -> bool:
    """Whether a module is the user program, or lies in the folder that the run's packed source was written to."""
    own = os.path.join(os.environ.get("HOME", ""), "source", "")  # parent.start makes the scratch folder the home
    return name == "user_program" or str(getattr(module, "__file__", None)).startswith(own)


def _inside(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{name}.{key}", item) for key, item in value.items() if not str(key).startswith("__")]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, functools.partial):
        return [(name, value.func), (name, value.args), (name, value.keywords)]
    if isinstance(value, types.MethodType):
        return [(name, value.__func__), (name, value.__self__)]
    if isinstance(value, types.FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        others = value.__defaults__ or (), value.__kwdefaults__ or {}, dict(vars(value))
        return [(f"{name}()", item) for item in (*inner, *others)]
    if isinstance(value, type):
        own = value.__module__.partition(".")[0] not in FRAMEWORKS
        return [(name, dict(vars(value)))] if own else []
    wrapped = getattr(value, "__wrapped__", None)
    held = getattr(value, "__dict__", None)
    return [(name, item) for item in (wrapped, dict(held) if isinstance(held, dict) else None) if item is not None]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _state_leaves(program: Any, state: Any) -> list[Any]:
    """The arrays of the state, which checkpoints have."""
    if getattr(program, "framework", "") == "jax":
        import jax

        return jax.tree.leaves(state)
    model = getattr(state, "model", None)
    return list(model.parameters()) if model is not None else []
