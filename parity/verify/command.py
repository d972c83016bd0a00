"""The command `python -m parity.verify`: runs and attempts, public logs, the matrix of cheats, the list of rules."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parity.errors import InputError, run_command
from parity.progress import ProgressLine
from parity.verify.verdict import Verdict


@dataclass(frozen=True)
class Options:
    """Judges run directories, and attempts made of several, rule by rule."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories or attempts; with --log, files that public speedruns printed."""
    depth: Literal["log", "data", "probe", "recompute", "replay", "cross"] = "replay"
    """How much it may cost; each depth includes those before it."""
    segments: int = 2
    """How many segments between checkpoints to draw at least; an eighth of all steps is drawn in any case."""
    whole: bool = False
    """Repeat the whole training from the seed and trust no checkpoint: the strongest proof, as long as the run."""
    picks_seed: int | None = None
    """Seed of the random picks, to repeat a verdict; by default one is drawn now."""
    data_dir: Path | None = None
    """Folder of the slices; by default $JAXRUN_DATA or the user's cache."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """The device to run the program on."""
    trust_code: bool = False
    """Run user code where this machine has no isolation for it; the verdict records that."""
    baseline: Path | None = None
    """An attempt to compare an attempt's claim with."""
    log: bool = False
    """The paths are logs that public speedruns printed."""
    cheats: bool = False
    """Plant every cheat of the catalogue in honest runs and show which rules find it."""
    only: tuple[str, ...] = ()
    """With --cheats: only these."""
    html: Path | None = None
    """With --cheats: also write the matrix as a page."""
    rules: bool = False
    """List the rules."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RULE...")] = field(default=())
    """Leave these rules out, to see which others find a fault; the verdict is then incomplete."""
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
        return _list_rules(options.json)
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


def _list_rules(as_json: bool) -> int:
    from parity.verify.rules import RULES

    rules = [rule for rule, _ in RULES.values()]
    if as_json:
        print(json.dumps([{"id": rule.id, "depth": rule.depth, "sentence": rule.sentence} for rule in rules]))
    else:
        print("\n".join(f"{rule.id:<22} {rule.depth:<10} {rule.sentence}"[:100] for rule in rules))
    return 0


def _verify(options: Options) -> int:
    from parity.verify.attempts import corrected, is_attempt

    attempts = [is_attempt(path) for path in options.paths]
    verdicts = []
    for path, attempt in zip(options.paths, attempts, strict=True):
        verdict = _judge(path, attempt, options)
        verdicts.append(verdict)
        if not options.json:
            for run in verdict.runs if attempt else [verdict]:
                print(run.table() + "\n")
    verdicts = corrected(verdicts)
    if options.json:
        values = [verdict.to_json() for verdict in verdicts]
        print(json.dumps(values[0] if len(values) == 1 else values, default=str))
    else:
        for verdict, attempt in zip(verdicts, attempts, strict=True):
            if attempt:
                print(verdict.table() + "\n")
    if options.write:
        for path, verdict in zip(options.paths, verdicts, strict=True):
            try:
                verdict.write(path / "verdict.json")
            except InputError as error:  # the verdict stands, written or not
                print(f"note: {error}", file=sys.stderr)
    codes = [verdict.exit_code for verdict in verdicts]
    if any(codes) and not options.json:
        print("what to do: docs/troubleshooting.md")
    return 1 if 1 in codes else max(codes)


def _judge(path: Path, attempt: bool, options: Options) -> Verdict:
    from parity.verify.attempts import judge_attempt
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
    say = progress(options.json)
    if attempt:
        return judge_attempt(path, settings=settings, baseline=options.baseline, say=say)
    return verify_run(path, settings, say)


def progress(silent: bool) -> Callable[[str], None]:
    """Shows the rule being judged on one line of a terminal, and nothing elsewhere."""
    return ProgressLine(silent=silent).draw
