"""Rematerialisation: what a block keeps for its gradient, chosen by the program, asked for by the models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_remat: ContextVar[str] = ContextVar("remat", default="none")


@contextmanager
def remat(policy: str) -> Iterator[None]:
    """What is traced inside recomputes for its gradient: "none" nothing, "blocks" each block from its inputs."""
    token = _remat.set(policy)
    try:
        yield
    finally:
        _remat.reset(token)


def maybe_remat(block: Callable) -> Callable:
    """The block, rematerialised in its gradient where the policy says so (see `remat`)."""
    if _remat.get() != "blocks":
        return block
    # jax.checkpoint needs a function, not a module
    return jax.checkpoint(lambda *inputs: block(*inputs))  # noqa: PLW0108
