"""How every command starts: what must be checked before anything is imported, then the command's `main`."""

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.cli import check_text
from parity.errors import InputError, run_command
from parity.streams import keep_printing

USUAL_FLAGS = ("--xla_force_host_platform_device_count", "--xla_gpu_cuda_data_dir")  # known to every version
# What the commands import; a file of the name in the working directory would be imported in its place.
PACKAGES = """
    numpy scipy jax jaxlib flax optax orbax chex torch tiktoken safetensors tyro rich jinja2 filelock platformdirs
    jsonschema matplotlib requests tensorboard huggingface_hub transformers typing_extensions
"""


# The commands that make files with paths in them; the others read what there is, whatever its name.
WRITERS = ("parity.harness.train", "parity.data.command", "parity.attempt.command", "parity.compare.command")
FOLDERS = ("JAXRUN_DATA", "TMPDIR")  # in the environment


def start(module: str, *arguments: str) -> int:
    """Runs `main(*arguments)` of a module and returns the exit code."""
    keep_printing()
    # What libraries say of a home that cannot be written: they do without it.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # The traceback of what a user's callback raises: the error's sentence names its file and line.
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    if code := run_command(lambda: check(module, arguments)):
        return code
    return importlib.import_module(module).main(*arguments)


def check(module: str, arguments: Sequence[str]) -> None:
    """Raises InputError for what would end the process, or import other code, before a command can say so."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError(
            "the working directory is gone: change to one that exists, and run the command again"
        ) from None
    if module in WRITERS:
        refuse_paths_that_are_no_text()
    refuse_hidden_packages()
    if "jaxrun" in arguments and os.environ.get("XLA_FLAGS"):
        refuse_unknown_flags(os.environ["XLA_FLAGS"])


def refuse_paths_that_are_no_text() -> None:
    """Raises InputError where a path of the command cannot be written as text."""
    check_text(os.getcwd(), "the working directory")
    check_text(Path(__file__).parent, "this program's folder")
    for word in sys.argv[1:]:
        check_text(word, "the argument")
    for name in FOLDERS:
        check_text(os.environ.get(name), name)


def refuse_unknown_flags(flags: str) -> None:
    """Raises InputError for XLA_FLAGS at which XLA would end the process; tried in another one."""
    if all(flag.split("=")[0] in USUAL_FLAGS for flag in flags.split()):
        return
    code = "import jax; jax.devices()"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "flag" in line.lower()] or ["XLA ends the process"]
        raise InputError(
            f"XLA_FLAGS={flags[:200]!r}: expected flags that XLA knows, found {lines[0][-200:]!r}: correct or unset it"
        )


def refuse_hidden_packages() -> None:
    """Raises InputError where a file in the working directory would be imported in place of a package."""
    here = Path.cwd()
    if sys.path[:1] not in ([""], [str(here)]):
        return
    for name in PACKAGES.split():
        for path in (here / f"{name}.py", here / name / "__init__.py"):
            if path.is_file():
                raise InputError(
                    f"{path}: expected no file of that name here, found one, which Python would import in place of the "
                    f"package {name}: rename it, or run the command from another folder"
                )
