"""What the tests of isolation share: children that run a given text, and which parts of isolation work here."""

import functools
import json
import textwrap
from collections.abc import Callable

import pytest

from parity.verify.sandbox import parent as isolation

LIMITS = isolation.Limits(memory_bytes=1 << 30, time_s=30.0, file_bytes=8 << 20)
MISSING = {
    "bubblewrap": "bwrap on the PATH, and namespaces that it may make",
    "landlock": "the package landlockpy, and a kernel with Landlock",
    "seccomp": "the package pyseccomp, and libseccomp.so.2",
}


@functools.cache
def works(part: str) -> bool:
    return isolation._works((part,))


@pytest.fixture(scope="session")
def working() -> Callable[[str], bool]:
    """Whether a part of isolation works on this machine."""
    return works


@pytest.fixture(scope="session")
def needs() -> Callable[[str], isolation.Isolation]:
    """The isolation of a kind; skips where a part of it is missing."""

    def get(kind: str) -> isolation.Isolation:
        parts = tuple(kind.split("+")) if kind != "none" else ()
        for part in parts:
            if not works(part):
                pytest.skip(f"needs {part}: {MISSING[part]}")
        return isolation.describe(parts)

    return get


@pytest.fixture
def child(tmp_path, request, needs) -> Callable[..., isolation.Confined]:
    """Starts a module with this text; it is ended with the test. `kind` is the best there is unless one is named."""

    def run(text, *args, kind=None, readable=(), scratch=tmp_path / "scratch", limits=LIMITS, environment=None, **more):
        code = tmp_path / "code"
        code.mkdir(exist_ok=True)
        (code / "strange.py").write_text(textwrap.dedent(text))
        of = needs(kind) if isinstance(kind, str) else kind
        given = {"PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"} | (environment or {})
        made = isolation.start(
            "strange",
            args,
            readable=[code, *readable],
            scratch=scratch,
            limits=limits,
            isolation=of,
            environment=given,
            **more,
        )
        request.addfinalizer(made.close)
        return made

    return run


@pytest.fixture(scope="session")
def answer() -> Callable[..., object]:
    """The JSON that a child wrote until its end."""

    def get(made: isolation.Confined, seconds: float = 20.0) -> object:
        text = made.stdout.read()
        assert made.wait(seconds) == 0, made.reason or made.stderr_tail()
        return json.loads(text)

    return get
