"""Small run logs for tests: written, counted, and with a fault."""

from pathlib import Path

import pytest

from parity.errors import InputError
from parity.formats import chain_log, run_log
from parity.harness import runlog
from parity.harness.runlog import RunLog

STEP = {"loss": 3.25, "grad_norm": 1.5, "rates": {"embed": 0.1}, "step_s": 0.5, "train_s": 1.0, "tokens": 4096}
STEP["batch"] = "ab" * 32


def write(path: Path, steps: int = 5, **start) -> list[bytes]:
    with RunLog(path) as log:
        log.event("start", **start)
        for step in range(steps):
            log.event("step", step=step, **STEP)
    return lines_of(path)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def count(path: Path) -> int:
    """The number of lines of a log, every field of them checked."""
    return chain_log.scan(path, run_log.FORMAT, run_log.field_problem).lines


def chain_of(path: Path) -> chain_log.Chain:
    return chain_log.scan(path, run_log.FORMAT, run_log.problem)


def fault(path: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        list(runlog.read(path, **options))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)
