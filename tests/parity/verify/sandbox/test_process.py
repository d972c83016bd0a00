"""How a sandboxed process ends: by memory, time or disk, floods, pipes that others hold, and its parent's death."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from parity.verify.sandbox.process import TAIL_BYTES, Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are watched on Linux")
KINDS = ["none", "bubblewrap+landlock+seccomp", "landlock+seccomp"]


SLEEPS = """
    import os, time
    def main(args):
        os.write(1, b"ready")
        time.sleep(600)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_takes_too_much_memory_is_killed_with_the_reason(child, kind):
    process = child(
        """
        import time
        def main(args):
            blocks = []
            while True:
                blocks.append(bytearray(b"x") * (8 << 20))
                time.sleep(0.005)
    """,
        kind=kind,
        limits=Limits(200_000_000, 30.0, 1 << 20),
    )
    assert process.wait(10.0) is not None
    assert process.reason == "used more than 0.2 GB" and process.stdout.read() == b""


def test_memory_far_beyond_the_limit_is_refused_at_once(child, answer):
    assert (
        answer(
            child(
                """
        import os
        def main(args):
            try:
                bytearray(8 << 30)
            except MemoryError:
                os.write(1, b"1")
    """,
                limits=Limits(1 << 30, 30.0, 1 << 20),
            )
        )
        == 1
    )


def test_a_process_that_takes_too_long_is_killed_with_the_reason(child):
    process = child(SLEEPS)
    assert process.stdout.read(5) == b"ready" and process.wait(0.2) is None
    process.set_deadline(0.3)
    began = time.monotonic()
    assert process.stdout.read() == b""
    assert time.monotonic() - began < 2.0 and process.reason == "took longer than 0.3 s"
    with pytest.raises(BrokenPipeError):
        process.stdin.write(b"x")


def test_a_process_that_fills_its_folder_is_killed_with_the_reason(child):
    process = child(
        """
        import time
        def main(args):
            for n in range(1000):
                open(f"{n}", "wb").write(bytes(1 << 20))
                time.sleep(0.005)
    """,
        limits=Limits(1 << 30, 30.0, 20_000_000),
    )
    assert process.wait(10.0) is not None and process.reason == "wrote more than 20.0 MB, or 10,000 files"


def test_a_flood_of_errors_blocks_nobody_and_its_end_is_kept(child):
    process = child("""
        import os, sys
        def main(args):
            for n in range(400):
                os.write(2, b"x" * 99_999 + b"\\n")
            os.write(2, b"the \\x1b[31mend\\n")
            os.write(1, os.read(0, 2))
    """)
    process.stdin.write(b"ok")
    assert process.stdout.read() == b"ok" and process.wait(5.0) == 0
    tail = process.stderr_tail()
    assert len(tail) == TAIL_BYTES and tail.endswith("the \N{REPLACEMENT CHARACTER}[31mend\n")


def test_a_flood_of_output_and_a_child_that_does_not_read_end_with_the_deadline(child):
    limits = Limits(1 << 30, 0.5, 1)
    flood = child("import os\ndef main(args):\n    while True: os.write(1, bytes(1 << 16))\n", limits=limits)
    assert flood.wait(5.0) is not None and flood.reason == "took longer than 0.5 s"
    deaf = child(SLEEPS, limits=limits)
    with pytest.raises(BrokenPipeError):
        deaf.stdin.write(bytes(1 << 20))
    assert deaf.reason == "took longer than 0.5 s"


def test_reading_ends_with_the_child_though_another_process_holds_its_pipe(child):
    process = child(
        """
        import os, time
        def main(args):
            if os.fork() == 0:
                os.setsid()
                time.sleep(4)
                os._exit(0)
            os.write(1, b"last")
            os._exit(0)
    """,
        kind="none",
    )
    began = time.monotonic()
    assert process.stdout.read() == b"last" and time.monotonic() - began < 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_dies_with_its_parent(tmp_path, kind, needs):
    mechanisms = needs(kind).mechanisms
    code = tmp_path / "code"
    code.mkdir()
    (code / "untrusted.py").write_text(textwrap.dedent(SLEEPS))
    program = textwrap.dedent(f"""
        import threading, time
        from pathlib import Path
        from parity.verify.sandbox.parent import Limits, describe, start
        from parity.verify.sandbox.process import descendants
        def run():
            global process
            process = start("untrusted", [], readable=[Path({str(code)!r})], limits=Limits(1 << 30, 60.0, 1),
                            scratch=Path({str(tmp_path / "scratch")!r}), isolation=describe({mechanisms}),
                            environment={{"PYTHONPATH": {str(code)!r}}})
        thread = threading.Thread(target=run)  # a thread that ends does not end the child
        thread.start(), thread.join()
        assert process.stdout.read(5) == b"ready"
        print(*descendants(process._process.pid), flush=True)
        time.sleep(60)
    """)
    path = os.pathsep.join((str(Path(__file__).parents[4]), os.environ.get("PYTHONPATH", "")))
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        pids = parent.stdout.readline().split()
        assert pids and all(alive(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
