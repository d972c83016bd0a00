"""Depth `log`: what the guard recorded while the run ran, and the environment of the run."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from parity.formats.run_log import COMPILING
from parity.verify.context import Context
from parity.verify.evidence import logged_float
from parity.verify.rules import Finding, fails, holds, rule

# Names by which Python code reaches native code, memory of other processes, or programs without an audit event.
NATIVE = re.compile(
    r"\b(_?ctypes|cffi|_cffi_backend|_posixsubprocess|_posixshmem|_testcapi|_xxsubinterpreters|shared_memory"
    r"|memfd_create|dlopen|load_library|LoadLibrary|ExtensionFileLoader|load_inline|cpp_extension|CppCodeCache|CppBuilder"
    r"|pidfd_getfd|process_vm_readv)\b"
)
KERNEL_S, KERNEL = 0.5, 0.005  # as between the log's two clocks (clock.agree)
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


@rule("guard.process", "log", "no other program was started but compilers, before the training")
def process(context: Context) -> Finding:
    events, compilers = _events(context, "process"), _events(context, "compiler")
    events += [event for event in compilers if event["phase"] not in COMPILING]
    if events:
        return fails(f"{events[0]['what']} in phase {events[0]['phase']}", events=events[:50])
    names = context.log.compilers
    if names:
        return holds(f"none but {', '.join(names)}; the verifier scores the program without them", compilers=names[:50])
    return holds("none")


@rule("guard.native", "log", "no native code was loaded but that of installed packages, and no memory reached into")
def native(context: Context) -> Finding:
    if events := _events(context, "native"):
        return fails(f"{events[0]['what']} in phase {events[0]['phase']}", events=events[:50])
    files = {name: content for name, content in context.evidence.source.items() if "/" not in name}
    for name, content in sorted(files.items()):
        for line, word in _native_names(content):
            return fails(f"{name}, line {line}, names {word}, by which native code or foreign memory is reached")
    return holds(f"none, and no name of it in {len(files)} files" if files else "none")


def _native_names(source: bytes) -> Iterator[tuple[int, str]]:
    """Lines and names of NATIVE in Python code: in its names, imports and strings, not in comments and docstrings."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield 1, "nothing that can be read as Python"
        return
    bodies = [getattr(node, "body", None) for node in ast.walk(tree)]
    alone = [inner for body in bodies if isinstance(body, list) for inner in body if isinstance(inner, ast.Expr)]
    docstrings = {id(inner.value) for inner in alone}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            words = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        elif isinstance(node, ast.Name):
            words = [node.id]
        elif isinstance(node, ast.Attribute):
            words = [node.attr] if node.attr != "ctypes" else []  # of numpy's arrays
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            words = [node.value if isinstance(node.value, str) else node.value.decode(errors="replace")]
        else:
            continue
        for word in words:
            if found := NATIVE.search(word):
                yield node.lineno, found[0]


@rule("guard.clock", "log", "the kernel's own count of seconds ran on as the log's clock did")
def kernel_clock(context: Context) -> Finding:
    log, start, worst_s = context.log, None, 0.0
    checks = [event for event in log.events if event["event"] in ("guard", "resume")]
    if not str(context.evidence.run["host"].get("os", "")).startswith("Linux"):
        return holds("the run's system does not show it")
    for event in checks:
        if event["event"] == "resume":
            start = None  # another process, perhaps on another machine
            continue
        if "kernel_s" not in event:
            return fails(f"line {event['n']}: expected the kernel's count of seconds, found none")
        kernel_s, clock_s = logged_float(event["kernel_s"]), float(event["clock_s"])
        start = start or (kernel_s, clock_s)
        apart = abs((kernel_s - start[0]) - (clock_s - start[1]))
        worst_s = max(worst_s, apart)
        if not apart <= KERNEL_S + KERNEL * (clock_s - start[1]):
            return fails(
                f"line {event['n']}: the log's clock ran {clock_s - start[1]:.2f} s, the kernel's count "
                f"{kernel_s - start[0]:.2f} s: the clock was slowed",
                apart_s=apart,
            )
    return holds(f"never more than {worst_s:.2f} s apart", apart_s=worst_s)


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
