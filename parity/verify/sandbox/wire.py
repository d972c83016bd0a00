"""Calls and answers between the verifier and the sandboxed process: JSON and raw arrays, never pickled.

A frame is an 8-byte length of its head, the head (JSON), then the bytes of its arrays in order. An array stands in the
JSON as {"$array": number}. The reader refuses frames that are too large, and types it does not know.
"""

import json
import struct
from typing import Any, Protocol

import numpy as np

LENGTH = struct.Struct("<Q")
HEAD_BYTES = 4 << 20
DTYPES = frozenset(("float64", "float32", "int64", "int32", "uint16", "uint8", "bool"))


class Reader(Protocol):
    def readinto(self, buffer: Any, /) -> int | None: ...


class Writer(Protocol):
    def write(self, data: Any, /) -> Any: ...
    def flush(self) -> None: ...


class WireError(Exception):
    """The other side is gone, or what it sent is no frame."""


def write(stream: Writer, value: Any) -> None:
    """Sends JSON values with numpy arrays in them. Raises WireError where nobody reads any more."""
    arrays: list[np.ndarray] = []
    body = _extract_arrays(value, arrays)
    types = [{"dtype": array.dtype.name, "shape": list(array.shape)} for array in arrays]
    head = json.dumps({"value": body, "arrays": types}).encode()
    try:
        stream.write(LENGTH.pack(len(head)))
        stream.write(head)
        for array in arrays:
            stream.write(np.ascontiguousarray(array).data if array.size else b"")
        stream.flush()
    except (OSError, ValueError) as error:
        raise WireError(f"nobody reads any more ({error})") from error


def read(stream: Reader, limit_bytes: int | None = None) -> Any:
    """Receives what `write` sent. Raises WireError for an end, another form, or more than `limit_bytes` of arrays.

    No limit: for the sandboxed process itself, which the verifier's calls reach.
    """
    (length,) = LENGTH.unpack(_read_exactly(stream, LENGTH.size))
    if length > HEAD_BYTES:
        raise WireError(f"expected a frame's head of at most {HEAD_BYTES:,} bytes, found {length:,}")
    try:
        head = json.loads(_read_exactly(stream, length))
        types = [(str(item["dtype"]), tuple(int(n) for n in item["shape"])) for item in head["arrays"]]
        if any(dtype not in DTYPES or min(shape, default=0) < 0 for dtype, shape in types):
            raise WireError("an array of a type or shape that is not allowed")
        sizes = [np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in types]
        if limit_bytes is not None and sum(sizes) > limit_bytes:
            raise WireError(f"expected at most {limit_bytes:,} bytes of arrays, found {sum(sizes):,}")
        arrays = [
            np.frombuffer(_read_exactly(stream, size), dtype).reshape(shape)
            for (dtype, shape), size in zip(types, sizes, strict=True)
        ]
        return _insert_arrays(head["value"], arrays)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as error:
        raise WireError(f"expected a frame, found something else ({type(error).__name__}: {error})") from error


def _read_exactly(stream: Reader, count: int) -> bytearray:
    data, done = bytearray(count), 0
    with memoryview(data) as view:
        while done < count:
            try:
                size = stream.readinto(view[done : done + (1 << 24)])
            except (OSError, ValueError) as error:
                raise WireError(f"nothing can be read any more ({error})") from error
            if not size:
                raise WireError("the other side ended")
            done += size
    return data


def _extract_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise TypeError(f"arrays of {value.dtype} are not sent")
        arrays.append(value)
        return {"$array": len(arrays) - 1}
    if isinstance(value, dict):
        return {str(key): _extract_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_extract_arrays(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _insert_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$array"}:
            return arrays[value["$array"]]
        return {key: _insert_arrays(item, arrays) for key, item in value.items()}
    return [_insert_arrays(item, arrays) for item in value] if isinstance(value, list) else value
