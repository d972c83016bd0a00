"""Calls and answers between the verifier and the process with strange code: JSON with arrays beside it, never pickled.

A frame is an 8-byte length of its head, the head (JSON), then the bytes of its arrays in order. An array stands in the
JSON as {"$array": number}. Whoever reads refuses what is larger than it is ready to hold, and types it does not know.
"""

import json
import struct
from typing import Any, BinaryIO

import numpy as np

LENGTH = struct.Struct("<Q")
HEAD_BYTES = 64 << 20
DTYPES = frozenset(("float64", "float32", "int64", "int32", "uint16", "uint8", "bool"))


class Broken(Exception):
    """The other side is gone, or sends what is no frame."""


def write(stream: BinaryIO, value: Any) -> None:
    """Sends JSON values with numpy arrays in them. Raises Broken where nobody reads any more."""
    arrays: list[np.ndarray] = []
    body = _out(value, arrays)
    heads = [{"dtype": a.dtype.name, "shape": list(a.shape)} for a in arrays]
    head = json.dumps({"value": body, "arrays": heads}).encode()
    try:
        stream.write(LENGTH.pack(len(head)))
        stream.write(head)
        for array in arrays:
            stream.write(np.ascontiguousarray(array).data if array.size else b"")
        stream.flush()
    except (OSError, ValueError) as error:
        raise Broken(f"nobody reads any more ({error})") from error


def read(stream: BinaryIO, limit_bytes: int = 8 << 30) -> Any:
    """Receives what `write` sent. Raises Broken for an end, another form, or more than `limit_bytes` of arrays."""
    (length,) = LENGTH.unpack(_exactly(stream, LENGTH.size))
    if length > HEAD_BYTES:
        raise Broken(f"expected a frame's head of at most {HEAD_BYTES:,} bytes, found {length:,}")
    try:
        head = json.loads(_exactly(stream, length))
        kinds = [(str(a["dtype"]), tuple(int(n) for n in a["shape"])) for a in head["arrays"]]
        if any(dtype not in DTYPES or min(shape, default=0) < 0 for dtype, shape in kinds):
            raise Broken("an array of a type or shape that is not allowed")
        sizes = [np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in kinds]
        if sum(sizes) > limit_bytes:
            raise Broken(f"expected at most {limit_bytes:,} bytes of arrays, found {sum(sizes):,}")
        arrays = [
            np.frombuffer(_exactly(stream, size), dtype).reshape(shape) for (dtype, shape), size in zip(kinds, sizes)
        ]
        return _in(head["value"], arrays)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as error:
        raise Broken(f"what was sent is no frame ({type(error).__name__}: {error})") from error


def _exactly(stream: BinaryIO, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        try:
            part = stream.read(min(count - len(data), 1 << 24))
        except (OSError, ValueError) as error:
            raise Broken(f"nothing can be read any more ({error})") from error
        if not part:
            raise Broken("the other side ended")
        data += part
    return data


def _out(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise TypeError(f"arrays of {value.dtype} are not sent")
        arrays.append(value)
        return {"$array": len(arrays) - 1}
    if isinstance(value, dict):
        return {str(key): _out(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_out(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _in(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        return (
            arrays[value["$array"]]
            if value.keys() == {"$array"}
            else {key: _in(item, arrays) for key, item in value.items()}
        )
    return [_in(item, arrays) for item in value] if isinstance(value, list) else value
