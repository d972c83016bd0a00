"""Which files a run may read and write, which native code it may load and which compilers it may start.

Decided by resolved path, by who asks, and by phase. Code that is not a package's is the run's own.
"""

import getpass
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from parity.cli import user_cache

ROOT = Path(__file__).parents[2]
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/nix", "/System", "/Library")
DEVICES = re.compile(
    r"/dev/(null|zero|full|u?random|tty|ptmx|pts/.*|nvidia.*|dri/.*|kfd|infiniband/.*)|/sys(/.*)?"  # NCCL reads /sys
)
PROC = re.compile(
    r"/proc/(cpuinfo|meminfo|stat|version|filesystems|loadavg|uptime|devices|modules|mounts|cgroups|vmstat|swaps|driver"
    r"|sys|self|thread-self|net)(/.*)?"
)
# Of this process: what is neither its memory nor another way to its files.
OF_PROCESS = re.compile(
    r"/proc/(\d+)(/task/\d+)?/(status|stat|statm|maps|smaps|cgroup|mounts|mountinfo|cmdline|children|io|limits|comm"
    r"|environ|auxv|oom_score_adj|numa_maps|net/.*)?"
)
DATA_BYTES = 1 << 20  # of data in the system's and Python's folders; packages read less, weights are more
CODE = (".py", ".pyc", ".pyi", ".so", ".pth", ".h", ".hpp")
COMPILERS = re.compile(
    r"([\w.]+-)*(c\+\+|g\+\+|gcc|cc|clang(\+\+)?|cpp|ld(\.\w+)?|lld|as|ar|ptxas|nvcc|nvlink|cicc|fatbinary|cuobjdump"
    r"|nvdisasm|openssl|ldconfig|ccache)(-[\w.]+)?"
)
# Options by which a compiler starts programs or loads code that others wrote.
LOADING = re.compile(
    r"-B.*|--?specs=.*|-wrapper.*|-fplugin.*|-Xclang|-load.*|--?plugin.*|-Wl,-plugin.*|@.*|-fuse-ld=/.*"
)
LOADERS = ("LD_PRELOAD", "LD_AUDIT", "GCC_EXEC_PREFIX", "COMPILER_PATH")
# PyTorch has a new Python load a library that it built, to see whether the processor can.
PROBE = re.compile(r'\s*((import|if) .*\n\s*)*from ctypes import cdll\s*\n\s*cdll\.LoadLibrary\("([^"\n]+)"\)\s*')
# Parts of packages that compile what they are given: asked by the run's own code itself, it is own native code.
BUILDERS = ("/torch/_inductor/", "/torch/utils/cpp_extension", "/triton/runtime/build", "/distutils/", "/setuptools/")


class Places:
    """The places of a run; `readable` and `writable` are its own. With `scratch` it has caches of its own there."""

    def __init__(self, readable: Iterable[Path], writable: Iterable[Path], scratch: Path | None = None):
        self.readable = tuple(map(os.path.realpath, readable))
        self.writable = tuple(map(os.path.realpath, writable))
        self.compiled = os.path.realpath(scratch / "compiled") if scratch else ""
        if scratch:
            self.writable += (os.path.realpath(scratch / "tmp"),)
        else:
            self.writable += tuple(map(os.path.realpath, shared_caches()))
        self.libraries = tuple(installed_libraries())
        self.loaders = {name: os.environ.get(name) for name in LOADERS}
        self.data: dict[str, int] = {}  # bytes of the data that was read in the system's and Python's folders

    def asker(self, frame: FrameType | None) -> tuple[str, bool]:
        """The file of the code that asks, and whether that is the run's own: itself, by a package that builds, or by
        Python's own code alone, as where a thread was started with it."""
        first, inner = None, ""
        while frame is not None:
            file = frame.f_code.co_filename
            package = True if within(file, (self.compiled,)) else is_package(file)
            if package is False:
                return (file, True) if first is None else (first, any(part in inner for part in BUILDERS))
            if package:
                first, inner = first or file, "" if frame.f_code.co_name == "<module>" else file  # an import
            frame = frame.f_back
        return first or "", first is None

    def may_write(self, path: str, own: bool) -> bool:
        """Whether a file may be written: nothing in the folders of Python, its packages, this project, the system."""
        if self.compiled and within(path, (self.compiled,)):
            return not own
        return within(path, self.writable) or bool(DEVICES.fullmatch(path) and not path.startswith("/sys"))

    def may_make_folder(self, path: str, own: bool) -> bool:
        """Whether a folder may be made: also one on the way to a place that may be written, as ~/.cache is."""
        return self.may_write(path, own) or any(within(place, (path,)) for place in self.writable)

    def may_read(self, path: str, reader: str) -> bool:
        """Whether a file may be read; `reader` is the file of the code that asks.

        Code may be read wherever Python's folders are, and by a package its own files; of other data in the system's
        and Python's folders DATA_BYTES in all.
        """
        if within(path, (*self.readable, *self.writable, self.compiled)) or DEVICES.fullmatch(path):
            return True
        if path.startswith("/proc/"):
            process = OF_PROCESS.fullmatch(path)
            return bool(PROC.fullmatch(path)) or (process is not None and int(process[1]) == os.getpid())
        python = within(path, python_folders())
        if python and (path.endswith(CODE) or "-info/" in path or package_of(path) == package_of(reader)):
            return True
        if not (python or within(path, SYSTEM)):
            return False
        if os.path.isfile(path):
            self.data[path] = os.path.getsize(path)
        return sum(self.data.values()) <= DATA_BYTES

    def may_load(self, path: str, own: bool) -> bool:
        """Whether native code may be loaded: a package's, the system's, or what a package compiled for this run."""
        return not own and within(path, (*SYSTEM, *self.libraries, *python_folders(), self.compiled))

    def compiler(self, executable: Any, args: Any, cwd: Any, env: Mapping[Any, Any] | None) -> str | None:
        """The resolved path of a compiler, or of PyTorch's own Python programs; None where it is another program."""
        env = {os.fsdecode(key): os.fsdecode(value) for key, value in (env or os.environ).items()}
        words = [os.fsdecode(word) for word in ([args] if isinstance(args, str | bytes) else args)]
        folder = os.path.realpath(os.fsdecode(cwd)) if cwd else os.getcwd()
        name = os.fsdecode(executable or words[0])
        found = os.path.join(folder, name) if os.sep in name else shutil.which(name, path=env.get("PATH", os.defpath))
        path = os.path.realpath(found or name)
        if any(env.get(loader) != value for loader, value in self.loaders.items()):
            return None
        if path == os.path.realpath(sys.executable):
            return path if self._is_probe(words) or is_worker(words) else None
        if not COMPILERS.fullmatch(os.path.basename(path)) or not within(path, compiler_folders()):
            return None
        for before, word in pairwise(words):
            file = os.path.realpath(os.path.join(folder, word.removeprefix("-o") if before != "-o" else word))
            if LOADING.fullmatch(word):
                return None
            if (before == "-o" or os.path.isfile(file)) and not self._may_compile(file):
                return None
        return path

    def _may_compile(self, path: str) -> bool:
        return within(path, (*self.writable, *SYSTEM, *python_folders(), self.compiled)) or path == os.devnull

    def _is_probe(self, words: Sequence[str]) -> bool:
        probe = PROBE.fullmatch(words[2]) if len(words) == 3 and words[1] == "-c" else None
        return probe is not None and within(os.path.realpath(probe[3]), (self.compiled, *self.writable))


def within(path: str, folders: Iterable[str]) -> bool:
    """Whether a resolved path is one of these folders or files, or in one; an empty name is none."""
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders if folder)


def is_worker(words: Sequence[str]) -> bool:
    """Whether a command line of Python starts PyTorch's compile workers, or what keeps count of their semaphores."""
    if len(words) > 1 and within(os.path.realpath(words[1]), python_folders()):
        return words[1].endswith("/torch/_inductor/compile_worker/__main__.py")
    return any(word.startswith("from multiprocessing.resource_tracker import main;main(") for word in words[1:])


@cache
def python_folders() -> tuple[str, ...]:
    """The folders of Python, its packages and this project's own packages."""
    folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()]
    folders += [path for path in sys.path if "site-packages" in path and os.path.isdir(path)]
    folders += [str(ROOT / name) for name in ("parity", "jaxrun", "torchref")]
    return tuple(dict.fromkeys(map(os.path.realpath, folders)))


@cache
def compiler_folders() -> tuple[str, ...]:
    """Where compilers are installed: by the system, by CUDA's and Triton's packages, by conda."""
    folders = [path for path in SYSTEM if path != "/etc"]
    for site in python_folders():
        folders += [f"{site}/nvidia", f"{site}/triton/backends/nvidia/bin"]
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        folders.append(os.path.join(os.path.realpath(sys.prefix), "bin"))
    return tuple(folders)


def installed_libraries() -> list[str]:
    """The folders of LD_LIBRARY_PATH that belong to somebody else, as a cluster's software does."""
    folders = map(os.path.realpath, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    return [folder for folder in folders if os.path.isdir(folder) and os.stat(folder).st_uid != os.getuid()]


def shared_caches() -> list[Path]:
    """Caches of compilers that runs of the recipes' own programs share."""
    folders = user_cache(), inductor_cache(), *(Path(os.path.expanduser(folder)) for folder in ("~/.triton", "~/.nv"))
    return [folder for folder in folders if folder and folder.is_absolute()]  # a user without a home has none


def inductor_cache() -> Path:
    """The folder that PyTorch makes with the first optimizer of a process, even where nothing is compiled."""
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        user = f"uid_{os.getuid()}"
    folder = os.path.join(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))
    return Path(os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder)))


@cache
def package_of(path: str) -> str:
    """The package whose file this is: the first name below site-packages, or of this project; "" for Python itself."""
    if within(path, [str(ROOT / name) for name in ("parity", "jaxrun", "torchref")]):
        return Path(path).relative_to(ROOT).parts[0]
    _, site, below = path.rpartition("-packages" + os.sep)
    return below.split(os.sep)[0] if site else ""


@cache
def is_package(file: str) -> bool | None:
    """Whether a code's file is a package's or this project's. None for Python's own and for text that was run, which
    work for their caller."""
    if file.startswith("<"):
        return None
    path = os.path.realpath(file)
    if package_of(path):
        return within(path, python_folders())
    return None if within(path, [os.path.realpath(sysconfig.get_paths()["stdlib"])]) else False
