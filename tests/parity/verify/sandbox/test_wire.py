"""Frames between the verifier and a sandboxed process."""

import io

import numpy as np
import pytest

from parity.verify.sandbox import wire


def test_values_and_arrays_come_back_equal():
    pipe = io.BytesIO()
    wire.write(pipe, {"a": [1, None, np.float32(0.5)], "b": {"x": np.arange(6, dtype=np.int32).reshape(2, 3)}})
    pipe.seek(0)
    value = wire.read(pipe)
    assert value["a"] == [1, None, 0.5] and value["b"]["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        wire.LENGTH.pack(2) + b"{}",
        wire.LENGTH.pack(4) + b"null",
        wire.LENGTH.pack(62) + b'{"value": 1, "arrays": [{"dtype": "object", "shape": [1]}] }   ',
    ],
)
def test_other_bytes_than_a_frame_are_refused(data):
    with pytest.raises(wire.WireError):
        wire.read(io.BytesIO(data))
