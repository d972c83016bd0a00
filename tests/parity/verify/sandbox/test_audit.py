"""The record of what code in a sandboxed process tries."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux only")


def test_attempts_are_recorded_once_each_from_watch_on(child, world, answer):
    text = """
        import contextlib, ctypes, json, os, socket, subprocess
        from parity.verify.sandbox import audit
        def main(args):
            given, outside = args
            with contextlib.suppress(OSError):
                open(outside + "/before")
            audit.watch()
            for attempt in 2 * [
                lambda: open(outside + "/secret"), lambda: open(outside + "/new", "w"), lambda: open(given + "/given"),
                lambda: open("own", "w"), lambda: os.listdir(outside), lambda: os.remove(outside + "/secret"),
                lambda: socket.getaddrinfo("localhost", 1), lambda: subprocess.run(["true"]), os.fork,
                lambda: ctypes.CDLL(given + "/given"), lambda: os.kill(1, 0), lambda: open(outside + chr(0)),
            ]:
                with contextlib.suppress(OSError, ValueError):
                    if attempt() == 0:
                        os._exit(0)
            os.write(1, json.dumps(audit.recorded()).encode())
    """
    outside = world.facts["outside"]
    arguments = (text, str(world.given), outside)
    events = answer(child(*arguments, readable=[world.given], scratch=world.scratch, kind="seccomp"))
    for event in (
        f"read {outside}/secret",
        f"write {outside}/new",
        f"read {outside}",
        f"os.remove {outside}/secret",
        "subprocess.Popen ['true']",
        "os.fork",
        f"native code {world.given}/given",
        "os.kill (1, 0)",
    ):
        assert events.count(event) == 1, (event, events)
    assert not {f"read {outside}/before", f"read {world.given}/given", f"write {world.scratch}/own"} & set(events)
    assert len(events) == len(set(events)) and any(
        event.startswith("socket.getaddrinfo ('localhost'") for event in events
    )
