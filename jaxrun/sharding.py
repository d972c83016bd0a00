"""One mesh over the devices, and how the state and the batch are sharded over it.

A batch is sharded by rows over both axes of the mesh, `data` and `weights`. A matrix of the state (weights and
optimizer) is sharded over `weights` along its rows, or its columns where the devices divide only those (`param_spec`):
one axis, so that a gradient is reduce-scattered and a weight gathered in one exchange. The rest is small: replicated.
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

NVIDIA = Path("/proc/driver/nvidia/version")  # exists where the driver is loaded
DEVICES_PER_HOST = 8  # devices with a fast connection to each other
ROWS = PartitionSpec(("data", "weights"))
REPLICATED = PartitionSpec()


def pick_devices(device: str = "auto", count: int | None = None) -> list:
    """The devices to compute on: `device` is auto (GPU if there is one), cpu or gpu; `count` None takes all of them.

    Raises InputError if there is no such device or fewer than `count`.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = jax.devices() if device == "auto" else jax.devices(device)
    except (RuntimeError, AssertionError) as error:  # JAX asserts that platforms of JAX_PLATFORMS have devices
        if device == "auto" and (chosen := os.environ.get("JAX_PLATFORMS")):
            raise InputError(
                f"JAX_PLATFORMS={chosen!r}: expected platforms that JAX finds here, found none of them "
                f"({str(error).strip().partition(chr(10))[0][:150] or 'no devices'}): unset it, or use --device cpu"
            ) from error
        raise InputError(
            f"--device {device}: JAX finds no {device} here: install jax[cuda13] on a machine with an NVIDIA GPU, or "
            "use --device cpu"
        ) from error
    cpu_requested = device == "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if devices[0].platform == "cpu" and NVIDIA.exists() and not cpu_requested:
        raise InputError(
            "--device auto: this machine has an NVIDIA GPU, and JAX has no plugin for it: pip install 'jaxrun[cuda]', "
            "or use --device cpu"
        )
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"--devices {count}: expected 1 to {len(devices)}, the devices that JAX finds here")
    return devices[:count]


def platform(device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` means here. Raises InputError if there is no such device."""
    return pick_devices(device)[0].platform


def init_distributed(device: str = "auto") -> None:
    """Joins the processes that torchrun's environment variables describe, once; does nothing in a single process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or jax.distributed.is_initialized():
        return
    if device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    device_per_process = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and device != "cpu"
    port = int(os.environ["MASTER_PORT"]) + (2 if "TORCHELASTIC_RUN_ID" in os.environ else 0)  # torchrun uses the port
    jax.distributed.initialize(
        f"{os.environ['MASTER_ADDR']}:{port}",
        processes,
        int(os.environ["RANK"]),
        local_device_ids=int(os.environ["LOCAL_RANK"]) if device_per_process else None,
    )
    if jax.default_backend() == "cpu":
        _connect_gloo()


def _connect_gloo() -> None:
    """A first exchange with stdout sent to stderr: gloo reports its connections on stdout, which is for results."""
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        multihost_utils.sync_global_devices("init_distributed")
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def make_mesh(devices: list, shards: int | None = None) -> Mesh:
    """A mesh (data, weights) with the state in `shards` shards: by default one for each device, at most of one host.

    Raises InputError unless `shards` divides the number of devices.
    """
    if shards is None:
        several_hosts = len(devices) > DEVICES_PER_HOST and len(devices) % DEVICES_PER_HOST == 0
        shards = DEVICES_PER_HOST if several_hosts else len(devices)
    if shards < 1 or len(devices) % shards:
        raise InputError(
            f"--shards {shards}: expected a divisor of the number of devices, {len(devices)}, found another: choose one"
        )
    return Mesh(np.array(devices).reshape(-1, shards), ("data", "weights"))


def param_spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """How a tensor of the state, a weight or its optimizer state, is sharded.

    A matrix over the mesh axis `weights` along its rows, or else its columns; everything else is replicated.
    """
    shards = mesh.shape["weights"]
    if len(shape) < 2 or shards == 1:
        return REPLICATED
    for axis in (len(shape) - 2, len(shape) - 1):  # a leading axis stacks matrices
        if shape[axis] % shards == 0:
            return PartitionSpec(*[None] * axis, "weights")
    return REPLICATED


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a tree of arrays or shapes of the state."""
    return jax.tree.map(lambda x: NamedSharding(mesh, param_spec(mesh, x.shape)), tree)


def shard_map_rows(mesh: Mesh, function: Callable, out_specs: Any) -> Callable:
    """`function(weights, *rows)` on each device, given its own rows of a batch and all weights."""

    def mapped(weights, *rows):
        in_specs = (jax.tree.map(lambda _: REPLICATED, weights), *(ROWS for _ in rows))
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(
            weights, *rows
        )

    return mapped


def sum_microbatches(count: int, function: Callable, *rows):
    """The sum of `function(*rows)`, a loss and {name: gradient}, over `count` equal groups of the rows, in turn.

    Summed in float32 or wider. Raises InputError unless `count` divides the rows.
    """
    if count == 1:
        return function(*rows)
    if len(rows[0]) % count:
        raise InputError(
            f"--microbatches {count}: expected a divisor of the {len(rows[0])} rows that a device has: choose another"
        )
    groups = [x.reshape(count, -1, *x.shape[1:]) for x in rows]
    shapes = jax.eval_shape(function, *(x[0] for x in groups))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)

    def add(total, group):
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, function(*group)), None

    total, _ = jax.lax.scan(add, zeros, groups)
    return jax.tree.map(lambda x, shape: x.astype(shape.dtype), total, shapes)


def reduce_gradients(mesh: Mesh, loss, grads: dict[str, Any]):
    """Inside `shard_map_rows`: loss and gradients summed over the devices in their own types, sharded like weights."""

    def psum(x, *axes):
        axes = [axis for axis in axes if mesh.shape[axis] > 1]
        return jax.lax.psum(x, axes) if axes else x

    def reduce_scatter(g):
        spec = param_spec(mesh, g.shape)
        if spec == REPLICATED:
            return psum(g, "data", "weights")
        return psum(jax.lax.psum_scatter(g, "weights", scatter_dimension=len(spec) - 1, tiled=True), "data")

    return psum(loss, "data", "weights"), {name: reduce_scatter(g) for name, g in grads.items()}


def distribute_matrices(mesh: Mesh, function: Callable) -> Callable:
    """`function` of a stack of matrices (N, R, C), each matrix computed on one device."""

    def distributed(x_NRC):
        padding = -len(x_NRC) % mesh.size
        if padding:
            x_NRC = jnp.concatenate([x_NRC, jnp.zeros((padding, *x_NRC.shape[1:]), x_NRC.dtype)])
        sharded = PartitionSpec(None, *param_spec(mesh, x_NRC.shape[1:]))
        along_weights, along_both = PartitionSpec("weights"), PartitionSpec(("weights", "data"))
        for spec in (sharded, along_weights):  # one axis of the mesh at a time: XLA would gather everything for both
            x_NRC = jax.lax.with_sharding_constraint(x_NRC, NamedSharding(mesh, spec))
        y_NRC = jax.shard_map(function, mesh=mesh, in_specs=along_both, out_specs=along_both, check_vma=False)(x_NRC)
        for spec in (along_weights, sharded):
            y_NRC = jax.lax.with_sharding_constraint(y_NRC, NamedSharding(mesh, spec))
        return y_NRC[: len(y_NRC) - padding]

    return distributed if mesh.size > 1 else function


def from_global(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """A batch on the devices, of which every process has all rows."""
    sharding = NamedSharding(mesh, ROWS)
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    # device_put would exchange the batch between the processes, and a reader's thread calls this
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def from_local_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """A batch on the devices, of which each process has the rows of its own devices, in the order of the processes."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, ROWS), rows)


def to_host(tree: Any) -> Any:
    """A tree of arrays as numpy arrays. Where other processes hold shards of them, all processes must call."""
    from jax.experimental import multihost_utils

    def gather(x):
        local = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return x if local else multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(gather, tree))
