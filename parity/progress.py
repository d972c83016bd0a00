"""One line for long work: drawn again and again on a terminal, now and then a plain line elsewhere."""

import os
import sys
import time
from typing import TextIO

from parity.streams import SafeStream
from parity.tables import printable

LIVE_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 5.0
DUMB_TERMINALS = ("dumb", "unknown", "")


def is_live(stream: TextIO | SafeStream) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in DUMB_TERMINALS


class ProgressLine:
    """Shows on a stream, stderr by default, how far some work is, with its rate and the time left.

    `silent` shows nothing.
    """

    def __init__(self, stream: TextIO | None = None, silent: bool = False):
        self._stream, self._silent = SafeStream(stream or sys.stderr), silent
        self._live = is_live(self._stream)
        self._task, self._first = "", 0.0
        self._started_s = self._shown_s = 0.0

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._silent:
            self._stream.write(f"\r\033[K{text}\n" if self._live else f"{text}\n")
            self._stream.flush()

    def draw(self, text: str) -> None:
        """Redraws the line on a terminal; does nothing elsewhere."""
        if self._live and not self._silent:
            self._stream.write(f"\r\033[K{printable(text, keep='')[:98]}\r")
            self._stream.flush()

    def step(self, task: str, done: float, total: float, unit: str) -> None:
        """`done` of `total` units of a task; the first call of a task starts its clock, the last one ends its line."""
        now_s = time.monotonic()
        if task != self._task:
            self._task, self._started_s, self._first = task, now_s, done
            self._shown_s = 0.0 if self._live else now_s
        finished = done >= total
        if not finished and now_s - self._shown_s < (LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S):
            return
        self._shown_s = now_s
        line = self._describe(done, total, unit, now_s - self._started_s)
        if finished or not self._live:
            self.note(line)
        else:
            self.draw(line)
        if finished:
            self._task = ""

    def _describe(self, done: float, total: float, unit: str, elapsed_s: float) -> str:
        line = f"{self._task}: {done:,.0f} of {total:,.0f} {unit}"
        if done <= self._first or elapsed_s <= 0:
            return line
        rate = (done - self._first) / elapsed_s
        end = f"{elapsed_s:.1f} s" if done >= total else f"{(total - done) / rate:,.0f} s left"
        return f"{line}, {f'{rate:,.0f}' if rate >= 10 else f'{rate:.2f}'} {unit}/s, {end}"
