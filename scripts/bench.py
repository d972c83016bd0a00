"""Measures what docs/performance.md states: `python scripts/bench.py WHAT [--json FILE]`.

    step       tokens/s of jaxrun against torchref, eager and compiled, interleaved, as ratios
    plain      torchref's nanogpt against GPT-2 as PyTorch's users write it, interleaved
    growth     tokens/s against batch, context, width and depth, both backends, and what FLOPs predict; draws --chart
    attention  milliseconds of record-21's attention against window and context, both backends; draws --chart
    loader     tokens/s of the reader from a warm page cache
    parts      where a step's time goes in both backends: forward, backward, optimizer
    start      seconds until --help answers, and until the first step, with and without the compilation cache
    first      the README's first line after the install, from nothing: data, compilation, training, memory
    verify     seconds of the verifier: the runs below --runs by rule, a log of 100,000 steps, 1,000 public logs
    seeds      final val loss of a recipe over several seeds in both backends, and its margin to the track's target

Every figure is a median, and what is compared was interleaved. Times on a shared machine are noisy: ratios hold.
"""

import json
import platform
import sys
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import attention, growth, interleaved, loader, runs, steps, verifier
from bench.options import Options

from parity.harness import fingerprint

BENCHMARKS = {
    "step": steps.step,
    "plain": steps.plain,
    "growth": growth.growth,
    "attention": attention.attention,
    "loader": loader.loader,
    "parts": steps.parts,
    "start": runs.start,
    "first": runs.first,
    "verify": verifier.verify,
    "seeds": runs.seeds,
}


def main(options: Options) -> None:
    figures = BENCHMARKS[options.what](options)
    report = {
        "what": options.what,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": fingerprint.host(),
        "versions": fingerprint.versions(),
        "python": platform.python_version(),
        "figures": figures,
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        interleaved.serve(sys.argv[2])
    else:
        main(tyro.cli(Options))
