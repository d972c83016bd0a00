"""The command line of both trainers: run options, and every field of the recipe, from dataclasses."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from parity.cli import command_line
from parity.errors import InputError
from parity.harness.synonyms import our_names
from parity.recipes import Recipe
from parity.track import Track, check_recipe, default_recipe, track_for
from parity.user_program import keyword_arguments


@dataclass(frozen=True)
class Run:
    """What to run, and what of it is kept."""

    track: str = "pocket"
    """pocket, pocket-optimizer, small, optimizer, or tiny."""
    recipe: str | None = None
    """muon, nanogpt, record-11, -21, -40 or -58; by default the track's first."""
    seed: int = 0
    """Seed of the initial weights; the order of the data is the same for every seed."""
    optimizer: str | None = None
    """User optimizer as module:function. jaxrun: called with the recipe, returns an optax transform of the gradients of
    the recipe's loss; torchref: called with the recipe and {name: parameter}, returns a torch optimizer, or that and a
    learning-rate scheduler, or several of both."""
    optimizer_args: str | None = None
    """Arguments of the user optimizer's function by name, as in lr=3e-3,wd=0.1."""
    program: Path | None = None
    """User program (model, optimizer, schedule): a Python file with build(recipe); see python -m parity.attempt new."""
    resume: Path | None = None
    """Continue the run of this directory; takes track, recipe and seed from it."""
    force: bool = False
    """Start also what would take days here, as a large track without a GPU."""
    name: str | None = None
    """Name of the run's folder; by default recipe, backend, seed and time."""
    runs: Path = Path("runs")
    """Folder that run directories are made in, by track."""
    save_every: str | None = None
    """Also save after every so many steps (100), or so much training time (30s, 5m, 2h), to resume from after a crash;
    of these checkpoints the newest is kept. The plan has its own, --checkpoints of them."""


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU if there is one."""
    devices: int | None = None
    """How many devices to use; all of them by default."""
    microbatches: int = 1
    """Pieces that each device computes its rows of a batch in, one after another: less memory, the same gradient."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes, unless torchrun or SLURM start them; it uses that port and the next.
    Give --processes and --process too."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """The number of this one, from 0."""
    data_dir: Path | None = None
    """Folder that slices are kept in; by default $JAXRUN_DATA or the user's cache."""


@dataclass(frozen=True)
class Output:
    """What is shown and written beside the log."""

    samples: int = 3
    """Lines of text to sample at the end."""
    json: bool = False
    """Print the run's totals as JSON at the end; everything else goes to the standard error."""
    tensorboard: bool = False
    """Also write the figures where TensorBoard finds them (pip install 'jaxrun[tensorboard]')."""


@dataclass(frozen=True)
class JaxMachine(Machine):
    """Where it runs."""

    shards: int | None = None
    """How many devices the weights and the optimizer's state are divided over; by default all, or, of more than 8, the
    8 of one machine."""
    remat: Literal["none", "blocks"] = "none"
    """blocks: keep only each block's input, and compute the rest again for the gradient: less memory, more time."""


@dataclass(frozen=True)
class TorchMachine(Machine):
    """Where it runs."""

    compile: bool = False
    """Compile the model and the orthogonalisation with torch.compile."""


@dataclass(frozen=True)
class Options(Output, Machine, Run):
    """All options but the recipe's fields."""


@dataclass(frozen=True)
class JaxOptions(Options, JaxMachine):
    """All options of the JAX trainer but the recipe's fields."""


@dataclass(frozen=True)
class TorchOptions(Options, TorchMachine):
    """All options of the PyTorch trainer but the recipe's fields."""


MACHINES = {"jaxrun": JaxMachine, "torchref": TorchMachine}
OPTIONS = {"jaxrun": JaxOptions, "torchref": TorchOptions}
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
FRAMEWORK = {"jaxrun": "JAX", "torchref": "PyTorch"}


class Arguments(NamedTuple):
    """A trainer's command line; `explicit` are the names of the options that it has."""

    options: Options
    track: Track
    recipe: Recipe
    explicit: frozenset[str]


def parse(backend: str, argv: Sequence[str] | None = None) -> Arguments:
    """Reads a trainer's command line. Raises InputError for an unknown track, recipe, option or impossible value."""
    import tyro

    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--track", nargs="?", default=Options.track, const=Options.track)  # a missing value: see below
    first.add_argument("--recipe", nargs="?", default=None)
    chosen, _ = first.parse_known_args(argv)
    track = track_for(chosen.track)
    base = default_recipe(track, chosen.recipe)

    groups: dict[str, Any] = {"run": Run, "machine": MACHINES[backend], "output": Output, "recipe": type(base)}
    fields: list[Any] = [(name, tyro.conf.OmitArgPrefixes[kind]) for name, kind in groups.items()]
    known = dataclasses.make_dataclass("Known", [*fields[:-1], (*fields[-1], base)], frozen=True)
    known.__doc__ = (
        f"Trains recipe {base.name} at the sizes of track {track.name} in {FRAMEWORK[backend]}. "
        "--track and --recipe change the defaults below."
    )
    argv = our_names(argv, {f.name.replace("_", "-") for kind in groups.values() for f in dataclasses.fields(kind)})
    parsed = command_line(known, f"python -m {backend}.train", argv)
    given = {name: getattr(parsed, name) for name in groups if name != "recipe"}
    options = OPTIONS[backend](**{name: value for group in given.values() for name, value in vars(group).items()})
    if options.seed < 0:
        raise InputError(f"--seed: expected 0 or more, found {options.seed}: choose another")
    check_recipe(track, parsed.recipe)
    saving_interval(options.save_every)
    options = _with_arguments(options)
    explicit = frozenset(a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--"))
    return Arguments(options, track, parsed.recipe, explicit)


def saving_interval(text: str | None) -> tuple[int | None, float | None]:
    """The steps or the seconds of --save-every, and None for the other. Raises InputError for another form."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh]?)", text.strip())
    number = float(match[1]) if match else 0.0
    if not match or number <= 0 or (not match[2] and not number.is_integer()):
        raise InputError(
            f"--save-every {text}: expected steps, as in 100, or training time, as in 30s, 5m or 2h: correct it"
        )
    return (None, number * SECONDS[match[2]]) if match[2] else (int(number), None)


def _with_arguments(options: Options) -> Options:
    """The options with --optimizer-args as a part of --optimizer: a run has one text that names what it was."""
    if options.optimizer_args is None:
        return options
    if options.optimizer is None:
        raise InputError("--optimizer-args: expected with --optimizer module:function, found without it: give both")
    keyword_arguments(options.optimizer_args, "--optimizer-args")
    return dataclasses.replace(options, optimizer=f"{options.optimizer}({options.optimizer_args})", optimizer_args=None)
