"""The command `python -m parity.verify`: runs and attempts, public logs, the matrix of cheats, the list of rules."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parity.errors import InputError, run_command


@dataclass(frozen=True)
class Options:
    """Judges run directories, and attempts made of several, rule by rule."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories or attempts; with --log, files that public speedruns printed."""
    depth: Literal["log", "data", "probe", "recompute", "replay", "cross"] = "replay"
    """How much it may cost; each depth includes those before it."""
    segments: int = 2
    """How many stretches between checkpoints are made again."""
    whole: bool = False
    """Make the whole training again from the seed instead, trusting no checkpoint: the strongest proof, as long as the run."""
    picks_seed: int | None = None
    """Seed of what is picked at random, to repeat a verdict; by default one is drawn now."""
    data_dir: Path | None = None
    """Folder that slices are kept in; by default $JAXRUN_DATA or the user's cache."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What the program is asked on."""
    trust_code: bool = False
    """Run own code where this machine has no isolation for it; the verdict says so."""
    baseline: Path | None = None
    """An attempt to hold an attempt's claim against."""
    log: bool = False
    """The paths are logs that public speedruns printed."""
    cheats: bool = False
    """Plant every cheat of the catalogue in honest runs and show which rules find it."""
    only: tuple[str, ...] = ()
    """With --cheats: these alone."""
    html: Path | None = None
    """With --cheats: also write the matrix as a page."""
    rules: bool = False
    """List the rules."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RULE...")] = field(default=())
    """Leave these rules out, to see what else finds it; the verdict is then incomplete."""
    write: bool = True
    """Write verdict.json into the run directory."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    from parity.cli import command_line

    options = command_line(Options, "python -m parity.verify", argv)
    if options.rules:
        return _rules(options)
    if options.cheats:
        from parity.verify.cheats.matrix import show_cheats

        return show_cheats(options.only, options.data_dir, options.html, options.json)
    if not options.paths:
        raise InputError(
            "expected run directories, attempts, or --log with files, found none: --help lists all options"
        )
    if options.log:
        from parity.history.public_log import main_logs

        return main_logs(list(options.paths), options.json)
    return _verify(options)


def _rules(options: Options) -> int:
    from parity.verify import run  # noqa: F401 - enters the rules
    from parity.verify.rules import RULES

    if options.json:
        print(json.dumps([{"id": r.id, "depth": r.depth, "sentence": r.sentence} for r, _ in RULES.values()]))
    else:
        for r, _ in RULES.values():
            print(f"{r.id:<22} {r.depth:<10} {r.sentence}"[:100])
    return 0


def _verify(options: Options) -> int:
    from parity.verify.attempts import corrected, is_attempt, judge_attempt
    from parity.verify.run import Settings, verify_run

    settings = Settings(
        options.depth,
        options.data_dir,
        options.segments,
        options.picks_seed,
        options.trust_code,
        options.device,
        options.whole,
        options.without,
    )
    verdicts = []
    for path in options.paths:
        if is_attempt(path):
            verdict = judge_attempt(path, settings=settings, baseline=options.baseline, say=progress(options.json))
        else:
            verdict = verify_run(path, settings, progress(options.json))
        verdicts.append(verdict)
        if not options.json:
            for one in verdict.runs or (() if is_attempt(path) else (verdict,)):
                print(one.table() + "\n")
    verdicts = corrected(verdicts)
    if not options.json:
        for path, verdict in zip(options.paths, verdicts):
            if is_attempt(path):
                print(verdict.table() + "\n")
    if options.json:
        found = [verdict.to_json() for verdict in verdicts]
        print(json.dumps(found[0] if len(found) == 1 else found, default=str))
    for path, verdict in zip(options.paths, verdicts):
        if options.write:
            try:
                verdict.write(path / "verdict.json")
            except InputError as error:  # the answer stands, written down or not
                print(f"note: {error}", file=sys.stderr)
    codes = [verdict.exit_code for verdict in verdicts]
    return 1 if 1 in codes else max(codes)


def progress(silent: bool) -> Callable[[str], None]:
    """Shows what is being looked at, on a terminal's one line; nowhere else."""
    live = sys.stderr.isatty() and not silent

    def say(text: str) -> None:
        if live:
            print(f"\r\x1b[K{text[:98]}\r", end="", file=sys.stderr, flush=True)

    return say
