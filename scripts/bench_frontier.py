"""Measures what docs/frontier.md and docs/performance.md state of the frontier: `python scripts/bench_frontier.py [WHAT...]`.

    simulated   how often "improves" is said of nothing, what intervals cover, and the power, over simulated attempts
    size        seconds and memory of the frontier over 10,000 runs with curves, and of the site of 1,000 attempts

Times on a shared machine are noisy; the sizes are what the goals are stated for.
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

from fakes import SHAPE, around, fake, sha  # noqa: E402

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
print(json.dumps({"entries": len(entries), "runs": sum(len(e.runs) for e in entries), "frontiers": len(fronts), "load_s": loaded - begin,
                  "all_s": time.perf_counter() - begin, "peak_mb": peak_memory_bytes() / 1e6}))
"""


def simulated() -> None:
    """The rows of docs/frontier.md."""
    for n in (3, 5, 10):
        rng, row = np.random.default_rng(n), []
        for gain in GAINS:
            improves, covered, shift = 0, 0, gain * SD * (2 / n) ** 0.5
            for _ in range(TRIALS):
                old = fake("old", around(SHAPE, rng, n, SD), step_s=rng.normal(0.5, 0.01, n))
                new = fake(
                    "new",
                    around([loss - shift for loss in SHAPE], rng, n, SD),
                    step_s=rng.normal(0.5, 0.01, n),
                    began_s=1.8e9 + 200,
                )
                found = delta(new, [old])
                loss = next(change for change in found.losses if change.axis == "steps")
                improves += found.verdict == "improves"
                covered += loss.low < -shift < loss.high
            row.append((improves / TRIALS, covered / TRIALS))
        power = ", ".join(f"{100 * part:.0f}%" for part, _ in row[1:])
        print(
            f"| {n} | {100 * row[0][0]:.2f}% | {100 * np.mean([part for _, part in row]):.1f}% | {power} |", flush=True
        )


def size() -> None:
    """A ledger of 2,000 attempts of 5 runs, and the site of 1,000."""
    rng = np.random.default_rng(0)
    steps = (0, *range(32, 257, 32))
    rules = [
        [f"rule.{i}", "holds", True, "what was found of it, in some sixty characters or a few more"] for i in range(46)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2000):
            means = 4.5 + 3.8 * np.exp(-np.array(steps) / rng.uniform(40, 90)) + rng.uniform(0, 0.3)
            entry = fake(
                f"attempt {i}",
                around(means, rng, 5),
                steps=steps,
                began_s=1.8e9 + 9000 * i,
                techniques=(f"technique {i % 20}",),
                kind=("person", "model", "agent")[i % 3],
                backend=("jaxrun", "torchref")[i % 2],
                step_s=rng.normal(0.5, 0.05, 5),
            )
            data = entry.data
            for run in data["runs"]:
                run["verdict"]["rules"] = rules
                run["train"] = [[2 * k, round(5 + float(rng.normal()), 5)] for k in range(128)]
            data["source"] = {
                "file": "program.py",
                "sha256": sha("x"),
                "lines": ["    a line of a program, which has a hundred and more"] * 120,
            }
            for place in ("all", *(["half"] if i < 1000 else [])):
                path = Path(folder, place, "pocket", f"{entry.id}.json")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text(data))
        print(json.loads(_run("-c", PROBE, f"{folder}/all")))
        begin = time.perf_counter()
        _run("-c", SITE, f"{folder}/half", f"{folder}/site")
        first = {
            path.name: path.stat().st_size
            for path in Path(folder, "site").rglob("*")
            if path.is_file() and path.parent.name != "attempt"
        }
        print({"site_s": round(time.perf_counter() - begin, 1), "bytes": first})


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


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    known = {"simulated": simulated, "size": size}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{' or '.join(known)}; by default both")
    asked = parser.parse_args().what or list(known)
    if strange := [name for name in asked if name not in known]:
        parser.error(f"unknown figures {strange[0]!r}; known: {', '.join(known)}")
    for name in asked:
        known[name]()
