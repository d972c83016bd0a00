"""Checkpoints for resuming, by torch.save."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from parity.errors import InputError


def save(directory: Path, state: dict[str, Any]) -> None:
    """Writes a state (dicts and lists of tensors and plain values) into an existing folder."""
    torch.save(state, directory / "state.pt")


def restore(directory: Path, device: torch.device) -> dict[str, Any]:
    """Reads a state onto a device; InputError where it is missing, damaged, or holds more than tensors and plain values."""
    path = directory / "state.pt"
    if not path.is_file():
        raise InputError(
            f"{directory}: expected a file `state.pt` written by torchref, found none: it is no PyTorch checkpoint"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the check sums
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location=device, weights_only=True)
        reason = f"{damaged} has a wrong check sum"
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    raise InputError(
        f"{path}: expected what torchref saved, found something else ({reason}): resume from another checkpoint"
    )
