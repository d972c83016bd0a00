"""Command lines from dataclasses: every option with its type, default and help; mistakes in one sentence."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from parity.errors import InputError, nearest

PLAIN = (  # messages of the option parser, and ours
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1: expected a number, found \2"),
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1: expected a whole number, found \2"),
    (r"Missing value for argument '(\S+)'\. Expected \d+ values?\.", r"\1: expected a value, found none"),
)


def command_line(into: type, command: str, argv: Sequence[str] | None = None) -> Any:
    """Reads a command line into a dataclass; InputError, in one sentence, for what cannot be read. --help exits."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(into, prog=command, args=argv, return_unknown_args=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_sentence(complaint.getvalue())) from None
    if unknown and not unknown[0].startswith("-"):
        raise InputError(
            f"unexpected {unknown[0]!r} after {command}: it takes no such argument; --help lists what it takes"
        )
    if unknown:
        close = difflib.get_close_matches(unknown[0], _names(into), n=1)
        hint = f": did you mean {close[0]}?" if close else ";"
        raise InputError(f"unknown option {unknown[0]} of {command}{hint} --help lists all options")
    return parsed


def dispatch(
    command: str, commands: Mapping[str, tuple[type, Callable[[Any], int]]], argv: Sequence[str], form: str = "..."
) -> int:
    """Runs one of a program's commands, each a dataclass of options and a function of it; returns its exit code.

    Without a name, or with --help, lists them by their docstrings. Raises InputError for an unknown name.
    """
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        width = max(map(len, commands))
        listed = "\n".join(f"  {name:<{width}}  {options.__doc__}" for name, (options, _) in commands.items())
        print(f"{command} COMMAND {form}\n\n{listed}\n\n{command} COMMAND --help lists its options.")
        return 0
    if name not in commands:
        raise InputError(f"unknown command {name!r} of {command}; {nearest(name, commands)}")
    options, function = commands[name]
    return function(command_line(options, f"{command} {name}", argv[1:]))


def _names(options: Any) -> list[str]:
    """Every option of a dataclass, fields of dataclasses in it included."""
    names = []
    for field in dataclasses.fields(options):
        inner: Any = get_args(field.type)[0] if get_args(field.type) else field.type
        names += _names(inner) if dataclasses.is_dataclass(inner) else ["--" + field.name.replace("_", "-")]
    return names


def _sentence(box: str) -> str:
    """The first paragraph of a complaint that the option parser drew as a box; in ASCII it has a title above a rule."""
    drawn = box.splitlines()
    framed = [line[2:].rstrip("│ ") for line in drawn if line.startswith("│")]
    lines = framed or [line[2:].rstrip() for line in drawn[2:]]
    lines = list(itertools.takewhile(lambda line: line and not re.fullmatch(r"[─-]{3,}", line), lines))
    sentence = " ".join(line.strip() for line in lines)
    missing = [line.strip() for line in lines if re.match(r" {4}\S", line)]
    if sentence.startswith("Missing from") and missing:
        command = sentence.removeprefix("Missing from ").partition(":")[0]
        sentence = f"expected {' and '.join(missing)} after {command}, found none"
    for pattern, plain in PLAIN:
        sentence = re.sub(pattern, plain, sentence)
    return f"{sentence} (--help lists all options)" if sentence else box.strip()


def python_command() -> str:
    """This Python as one types it here: `python` if that is on the path, else its path, relative if it is below."""
    path, here = Path(sys.executable), Path.cwd()
    if shutil.which("python") == str(path):
        return "python"
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def user_cache() -> Path | None:
    """The user's cache folder for this project; None for a user without a home, as in some containers."""
    import platformdirs

    try:
        folder = platformdirs.user_cache_dir("jaxrun")
    except RuntimeError:
        return None
    return None if folder.startswith("~") else Path(folder)


def environment_seconds(name: str, default: float) -> float:
    """The seconds that an environment variable says. Raises InputError where it is no number above 0."""
    value = os.environ.get(name, str(default))
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{name}={value!r}: expected seconds in this environment variable: correct or unset it")
    return seconds


def check_text(path: str | Path | None, what: str) -> None:
    """Raises InputError for a path that is no text: JSON files, checkpoints and compilers cannot name it."""
    for text in () if path is None else (str(path), os.path.realpath(path)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{what} {text}: expected a path in UTF-8, found bytes that are not, which the files of a run cannot "
                "name: rename it, or choose another place"
            ) from None
