"""One process a device, started by torchrun: which device, which rows, and sums over the processes."""

import atexit
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from parity.errors import InputError, nearest

KINDS = ("auto", "cpu", "gpu")


def pick_device(device: str = "auto", count: int | None = None) -> torch.device:
    """The device of this process: `device` is auto (GPU if there is one), cpu or gpu; `count` must be one a process.

    Raises InputError where there is no such device or `count` is not the number of processes.
    """
    if device not in KINDS:
        raise InputError(f"--device {device}: no such kind of device; {nearest(device, KINDS)}")
    if count is not None and count != world_size():
        raise InputError(
            f"--devices {count}: expected {world_size()}: torchref computes on one device a process; "
            "leave the option out"
        )
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"--device {device}: PyTorch finds {found} GPUs here, expected {local + 1} or more; install "
            "PyTorch for CUDA on a machine with NVIDIA GPUs, start fewer processes, or use --device cpu"
        )
    return torch.device("cuda", local)


def join(device: torch.device) -> None:
    """Joins torchrun's other processes, once; nothing to do where this one is alone."""
    if world_size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def rank() -> int:
    """Number of this process, from 0; torchrun sets it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def by_row(batch_BT):
    """This process's rows of a batch: the rank-th of equal consecutive parts."""
    rows = len(batch_BT) // world_size()
    return batch_BT[rank() * rows : (rank() + 1) * rows]


def gather_rows(part_BT: torch.Tensor) -> torch.Tensor:
    """The rows of all processes in their order, on every process."""
    if world_size() == 1:
        return part_BT
    parts = [torch.empty_like(part_BT) for _ in range(world_size())]
    dist.all_gather(parts, part_BT.contiguous())
    return torch.cat(parts)


def reduce_gradients(tensors: list[torch.Tensor], reduction: str) -> None:
    """Replaces loss and gradients by their sum ("sum") or average ("mean") over all processes, in one exchange a type."""
    if world_size() == 1:
        return
    for dtype in {x.dtype for x in tensors}:
        same = [x for x in tensors if x.dtype == dtype]
        flat = torch.cat([x.flatten() for x in same])
        dist.all_reduce(flat)
        if reduction == "mean":
            flat /= world_size()
        for x, part in zip(same, flat.split([x.numel() for x in same])):
            x.copy_(part.view_as(x))


def by_matrix(function: Callable) -> Callable:
    """`function` of a stack of matrices (N, R, C) with the matrices divided among the processes: each is computed once."""

    def divided(x_NRC: torch.Tensor) -> torch.Tensor:
        own = -(-len(x_NRC) // world_size())  # the last ones compute zeros where they do not divide
        mine = x_NRC[rank() * own : (rank() + 1) * own]
        mine = function(torch.cat([mine, mine.new_zeros(own - len(mine), *x_NRC.shape[1:])])).contiguous()
        whole = mine.new_empty(own * world_size(), *x_NRC.shape[1:])
        dist.all_gather(list(whole.split(own)), mine)
        return whole[: len(x_NRC)]

    return divided if world_size() > 1 else function
