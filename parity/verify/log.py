"""Reads a run's log as columns and events, trusting nothing: every problem becomes a sentence.

Steps are held as columns, so that a log of 100,000 of them fits in memory.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats import run_log
from parity.formats.chain_log import Chain, decode_line
from parity.formats.files import check_plain

LOG_BYTES = 8 << 30
MOST_PROBLEMS = 5  # of a rule
COLUMNS = ("loss", "grad_norm", "step_s", "train_s", "clock_s", "time_s")


@dataclass
class Log:
    """The steps of a log as columns, and its other events. `problems` by rule: log.form, log.chain.

    `n` (line numbers), `step` and `tokens` are int64, `columns` float64, `batches` digests; `events` are in order.
    """

    n: np.ndarray
    step: np.ndarray
    tokens: np.ndarray
    columns: dict[str, np.ndarray]
    batches: list[str]
    events: list[dict[str, Any]]
    lines: int
    problems: dict[str, list[str]]
    sha256: str
    last: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def states(self, name: str) -> list[dict[str, Any]]:
        """The states of a name, in order."""
        return [event for event in self.of("state") if event["name"] == name]

    @cached_property
    def stream(self) -> list[tuple[int, dict[str, Any] | int]]:
        """All lines in order: (n, event) or, for a step, (n, its row in the columns)."""
        rows = [(int(n), row) for row, n in enumerate(self.n)]
        return sorted(rows + [(event["n"], event) for event in self.events], key=lambda pair: pair[0])


def read_log(path: Path) -> Log:
    """Reads a log line by line: form, chain, numbers. Raises InputError where nothing can be read at all."""
    reader, total = _Reader(), hashlib.sha256()
    try:
        check_plain(path)
        with open(path, "rb") as file:
            while raw := file.readline(run_log.FORMAT.max_line_bytes):
                total.update(raw)
                if not reader.read(raw) or file.tell() > LOG_BYTES:
                    break
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): a run directory has its log") from None
    return reader.log(total.hexdigest())


@dataclass
class _Reader:
    chain: Chain = field(default_factory=Chain)
    problems: dict[str, list[str]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    n: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    def read(self, raw: bytes) -> bool:
        """Takes a line. False where it is no event, so that reading cannot continue."""
        number = self.chain.lines + 1
        try:
            event = decode_line(raw)
        except ValueError as error:
            self._add_problem("log.form", number, str(error))
            self.chain = self.chain.after(raw)
            return False
        _check_version(event, number)
        if problem := run_log.field_problem(event):
            self._add_problem("log.form", number, problem)
        else:
            if problem := self.chain.problem(event):
                self._add_problem("log.chain", number, problem)
            event["n"] = number
            self._append(event)
        self.chain = self.chain.after(raw)
        return True

    def _append(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            self.events.append(event)
            return
        for name, column in self.columns.items():
            column.append(float(event[name]))
        self.n.append(event["n"])
        self.step.append(event["step"])
        self.tokens.append(event["tokens"])
        self.batches.append(event["batch"])

    def _add_problem(self, rule: str, number: int, problem: str) -> None:
        problems = self.problems.setdefault(rule, [])
        if len(problems) < MOST_PROBLEMS:
            problems.append(f"line {number}: {problem}"[:300])

    def log(self, sha256: str) -> Log:
        if not self.chain.lines:
            self.problems["log.form"] = ["the log is empty"]
        n, step, tokens = (
            np.array([min(value, 2**62) for value in values], np.int64) for values in (self.n, self.step, self.tokens)
        )
        columns = {name: np.array(values) for name, values in self.columns.items()}
        lines, last = self.chain.lines, self.chain.digest
        return Log(n, step, tokens, columns, self.batches, self.events, lines, self.problems, sha256, last)


def _check_version(event: dict[str, Any], number: int) -> None:
    """Raises InputError where the log is of another version."""
    version = event.get("schema")
    if number == 1 and event.get("event") == "start" and version != run_log.FORMAT.schema:
        raise InputError(
            f"the run log: expected schema {run_log.FORMAT.schema}, found {str(version)[:40]!r}: verify it with the "
            "version that wrote it"
        )
