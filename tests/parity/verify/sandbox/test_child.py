"""The limits of a sandboxed process, with real processes: what each mechanism refuses, and what works inside."""

import json
import os
import select
import shutil
import signal
import sys
from pathlib import Path

import pytest

from parity.verify.sandbox import parent
from parity.verify.sandbox.parent import describe
from parity.verify.sandbox.process import Limits, is_ready

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux only")

# A module that makes every attempt once, and answers "done" for each, or the error's name.
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
    with socket.socket(*kind) as connection:
        connection.settimeout(2)
        connection.connect(address)

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
    results = {}
    world = json.loads(args[0])
    for name, attempt in attempts(world).items():
        try:
            attempt()
            results[name] = "done"
        except OSError as error:
            results[name] = errno.errorcode.get(error.errno, str(error))
        except BaseException as error:
            results[name] = type(error).__name__
    os.write(1, json.dumps(results).encode())
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_mechanism_refuses_what_it_must(kind, child, world, answer):
    results = answer(child(ATTEMPTS, json.dumps(world.facts), kind=kind, readable=[world.given], scratch=world.scratch))
    assert {name: results[name] for name in WORK} == dict.fromkeys(WORK, "done")
    denied = set().union(*(DENIED[mechanism] for mechanism in kind.split("+")))
    assert {name for name in denied if results[name] == "done"} == set()
    if kind != "seccomp":
        assert Path(world.facts["outside"], "secret").read_text() == "secret"
    if kind != "landlock":
        assert not is_ready(world.udp.fileno(), select.POLLIN, 0.0)
    if "seccomp" in kind:
        assert results["clone3"] == "ENOSYS"
        assert {results[name] for name in ("fork", "tcp", "symlink", "session")} == {"EPERM"}


def test_without_isolation_the_attempts_succeed_and_the_gaps_say_so(child, world, answer):
    results = answer(
        child(ATTEMPTS, json.dumps(world.facts), kind="none", readable=[world.given], scratch=world.scratch)
    )
    possible = FILES | NETWORK | PROCESSES | CALLS | {"signal", "limits", "chmod", "utime"}
    machine = {"session", "read shadow", "abstract", "ring", "userfault", "unshare", "clone3"}
    assert {name for name in possible - machine if results[name] != "done"} == set()
    assert {results[name] for name in ALWAYS} <= {"EFBIG", "EPERM", "ValueError"}
    gaps = describe(()).gaps
    assert describe(()).kind == "none"
    assert {"it can use the network", "it reads and writes every file that you can"} <= set(gaps)


COMPUTES = """
    import json, os, threading
    import jax, jax.numpy as jnp, numpy as np, torch
    from parity.verify.sandbox import audit

    def main(args):
        audit.watch()
        weights = jnp.ones((256, 256))
        step = jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(w @ w) ** 2)))
        torch.set_num_threads(2)
        sums = []
        def backward():
            w = torch.ones(256, 256, requires_grad=True)
            (torch.tanh(w @ w) ** 2).sum().backward()
            sums.append(float(w.grad.abs().sum()))
        threads = [threading.Thread(target=backward) for _ in range(2)]
        [t.start() for t in threads], [t.join() for t in threads]
        np.save("weights.npy", np.asarray(step(weights)))
        os.write(1, json.dumps({"jax": float(jnp.abs(jnp.asarray(np.load("weights.npy"))).sum()), "torch": sums,
                                "events": audit.recorded(), "threads": len(os.listdir("/proc/self/task"))}).encode())
        os._exit(0)
"""


@pytest.mark.parametrize("kind", KINDS[:2])
def test_jax_and_torch_compute_inside_and_nothing_is_recorded(child, kind, answer):
    result = answer(child(COMPUTES, kind=kind, limits=Limits(2 << 30, 120.0, 1 << 20)), 60.0)
    assert len(result["torch"]) == 2 and result["threads"] > 2 and result["events"] == []


def test_given_folders_are_not_imported_from_before_the_limits_are_in_force(child, tmp_path, answer):
    (tmp_path / "code").mkdir()
    for name in ("landlockpy", "pyseccomp", "sitecustomize", "usercustomize", "parity"):
        (tmp_path / "code" / f"{name}.py").write_text(f"print('{name} was imported')\n")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "json.py").write_text("print('json was imported')\n")
    assert answer(child("import os\ndef main(args): os.write(1, b'1')\n")) == 1


def test_calls_of_another_architecture_end_the_process(child):
    process = child(
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
    process.wait(5.0)
    assert process.returncode == -signal.SIGSYS and process.reason is None


def test_with_a_gpu_only_compilers_can_be_started(child, monkeypatch, answer):
    loaders = [path for path in parent.LOADERS if os.path.exists(path)]
    monkeypatch.setattr(parent, "_gpu_compilers", lambda: ["/usr/bin/true", *loaders])
    results = answer(
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
    assert results == ["0", "PermissionError", "PermissionError", "1", "PermissionError", "PermissionError"]


@pytest.mark.skipif(shutil.which("g++", path=parent.PATH) is None, reason="needs g++")
def test_with_compilers_the_systems_is_started_and_loaded_from_and_nothing_else(child, answer, needs):
    results = answer(
        child(
            """
        import ctypes, json, os, subprocess, sys
        from parity.verify.sandbox import audit
        def tried(call):
            try:
                return str(call())
            except OSError as error:
                return type(error).__name__
        def main(args):
            audit.watch()
            with open("own.cpp", "w") as file:
                file.write('#include <cmath>\\nextern "C" int seven() { return (int)std::sqrt(49.0); }')
            results = [tried(call) for call in (
                lambda: subprocess.run(["g++", "-shared", "-fPIC", "own.cpp", "-o", "own.so"]).returncode,
                lambda: ctypes.CDLL(os.path.abspath("own.so")).seven(),
                lambda: subprocess.run([sys.executable, "-c", "pass"]).returncode,
                lambda: subprocess.run(["/usr/bin/cat", "own.cpp"]).returncode)]
            os.write(1, json.dumps([results, audit.recorded()]).encode())
    """,
            compilers=True,
            kind="bubblewrap+landlock+seccomp",
        )
    )
    assert results == [["0", "7", "0", "PermissionError"], ["subprocess.Popen ['/usr/bin/cat', 'own.cpp']"]]
