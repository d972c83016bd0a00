"""Where a run runs: devices, machine, package versions and the environment variables that can change a result."""

import os
import platform
import resource
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from parity.errors import InputError, nearest

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "triton", "numpy", "tiktoken", "safetensors"),
    *("einops", "jaxtyping", "beartype", "chex", "numba", "tqdm"),  # helpers that user code may import
)
PREFIXES = (  # of the variables that can change speed or numbers
    *(
        "XLA_",
        "JAX_",
        "TORCH",
        "PYTORCH_",
        "CUDA_",
        "CUBLAS",
        "CUDNN",
        "NCCL_",
        "GLOO_",
        "NVIDIA_",
        "TRITON_",
        "TF_XLA_",
    ),
    *("TF_CPP_", "TF_GPU_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "MALLOC_", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("PYTHONHASHSEED", "PYTHONPATH", "PYTHONOPTIMIZE"),
)
# Where compilers keep what they compiled: runs with code of the user's have new folders.
CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "_KEY", "CREDENTIAL")


def devices(backend: str) -> list[dict[str, Any]]:
    """The devices that the backend's framework sees, one entry a kind: kind, platform, count."""
    ask = {"jaxrun": _jax_devices, "torchref": _torch_devices}
    if backend not in ask:
        raise InputError(f"unknown backend {backend!r}; {nearest(backend, ask)}")
    try:
        present = ask[backend]()
    except ImportError as error:
        raise InputError(
            f"{backend} needs {error.name}, which is not installed: install it, or use the other backend"
        ) from None
    return [
        {"kind": kind, "platform": plat, "count": present.count((kind, plat))} for kind, plat in sorted(set(present))
    ]


def _jax_devices() -> list[tuple[str, str]]:
    import jax

    return [(device.device_kind, device.platform) for device in jax.devices()]


def _torch_devices() -> list[tuple[str, str]]:
    import torch

    if torch.cuda.is_available():
        return [(torch.cuda.get_device_name(i), "gpu") for i in range(torch.cuda.device_count())]
    return [("cpu", "cpu")]


def host() -> dict[str, Any]:
    """The machine: cpu model, cores that this process may use, memory in bytes, operating system, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no /proc, as on macOS
    return platform.processor() or platform.machine() or "unknown"


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result; imports none of them."""
    installed = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def environment() -> dict[str, str]:
    """The environment variables that can change speed or numbers, by prefix; a value that may be secret is left out."""
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)}
    relevant = {name: value for name, value in named.items() if name not in CACHES}
    return {
        name: "(set, not recorded)" if any(word in name.upper() for word in _SECRET) else value
        for name, value in relevant.items()
    }


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had so far, in bytes."""
    # Not ru_maxrss where it can be helped: on Linux a process inherits it from the one that started it, across exec.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc, as on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(framework: str) -> int | None:
    """The most memory in use on one device so far, in bytes; None on a CPU. `framework` is "jax" or "torch"."""
    if framework == "jax":
        import jax

        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        return max((peak for peak in peaks if peak is not None), default=None)
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
