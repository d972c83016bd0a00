"""The verifier's side of the pipe: calls in turn, and what a process that misbehaves leads to."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity.verify.sandbox import wire
from parity.verify.sandbox.client import SandboxedProgram, SandboxError

ROWS, LENGTH, VOCAB = 4, 32, 2048  # an answer is larger than a pipe holds


@pytest.fixture
def program(tmp_path):
    """A function that connects a program to an answering function in another thread."""
    ends = []

    def connected(answer) -> SandboxedProgram:
        (calls, stdin), (stdout, answers) = os.pipe(), os.pipe()
        here = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")

        def serve():
            with os.fdopen(calls, "rb") as asked, os.fdopen(answers, "wb") as answered:
                try:
                    while True:
                        wire.write(answered, {"value": answer(wire.read(asked)["arguments"])})
                except (wire.WireError, EOFError):
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        ends.append((here, thread))
        process: Any = SimpleNamespace(
            stdin=here[0],
            stdout=here[1],
            reason=None,
            set_deadline=lambda seconds: None,
            stderr_tail=lambda: "",
            close=lambda: None,
        )
        evidence: Any = SimpleNamespace(recipe=None, weights_bytes=1 << 20)
        return SandboxedProgram(process, tmp_path, tmp_path, evidence)

    yield connected
    for here, thread in ends:
        for file in here:
            file.close()
        thread.join(10)


def rows(arguments) -> np.ndarray:
    shape = (len(arguments["inputs"]), len(arguments["positions"]), VOCAB)
    return np.full(shape, float(arguments["inputs"][0, 0]), np.float32)


def asked(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.full((ROWS, LENGTH), i, np.int32), np.arange(LENGTH)) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_answers_come_in_turn_while_the_next_is_computed(program, count: int):
    computed = []

    def answer(arguments):
        computed.append(int(arguments["inputs"][0, 0]))
        return rows(arguments)

    for i, found in enumerate(program(answer).log_probs_in_turn(0, asked(count))):
        assert found.shape == (ROWS, LENGTH, VOCAB) and (found == i).all()
        assert len(computed) <= i + 2  # never more than one ahead
    assert computed == list(range(count))


@pytest.mark.parametrize("wrong", [lambda a: rows(a)[:1], lambda a: rows(a)[0], lambda a: 3, lambda a: None])
def test_rows_of_another_shape_are_refused(program, wrong):
    calls = iter([rows, rows, wrong])
    with pytest.raises(SandboxError, match=r"log_probs expected \(4, 32, V\)"):
        list(program(lambda arguments: next(calls)(arguments)).log_probs_in_turn(0, asked(3)))  # noqa: PLW0108


def test_a_process_that_ends_in_between_is_named_with_the_call(program):
    def answer(arguments):
        if arguments["inputs"][0, 0] == 2:
            raise EOFError
        return rows(arguments)

    with pytest.raises(SandboxError, match="did not answer the call log_probs"):
        list(program(answer).log_probs_in_turn(0, asked(5)))
