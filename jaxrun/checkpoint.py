"""Checkpoints for resuming, by orbax."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from parity.errors import InputError
from parity.streams import SafeStream


def save(directory: Path, state: Any) -> None:
    """Writes a state (a tree of arrays) into an existing folder. Of several processes, only the first calls."""
    import orbax.checkpoint as ocp

    options: dict[str, Any] = {}
    if jax.process_count() > 1:
        options = {"multiprocessing_options": ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})}
    # Synchronous: orbax's background threads would print errors themselves, such as that of a full disk.
    with _quiet(), ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options) as checkpointer:
        checkpointer.save((directory / "state").absolute(), args=ocp.args.StandardSave(state))


class _OfThisThread(SafeStream):
    """A stream that loses what other threads write."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return super().write(text) if threading.get_ident() == self._thread else len(text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Shows nothing of what orbax and its threads print of a write that fails, since its error is raised.

    After one threads print nothing any more: some do so later, of callbacks that come too late.
    """
    stream, level = sys.stderr, logging.root.manager.disable
    sys.stderr = _OfThisThread(stream)
    logging.disable(logging.CRITICAL)
    try:
        yield
        sys.stderr = stream
    finally:
        logging.disable(level)


def restore(directory: Path, template: Any) -> Any:
    """Reads a state with the structure, shapes, types and shardings of `template`.

    Raises InputError if it is missing, damaged or different.
    """
    import orbax.checkpoint as ocp

    path = (directory / "state").absolute()
    if not path.is_dir():
        raise InputError(
            f"{directory}: expected a folder `state` written by orbax, found none: it is no JAX checkpoint"
        )
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.StandardRestore(template))
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: this checkpoint does not fit the program ({reason}): resume with the program that wrote it"
        ) from error
