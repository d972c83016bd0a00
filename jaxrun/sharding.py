"""One mesh over the devices, and what lies where on it.

The mesh has two axes. The rows of a batch are divided over both; weights and optimizer state over `weights` alone, and repeated
along `data`. So each device keeps one part of the state, gathers the weights for a step, and gets its part of the summed gradients.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parity.errors import InputError

NVIDIA = Path("/proc/driver/nvidia/version")  # there where a driver is
MACHINE = 8  # devices that are well connected
ROWS = PartitionSpec(("data", "weights"))
WHOLE = PartitionSpec()


def pick_devices(device: str = "auto", count: int | None = None) -> list:
    """The devices to compute on: `device` is auto (GPU if there is one), cpu or gpu; `count` None takes all of them.

    Raises InputError where there is no such device or too few of them.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.devices() if device == "auto" else jax.devices(device)
    except RuntimeError as error:
        raise InputError(
            f"--device {device}: JAX finds no {device} here, only {jax.default_backend()}; "
            "install jax[cuda13] on a machine with an NVIDIA GPU, or use --device cpu"
        ) from error
    if (
        device == "auto"
        and found[0].platform == "cpu"
        and NVIDIA.exists()
        and "cpu" not in os.environ.get("JAX_PLATFORMS", "")
    ):
        raise InputError(
            "--device auto: this machine has an NVIDIA GPU, and JAX has no plugin for it: pip install 'jaxrun[cuda]', or use "
            "--device cpu"
        )
    if count is not None and not 1 <= count <= len(found):
        raise InputError(f"--devices {count}: expected 1 to {len(found)}, the devices that JAX finds here")
    return found[:count]


def join(device: str = "auto") -> None:
    """Joins the other processes, which torchrun's variables name, once; nothing to do where this one is alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or jax.distributed.is_initialized():
        return
    if device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    own = (
        int(os.environ["LOCAL_RANK"]) if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and device != "cpu" else None
    )
    jax.distributed.initialize(
        f"{os.environ['MASTER_ADDR']}:{_port()}", count, int(os.environ["RANK"]), local_device_ids=own
    )
    if jax.default_backend() == "cpu":
        _first_exchange()


def _first_exchange() -> None:
    """Gloo tells of its connections on the standard output, which is for results: on the standard error instead."""
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        multihost_utils.sync_global_devices("join")
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _port() -> int:
    """torchrun itself listens on the port that it names."""
    return int(os.environ["MASTER_PORT"]) + (2 if "TORCHELASTIC_RUN_ID" in os.environ else 0)


def make_mesh(devices: list, weights: int | None = None) -> Mesh:
    """A mesh (data, weights) over the devices; the state is divided over `weights` of them (None: over all, or those of one machine).

    Raises InputError where that many do not divide the devices.
    """
    if weights is None:
        weights = MACHINE if len(devices) > MACHINE and len(devices) % MACHINE == 0 else len(devices)
    if weights < 1 or len(devices) % weights:
        raise InputError(
            f"--shards {weights}: expected a divisor of the number of devices, {len(devices)}, found another: choose one"
        )
    return Mesh(np.array(devices).reshape(-1, weights), ("data", "weights"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: metrics, and what cannot be divided."""
    return NamedSharding(mesh, WHOLE)


def by_row(mesh: Mesh) -> NamedSharding:
    """The rows of a batch in consecutive equal parts, one a device."""
    return NamedSharding(mesh, ROWS)


def part(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """How a tensor of the state is divided: matrices by rows where the devices divide them, else by columns; all else is whole on every
    device."""
    count = mesh.shape["weights"]
    axis = (
        next((i for i in range(len(shape) - 2, len(shape)) if shape[i] % count == 0), None)
        if len(shape) > 1 and count > 1
        else None
    )
    return WHOLE if axis is None else PartitionSpec(*[None] * axis, "weights")


def parts(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a tree of arrays or shapes, as they are divided."""
    return jax.tree.map(lambda x: NamedSharding(mesh, part(mesh, x.shape)), tree)


def over_rows(mesh: Mesh, function: Callable, outputs: Any) -> Callable:
    """`function(weights, *rows)` on each device for its own rows of a batch and all of the weights; `outputs`: its results' specs."""

    def divided(weights, *rows):
        specs = (jax.tree.map(lambda _: WHOLE, weights), *(ROWS for _ in rows))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=outputs, check_vma=False)(weights, *rows)

    return divided


def reduce_gradients(mesh: Mesh, loss, grads: dict[str, Any]):
    """Sums over the devices, inside `over_rows`: of the loss, and of the gradients, each in its own type; a device gets its part."""

    def summed(x, *axes):
        axes = [axis for axis in axes if mesh.shape[axis] > 1]
        return jax.lax.psum(x, axes) if axes else x

    def own_part(g):
        spec = part(mesh, g.shape)
        if spec == WHOLE:
            return summed(g, "data", "weights")
        return summed(jax.lax.psum_scatter(g, "weights", scatter_dimension=len(spec) - 1, tiled=True), "data")

    return summed(loss, "data", "weights"), {name: own_part(g) for name, g in grads.items()}


def by_matrix(mesh: Mesh, function: Callable) -> Callable:
    """`function` of a stack of matrices (N, R, C) with the matrices divided among the devices: each is computed once."""

    def divided(x_NRC):
        short = -len(x_NRC) % mesh.size
        x_NRC = jnp.concatenate([x_NRC, jnp.zeros((short, *x_NRC.shape[1:]), x_NRC.dtype)]) if short else x_NRC
        by_row, by_half, by_one = (
            PartitionSpec(*spec)
            for spec in ((None, *part(mesh, x_NRC.shape[1:])), ("weights",), (("weights", "data"),))
        )
        for spec in (by_row, by_half):  # step by step: along one axis of the mesh at a time
            x_NRC = jax.lax.with_sharding_constraint(x_NRC, NamedSharding(mesh, spec))
        y_NRC = jax.shard_map(function, mesh=mesh, in_specs=by_one, out_specs=by_one, check_vma=False)(x_NRC)
        for spec in (by_half, by_row):
            y_NRC = jax.lax.with_sharding_constraint(y_NRC, NamedSharding(mesh, spec))
        return y_NRC[: len(y_NRC) - short]

    return divided if mesh.size > 1 else function


def in_microbatches(count: int, function: Callable, *rows):
    """The sum of what a function gives for `count` equal parts of the rows, one after the other; sums in float32 or wider.

    Raises InputError where the rows cannot be divided so.
    """
    if count == 1:
        return function(*rows)
    if len(rows[0]) % count:
        raise InputError(
            f"--microbatches {count}: expected a divisor of the {len(rows[0])} rows that a device has: choose another"
        )
    divided = [x.reshape(count, -1, *x.shape[1:]) for x in rows]
    kinds = jax.eval_shape(function, *(x[0] for x in divided))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), kinds)
    total, _ = jax.lax.scan(
        lambda found, xs: (jax.tree.map(lambda a, b: a + b.astype(a.dtype), found, function(*xs)), None), empty, divided
    )
    return jax.tree.map(lambda x, kind: x.astype(kind.dtype), total, kinds)


def fetched(tree: Any) -> Any:
    """A tree of arrays as numpy arrays. Where other processes have parts of them, all must ask."""
    from jax.experimental import multihost_utils

    whole = jax.tree.map(
        lambda x: (
            x
            if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )
    return jax.device_get(whole)


def placed_whole(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """A batch that every process has whole."""
    if jax.process_count() == 1:
        return jax.device_put(rows, by_row(mesh))
    return jax.make_array_from_callback(
        rows.shape, by_row(mesh), lambda own: rows[own]
    )  # device_put would exchange all, from any thread


def placed(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """A batch of which each process gives the rows of its own devices, in the order of the processes."""
    return jax.make_array_from_process_local_data(by_row(mesh), rows)
