"""The isolation of strange code, with real processes: what each kind refuses, and what works inside."""

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from parity.errors import InputError
from parity.verify.sandbox import parent as isolation
from parity.verify.sandbox.parent import Limits, available, describe, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux alone")

# A module that makes every attempt once and says of each "done", or the error's name.
ATTEMPTS = """
import ctypes, errno, fcntl, json, os, resource, signal, socket, subprocess, sys, threading, time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    if os.uname().machine != "x86_64":  # whose numbers these are
        raise OSError(errno.ENOSYS, "syscall")
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)) == -1:
        raise OSError(ctypes.get_errno(), "syscall")

def reaches(kind, address):
    with socket.socket(*kind) as made:
        made.settimeout(2)
        made.connect(address)

def fork():
    if os.fork() == 0:
        os._exit(0)
    os.wait()

def in_thread():
    done = []
    threads = [threading.Thread(target=done.append, args=(n,)) for n in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(done) == 8

def write(path, text="x", mode="w"):
    with open(path, mode) as file:
        file.write(text)

def datagram(name):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].sendto(b"x", name)

def pair():
    a, b = socket.socketpair()
    a.sendall(b"x")
    assert b.recv(1) == b"x"

def attempts(w):
    outside, parent, here = Path(w["outside"]), w["parent"], Path.cwd()
    secret, given = outside / "secret", Path(w["given"])
    vm = (ctypes.c_ulong * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    return {
        "own file": lambda: write(here / "own"),
        "own folder": lambda: os.mkdir("folder") or write("folder/a") or os.rename("folder/a", "folder/b"),
        "given file": lambda: (given / "given").read_text(),
        "threads": in_thread,
        "socket pair": pair,
        "random": lambda: os.urandom(8) + open("/dev/urandom", "rb").read(8),
        "null": lambda: write("/dev/null"),
        "cpus": lambda: open("/proc/cpuinfo").read() and os.listdir("/sys/devices/system/cpu"),
        "itself": lambda: open("/proc/self/maps").read(),
        "temporary": lambda: __import__("tempfile").mkdtemp(),
        "read": secret.read_text,
        "list": lambda: os.listdir(outside),
        "read by link": (here / "link").read_text,
        "read passwd": lambda: open("/etc/passwd").read(),
        "read shadow": lambda: open("/etc/shadow").read(),
        "write": lambda: write(outside / "new"),
        "append": lambda: write(secret, mode="a"),
        "truncate": lambda: os.truncate(secret, 5),
        "truncate given": lambda: os.close(os.open(given / "given", os.O_RDONLY | os.O_TRUNC)),
        "remove": (outside / "removable").unlink,
        "make folder": (outside / "new folder").mkdir,
        "move in": lambda: (outside / "movable").rename(here / "moved"),
        "move out": lambda: (here / "own").rename(outside / "moved"),
        "link in": lambda: os.link(outside / "linkable", here / "linked"),
        "write given": lambda: write(given / "given", mode="a"),
        "write tmp": lambda: write("/tmp/" + w["unique"]),
        "write shm": lambda: write("/dev/shm/" + w["unique"]),
        "chmod": lambda: os.chmod(secret, 0o600),
        "utime": lambda: os.utime(secret),
        "xattr": lambda: os.setxattr(secret, "user.a", b""),
        "tcp": lambda: reaches((socket.AF_INET, socket.SOCK_STREAM), ("127.0.0.1", w["port"])),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", w["udp"])),
        "abstract": lambda: reaches((socket.AF_UNIX, socket.SOCK_STREAM), "\\0" + w["unique"]),
        "unix": lambda: reaches((socket.AF_UNIX, socket.SOCK_STREAM), str(outside / "socket")),
        "datagram": lambda: datagram("\\0" + w["unique"] + "d"),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)).close(),
        "run": lambda: subprocess.run(["true"], check=True),
        "shell": lambda: os.system("true") and 1 / 0,
        "fork": fork,
        "exec": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "signal": lambda: os.kill(parent, 0),
        "signal all": lambda: os.kill(-parent, 0),
        "signal by file": lambda: fcntl.fcntl(1, fcntl.F_SETOWN, parent),
        "signal at death": lambda: call(157, 1, 0),
        "environ": lambda: open(f"/proc/{parent}/environ", "rb").read(),
        "memory": lambda: open(f"/proc/{parent}/mem", "rb"),
        "limits": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
        "affinity": lambda: os.sched_setaffinity(parent, {0}),
        "priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 1),
        "raise limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)),
        "large file": lambda: write(here / "large", "x" * (9 << 20)),
        "symlink": lambda: os.symlink("/etc", here / "etc"),
        "fifo": lambda: os.mkfifo(here / "fifo"),
        "session": os.setsid,
        "unshare": lambda: call(272, 0x10000000),
        "memfd": lambda: os.close(os.memfd_create("a")),
        "ring": lambda: call(425, 1, 0),
        "clone3": lambda: call(435, 0, 0),
        "trace": lambda: call(101, 0x4206, parent, 0, 0),
        "userfault": lambda: call(323, 1),
        "read memory": lambda: call(310, parent, ctypes.addressof(vm), 1, ctypes.addressof(vm), 1, 0),
        "keys": lambda: call(250, 0, -3, 1),
    }

def main(args):
    said = {}
    world = json.loads(args[0])
    for name, attempt in attempts(world).items():
        try:
            attempt()
            said[name] = "done"
        except OSError as error:
            said[name] = errno.errorcode.get(error.errno, str(error))
        except BaseException as error:
            said[name] = type(error).__name__
    os.write(1, json.dumps(said).encode())
"""
WORK = {
    "own file",
    "own folder",
    "given file",
    "threads",
    "socket pair",
    "random",
    "null",
    "cpus",
    "itself",
    "temporary",
}
FILES = {
    "read",
    "list",
    "read by link",
    "read passwd",
    "read shadow",
    "write",
    "append",
    "truncate",
    "remove",
    "make folder",
    "move in",
    "move out",
    "link in",
    "truncate given",
    "write given",
    "write tmp",
    "write shm",
}
ATTRIBUTES = {"chmod", "utime", "xattr"}
NETWORK = {"tcp", "udp", "abstract", "datagram"}
PROCESSES = {"run", "shell", "fork", "exec"}
OTHERS = {"signal", "signal all", "environ", "memory", "limits", "affinity", "priority", "trace", "read memory"}
CALLS = {
    "signal by file",
    "signal at death",
    "symlink",
    "fifo",
    "session",
    "unshare",
    "memfd",
    "ring",
    "clone3",
    "userfault",
    "keys",
    "listen",
    "unix",
}
ALWAYS = {"raise limit", "large file"}
DENIED = {
    "bubblewrap": FILES | ATTRIBUTES | (NETWORK - {"udp"}) | OTHERS | ALWAYS,  # of its own loopback it may use UDP
    "landlock": FILES | {"environ", "memory", "trace", "read memory", "tcp", "run", "exec"} | ALWAYS,
    "seccomp": ATTRIBUTES | NETWORK | PROCESSES | (OTHERS - {"environ", "memory"}) | CALLS | ALWAYS,
}
KINDS = ["bubblewrap+landlock+seccomp", "landlock+seccomp", "bubblewrap", "landlock", "seccomp"]


class World(NamedTuple):
    """What lies around a child: files, folders and sockets of this process."""

    facts: dict
    scratch: Path
    given: Path
    udp: socket.socket


@pytest.fixture
def world(tmp_path):
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
    for made, address in zip(listening[1:4], (f"\0{unique}", str(outside / "socket"), f"\0{unique}d"), strict=True):
        made.bind(address)
    for made in listening[1:3]:
        made.listen()
    facts = {
        "outside": str(outside),
        "given": str(given),
        "parent": os.getpid(),
        "unique": unique,
        "port": listening[0].getsockname()[1],
        "udp": listening[4].getsockname()[1],
    }
    yield World(facts, scratch, given, listening[4])
    for made in listening:
        made.close()
    for folder in ("/tmp", "/dev/shm"):
        Path(folder, unique).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_says_is_in_force(kind, child, world, answer):
    said = answer(child(ATTEMPTS, json.dumps(world.facts), kind=kind, readable=[world.given], scratch=world.scratch))
    assert {name: said[name] for name in WORK} == dict.fromkeys(WORK, "done")
    denied = set().union(*(DENIED[part] for part in kind.split("+")))
    assert {name for name in denied if said[name] == "done"} == set()
    if kind != "seccomp":
        assert Path(world.facts["outside"], "secret").read_text() == "secret"
    if kind != "landlock":
        assert not isolation._ready(world.udp.fileno(), select.POLLIN, 0.0)
    if "seccomp" in kind:
        assert said["clone3"] == "ENOSYS"
        assert {said[name] for name in ("fork", "tcp", "symlink", "session")} == {"EPERM"}


def test_without_isolation_the_attempts_are_real_and_the_gaps_say_so(child, world, answer):
    said = answer(child(ATTEMPTS, json.dumps(world.facts), kind="none", readable=[world.given], scratch=world.scratch))
    possible = FILES | NETWORK | PROCESSES | CALLS | {"signal", "limits", "chmod", "utime"}
    machine = {"session", "read shadow", "abstract", "ring", "userfault", "unshare", "clone3"}
    assert {name for name in possible - machine if said[name] != "done"} == set()
    assert {said[name] for name in ALWAYS} <= {"EFBIG", "EPERM", "ValueError"}
    gaps = describe(()).gaps
    assert describe(()).kind == "none"
    assert {"it can use the network", "it reads and writes every file that you can"} <= set(gaps)


def test_the_best_kind_is_available_and_says_what_holds(working):
    best = available()
    assert best is not None and best.parts == tuple(part for part in isolation.PARTS if working(part))
    everything = describe(isolation.PARTS)
    assert not set(everything.holds) & set(everything.gaps) and len(everything.gaps) == 1
    assert any("GPU" in gap for gap in describe(isolation.PARTS, gpu=True).gaps)
    with pytest.raises(InputError, match="unknown part jail: known: bubblewrap, landlock, seccomp"):
        describe(("jail",))


COMPUTES = """
    import json, os, threading
    import jax, jax.numpy as jnp, numpy as np, torch
    from parity.verify.sandbox import child as confine

    def main(args):
        confine.watch()
        weights = jnp.ones((256, 256))
        step = jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(w @ w) ** 2)))
        torch.set_num_threads(2)
        found = []
        def backward():
            w = torch.ones(256, 256, requires_grad=True)
            (torch.tanh(w @ w) ** 2).sum().backward()
            found.append(float(w.grad.abs().sum()))
        threads = [threading.Thread(target=backward) for _ in range(2)]
        [t.start() for t in threads], [t.join() for t in threads]
        np.save("weights.npy", np.asarray(step(weights)))
        os.write(1, json.dumps({"jax": float(jnp.abs(jnp.asarray(np.load("weights.npy"))).sum()), "torch": found,
                                "seen": confine.recorded(), "threads": len(os.listdir("/proc/self/task"))}).encode())
        os._exit(0)
"""


@pytest.mark.parametrize("kind", KINDS[:2])
def test_jax_and_torch_compute_inside_and_nothing_is_recorded(child, kind, answer):
    said = answer(child(COMPUTES, kind=kind, limits=Limits(2 << 30, 120.0, 1 << 20)), 60.0)
    assert len(said["torch"]) == 2 and said["threads"] > 2 and said["seen"] == []


def test_attempts_are_recorded_once_each_from_watch_on(child, world, answer):
    text = """
        import contextlib, ctypes, json, os, socket, subprocess
        from parity.verify.sandbox import child as confine
        def main(args):
            given, outside = args
            with contextlib.suppress(OSError):
                open(outside + "/before")
            confine.watch()
            for attempt in 2 * [
                lambda: open(outside + "/secret"), lambda: open(outside + "/new", "w"), lambda: open(given + "/given"),
                lambda: open("own", "w"), lambda: os.listdir(outside), lambda: os.remove(outside + "/secret"),
                lambda: socket.getaddrinfo("localhost", 1), lambda: subprocess.run(["true"]), os.fork,
                lambda: ctypes.CDLL(given + "/given"), lambda: os.kill(1, 0), lambda: open(outside + chr(0)),
            ]:
                with contextlib.suppress(OSError, ValueError):
                    if attempt() == 0:
                        os._exit(0)
            os.write(1, json.dumps(confine.recorded()).encode())
    """
    outside = world.facts["outside"]
    arguments = (text, str(world.given), outside)
    said = answer(child(*arguments, readable=[world.given], scratch=world.scratch, kind="seccomp"))
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
        assert said.count(event) == 1, (event, said)
    assert not {f"read {outside}/before", f"read {world.given}/given", f"write {world.scratch}/own"} & set(said)
    assert len(said) == len(set(said)) and any(event.startswith("socket.getaddrinfo ('localhost'") for event in said)


def test_the_environment_is_what_it_was_given(child, monkeypatch, tmp_path, answer):
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


def test_strange_folders_are_not_imported_from_before_the_limits_are_in_force(child, tmp_path, answer):
    (tmp_path / "code").mkdir()
    for name in ("landlockpy", "pyseccomp", "sitecustomize", "usercustomize", "parity"):
        (tmp_path / "code" / f"{name}.py").write_text(f"print('{name} was imported')\n")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "json.py").write_text("print('json was imported')\n")
    assert answer(child("import os\ndef main(args): os.write(1, b'1')\n")) == 1


def test_calls_of_another_architecture_end_the_process(child):
    made = child(
        """
        import ctypes
        def main(args):
            ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))  # getpid in the x32 numbering
            return 5
    """,
        kind="landlock+seccomp",
    )
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is x86-64's")
    made.wait(5.0)
    assert made.returncode == -signal.SIGSYS and made.reason is None


def test_with_a_gpu_compilers_alone_can_be_started(child, monkeypatch, answer):
    loaders = [path for path in isolation.LOADERS if os.path.exists(path)]
    monkeypatch.setattr(isolation, "_compilers", lambda: ["/usr/bin/true", *loaders])
    said = answer(
        child(
            """
        import json, os, socket, subprocess
        def tried(call):
            try:
                return str(call())
            except OSError as error:
                return type(error).__name__
        def main(args):
            unix = lambda kind: socket.socket(socket.AF_UNIX, kind).family
            os.write(1, json.dumps([tried(call) for call in (
                lambda: subprocess.run(["/usr/bin/true"]).returncode,
                lambda: subprocess.run(["/usr/bin/cat", "/etc/shadow"]).returncode, os.setsid,
                lambda: unix(socket.SOCK_STREAM), lambda: unix(socket.SOCK_DGRAM),
                lambda: socket.socket().family)]).encode())
    """,
            gpu=True,
            kind="landlock+seccomp",
        )
    )
    assert said == ["0", "PermissionError", "PermissionError", "1", "PermissionError", "PermissionError"]


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
    assert "bubblewrap" not in isolation._probe.__wrapped__()


def test_what_bubblewrap_is_asked_for(fake_bwrap, child, world, tmp_path):
    skips = 'while [ "$1" != "--" ]; do shift; done; shift; exec "$@"'
    path = fake_bwrap(f'printf "%s\\n" "$@" > {tmp_path}/asked\n{skips}\n')
    made = child(
        "def main(args): return 7\n", kind=describe(("bubblewrap",)), readable=[world.given], scratch=world.scratch
    )
    assert made.wait(10.0) == 7
    asked = (tmp_path / "asked").read_text().splitlines()
    assert isolation.shutil.which("bwrap") == str(path)
    asked = asked[: asked.index("--")]
    pairs = {(option, asked[n + 1]) for n, option in enumerate(asked[:-1]) if option.startswith("--")}
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(asked) and ("--cap-drop", "ALL") in pairs
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
    assert asked.index("--remount-ro") > max(n for n, text in enumerate(asked) if "bind" in text)
    assert not any(
        target in ("/", "/home", "/root", "/tmp", "/etc", world.facts["outside"]) and "bind" in option
        for option, target in pairs
    )


def test_what_cannot_be_started_is_one_sentence(tmp_path, fake_bwrap):
    limits = Limits(memory_bytes=1 << 30, time_s=30.0, file_bytes=1 << 20)
    whole = {"module": "strange", "args": [], "readable": [], "scratch": tmp_path / "s", "limits": limits}

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
