"""The command that both trainers are: `python -m jaxrun.train` and `python -m torchref.train`."""

import os
import sys
from collections.abc import Sequence

from parity.errors import run_command
from parity.harness.options import parse


def main(backend: str, argv: Sequence[str] | None = None) -> int:
    """Trains with a backend as the command line says; returns the exit code."""
    code = run_command(lambda: train(backend, argv))
    if code and os.environ.get("WORLD_SIZE", "1") not in ("0", "1"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # frameworks would wait for processes that are gone, and end with codes of their own
    return code


def train(backend: str, argv: Sequence[str] | None) -> None:
    """Trains with a backend as the command line says, alone or as one of several processes."""
    arguments = parse(backend, argv)  # before the imports below, so that --help and mistakes answer at once
    from parity.errors import InputError, Interrupted, RunFailed
    from parity.harness import loop
    from parity.harness.finish import finish
    from parity.harness.interrupts import StopRequest
    from parity.harness.launch import join_process_group
    from parity.harness.setup import open_run
    from parity.user_program import UserCodeFailed

    options = arguments.options
    processes, reason = join_process_group(options.coordinator, options.processes, options.process), ""
    try:
        with open_run(backend, arguments, processes) as run, StopRequest() as stop:
            finish(run, loop.train(run, stop))
    except (Interrupted, RunFailed) as error:  # all processes end so, at the same step, but for errors of user code
        reason = str(error) if isinstance(error, UserCodeFailed) else ""
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        processes.close(reason)
