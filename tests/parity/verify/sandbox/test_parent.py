"""Which mechanisms are used, how they are started, and what the child is given."""

import os
import sys

import pytest

from parity.errors import InputError
from parity.verify.sandbox import parent
from parity.verify.sandbox.parent import available, describe, start
from parity.verify.sandbox.process import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux only")


def test_every_mechanism_that_works_is_used_and_said_to_hold():
    best = available()
    assert best.mechanisms == tuple(name for name in parent.MECHANISMS if parent.works((name,)))
    everything = describe(parent.MECHANISMS)
    assert not set(everything.holds) & set(everything.gaps) and len(everything.gaps) == 1
    assert any("GPU" in gap for gap in describe(parent.MECHANISMS, gpu=True).gaps)
    with pytest.raises(InputError, match="unknown mechanism jail: known: bubblewrap, landlock, seccomp"):
        describe(("jail",))


def test_the_environment_is_minimal_and_what_was_given(child, monkeypatch, tmp_path, answer):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    text = "import json, os\ndef main(args): os.write(1, json.dumps([dict(os.environ), args]).encode())\n"
    environment, arguments = answer(child(text, "a b", "", environment={"OMP_NUM_THREADS": "1"}))
    scratch = str(tmp_path / "scratch")
    assert arguments == ["a b", ""]
    assert environment["OMP_NUM_THREADS"] == "1" and environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HOME"] == environment["TMPDIR"] == environment["XDG_CACHE_HOME"] == scratch
    assert set(environment) <= {
        "PATH",
        "LANG",
        "LC_CTYPE",
        "USER",
        "LOGNAME",
        "HOME",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "PYTHONPATH",
        "PWD",
        "JAX_PLATFORMS",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    }


@pytest.fixture
def fake_bwrap(tmp_path, monkeypatch):
    """Puts a shell script named bwrap first on the PATH."""

    def put(text):
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "bwrap").write_text("#!/bin/sh\n" + text)
        (tools / "bwrap").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        return tools / "bwrap"

    return put


def test_a_bubblewrap_that_does_not_work_is_not_used(fake_bwrap):
    fake_bwrap("echo 'No permissions to create new namespace' >&2; exit 1\n")
    assert "bubblewrap" not in parent._working.__wrapped__()


def test_the_options_of_bubblewrap(fake_bwrap, child, world, tmp_path):
    skips = 'while [ "$1" != "--" ]; do shift; done; shift; exec "$@"'
    path = fake_bwrap(f'printf "%s\\n" "$@" > {tmp_path}/asked\n{skips}\n')
    process = child(
        "def main(args): return 7\n", kind=describe(("bubblewrap",)), readable=[world.given], scratch=world.scratch
    )
    assert process.wait(10.0) == 7
    options = (tmp_path / "asked").read_text().splitlines()
    assert parent.shutil.which("bwrap") == str(path)
    options = options[: options.index("--")]
    pairs = {(option, options[n + 1]) for n, option in enumerate(options[:-1]) if option.startswith("--")}
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(options) and ("--cap-drop", "ALL") in pairs
    assert {
        ("--ro-bind", str(world.given)),
        ("--bind", str(world.scratch)),
        ("--dev-bind", "/dev/null"),
        ("--proc", "/proc"),
        ("--ro-bind", sys.prefix),
        ("--remount-ro", "/"),
        ("--chdir", str(world.scratch)),
    } <= pairs
    assert [target for option, target in pairs if option == "--bind"] == [str(world.scratch)]
    assert options.index("--remount-ro") > max(n for n, text in enumerate(options) if "bind" in text)
    assert not any(
        target in ("/", "/home", "/root", "/tmp", "/etc", world.facts["outside"]) and "bind" in option
        for option, target in pairs
    )


def test_a_process_that_cannot_be_started_is_one_sentence(tmp_path, fake_bwrap):
    limits = Limits(memory_bytes=1 << 30, time_s=30.0, file_bytes=1 << 20)
    whole = {"module": "untrusted", "args": [], "readable": [], "scratch": tmp_path / "s", "limits": limits}

    def wrong(match, **change):
        with pytest.raises(InputError, match=match):
            start(**(whole | change))

    wrong("expected the name of a module, found 'a b'", module="a b")
    wrong("expected .*nothing_here to be readable, found nothing there", readable=[tmp_path / "nothing_here"])
    wrong("the scratch folder .* holds .*/s, which is read-only", scratch=tmp_path, readable=[tmp_path / "s"])
    for field in ("memory_bytes", "time_s", "file_bytes"):
        with pytest.raises(InputError, match=f"{field} expected a positive number, found -1"):
            Limits(**{"memory_bytes": 1, "time_s": 1.0, "file_bytes": 1} | {field: -1})
    fake_bwrap("echo 'bwrap: cannot' >&2; exit 1\n")
    wrong("isolation bubblewrap: the child cannot be confined: bwrap: cannot: try", isolation=describe(("bubblewrap",)))
