"""`python -m parity.attempt new|run|judge|show|prune`: an attempt at a track, from a template to a verdict."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parity.cli import dispatch, python_command
from parity.errors import InputError, Interrupted, RunFailed, run_command

COMMAND = "python -m parity.attempt"
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
Folders = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True)
class New:
    """Makes a folder with a program (so far a copy of a recipe's), a declaration of the claim, and a test."""

    dir: Folder
    """The folder to make: a new or an empty one."""
    recipe: Annotated[str, tyro.conf.arg(name="from")] = "muon"
    """The recipe to start from: muon, nanogpt, record-11 or record-21."""
    backend: str = "jax"
    """jax (jaxrun) or torch (torchref)."""
    track: str = "pocket"
    """pocket, small or tiny; on pocket-optimizer and optimizer the optimizer alone is yours."""
    author: str = "anonymous"
    """Who makes the attempt."""
    kind: Literal["person", "model", "agent"] = "person"
    """What the author is."""
    runs: int = 5
    """How many final runs to declare, each with its own seed."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Run:
    """Declares the seeds of an attempt, then does its final runs one by one; continues where it was stopped."""

    dir: Folders
    """The attempt's folder; several are interleaved, run by run, so that their seconds can be compared in pairs."""
    tune: bool = False
    """Do one tuning run instead: its cost counts, and it is no evidence."""
    seed: int | None = None
    """The tuning run's seed, 0 by default; those of final runs follow from the files."""
    again: bool = False
    """The program or the declaration has changed: declare new seeds. All earlier runs stay counted."""
    data_dir: Path | None = None
    """The folder of slices; by default $JAXRUN_DATA or the user's cache."""
    json: bool = False
    """Print every event of the record as a line of JSON, and the overview last; the trainer's output goes to files."""


@dataclass(frozen=True)
class Judge:
    """Judges an attempt and all its runs; writes verdict.json into its folder."""

    dir: Folder
    """The attempt's folder."""
    depth: Literal["log", "data", "probe", "recompute", "replay", "cross"] = "replay"
    """How deep to check, the cheapest first; each includes those before it."""
    baseline: Path | None = None
    """Folder of an attempt to compare with."""
    trust_code: bool = False
    """Run the attempt's code without a sandbox."""
    data_dir: Path | None = None
    """The folder of slices; by default $JAXRUN_DATA or the user's cache."""
    json: bool = False
    """Print the verdict as JSON."""


@dataclass(frozen=True)
class Show:
    """Lists every run that was ever started for an attempt, and the cost of all."""

    dir: Folder
    """The attempt's folder."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Prune:
    """Removes checkpoints that no verdict needs from runs, and says what it freed."""

    dir: Folders
    """Run directories, or folders with runs in them."""
    dry_run: bool = False
    """Only say what would be removed."""
    every: bool = False
    """Remove all checkpoints of finished runs: they cannot be replayed any more, only verified at depth log."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    return run_command(lambda: dispatch(COMMAND, COMMANDS, list(sys.argv[1:] if argv is None else argv), "DIR ..."))


def _new(options: New) -> int:
    from parity.attempt.scaffold import new

    if not 1 <= options.runs <= 1000:
        raise InputError(f"--runs: expected 1 to 1000, found {options.runs}: choose another")
    declaration = new(
        options.dir,
        recipe=options.recipe,
        backend=options.backend,
        track=options.track,
        author=options.author,
        kind=options.kind,
        runs=options.runs,
    )
    file, commands = declaration.file, _next_commands(options.dir)
    if options.json:
        declared = dataclasses.asdict(declaration)
        print(json.dumps({"attempt": str(options.dir), "file": file, "declaration": declared, "next": commands}))
        return 0
    print(
        f"{options.dir} has {file}, so far {declaration.recipe} in {declaration.backend}; declaration.json, the claim; "
        "and a test.\nEdit the first two, then:"
    )
    purposes = (
        "that it builds and steps",
        "one tuning run, which counts towards the budget",
        f"declares {declaration.runs} seeds and does the runs",
        "all runs, and their cost",
        "whether it holds",
    )
    for command, purpose in zip(commands, purposes, strict=True):
        print(f"  {command:<60}  # {purpose}")
    return 0


def _next_commands(folder: Path) -> list[str]:
    command, name = f"{python_command()} -m parity.attempt", shlex.quote(str(folder))
    return [
        f"{python_command()} -m pytest -q {name}",
        f"{command} run {name} --tune",
        *(f"{command} {verb} {name}" for verb in ("run", "show", "judge")),
    ]


def _run(options: Run) -> int:
    from parity.attempt.runner import run
    from parity.attempt.summary import overview, text

    if options.seed is not None and not options.tune:
        raise InputError(
            f"--seed {options.seed}: expected --tune with it, as the seeds of final runs are not chosen: leave it out"
        )
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise InputError(f"--seed: expected 0 or more, below 2**63, found {options.seed}: choose another")
    if options.tune and options.again:
        raise InputError("--again: --tune declares no seeds and has no use for it: leave one of the two out")

    if not options.dir:
        raise InputError(f"expected the folder of an attempt, found none: {COMMAND} run DIR")
    choices = {"tune": options.tune, "seed": options.seed or 0, "again": options.again, "data_dir": options.data_dir}
    if not options.json:
        run(options.dir, **choices)
        for folder in options.dir:
            print(f"\n{text(folder, overview(folder))}\nnext: {_next_commands(folder)[2 if options.tune else 4]}")
        return 0
    failure: RunFailed | Interrupted | None = None
    try:
        run(options.dir, **choices, say=lambda text: None, on_event=_print_line)
    except (RunFailed, Interrupted) as error:
        failure = error
    for folder in options.dir:
        _print_line({"event": "overview", **overview(folder)})
    if failure:
        raise failure
    return 0


def _print_line(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _judge(options: Judge) -> int:
    from parity.verify.attempts import judge_attempt
    from parity.verify.command import progress

    verdict = judge_attempt(
        options.dir,
        depth=options.depth,
        data_dir=options.data_dir,
        trust_code=options.trust_code,
        baseline=options.baseline,
        say=progress(options.json),
    )
    if options.json:
        print(json.dumps(verdict.to_json(), default=str))
    else:
        print("\n\n".join(each.table() for each in (*verdict.runs, verdict)))
    verdict.write(options.dir / "verdict.json")
    return verdict.exit_code


def _show(options: Show) -> int:
    from parity.attempt.summary import overview, text

    values = overview(options.dir)
    print(json.dumps(values) if options.json else text(options.dir, values))
    return 0


def _prune(options: Prune) -> int:
    from parity.attempt.prune import prune

    if not options.dir:
        raise InputError(f"expected a run directory, found none: {COMMAND} prune RUN")
    prune(options.dir, options.every, options.dry_run)
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "new": (New, _new),
    "run": (Run, _run),
    "judge": (Judge, _judge),
    "show": (Show, _show),
    "prune": (Prune, _prune),
}
