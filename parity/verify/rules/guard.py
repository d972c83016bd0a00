"""Depth `log`: what the guard saw while the run ran, and the environment that it ran in."""

import re
from pathlib import PurePath
from typing import Any

from parity.verify.rules import Context, Found, fails, holds, rule

COMPILERS = re.compile(r"(c\+\+|g\+\+|gcc|cc|clang(\+\+)?|ld|as|ptxas|nvcc|openssl|python[\d.]*)(-[\d.]+)?")
FORBIDDEN = {
    "LD_PRELOAD": "it can replace any function",
    "NVIDIA_TF32_OVERRIDE": "it changes the precision of products",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "it changes the precision of products",
    "JAX_DEFAULT_MATMUL_PRECISION": "it changes the precision of products",
    "TF_XLA_FLAGS": "the track forbids compiler flags",
    "LIBTPU_INIT_ARGS": "the track forbids compiler flags",
    "PYTHONOPTIMIZE": "it takes checks out of the code",
}
FORBIDDEN_PREFIXES = ("TORCHINDUCTOR_", "TORCH_COMPILE_", "TORCHDYNAMO_")
HARMLESS = frozenset(("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"))
XLA_FLAGS = frozenset(("--xla_force_host_platform_device_count", "--xla_gpu_cuda_data_dir"))


def _seen(context: Context, *kinds: str) -> list[dict[str, Any]]:
    return [event for look in context.log.of("guard") for event in look["events"] if event["kind"] in kinds]


@rule("guard.functions", "log", "no function or constant of the harness was replaced while it ran")
def functions(context: Context) -> Found:
    changed = [name for look in context.log.of("guard") for name in look["changed"]]
    if changed:
        return fails(f"{len(changed)} replaced: {', '.join(changed[:3])}", changed=changed[:50])
    return holds(f"looked {len(context.log.of('guard'))} times")


@rule("guard.files", "log", "no file outside the places that a run needs was opened, and none of the slice by own code")
def files(context: Context) -> Found:
    seen = _seen(context, "read", "write", "data")
    if seen:
        first = seen[0]
        return fails(f"{len(seen)} opened: {first['kind']} {first['what']} in phase {first['phase']}", events=seen[:50])
    return holds("none")


@rule("guard.network", "log", "nothing was asked of the network")
def network(context: Context) -> Found:
    seen = _seen(context, "network")
    return fails(f"{seen[0]['what']} in phase {seen[0]['phase']}", events=seen[:50]) if seen else holds("nothing")


@rule("guard.process", "log", "no other program was started")
def process(context: Context) -> Found:
    compiled = bool(context.evidence.run.get("options", {}).get("compile"))
    seen = [event for event in _seen(context, "process") if not (compiled and _compiler(event["what"]))]
    if seen:
        return fails(f"{seen[0]['what']} in phase {seen[0]['phase']}", events=seen[:50])
    return holds("none but compilers" if compiled else "none")


def _compiler(what: str) -> bool:
    words = what.split()
    return len(words) > 1 and COMPILERS.fullmatch(PurePath(words[1]).name) is not None


@rule("env.flags", "log", "no flag or variable was set that the track forbids")
def flags(context: Context) -> Found:
    sets = [
        context.evidence.run["environment"],
        *(event.get("environment") or {} for event in context.log.of("resume")),
    ]
    for environment in sets:
        for name, value in environment.items():
            reason = FORBIDDEN.get(name)
            if name.startswith(FORBIDDEN_PREFIXES) and name not in HARMLESS:
                reason = "the track forbids compiler flags"
            if name == "XLA_FLAGS":
                bad = [flag for flag in str(value).split() if flag.split("=")[0] not in XLA_FLAGS]
                reason = f"the track forbids compiler flags ({bad[0][:40]})" if bad else None
            if reason:
                return fails(f"{name}={str(value)[:60]}: {reason}: unset it and make the run again")
    return holds(f"{len(sets[0])} recorded, none of them forbidden")
