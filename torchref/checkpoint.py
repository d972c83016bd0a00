"""Checkpoints for resuming, by torch.save."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from parity.errors import InputError


def save(directory: Path, state: dict[str, Any]) -> None:
    """Writes a state (dicts and lists of tensors and plain values) into an existing folder. Raises OSError."""
    with open(directory / "state.pt", "xb", buffering=0) as file:
        writer: Any = _Writer(file)
        torch.save(state, writer)
    if writer.error:
        raise writer.error


class _Writer:
    """A file whose first error is kept: PyTorch would end in one of its own, which does not name the reason."""

    def __init__(self, file: io.FileIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        size, rest = len(data), memoryview(data)
        try:
            while len(rest) and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""


def restore(directory: Path, template: dict[str, Any]) -> dict[str, Any]:
    """Reads a state with the structure, shapes, types and device of `template`.

    Raises InputError if it is missing, damaged or different.
    """
    path = directory / "state.pt"
    if not path.is_file():
        raise InputError(
            f"{directory}: expected a file `state.pt` written by torchref, found none: it is no PyTorch checkpoint"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not check the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has a wrong check sum")
        device = next(iter(template["weights"].values())).device
        state = torch.load(path, map_location=device, weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(
            f"{path}: expected what torchref saved, found something else ({reason}): resume from another checkpoint"
        ) from error
    expected, found = _structure(template), _structure(state)
    for name in sorted(expected.keys() | found.keys()):
        old, new = found.get(name, "none"), expected.get(name, "none")
        if old != new:
            raise InputError(
                f"{directory}: this checkpoint does not fit the program ({name}: expected {new}, found {old}): "
                "resume with the program that wrote it"
            )
    return state


def _structure(state: Any) -> dict[str, str]:
    """The type and shape of every weight of a state, and the sizes of the groups of every optimizer, by name."""
    if not isinstance(state, dict) or state.keys() != {"weights", "optimizer", "step"}:
        return {}
    weights = {f"weight {name}": f"{w.dtype} {list(w.shape)}" for name, w in state["weights"].items()}
    groups = {name: part.get("param_groups", []) for name, part in state["optimizer"].items()}
    return weights | {f"optimizer {name}": str([len(x["params"]) for x in groups[name]]) for name in groups}
