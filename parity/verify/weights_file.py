"""Reads a safetensors file that nobody vouches for: sizes, types and positions are checked before anything is used."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats.files import open_plain
from parity.weights import Weights

MAX_BYTES, MAX_HEADER_BYTES = 64 << 30, 4 << 20
DTYPES = {"F32": "<f4", "F64": "<f8"}
REMEDY = "finish the run, or make it again"


def read_weights(path: Path, max_bytes: int = MAX_BYTES) -> Weights:
    """The arrays, of float32 or float64. Raises InputError where the file is missing, damaged or of another form."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise InputError(f"{path}: expected at most {max_bytes:,} bytes, found {size:,}: {REMEDY}")
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length:,} bytes in {size:,}")
            body_size = size - 8 - length
            header = json.loads(file.read(length), parse_constant=_refuse_constant)
            body = np.memmap(file, np.uint8, "r", offset=8 + length) if body_size else np.zeros(0, np.uint8)
        return dict(_arrays(header, body))
    except OSError as error:
        raise InputError(
            f"{path}: expected the final weights, found none that can be read ({error.strerror}): {REMEDY}"
        ) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found another form ({str(error)[:80]}): {REMEDY}"
        ) from None


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _arrays(header: Any, body: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda pair: pair[1]["data_offsets"][0]):
        dtype, shape, (start, stop) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, start, stop)) or start != end or stop > len(body):
            raise ValueError(f"{name[:40]} is not where it should be")
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise ValueError(f"{name[:40]} has another size than its shape")
        yield name, np.array(body[start:stop]).view(dtype).reshape(shape)
        end = stop
    if end != len(body):
        raise ValueError("there are bytes that belong to no array")
