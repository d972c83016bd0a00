"""All checks and benchmarks of one GPU in less than ten minutes: `python scripts/gpu_check.py --out FOLDER`.

    versions      the machine, its driver, the packages
    correctness   losses, gradients and three steps on the GPU in every precision against float64 on the CPU
    step          tokens/s, MFU and memory of jaxrun and of torchref, eager and compiled, for each recipe
    parts         attention and the head alone, forward and backward
    windows       attention within documents and windows
    program       what XLA compiled on this machine: kernels, memory, products, largest buffers
    trace         a trace of three steps, and the kernels that take longest

Every check runs in a process of its own with a time limit, and a failure is recorded next to the others' results.
FOLDER/gpu_check.json has everything, the table at the end the figures. It runs anywhere with --device cpu --scale tiny.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_checks import compiled, correctness, timing
from gpu_checks.options import RECIPES, RECORDS, Options, run_part

CHECKS: dict[str, Callable[[Options, str], dict[str, Any]]] = {
    "versions": correctness.versions,
    "correctness": correctness.correctness,
    "reference": correctness.reference,
    "step": timing.step,
    "timed": timing.timed,
    "parts": timing.parts,
    "windows": timing.windows,
    "program": compiled.program,
    "trace": compiled.trace,
}
PLAN: list[tuple[str, int]] = [  # each check with the seconds that it may take
    ("versions", 60),
    ("correctness:jaxrun", 150),
    ("correctness:torchref", 120),
    *((f"step:{recipe}", 240) for recipe in RECIPES),
    ("parts", 120),
    ("windows", 90),
    *((f"step:{recipe}", 200) for recipe in RECORDS),
    *((f"program:{recipe}", 90) for recipe in (*RECIPES, *RECORDS)),
    ("trace:muon", 90),
]


def main(options: Options) -> int:
    if options.part:
        name, _, argument = options.part.partition(":")
        print(json.dumps(CHECKS[name](options, argument)), flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    begin_s, results = time.monotonic(), {}
    for part, limit_s in PLAN:
        left_s = options.budget_s - (time.monotonic() - begin_s)
        if left_s < 15:
            results[part] = {"left out": f"the {options.budget_s:.0f} s were used up"}
            continue
        results[part] = result_of(options, part, min(limit_s, left_s))
        write(options, results, time.monotonic() - begin_s)
        print(f"{part}: {results[part].get('failed') or 'done'} ({results[part]['seconds']} s)", flush=True)
    print_table(results)
    print(f"\n{options.out / 'gpu_check.json'}: all of it; {time.monotonic() - begin_s:.0f} s")
    return 1 if any("failed" in result or result.get("holds") is False for result in results.values()) else 0


def result_of(options: Options, part: str, limit_s: float) -> dict[str, Any]:
    """The result of a check in a process of its own, or how it failed."""
    begin_s = time.monotonic()
    try:
        done = run_part(options, part, timeout_s=limit_s)
        if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
            result = json.loads(lines[-1])
        else:
            result = {"failed": (done.stderr or done.stdout).strip()[-1500:]}
    except subprocess.TimeoutExpired:
        result = {"failed": f"took longer than {limit_s:.0f} s"}
    return result | {"seconds": round(time.monotonic() - begin_s, 1)}


def write(options: Options, results: dict[str, Any], seconds: float) -> None:
    report = {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "scale": options.scale,
        "device": options.device,
        "seconds": round(seconds),
        "parts": results,
    }
    (options.out / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n")


def print_table(results: dict[str, Any]) -> None:
    """The figures, as text."""
    print(f"\n{results.get('versions', {}).get('nvidia-smi', '')}")
    for part, result in results.items():
        check = part.partition(":")[0]
        if "failed" in result:
            print(f"{part}: FAILED: {result['failed'].splitlines()[-1] if result['failed'] else ''}")
        elif check in LINES and "left out" not in result:
            print("".join(f"{part:<22}{line}\n" for line in LINES[check](result)), end="")


def correctness_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name:<20} {worst['largest']:.1e} of {worst['allowed']:.0e} allowed, at {worst['at']}"
        for name, worst in result["apart"].items()
    ]


def step_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, row in result.items():
        if isinstance(row, dict) and "step_ms" in row:
            mfu = f", MFU {100 * row['mfu']:.1f}%" if row["mfu"] else ""
            memory = f", {row['peak_device_bytes'] / 1e9:.1f} GB" if row["peak_device_bytes"] else ""
            lines.append(f"{name:<20}{row['step_ms']:>9.2f} ms {row['tokens_per_s']:>10,} tokens/s{mfu}{memory}")
        elif isinstance(row, dict):
            lines.append(f"{name}: {row.get('failed', row)}")
    return lines


def time_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name:<28}{row['ms']:>9.2f} ms"
        if "ms" in row
        else f"{name:<28}{row['apart']:.1e} apart, {row['allowed']:.0e} allowed"
        for name, row in result.items()
        if isinstance(row, dict)
    ]


def program_lines(result: dict[str, Any]) -> list[str]:
    step = result["step"]
    return [
        f"step {step['bytes']['peak'] / 1e9:.2f} GB by the compiled program, full logits {step['full_logits']}, "
        f"kernels {step['kernels']}"
    ]


LINES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "correctness": correctness_lines,
    "step": step_lines,
    "parts": time_lines,
    "windows": time_lines,
    "program": program_lines,
}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
