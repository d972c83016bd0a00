"""One process a device, started by torchrun: which rows each process computes, and sums over the processes.

The state (weights and optimizer) is replicated: every process holds all of it and makes the same update. Only the batch
is sharded, by rows, and the stacks of matrices that Muon orthogonalizes, each matrix computed by one process.
"""

# pyright: reportPrivateImportUsage=false
import atexit
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from parity.errors import InputError, nearest

DEVICE_KINDS = ("auto", "cpu", "gpu")


def pick_device(device: str = "auto", count: int | None = None) -> torch.device:
    """The device of this process: `device` is auto (GPU if there is one), cpu or gpu; `count` must be one a process.

    Raises InputError if there is no such device or `count` is not the number of processes.
    """
    if device not in DEVICE_KINDS:
        raise InputError(f"--device {device}: no such kind of device; {nearest(device, DEVICE_KINDS)}")
    if count is not None and count != world_size():
        raise InputError(
            f"--devices {count}: expected {world_size()}: torchref computes on one device a process; "
            "leave the option out"
        )
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= gpus:
        raise InputError(
            f"--device {device}: PyTorch finds {gpus} GPUs here, expected {index + 1} or more; install "
            "PyTorch for CUDA on a machine with NVIDIA GPUs, start fewer processes, or use --device cpu"
        )
    return torch.device("cuda", index)


def platform(device: str = "auto") -> str:
    """ "cpu" or "gpu": what `device` means here. Raises InputError if there is no such device."""
    return "gpu" if pick_device(device).type == "cuda" else "cpu"


def init_distributed(device: str = "auto") -> None:
    """Joins the processes that torchrun's environment variables describe, once; does nothing in a single process."""
    if world_size() == 1 or dist.is_initialized():
        return
    own_device = pick_device(device)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    dist.init_process_group("nccl" if own_device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def rank() -> int:
    """Number of this process, from 0; torchrun sets it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather_rows(x_BT: torch.Tensor) -> torch.Tensor:
    """The rows of all processes in their order, on every process."""
    if world_size() == 1:
        return x_BT
    rows = [torch.empty_like(x_BT) for _ in range(world_size())]
    dist.all_gather(rows, x_BT.contiguous())
    return torch.cat(rows)


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
    totals: list[torch.Tensor] = []
    dtypes: dict[str, torch.dtype] = {}
    for group in zip(*(x.chunk(count) for x in rows), strict=True):
        loss, grads = function(*group)
        terms = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (loss, *grads.values())]
        if totals:
            torch._foreach_add_(totals, terms)
        else:
            totals, dtypes = terms, {name: g.dtype for name, g in grads.items()}
    return totals[0], {name: x.to(dtypes[name]) for name, x in zip(dtypes, totals[1:], strict=True)}


def reduce_gradients(loss: torch.Tensor, grads: dict[str, torch.Tensor]):
    """Loss and gradients summed over the processes in their own types, in place; one exchange for each type."""
    if world_size() > 1:
        tensors = [loss, *grads.values()]
        for dtype in {x.dtype for x in tensors}:
            same = [x for x in tensors if x.dtype == dtype]
            flat = torch.cat([x.flatten() for x in same])
            dist.all_reduce(flat)
            for x, total in zip(same, flat.split([x.numel() for x in same]), strict=True):
                x.copy_(total.view_as(x))
    return loss, grads


def distribute_matrices(function: Callable) -> Callable:
    """`function` of a stack of matrices (N, R, C), each matrix computed on one process."""

    def distributed(x_NRC: torch.Tensor) -> torch.Tensor:
        count = -(-len(x_NRC) // world_size())  # matrices a process; the last processes compute zeros
        own = x_NRC[rank() * count : (rank() + 1) * count]
        own = function(torch.cat([own, own.new_zeros(count - len(own), *x_NRC.shape[1:])])).contiguous()
        y_NRC = own.new_empty(count * world_size(), *x_NRC.shape[1:])
        dist.all_gather(list(y_NRC.split(count)), own)
        return y_NRC[: len(x_NRC)]

    return distributed if world_size() > 1 else function


def from_global(device: torch.device, rows: np.ndarray) -> torch.Tensor:
    """This process's rows, equal consecutive groups by rank, of a batch that every process has whole."""
    count = len(rows) // world_size()
    return from_local_rows(device, rows[rank() * count : (rank() + 1) * count])


def from_local_rows(device: torch.device, rows: np.ndarray) -> torch.Tensor:
    """Rows of a batch on the device of this process."""
    tensor = torch.from_numpy(rows.astype(np.int64))  # PyTorch looks up by 64-bit indices
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tree: Any) -> Any:
    """A tree of tensors (dicts, tuples, lists) as numpy arrays; bfloat16, which numpy lacks, as float32."""
    if isinstance(tree, dict):
        return {key: to_host(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to_host(value) for value in tree)
    if not isinstance(tree, torch.Tensor):
        return tree
    tensor = tree.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
