"""Measures what docs/frontier.md and docs/performance.md state of the frontier: `scripts/bench_frontier.py [WHAT...]`.

    simulated   over simulated attempts: how often "improves" is wrong, what intervals cover, and the power
    size        seconds and memory of the frontier over 10,000 runs with curves, and of the site of 1,000 attempts

Times on a shared machine are noisy.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity" / "frontier")]

from fakes import SHAPE, around, fake, sha  # noqa: E402  # pyright: ignore[reportMissingImports]

from parity.frontier.delta import delta  # noqa: E402
from parity.frontier.entry import text  # noqa: E402

TRIALS, SD = 2000, 0.005
GAINS = (0, 1, 2, 4, 8)  # in standard errors of the difference
PROBE = """
import json, sys, time
begin = time.perf_counter()
from pathlib import Path
from parity.frontier import ledger, scores
entries = ledger.load(Path(sys.argv[1]))
loaded = time.perf_counter()
fronts = scores.frontiers(entries)
from parity.harness.fingerprint import peak_memory_bytes
runs = sum(len(e.runs) for e in entries)
seconds = {"load_s": loaded - begin, "all_s": time.perf_counter() - begin}
print(json.dumps({"entries": len(entries), "runs": runs, "frontiers": len(fronts), **seconds,
                  "peak_mb": peak_memory_bytes() / 1e6}))
"""
SITE = """
import sys
from pathlib import Path
from parity.frontier import ledger
from parity.frontier.board import board, page
from parity.history.reported import reported
from parity.frontier.site import build
entries = ledger.load(Path(sys.argv[1]))
found = board(entries, reported())
build(found, Path(sys.argv[2]), (page(entry, row, entries) for entry, row in zip(entries, found["entries"])))
"""


def simulated() -> None:
    """Rows of the table in docs/frontier.md."""
    for n in (3, 5, 10):
        rng, fractions = np.random.default_rng(n), []
        for gain in GAINS:
            shift = gain * SD * (2 / n) ** 0.5
            fractions.append(np.mean([_one_attempt(rng, n, shift) for _ in range(TRIALS)], axis=0))
        improves, covered = np.transpose(fractions)
        power = ", ".join(f"{100 * fraction:.0f}%" for fraction in improves[1:])
        print(f"| {n} | {100 * improves[0]:.2f}% | {100 * np.mean(covered):.1f}% | {power} |", flush=True)


def _one_attempt(rng: np.random.Generator, n: int, shift: float) -> tuple[bool, bool]:
    """Whether an attempt that is better by `shift` is called better, and whether the loss' interval covers that."""
    old = fake("old", around(SHAPE, rng, n, SD), step_s=rng.normal(0.5, 0.01, n).tolist())
    curves = around([loss - shift for loss in SHAPE], rng, n, SD)
    new = fake("new", curves, step_s=rng.normal(0.5, 0.01, n).tolist(), began_s=1.8e9 + 200)
    comparison = delta(new, [old])
    loss = next(change for change in comparison.losses if change.axis == "steps")
    assert loss.low is not None and loss.high is not None
    return comparison.verdict == "improves", loss.low < -shift < loss.high


def size() -> None:
    """A ledger of 2,000 attempts of 5 runs, and the site of 1,000."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2000):
            name, content = _large_entry(i, rng)
            for ledger in ("all", *(["half"] if i < 1000 else [])):
                path = Path(folder, ledger, "pocket", f"{name}.json")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        print(json.loads(_run("-c", PROBE, f"{folder}/all")))
        begin_s = time.perf_counter()
        _run("-c", SITE, f"{folder}/half", f"{folder}/site")
        seconds, files = round(time.perf_counter() - begin_s, 1), Path(folder, "site").rglob("*")
        sizes = {path.name: path.stat().st_size for path in files if path.is_file() and path.parent.name != "attempt"}
        print({"site_s": seconds, "bytes": sizes})


def _large_entry(i: int, rng: np.random.Generator) -> tuple[str, str]:
    """The name and text of an entry with curves, 46 rules a run and a source of 120 lines."""
    steps = (0, *range(32, 257, 32))
    means = 4.5 + 3.8 * np.exp(-np.array(steps) / rng.uniform(40, 90)) + rng.uniform(0, 0.3)
    entry = fake(
        f"attempt {i}",
        around(means.tolist(), rng, 5),
        steps=steps,
        began_s=1.8e9 + 9000 * i,
        techniques=(f"technique {i % 20}",),
        kind=("person", "model", "agent")[i % 3],
        backend=("jaxrun", "torchref")[i % 2],
        step_s=rng.normal(0.5, 0.05, 5).tolist(),
    )
    evidence = "what was found of it, in some sixty characters or a few more"
    for run in entry.data["runs"]:
        run["verdict"]["rules"] = [[f"rule.{n}", "holds", True, evidence] for n in range(46)]
        run["train"] = [[2 * k, round(5 + float(rng.normal()), 5)] for k in range(128)]
    lines = ["    a line of a program, which has a hundred and more"] * 120
    entry.data["source"] = {"file": "program.py", "sha256": sha("x"), "lines": lines}
    return entry.id, text(entry.data)


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    benchmarks = {"simulated": simulated, "size": size}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{' or '.join(benchmarks)}; by default both")
    names = parser.parse_args().what or list(benchmarks)
    if unknown := [name for name in names if name not in benchmarks]:
        parser.error(f"unknown figures {unknown[0]!r}; known: {', '.join(benchmarks)}")
    for name in names:
        benchmarks[name]()
