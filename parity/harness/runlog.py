"""The run log: what the harness writes, and its events read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parity.errors import InputError, nearest
from parity.formats import chain_log, run_log
from parity.formats.chain_log import FIRST_PREV, Chain, ChainLog
from parity.formats.run_log import FORMAT, KINDS


class RunLog(ChainLog):
    """The log of a run, which only grows: a new file, or with `chain` one that has exactly these lines.

    Raises InputError where the file exists (or, with `chain`, is missing), or cannot be written.
    """

    def __init__(self, path: Path, chain: Chain | None = None):
        super().__init__(path, FORMAT, chain)

    @classmethod
    def resume(cls, path: Path) -> "RunLog":
        """Opens the log of an interrupted run: verifies it and drops a torn last line, which is logged.

        Raises InputError where anything else is wrong with the log, or it has no whole line.
        """
        path = Path(path)
        chain = chain_log.scan(path, FORMAT, run_log.problem, tolerate_torn=True)
        if chain.lines == 0:
            raise InputError(f"{path} holds no whole line, so there is nothing to continue: start a new run")
        return cls(path, chain_log.drop_torn_line(path, FORMAT, chain))

    @property
    def lines(self) -> int:
        """How many lines the log has."""
        return self.chain.lines

    @property
    def digest(self) -> str:
        """sha256 of the last line, in hex: what the next line will carry (64 zeros while the log is empty)."""
        return self.chain.digest

    def event(self, kind: str, /, **fields: Any) -> None:
        """Appends one event, as `append` does; the first is `start`. Schema: `log.v1`.

        Raises ValueError where the kind is unknown or out of place, or a field has a name that the log itself gives.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of log event {kind!r}; {nearest(kind, KINDS)}")
        self.append(kind, fields)


class NoLog:
    """The log of a process that writes none: of several, only the first does."""

    lines, digest = 0, FIRST_PREV

    def event(self, kind: str, /, **fields: Any) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read(path: Path, *, tolerate_torn: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a log, in order, checked as they are read: JSON, line numbers, chain, schema, kinds.

    `tolerate_torn` leaves out a last line that was cut off while it was written; without it that line is an error.

    Raises InputError at the first line that is wrong; names file, line, expected and found.
    """
    for event, _ in chain_log.read(Path(path), FORMAT, run_log.problem, tolerate_torn=tolerate_torn):
        yield event
