"""Shared by the tests of the sandbox: children that run a given text, a world around them, which mechanisms work."""

import functools
import json
import os
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from parity.verify.sandbox import parent
from parity.verify.sandbox.process import Limits, SandboxedProcess

LIMITS = Limits(memory_bytes=1 << 30, time_s=30.0, file_bytes=8 << 20)
MISSING = {
    "bubblewrap": "bwrap on the PATH, and namespaces that it may make",
    "landlock": "the package landlockpy, and a kernel with Landlock",
    "seccomp": "the package pyseccomp, and libseccomp.so.2",
}


@functools.cache
def works(mechanism: str) -> bool:
    return parent.works((mechanism,))


@pytest.fixture(scope="session")
def needs() -> Callable[[str], parent.Isolation]:
    """The isolation of a kind; skips where one of its mechanisms is missing."""

    def get(kind: str) -> parent.Isolation:
        mechanisms = tuple(kind.split("+")) if kind != "none" else ()
        for mechanism in mechanisms:
            if not works(mechanism):
                pytest.skip(f"needs {mechanism}: {MISSING[mechanism]}")
        return parent.describe(mechanisms)

    return get


@pytest.fixture
def child(tmp_path, request, needs) -> Callable[..., SandboxedProcess]:
    """Starts a module with this text; it ends with the test. `kind` is the best that works unless one is named."""

    def run(text, *args, kind=None, readable=(), scratch=tmp_path / "scratch", limits=LIMITS, environment=None, **more):
        code = tmp_path / "code"
        code.mkdir(exist_ok=True)
        (code / "untrusted.py").write_text(textwrap.dedent(text))
        variables = {"PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"} | (environment or {})
        process = parent.start(
            "untrusted",
            args,
            readable=[code, *readable],
            scratch=scratch,
            limits=limits,
            isolation=needs(kind) if isinstance(kind, str) else kind,
            environment=variables,
            **more,
        )
        request.addfinalizer(process.close)
        return process

    return run


@pytest.fixture(scope="session")
def answer() -> Callable[..., object]:
    """The JSON that a child writes until its end."""

    def get(process: SandboxedProcess, seconds: float = 20.0) -> object:
        text = process.stdout.read()
        assert process.wait(seconds) == 0, process.reason or process.stderr_tail()
        return json.loads(text)

    return get


class World(NamedTuple):
    """Files, folders and sockets of this process, around a child."""

    facts: dict
    scratch: Path
    given: Path
    udp: socket.socket


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    outside, given, scratch = (tmp_path / name for name in ("outside", "given", "scratch"))
    for folder in (outside, given, scratch):
        folder.mkdir()
    for name in ("secret", "removable", "movable", "linkable"):
        (outside / name).write_text("secret")
    (given / "given").write_text("given")
    (scratch / "link").symlink_to(outside / "secret")
    unique = f"isolation-{os.getpid()}-{time.monotonic_ns()}"
    listening = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
    listening += [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_UNIX, socket.AF_INET)]
    listening[4].bind(("127.0.0.1", 0))
    for bound, address in zip(listening[1:4], (f"\0{unique}", str(outside / "socket"), f"\0{unique}d"), strict=True):
        bound.bind(address)
    for bound in listening[1:3]:
        bound.listen()
    facts = {
        "outside": str(outside),
        "given": str(given),
        "parent": os.getpid(),
        "unique": unique,
        "port": listening[0].getsockname()[1],
        "udp": listening[4].getsockname()[1],
    }
    yield World(facts, scratch, given, listening[4])
    for bound in listening:
        bound.close()
    for folder in ("/tmp", "/dev/shm"):
        Path(folder, unique).unlink(missing_ok=True)
