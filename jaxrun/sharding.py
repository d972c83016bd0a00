"""One mesh over the devices, and where state and batches lie on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parity.errors import InputError


def pick_devices(device: str = "auto", count: int | None = None) -> list:
    """The devices to compute on: `device` is auto (GPU if there is one), cpu or gpu; `count` None takes all of them.

    Raises InputError where there is no such device or too few of them.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.devices() if device == "auto" else jax.devices(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: JAX finds no {device} here, only {jax.default_backend()}; "
                         "install jax[cuda13] on a machine with an NVIDIA GPU, or use --device cpu") from error
    if count is not None and not 1 <= count <= len(found):
        raise InputError(f"--devices {count}: expected 1 to {len(found)}, the devices that JAX finds here")
    return found[:count]


def make_mesh(devices: list) -> Mesh:
    """A mesh with one axis, `data`, over the devices."""
    return Mesh(np.array(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: weights, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """The rows of a batch in consecutive equal parts, one a device."""
    return NamedSharding(mesh, PartitionSpec("data"))
