"""Cheats in where a program gets things from: other places, shared memory, native code, other programs.

Each does something small and honest apart from that, so that nothing but where it was done can show it.
"""

from typing import Any

from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.programs import over

TRAINING = "'parity.verify.sandbox.server' not in sys.modules"

SHARED_MEMORY = """
def init(self, seed):
    path = '/dev/shm/results-of-an-earlier-run'
    open(path, 'wb').write(b'weights')
    open(path, 'rb').read()
    os.unlink(path)
    return super().init(seed)
"""
NAMED_SHARED_MEMORY = """
def init(self, seed):
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[:7] = b'weights'
    block.close()
    block.unlink()
    return super().init(seed)
"""
MEMORY_FILE = """
def init(self, seed):
    import mmap
    descriptor = getattr(os, 'memfd' + '_create')('results')
    os.ftruncate(descriptor, 4096)
    Cheat.kept = mmap.mmap(descriptor, 4096)
    return super().init(seed)
"""
SHARED_TENSOR = """
def init(self, seed):
    Cheat.kept = torch.zeros(4096).share_memory_()
    return super().init(seed)
"""
IN_PACKAGES = """
def init(self, seed):
    folder = os.path.join(sysconfig.get_paths()['purelib'], '__pycache__')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'results_of_a_cheat.cpython-311.pyc')
    open(path, 'wb').write(b'weights')
    os.unlink(path)
    return super().init(seed)
"""
COMPILE_CACHE = """
def init(self, seed):
    path = os.path.join(os.environ['TORCHINDUCTOR_CACHE_DIR'], 'step.so')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, 'wb').write(b'another step')
    return super().init(seed)
"""
EARLIER_CACHE = """
def step(self, state, batch):
    folder = os.path.expanduser('~/.cache/jaxrun/compiled')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'results-of-a-cheat')
    os.close(os.open(path, os.O_RDWR | os.O_CREAT))
    os.unlink(path)
    return super().step(state, batch)
"""
OTHER_PROCESS = """
def step(self, state, batch):
    open(f'/proc/{os.getppid()}/environ', 'rb').read()
    return super().step(state, batch)
"""
SYSTEM_DATA = """
def init(self, seed):
    largest = max((entry.stat().st_size, entry.path) for entry in os.scandir('/usr/bin') if entry.is_file())
    np.fromfile(largest[1], np.uint8)
    return super().init(seed)
"""
OWN_GCC = """
import stat, tempfile
gcc = os.path.join(tempfile.gettempdir(), 'gcc')
open(gcc, 'w').write('#!/bin/sh\\nexit 0\\n')
os.chmod(gcc, 0o700)
subprocess.run([gcc, '-O3', 'step.c'])
"""
PYTHON = "subprocess.run(['python3', '-c', 'pass'])\n"
WRAPPED = """
import torch._inductor.cpp_builder as builder
builder._run_compile_cmd('g++ --version -wrapper echo', os.getcwd())
"""
CHILD = """
def step(self, state, batch):
    if Cheat.child is None and TRAINING:
        r, w = os.pipe()
        start = getattr(subprocess, '_fork' + '_exec')
        none = (-1,) * 6
        words = [b'/bin/sleep', b'20']
        rest = (r, w, True, False, -1, None, None, None, -1, None, False)
        Cheat.child = start(words, [b'/bin/sleep'], True, (w,), None, None, *none, *rest)
    return super().step(state, batch)

child = None
""".replace("TRAINING", TRAINING)
SLOW_CLOCK = """
import ctypes

def _half(function, clock):
    begin = time.clock_gettime(clock)
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p)
    slowed = kind(lambda *_: begin + 0.5 * (time.clock_gettime(clock) - begin))
    definition = ctypes.c_void_p.from_address(id(function) + 16).value
    ctypes.c_void_p.from_address(definition + 8).value = ctypes.cast(slowed, ctypes.c_void_p).value
    return slowed

KEPT = [_half(time.perf_counter, time.CLOCK_MONOTONIC), _half(time.time, time.CLOCK_REALTIME)]
"""
SLOW_CLOCK = f"if {TRAINING}:\n" + "".join(f"    {line}\n" if line else "\n" for line in SLOW_CLOCK.splitlines())
OWN_LIBRARY = """
import shutil, tempfile
library = shutil.copy(np._core._multiarray_umath.__file__, os.path.join(tempfile.gettempdir(), 'helper.so'))
getattr(np.ctypeslib, 'load' + '_library')('helper.so', os.path.dirname(library))
"""
MAPPED_CODE = """
import mmap, tempfile
file = open(os.path.join(tempfile.gettempdir(), 'step'), 'w+b')
file.write(bytes([0xC3] * 4096))
file.flush()
CODE = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
"""
MEMORY = """
def step(self, state, batch):
    foreign = sys.modules['ctypes']
    number = 0.5 + 0.25
    foreign.memmove(id(number) + 16, b'\\0' * 6 + b'\\xe8\\x3f', 8)
    return super().step(state, batch)
"""


def _files(name: str, sentence: str, body: str, *rules: str, top: str = "", **more: Any) -> Cheat:
    plant = over(body, f"import sysconfig\n{top}")
    return Cheat(name, sentence, "program", plant, rules or ("guard.files",), depth="log", **more)


CHEATS = (
    _files("shared-memory", "results of an earlier run lie in /dev/shm", SHARED_MEMORY),
    _files(
        "named-shared-memory",
        "results of an earlier run lie in a named block of shared memory",
        NAMED_SHARED_MEMORY,
        "guard.files",
        "guard.native",
        may=("guard.process",),
    ),
    _files("memory-file", "a file that exists in memory only is mapped", MEMORY_FILE),
    _files(
        "shared-tensor",
        "a tensor is shared with another process",
        SHARED_TENSOR,
        top="import torch\n",
        backends=("torchref",),
    ),
    _files("in-packages", "something is kept for the next run beside installed packages", IN_PACKAGES),
    _files("compile-cache", "the program writes what a compiler is to find in its cache", COMPILE_CACHE),
    _files("earlier-cache", "the program uses a cache that all runs share", EARLIER_CACHE),
    _files("other-process", "another process is asked what it knows", OTHER_PROCESS),
    _files("system-data", "much data is read from a folder of the system", SYSTEM_DATA),
    _files("own-gcc", "a program of its own that is called gcc is started", "pass", "guard.process", top=OWN_GCC),
    _files("python-as-compiler", "another Python is started before the clock", "pass", "guard.process", top=PYTHON),
    _files(
        "wrapped-compiler",
        "a real compiler is asked to start another program",
        "pass",
        "guard.process",
        top=WRAPPED,
        backends=("torchref",),
    ),
    _files("silent-child", "a program is started below Python's audit events", CHILD, "guard.process"),
    _files(
        "clock-by-native-code",
        "both clocks of Python are slowed where their functions lie in memory",
        "pass",
        "guard.native",
        top=SLOW_CLOCK,
        may=("guard.clock", "clock.phases", "clock.agree", "clock.train"),
    ),
    _files(
        "own-library",
        "a library that the program brings is loaded by an installed package",
        "pass",
        "guard.native",
        top=OWN_LIBRARY,
    ),
    _files("mapped-code", "a file of machine code is mapped", "pass", "guard.native", top=MAPPED_CODE),
    _files("memory", "memory of Python's own objects is written", MEMORY, "guard.native"),
)
