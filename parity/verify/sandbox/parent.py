"""The parent's half of the sandbox: a process for untrusted code, and the mechanisms that confine it.

`available` tries what this machine offers, and `start` starts a module in a process so confined (child.py has the
limits that the process puts on itself, process.py those that the parent enforces).
"""

import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parity.errors import InputError
from parity.verify.sandbox.child import LINUX, PACKAGES, READY, ROOT, Spec
from parity.verify.sandbox.process import Limits, SandboxedProcess

MECHANISMS = ("bubblewrap", "landlock", "seccomp")
PYTHON_PACKAGES = {"landlock": "landlockpy", "seccomp": "pyseccomp"}
PROBE_LIMITS = Limits(memory_bytes=1 << 30, time_s=20.0, file_bytes=1 << 20)

# Readable for every child, where they exist: libraries, and what they ask about the machine.
LIBRARIES = """
    /usr /lib /lib64 /bin /sbin /nix/store /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/alternatives
    /etc/localtime
"""
MACHINE = """
    /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /proc/version /proc/filesystems /proc/sys/kernel /proc/sys/vm
    /sys/devices/system /sys/kernel/mm
"""
GPU_MACHINE = "/proc/driver /proc/devices /proc/modules /sys"
DEVICES = "/dev/null /dev/zero /dev/random /dev/urandom"
C_COMPILER, C_COMPILER_FOLDERS = "cc gcc c++ g++ as ld openssl", ("/usr/lib/gcc", "/usr/libexec/gcc")
LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")

PATH = "/usr/bin:/bin"  # in this order: a compiler looks for its files beside itself, and /bin may be a link or not
BOOT = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from parity.verify.sandbox.child import main; "
    "del sys.path[0]; main()"
)


@dataclass(frozen=True)
class Isolation:
    """What confines a child: the mechanisms, and for a verdict what is in force (`holds`) and what is not (`gaps`)."""

    mechanisms: tuple[str, ...]
    holds: tuple[str, ...]
    gaps: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The mechanisms joined by +, or none."""
        return "+".join(self.mechanisms) or "none"


def describe(mechanisms: Sequence[str], gpu: bool = False, compilers: bool = False) -> Isolation:
    """The isolation by these mechanisms, whether this machine has them or not; InputError for an unknown one."""
    if unknown := set(mechanisms) - set(MECHANISMS):
        raise InputError(f"isolation: unknown mechanism {min(unknown)}: known: {', '.join(MECHANISMS)}")
    bwrap, landlock, seccomp = (name in mechanisms for name in MECHANISMS)
    files = bwrap or landlock
    limit = "it is killed where it takes more time, memory or disk than it is given"
    holds = {
        "it reads nothing but Python, its packages, the system's libraries and the folders that it was given": files,
        "it writes nothing but its own folder": files,
        "it sees no file, process or network of the machine but its own": bwrap,
        "it makes no connection": bwrap or seccomp,
        "it starts no process and no program": seccomp and not gpu and not compilers,
        "it can neither signal nor trace another process, nor read its memory": bwrap or seccomp,
        "it has none of root's powers and gains none": LINUX,
        f"{limit}, and when the verifier ends" if LINUX else limit: True,
    }
    gaps = {
        "it reads and writes every file that you can": not files,
        "names, sizes and times of other files can be looked up, though not their contents": landlock and not bwrap,
        "it can use the network": not (bwrap or seccomp),
        "it can signal other processes of yours": not (bwrap or seccomp),
        "it can start programs, under the same limits": not seccomp or gpu,
        "the process that repeats steps can start compilers, under the same limits": compilers,
        "what it starts may outlive it": not bwrap and (gpu or not seccomp),
        "every system call of the kernel is open to it": not seccomp,
        "its memory is not watched": not LINUX,
        "memory is measured 20 times a second, so for a moment it can take more": LINUX,
        "memory of the GPU is not limited, and the GPU's driver is open to it": gpu,
    }
    ordered = tuple(name for name in MECHANISMS if name in mechanisms)
    return Isolation(ordered, *(tuple(text for text in table if table[text]) for table in (holds, gaps)))


def available(gpu: bool = False, compilers: bool = False) -> Isolation:
    """The best isolation that works on this machine, tried once in a process; `gpu`: for a child that uses one,
    `compilers`: for one that may start them."""
    return describe(_working(), gpu, compilers)


@functools.cache
def _working() -> tuple[str, ...]:
    """The mechanisms that work here together, each really set up in a child that runs nothing."""
    present = tuple(name for name in MECHANISMS if _present(name))
    return present if works(present) else tuple(name for name in present if works((name,)))


def _present(mechanism: str) -> bool:
    if mechanism == "bubblewrap":  # its child is a grandchild, whose memory is found through `children`
        return LINUX and shutil.which("bwrap") is not None and os.path.exists("/proc/thread-self/children")
    return LINUX and importlib.util.find_spec(PYTHON_PACKAGES[mechanism]) is not None


def works(mechanisms: tuple[str, ...]) -> bool:
    """Whether these mechanisms can be set up together on this machine."""
    with tempfile.TemporaryDirectory(prefix="isolation-") as scratch:
        try:
            with start(
                "", [], readable=[], scratch=Path(scratch), limits=PROBE_LIMITS, isolation=describe(mechanisms)
            ) as child:
                return child.wait(PROBE_LIMITS.time_s) == 0
        except InputError:
            return False


def start(
    module: str,
    args: Sequence[str],
    *,
    readable: Sequence[Path],
    scratch: Path,
    limits: Limits,
    isolation: Isolation | None = None,
    environment: Mapping[str, str] | None = None,
    gpu: bool = False,
    compilers: bool = False,
) -> SandboxedProcess:
    """Starts `module.main(args)` in a child; returns once its limits are in force, before the child loads the module.

    The child reads `readable`, Python and its packages (links are followed: give no path that untrusted code made). It
    writes only `scratch` (created where it is missing; with seccomp it can put no links and no pipes there). It has a
    minimal environment and `environment`, whose PYTHONPATH counts once it is confined. An empty module ends at once.
    `compilers`: it may start the system's C++ compiler and Python, confined as it is itself. `isolation` is
    `available(gpu)` by default. Raises InputError for unusable paths, and where confining fails.
    """
    if module and not all(name.isidentifier() for name in module.split(".")):
        raise InputError(f"isolation: expected the name of a module, found {module!r}: name one that can be imported")
    isolation, environment = isolation or available(gpu), environment or {}
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = scratch.resolve()
    spec = _spec(module, readable, scratch, limits, isolation, environment, gpu, compilers)
    command = [sys.executable, "-P", "-s", "-B", "-c", BOOT, json.dumps(asdict(spec)), *args]
    if "bubblewrap" in isolation.mechanisms:
        command = bubblewrap(spec) + command
    base = {"PATH": PATH, "LANG": "C.UTF-8", "USER": "confined", "LOGNAME": "confined"}
    base |= {name: str(scratch) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    base |= ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}) | dict(environment)
    base["PYTHONPATH"] = os.pathsep.join(_package_folders())  # spec.path has the caller's, used once confined
    child = SandboxedProcess(command, base, scratch, limits)
    if child.stdout.read(len(READY)) == READY:
        return child
    child.close()
    reason = child.reason or [f"it ended with code {child.returncode}", *child.stderr_tail().strip().splitlines()][-1]
    raise InputError(f"isolation {isolation.kind}: the child cannot be confined: {reason}: try another")


def _spec(
    module: str,
    readable: Sequence[Path],
    scratch: Path,
    limits: Limits,
    isolation: Isolation,
    environment: Mapping[str, str],
    gpu: bool,
    compilers: bool,
) -> Spec:
    if missing := [path for path in readable if not path.exists()]:
        raise InputError(f"isolation: expected {missing[0]} to be readable, found nothing there: check the path")
    folders = [sys.prefix, sys.base_prefix, *_package_folders(), *(str(ROOT / name) for name in PACKAGES)]
    folders += LIBRARIES.split() + environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    libraries, allowed = _existing(folders), _existing(map(str, readable))
    for path in (*libraries, *allowed):
        if Path(path).is_relative_to(scratch):
            raise InputError(f"isolation: the scratch folder {scratch} holds {path}, which is read-only: use another")
    libraries += filter(os.path.exists, (MACHINE + GPU_MACHINE if gpu else MACHINE).split())
    reserved = (1 << 30) + (64 << 20) * (os.cpu_count() or 1)  # allocated and not used, such as threads' stacks
    return Spec(
        module=module,
        path=[folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder],
        mechanisms=list(isolation.mechanisms),
        parent=None if "bubblewrap" in isolation.mechanisms else os.getpid(),
        libraries=libraries,
        readable=allowed,
        scratch=str(scratch),
        devices=[*filter(os.path.exists, DEVICES.split()), *(map(str, Path("/dev").glob("nvidia*")) if gpu else ())],
        programs=[*(_gpu_compilers() if gpu else ()), *(_compilers() if compilers else ())],
        gpu=gpu,
        file_bytes=limits.file_bytes,
        data_bytes=None if gpu else limits.memory_bytes + reserved,
    )


def _existing(paths: Iterable[str]) -> list[str]:
    """Those that exist, each as it is named and as it is without symbolic links, so that both names can be used."""
    existing = [path for path in paths if path and os.path.exists(path)]
    return sorted({name(path) for path in existing for name in (os.path.abspath, os.path.realpath)})


@functools.cache
def _package_folders() -> tuple[str, ...]:
    """The folders outside Python's own that the packages which programs use are installed in."""
    specs = [importlib.util.find_spec(name) for name in ("jax", "torch", "numpy", *PYTHON_PACKAGES.values())]
    files = [Path(spec.origin) for spec in specs if spec and spec.origin]
    folders = {file.parents[1] if file.name == "__init__.py" else file.parent for file in files}
    python = (sys.prefix, sys.base_prefix)
    return tuple(sorted(str(path) for path in folders if not any(path.is_relative_to(prefix) for prefix in python)))


def _gpu_compilers() -> list[str]:
    """CUDA's compilers, which XLA and Triton start as programs, the C compiler, and the loader that programs need."""
    sites = [Path(folder) for folder in (*_package_folders(), *sys.path) if "site-packages" in folder]
    folders = [path for site in sites for path in (*site.glob("nvidia/*/bin"), site / "triton/backends/nvidia/bin")]
    folders += Path("/usr/local").glob("cuda*/bin")
    compilers = _existing(map(str, folders))
    return compilers + _c_compiler() if compilers else []  # for Triton's launchers


def _compilers() -> list[str]:
    """What torch.compile starts for a CPU: the C++ compiler, and Python to see whether a library can be loaded."""
    return _c_compiler() + _existing([sys.executable])


def _c_compiler() -> list[str]:
    tools = [found for name in C_COMPILER.split() if (found := shutil.which(name, path=PATH))]
    return _existing([*tools, *C_COMPILER_FOLDERS]) + [path for path in LOADERS if os.path.exists(path)]


def bubblewrap(spec: Spec) -> list[str]:
    """The command line of bwrap(1) that a child's own is appended to: new namespaces, and only the files it needs.

    Nothing but the scratch folder can be written, not even memory that looks like a folder.
    """
    mounts = [(path, "--ro-bind") for path in (*spec.libraries, *spec.readable) if not path.startswith("/proc/")]
    mounts += [(path, "--dev-bind") for path in spec.devices] + [(spec.scratch, "--bind")]
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--proc", "/proc"]
    for path, option in sorted(mounts, key=lambda mount: mount[0].count(os.sep)):
        command += [option, path, path]
    return [*command, "--remount-ro", "/", "--chdir", spec.scratch, "--"]
