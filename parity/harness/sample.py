"""The command `python -m jaxrun.sample RUN --prompt TEXT` (and torchref.sample): text from a finished run's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from parity.errors import InputError, run_command


@dataclass(frozen=True)
class SampleOptions:
    """Writes text with the final weights of a run of either backend."""

    run: tyro.conf.Positional[Path]
    """Run directory, such as runs/pocket/NAME."""
    prompt: str = ""
    """Text to continue; without it a new document starts."""
    tokens: int = 200
    """The most tokens; a text may end earlier."""
    rows: int = 1
    """How many continuations."""
    temperature: float = 0.8
    """0 takes the most likely token each time."""
    top_k: int | None = 50
    """Draw among this many most likely tokens; None: among all."""
    seed: int = 0
    """Equal seeds give equal text."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU if there is one."""
    data_dir: Path | None = None
    """Folder that slices are kept in, for the tokenizer."""


def main(backend: str, argv: Sequence[str] | None = None) -> int:
    """Samples with a backend as the command line says; returns the exit code."""
    return run_command(lambda: _sample(backend, argv))


def _sample(backend: str, argv: Sequence[str] | None) -> None:
    from parity.cli import command_line

    options = command_line(SampleOptions, f"python -m {backend}.sample", argv)
    for name, least in (("tokens", 1), ("rows", 1), ("top_k", 1), ("temperature", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: expected at least {least}, found {value}: choose another")

    from parity import program as programs
    from parity import weights
    from parity.data.slices import open_slice
    from parity.harness import rundir
    from parity.harness.sampling import sample
    from parity.recipes import from_fields

    run = rundir.open_existing(options.run)
    facts = run.read_run_json()
    recipe = from_fields(facts["recipe"])
    values = weights.load(run.weights)
    tokenizer = open_slice(facts["slice"]["name"], options.data_dir).tokenizer()
    program = programs.build(backend, recipe, device=options.device, devices=1)
    state = programs.with_step(program, program.load(values), recipe.steps)
    prompt = [tokenizer.end_of_text, *tokenizer.encode(options.prompt)]
    for row in sample(
        program,
        state,
        recipe,
        prompt,
        rows=options.rows,
        tokens=options.tokens,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        end_of_text=tokenizer.end_of_text,
    ):
        print(options.prompt + tokenizer.decode(row))
        print()
