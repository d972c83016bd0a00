"""Reads a run's log as columns and events, trusting nothing: every problem becomes a sentence.

Steps are held as columns of machine numbers, so that a log of a million of them takes 150 MB.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats import run_log
from parity.formats.chain_log import Chain, decode_line
from parity.formats.files import open_plain

LOG_BYTES = 16 << 30
EVENT_BYTES = 64 << 20  # of all lines that are no steps; as Python's objects they take up to ten times as much
MOST_PROBLEMS = 5  # of a rule
COLUMNS = ("loss", "grad_norm", "step_s", "train_s", "clock_s", "time_s")


class Digests(Sequence[str]):
    """SHA-256 digests in hexadecimal, held as 32 bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def append(self, digest: str) -> None:
        self._bytes += bytes.fromhex(digest)

    def __len__(self) -> int:
        return len(self._bytes) // 32

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        begin = 32 * (index % len(self))
        return self._bytes[begin : begin + 32].hex()


@dataclass
class Log:
    """The steps of a log as columns, and its other events. `problems` by rule: log.form, log.chain.

    `n` (line numbers), `step` and `tokens` are int64, `columns` float64, `batches` digests; `events` are in order.
    """

    n: np.ndarray
    step: np.ndarray
    tokens: np.ndarray
    columns: dict[str, np.ndarray]
    batches: Sequence[str]
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

    @property
    def compilers(self) -> list[str]:
        """The compilers that the run started, by path: what they made is not what the verifier runs."""
        events = (event for check in self.of("guard") for event in check["events"])
        return sorted({event["what"] for event in events if event["kind"] == "compiler"})

    @property
    def stream(self) -> Iterator[tuple[int, dict[str, Any] | int]]:
        """All lines in order: (n, event) or, for a step, (n, its row in the columns)."""
        row, steps = 0, len(self.n)
        for event in self.events:
            while row < steps and self.n[row] < event["n"]:
                yield int(self.n[row]), row
                row += 1
            yield event["n"], event
        for last in range(row, steps):
            yield int(self.n[last]), last


def read_log(path: Path) -> Log:
    """Reads a log line by line: form, chain, numbers. Raises InputError where nothing can be read at all."""
    reader, total = _Reader(), hashlib.sha256()
    try:
        with open_plain(path) as file:
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
    event_bytes: int = 0
    n: array = field(default_factory=lambda: array("q"))
    step: array = field(default_factory=lambda: array("q"))
    tokens: array = field(default_factory=lambda: array("q"))
    batches: Digests = field(default_factory=Digests)
    columns: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})

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
            self.event_bytes += len(raw) if event["event"] != "step" else 0
        self.chain = self.chain.after(raw)
        if self.event_bytes > EVENT_BYTES:
            self._add_problem("log.form", number, f"expected at most {EVENT_BYTES:,} bytes beside steps, found more")
            return False
        return True

    def _append(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            self.events.append(event)
            return
        for name, column in self.columns.items():
            column.append(float(event[name]))
        self.n.append(event["n"])
        self.step.append(min(event["step"], 2**62))
        self.tokens.append(min(event["tokens"], 2**62))
        self.batches.append(event["batch"])

    def _add_problem(self, rule: str, number: int, problem: str) -> None:
        problems = self.problems.setdefault(rule, [])
        if len(problems) < MOST_PROBLEMS:
            problems.append(f"line {number}: {problem}"[:300])

    def log(self, sha256: str) -> Log:
        if not self.chain.lines:
            self.problems["log.form"] = ["the log is empty"]
        n, step, tokens = (np.array(values, np.int64) for values in (self.n, self.step, self.tokens))
        columns = {name: np.array(values, np.float64) for name, values in self.columns.items()}
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
