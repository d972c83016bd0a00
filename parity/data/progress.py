"""Progress of long work: a live line on a terminal, now and then a plain line elsewhere."""

import sys
import time
from typing import TextIO

LIVE_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 5.0


class Progress:
    """Tells a stream, stderr by default, how far the work is, with its rate and the time left."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._task = ""
        self._started_s = self._shown_s = 0.0

    def say(self, text: str) -> None:
        """One plain line."""
        self._stream.write(f"\r\033[K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()

    def step(self, task: str, done: float, total: float, unit: str) -> None:
        """`done` of `total` units of a task; the first call of a task starts its clock, the last one ends its line."""
        now_s = time.monotonic()
        if task != self._task:
            self._task, self._started_s, self._first = task, now_s, done
            self._shown_s = now_s if not self._live else 0.0
        finished = done >= total
        if not finished and now_s - self._shown_s < (LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S):
            return
        self._shown_s = now_s
        line = self._line(task, done, total, unit, now_s - self._started_s)
        if finished:
            self._task = ""
            self.say(line)
        elif self._live:
            self._stream.write(f"\r\033[K{line}")
            self._stream.flush()
        else:
            self.say(line)

    def _line(self, task: str, done: float, total: float, unit: str, elapsed_s: float) -> str:
        line = f"{task}: {done:,.0f} of {total:,.0f} {unit}"
        made = done - self._first
        if made <= 0 or elapsed_s <= 0:
            return line
        rate = made / elapsed_s
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        end = f"{elapsed_s:.1f} s" if done >= total else f"{(total - done) / rate:,.0f} s left"
        return f"{line}, {shown} {unit}/s, {end}"


class Silent(Progress):
    """Says nothing."""

    def say(self, text: str) -> None: ...

    def step(self, task: str, done: float, total: float, unit: str) -> None: ...
