"""Depth `log`: what the guard recorded while the run ran, and the environment of the run."""

import re
from pathlib import PurePath
from typing import Any

from parity.verify.context import Context
from parity.verify.rules import Finding, fails, holds, rule

COMPILERS = re.compile(r"(c\+\+|g\+\+|gcc|cc|clang(\+\+)?|ld|as|ptxas|nvcc|openssl|python[\d.]*)(-[\d.]+)?")
PRECISION, FLAGS = "it changes the precision of products", "the track forbids compiler flags"
FORBIDDEN = {
    "LD_PRELOAD": "it can replace any function",
    "NVIDIA_TF32_OVERRIDE": PRECISION,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": PRECISION,
    "JAX_DEFAULT_MATMUL_PRECISION": PRECISION,
    "TF_XLA_FLAGS": FLAGS,
    "LIBTPU_INIT_ARGS": FLAGS,
    "PYTHONOPTIMIZE": "it takes checks out of the code",
}
FORBIDDEN_PREFIXES = ("TORCHINDUCTOR_", "TORCH_COMPILE_", "TORCHDYNAMO_")
HARMLESS = frozenset(("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"))
XLA_FLAGS = frozenset(("--xla_force_host_platform_device_count", "--xla_gpu_cuda_data_dir"))


def _events(context: Context, *kinds: str) -> list[dict[str, Any]]:
    return [event for check in context.log.of("guard") for event in check["events"] if event["kind"] in kinds]


@rule("guard.functions", "log", "no function or constant of the harness was replaced while it ran")
def functions(context: Context) -> Finding:
    checks = context.log.of("guard")
    changed = [name for check in checks for name in check["changed"]]
    if changed:
        return fails(f"{len(changed)} replaced: {', '.join(changed[:3])}", changed=changed[:50])
    return holds(f"checked {len(checks)} times")


@rule(
    "guard.files", "log", "no file outside the places that a run needs was opened, and none of the slice by user code"
)
def files(context: Context) -> Finding:
    events = _events(context, "read", "write", "data")
    if not events:
        return holds("none")
    first = events[0]
    return fails(f"{len(events)} opened: {first['kind']} {first['what']} in phase {first['phase']}", events=events[:50])


@rule("guard.network", "log", "nothing was asked of the network")
def network(context: Context) -> Finding:
    events = _events(context, "network")
    if not events:
        return holds("nothing")
    return fails(f"{events[0]['what']} in phase {events[0]['phase']}", events=events[:50])


@rule("guard.process", "log", "no other program was started")
def process(context: Context) -> Finding:
    compiled = bool(context.evidence.run.get("options", {}).get("compile"))
    events = [event for event in _events(context, "process") if not (compiled and _is_compiler(event["what"]))]
    if not events:
        return holds("none but compilers" if compiled else "none")
    return fails(f"{events[0]['what']} in phase {events[0]['phase']}", events=events[:50])


def _is_compiler(command: str) -> bool:
    words = command.split()
    return len(words) > 1 and COMPILERS.fullmatch(PurePath(words[1]).name) is not None


@rule("env.flags", "log", "no flag or variable was set that the track forbids")
def flags(context: Context) -> Finding:
    resumed = [event.get("environment") or {} for event in context.log.of("resume")]
    environments = [context.evidence.run["environment"], *resumed]
    for environment in environments:
        for name, value in environment.items():
            if reason := _forbidden(name, str(value)):
                return fails(f"{name}={str(value)[:60]}: {reason}: unset it and make the run again")
    return holds(f"{len(environments[0])} recorded, none of them forbidden")


def _forbidden(name: str, value: str) -> str | None:
    if name == "XLA_FLAGS":
        forbidden = [flag for flag in value.split() if flag.split("=")[0] not in XLA_FLAGS]
        return f"{FLAGS} ({forbidden[0][:40]})" if forbidden else None
    if name.startswith(FORBIDDEN_PREFIXES) and name not in HARMLESS:
        return FLAGS
    return FORBIDDEN.get(name)
