"""Checkpoints for resuming, by orbax."""

from pathlib import Path
from typing import Any

from parity.errors import InputError


def save(directory: Path, state: Any, alone: bool = True) -> None:
    """Writes a state (a tree of arrays) below an existing folder; not `alone`: beside other processes, which do not call."""
    import orbax.checkpoint as ocp

    only = (
        {}
        if alone
        else {"multiprocessing_options": ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})}
    )
    # Synchronous: orbax's background threads would print what goes wrong themselves, as on a full disk.
    with ocp.Checkpointer(ocp.StandardCheckpointHandler(**only), **only) as checkpointer:
        checkpointer.save((directory / "state").absolute(), args=ocp.args.StandardSave(state))


def restore(directory: Path, template: Any) -> Any:
    """Reads a state with the structure, shapes, types and shardings of `template`; InputError where it differs."""
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
