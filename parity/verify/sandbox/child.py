"""The child's half of isolation: limits that a process puts on itself before it loads code that nobody has read.

`main` is what parity.verify.sandbox.parent starts: it gives up what the process does not need, says so to its parent, and
runs another module's `main(args)`, which calls `watch()` before it loads strange code and asks `recorded()` what that
code tried. What is in force and what is not, isolation.Isolation says in sentences.

Every step fails closed: a limit that the parent counts on and that cannot be set ends the process before strange code
is loaded. Little is imported, so that little can fail or be slow.
"""

import ctypes
import errno
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PACKAGES = tuple(name for name in ("parity", "jaxrun", "torchref") if (ROOT / name).is_dir())
READY = b"confined\n"  # the first bytes on stdout, before the module is loaded
LINUX = sys.platform == "linux"
OPEN_FILES = 4096
EVENTS = 100  # audit events kept: the first are enough to see what goes on

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
CAPABILITY_VERSION_3 = 0x20080522  # capget(2)
CLONE_THREAD = 0x10000  # clone(2); below: CLONE_PARENT and the flags for new namespaces
CLONE_OTHER = (0x8000, 0x20000, *(1 << bit for bit in range(25, 31)))
FCNTL_SIGNALS, IOCTL_SIGNALS = (8, 10, 15), (0x8901, 0x8902)  # F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP

# System calls that are refused, by what they are for. NUMBERS has those that libseccomp may not know by name.
PROCESSES = ("fork", "vfork", "execve", "execveat")
OTHERS = (
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "process_mrelease",
    "kcmp",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "tkill",
    "setpriority",
    "ioprio_set",
    "sched_setparam",
    "sched_setattr",
    "sched_setscheduler",
    "migrate_pages",
    "move_pages",
    "setsid",
    "setpgid",
    "perf_event_open",
)
SYSTEM = (
    "mount",
    "umount2",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fsmount",
    "fsconfig",
    "fspick",
    "mount_setattr",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "bpf",
    "keyctl",
    "add_key",
    "request_key",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "personality",
    "modify_ldt",
    "acct",
    "quotactl",
    "quotactl_fd",
    "syslog",
    "swapon",
    "swapoff",
    "reboot",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "open_by_handle_at",
    "name_to_handle_at",
    "fanotify_init",
    "inotify_init",
    "inotify_init1",
    "inotify_add_watch",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "ioperm",
    "iopl",
)
SPECIAL_FILES = ("symlink", "symlinkat", "mknod", "mknodat")  # which could lead the parent astray, or have it wait
LISTENING = ("bind", "listen", "accept", "accept4")
UNSEEN_MEMORY = ("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "semget", "mq_open")  # of no process
ATTRIBUTES = (
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "setxattrat",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "removexattrat",
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "file_setattr",
)
NUMBERS = {
    "process_mrelease": 448,
    "memfd_secret": 447,
    "quotactl_fd": 443,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_setattr": 469,
}

# Audit events (docs.python.org/3/library/audit_events.html) that are recorded whatever their arguments are, and those
# that name files.
STARTS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
)
REACHES = frozenset(
    (
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "os.kill",
        "os.killpg",
    )
)
CHANGES = frozenset(
    f"os.{name}"
    for name in (
        "remove",
        "rename",
        "rmdir",
        "mkdir",
        "link",
        "symlink",
        "truncate",
        "chmod",
        "chown",
        "utime",
        "setxattr",
        "removexattr",
    )
)


@dataclass(frozen=True)
class Spec:
    """What the parent asks for, as JSON in the first argument; paths are absolute, sizes in bytes."""

    module: str  # what is run; empty: nothing
    path: list[str]  # folders to import from first, once the limits are in force
    parts: list[str]  # of bubblewrap, landlock, seccomp
    parent: int | None  # the parent's process id; None where the child cannot see it
    libraries: list[str]  # readable, and code may be loaded from there
    readable: list[str]
    scratch: str
    devices: list[str]  # may be read, written and controlled
    programs: list[str]  # files and folders of programs that may be started; none: no process at all
    gpu: bool
    data_bytes: int | None  # RLIMIT_DATA
    file_bytes: int


class _Packages:
    """Finds the project's own packages where the folder that holds them may not be listed."""

    @staticmethod
    def find_spec(name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name not in PACKAGES:
            return None
        init = ROOT / name / "__init__.py"
        return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])


def main() -> None:
    """Confines this process as sys.argv[1] says, then runs the module's main with the other arguments."""
    spec = Spec(**json.loads(sys.argv[1]))
    sys.argv = [spec.module, *sys.argv[2:]]
    _limit_resources(spec)
    if LINUX:
        _confine(spec)
    sys.path[:0] = spec.path
    sys.meta_path.append(_Packages)  # type: ignore[arg-type]
    _audit.allow(spec)
    os.write(1, READY)
    if spec.module:
        sys.exit(importlib.import_module(spec.module).main(sys.argv[1:]))


def _limit_resources(spec: Spec) -> None:
    """What every Unix limits, soft and hard: core files, open files, the size of a file and of the own memory."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: OPEN_FILES, resource.RLIMIT_FSIZE: spec.file_bytes}
    if spec.data_bytes and LINUX:
        limits[resource.RLIMIT_DATA] = spec.data_bytes
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (value, value))


def _confine(spec: Spec) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("expected one thread, found more: limits would hold for one of them alone")
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where the machine runs out of memory, this process goes first
    _called(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    calls = _seccomp(spec) if "seccomp" in spec.parts else None
    if "landlock" in spec.parts:
        _landlock(spec)
    _called(libc.capset(_words(CAPABILITY_VERSION_3, 0), _words(0, 0, 0, 0, 0, 0)), "capset")
    _called(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if spec.parent is not None and os.getppid() != spec.parent:
        sys.exit("the parent died")
    if calls is not None:
        calls.load()


def _called(result: int, name: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _words(*values: int) -> Any:
    return (ctypes.c_uint32 * len(values))(*values)


def _landlock(spec: Spec) -> None:
    """Landlock: files by path, no TCP, and where the kernel has it no signals to and abstract sockets of others."""
    from landlockpy import AccessFS, Ruleset, Scope

    read = AccessFS.READ_FILE | AccessFS.READ_DIR
    write = (
        AccessFS.WRITE_FILE
        | AccessFS.TRUNCATE
        | AccessFS.REMOVE_FILE
        | AccessFS.REMOVE_DIR
        | AccessFS.MAKE_REG
        | AccessFS.MAKE_DIR
        | AccessFS.REFER
    )
    device = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.IOCTL_DEV
    of_file = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.IOCTL_DEV | AccessFS.EXECUTE
    wanted = [(path, read) for path in (*spec.libraries, *spec.readable)] + [(path, device) for path in spec.devices]
    wanted += [(path, read | AccessFS.EXECUTE) for path in spec.programs] + [(spec.scratch, read | write)]
    os.open("/proc/self", os.O_PATH)  # left open: a rule is for this very directory entry, which must not be dropped
    with Ruleset(scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL) as ruleset:
        for path, access in wanted:
            ruleset.allow_path(path, access if os.path.isdir(path) else access & of_file)
        ruleset.restrict()


def _seccomp(spec: Spec) -> Any:
    """The filter of system calls, not yet in force; what is refused fails with EPERM."""
    import pyseccomp  # runs ldconfig to find libseccomp, so before anything is refused

    made, refuse, own = pyseccomp.SyscallFilter(pyseccomp.ALLOW), pyseccomp.ERRNO(errno.EPERM), os.getpid()

    def deny(names: str, *conditions: Any, action: int = refuse) -> None:
        for name in names.split():
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            number = NUMBERS.get(name, -1) if number == -1 else number
            if number >= 0:  # this architecture has it
                made.add_rule(action, number, *conditions)

    def bits(argument: int, mask: int, value: int) -> Any:  # of 32: the kernel ignores what is above
        return pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, mask, value)

    def not_equal(argument: int, value: int) -> Any:
        return pyseccomp.Arg(argument, pyseccomp.NE, value)

    deny(" ".join(OTHERS + SYSTEM + SPECIAL_FILES))
    deny("clone3 openat2", action=pyseccomp.ERRNO(errno.ENOSYS))  # their flags lie in memory; others are then used
    for flag in CLONE_OTHER:
        deny("clone", bits(0, flag, flag))
    if not spec.programs:
        deny(" ".join(PROCESSES))
        deny("clone", bits(0, CLONE_THREAD, 0))
    if "bubblewrap" not in spec.parts:
        deny(" ".join(("truncate", *ATTRIBUTES)))  # of any file: Landlock does not know them, or not before Linux 6.2
        for call, argument in (("open", 1), ("openat", 2)):  # the like, by opening for reading
            deny(call, bits(argument, os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC))
    deny("kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", not_equal(0, own))
    deny("prlimit64 sched_setaffinity", not_equal(0, 0))
    deny("prctl", bits(0, 2**32 - 1, PR_SET_PDEATHSIG))
    for call, commands in (("fcntl", FCNTL_SIGNALS), ("ioctl", IOCTL_SIGNALS)):
        for command in commands:
            deny(call, bits(1, 2**32 - 1, command))
    # Pairs of connected Unix streams alone; with a GPU also Unix sockets to listen on, since the CUDA driver makes one.
    deny("connect")
    deny("sendto", not_equal(4, 0))
    for call in ("socketpair", "socket"):
        if call == "socket" and not spec.gpu:
            deny(" ".join(("socket", *LISTENING, *UNSEEN_MEMORY)))
            continue
        deny(call, not_equal(0, socket.AF_UNIX))
        for kind in set(range(16)) - {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}:  # a datagram may go anywhere
            deny(call, bits(1, 15, kind))
    return made


class _Audit:
    """Keeps what is told about the audit events of this process; strange code could undo it, with some effort."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        self._code: tuple[str, ...] = ()
        self._read: tuple[str, ...] = ()
        self._write: tuple[str, ...] = ()

    def allow(self, spec: Spec) -> None:
        """Events that concern these places alone are not kept."""
        self._code, readable = _real(spec.libraries), _real(spec.readable)
        self._write = _real([spec.scratch, *spec.devices])
        self._read = self._code + readable + self._write + _real(spec.programs) + ("/sys",)  # where JAX looks for TPUs

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """What sys.addaudithook calls; what it raised would be raised by the call that is told about."""
        if not self.on:
            return
        try:
            told = self._tell(event, args)
        except (TypeError, ValueError, LookupError, AttributeError, OSError, RuntimeError) as error:  # odd arguments
            told = f"{event} ({type(error).__name__})"
        if told and told[:300] not in self.events and len(self.events) < EVENTS:
            self.events.append(told[:300])

    def _tell(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            changes = args[2] & (os.O_WRONLY | os.O_RDWR) or set(args[1] or "") & set("wax+")
            return self._outside("write" if changes else "read", args[:1], self._write if changes else self._read)
        if event in ("os.listdir", "os.scandir"):
            return self._outside("read", args, self._read)
        if event in CHANGES:
            return self._outside(event, args[:2], self._write)
        if event == "ctypes.dlopen" or (event == "import" and args[1]):
            path = args[0] if event == "ctypes.dlopen" else args[1]
            return self._outside("native code", [path], self._code) if os.sep in os.fsdecode(path or "") else None
        if event in STARTS:
            return f"{event} {args[1] if event == 'subprocess.Popen' else args[0] if args else ''}".strip()
        if event in REACHES or (event == "socket.__new__" and args[1] not in (-1, socket.AF_UNIX)):
            return f"{event} {tuple(arg for arg in args if not isinstance(arg, socket.socket))}"
        return None

    def _outside(self, what: str, paths: Any, places: tuple[str, ...]) -> str | None:
        named = [os.path.realpath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)]
        beyond = [path for path in named if not any(f"{path}/".startswith(f"{place}/") for place in places)]
        return f"{what} {' '.join(beyond)}" if beyond else None


def _real(paths: list[str]) -> tuple[str, ...]:
    return tuple(os.path.realpath(path) for path in paths)


_audit = _Audit()


def watch() -> None:
    """From now on audit events are kept: files outside the allowed places, sockets, programs, native code, signals."""
    if not _audit.on:
        _audit.on = True
        sys.addaudithook(_audit.hook)


def recorded() -> list[str]:
    """What was kept since `watch`, each once, in order, at most EVENTS: attempts, whether they were refused or not."""
    return list(_audit.events)
