"""The child's half of the sandbox: limits that a process puts on itself before it loads untrusted code.

`main` is what parent.start runs: it gives up what the process does not need, reports that to its parent, and runs
another module's `main(args)`, which may record what untrusted code tries (audit.py). parent.Isolation says in sentences
which limits are in force and which are not.

Every step fails closed: a limit that the parent counts on and that cannot be set ends the process before untrusted code
is loaded. Few modules are imported, so that little can fail or be slow.
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

from parity.verify.sandbox import audit

ROOT = Path(__file__).parents[3]
PACKAGES = tuple(name for name in ("parity", "jaxrun", "torchref") if (ROOT / name).is_dir())
READY = b"confined\n"  # the first bytes on stdout, before the module is loaded
LINUX = sys.platform == "linux"
OPEN_FILES = 4096

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
CAPABILITY_VERSION_3 = 0x20080522  # capget(2)
CLONE_THREAD = 0x10000  # clone(2); below: CLONE_PARENT and the flags for new namespaces
CLONE_OTHER = (0x8000, 0x20000, *(1 << bit for bit in range(25, 31)))
FCNTL_SIGNALS, IOCTL_SIGNALS = (8, 10, 15), (0x8901, 0x8902)  # F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP

# System calls that are refused, by purpose. NUMBERS has those that libseccomp may not know by name.
PROCESSES = "fork vfork execve execveat"
OTHER_PROCESSES = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_open pidfd_getfd
    pidfd_send_signal tkill setpriority ioprio_set sched_setparam sched_setattr sched_setscheduler migrate_pages
    move_pages setsid setpgid perf_event_open
"""
SYSTEM = """
    mount umount2 move_mount open_tree open_tree_attr fsopen fsmount fsconfig fspick mount_setattr pivot_root chroot
    unshare setns bpf keyctl add_key request_key userfaultfd io_uring_setup io_uring_enter io_uring_register personality
    modify_ldt acct quotactl quotactl_fd syslog swapon swapoff reboot kexec_load kexec_file_load init_module
    finit_module delete_module open_by_handle_at name_to_handle_at fanotify_init inotify_init inotify_init1
    inotify_add_watch settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname ioperm iopl
"""
SPECIAL_FILES = "symlink symlinkat mknod mknodat"  # could mislead the parent, or make it wait
LISTENING = "bind listen accept accept4"
UNCOUNTED_MEMORY = "memfd_create memfd_secret shmget shmat msgget semget mq_open"  # belongs to no process
ATTRIBUTES = """
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr
    lremovexattr fremovexattr removexattrat utime utimes futimesat utimensat file_setattr
"""
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


@dataclass(frozen=True)
class Spec:
    """What the parent asks for, as JSON in the first argument. Paths are absolute, sizes in bytes."""

    module: str  # to run; empty: none
    path: list[str]  # folders to import from first, once the limits are in force
    mechanisms: list[str]  # of bubblewrap, landlock, seccomp
    parent: int | None  # the parent's process id; None where the child cannot see it
    libraries: list[str]  # readable, and code may be loaded from them
    readable: list[str]
    scratch: str
    devices: list[str]  # may be read, written and controlled
    programs: list[str]  # files and folders of programs that may be started; empty: no process may be started
    gpu: bool
    data_bytes: int | None  # RLIMIT_DATA
    file_bytes: int


class _Packages:
    """Finds the project's own packages, the verifier's copy of them, in a folder that may not be listed."""

    @staticmethod
    def find_spec(name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name not in PACKAGES:
            return None
        init = ROOT / name / "__init__.py"
        return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])


def main() -> None:
    """Confines this process by the Spec in sys.argv[1], then runs the module's main with the other arguments."""
    spec = Spec(**json.loads(sys.argv[1]))
    sys.argv = [spec.module, *sys.argv[2:]]
    _limit_resources(spec)
    if LINUX:
        _confine(spec)
    sys.path[:0] = spec.path
    sys.meta_path.insert(0, _Packages)  # type: ignore[arg-type]
    writable = [spec.scratch, *spec.devices]
    code = [*spec.libraries, spec.scratch] if spec.programs else spec.libraries  # where compilers put theirs
    audit.allow(code, [*spec.readable, "/sys"], writable, spec.programs)  # JAX looks for TPUs in /sys
    os.write(1, READY)
    if spec.module:
        sys.exit(importlib.import_module(spec.module).main(sys.argv[1:]))


def _limit_resources(spec: Spec) -> None:
    """Sets the limits that every Unix has: core files, open files, the size of a file and of this process' memory."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: OPEN_FILES, resource.RLIMIT_FSIZE: spec.file_bytes}
    if spec.data_bytes and LINUX:
        limits[resource.RLIMIT_DATA] = spec.data_bytes
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))


def _confine(spec: Spec) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("expected one thread, found more: limits would hold for one of them alone")
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where the machine runs out of memory, this process is killed first
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    call_filter = _seccomp(spec) if "seccomp" in spec.mechanisms else None
    if "landlock" in spec.mechanisms:
        _landlock(spec)
    _check(libc.capset(_uint32s(CAPABILITY_VERSION_3, 0), _uint32s(0, 0, 0, 0, 0, 0)), "capset")
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if spec.parent is not None and os.getppid() != spec.parent:
        sys.exit("the parent died")
    if call_filter is not None:
        call_filter.load()


def _check(result: int, name: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _uint32s(*values: int) -> Any:
    return (ctypes.c_uint32 * len(values))(*values)


def _landlock(spec: Spec) -> None:
    """Limits files by path, forbids TCP and, where the kernel can, signals to others and their abstract sockets."""
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
    on_file = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.IOCTL_DEV | AccessFS.EXECUTE
    rules = [(path, read) for path in (*spec.libraries, *spec.readable)] + [(path, device) for path in spec.devices]
    rules += [(path, read | AccessFS.EXECUTE) for path in spec.programs] + [(spec.scratch, read | write)]
    os.open("/proc/self", os.O_PATH)  # left open: a rule is for this very directory entry, which must not be dropped
    with Ruleset(scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL) as ruleset:
        for path, access in rules:
            ruleset.allow_path(path, access if os.path.isdir(path) else access & on_file)
        ruleset.restrict()


def _seccomp(spec: Spec) -> Any:
    """The filter of system calls, not yet loaded. A refused call fails with EPERM."""
    import pyseccomp  # runs ldconfig to find libseccomp, so it must be imported before anything is refused

    call_filter, refuse = pyseccomp.SyscallFilter(pyseccomp.ALLOW), pyseccomp.ERRNO(errno.EPERM)

    def deny(names: str, *conditions: Any, action: int = refuse) -> None:
        for name in names.split():
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            number = NUMBERS.get(name, -1) if number == -1 else number
            if number >= 0:  # this architecture has it
                call_filter.add_rule(action, number, *conditions)

    def bits(argument: int, mask: int, value: int) -> Any:  # of 32: the kernel ignores what is above
        return pyseccomp.Arg(argument, pyseccomp.MASKED_EQ, mask, value)

    def not_equal(argument: int, value: int) -> Any:
        return pyseccomp.Arg(argument, pyseccomp.NE, value)

    deny(OTHER_PROCESSES + SYSTEM + SPECIAL_FILES)
    deny("clone3 openat2", action=pyseccomp.ERRNO(errno.ENOSYS))  # flags lie in memory; callers fall back to others
    for flag in CLONE_OTHER:
        deny("clone", bits(0, flag, flag))
    if not spec.programs:
        deny(PROCESSES)
        deny("clone", bits(0, CLONE_THREAD, 0))
    if "bubblewrap" not in spec.mechanisms:
        deny("truncate" + ATTRIBUTES)  # of any file: Landlock does not know them, or not before Linux 6.2
        for call, argument in (("open", 1), ("openat", 2)):  # truncating by opening for reading
            deny(call, bits(argument, os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC))
    deny("kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", not_equal(0, os.getpid()))
    deny("prlimit64 sched_setaffinity", not_equal(0, 0))
    deny("prctl", bits(0, 2**32 - 1, PR_SET_PDEATHSIG))
    for call, commands in (("fcntl", FCNTL_SIGNALS), ("ioctl", IOCTL_SIGNALS)):
        for command in commands:
            deny(call, bits(1, 2**32 - 1, command))
    # Only pairs of connected Unix streams; with a GPU also Unix sockets to listen on, since the CUDA driver makes one.
    deny("connect")
    deny("sendto", not_equal(4, 0))
    if not spec.gpu:
        deny(f"socket {LISTENING} {UNCOUNTED_MEMORY}")
    for call in ("socketpair", "socket") if spec.gpu else ("socketpair",):
        deny(call, not_equal(0, socket.AF_UNIX))
        for kind in set(range(16)) - {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}:  # a datagram may go anywhere
            deny(call, bits(1, 15, kind))
    return call_filter
