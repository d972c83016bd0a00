"""The platform that is traced for: JAX may compile for devices that this machine does not have."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

MASKED = -1e30  # a masked score: exp(MASKED - max) is exactly 0 in every precision in use

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced inside is compiled for this platform, "cpu" or "gpu", wherever it is traced."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str:
    """The platform that the current trace is compiled for."""
    return _platform.get() or ("cpu" if jax.default_backend() == "cpu" else "gpu")
