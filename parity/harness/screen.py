"""What a run shows: a live line on a terminal, plain lines elsewhere, and a table at the end."""

import sys
import time
from typing import Any, TextIO

from parity.progress import is_live
from parity.streams import SafeStream
from parity.tables import WIDTH, duration, labelled, printable

DRAW_INTERVAL_S = 0.125
BORDERS, NARROWEST = 7, 20  # columns of the table's lines, and of its values at least
PLAIN_LINES = 20  # lines about steps in a whole run, where there is no terminal


class Screen:
    """Shows the progress of a run on a stream; cheap enough for every step, and harmless when the reader goes away.

    `live` None: a live line if the stream is a terminal that can redraw one. Steps count updates.
    """

    def __init__(
        self, recipe_name: str, track: str, total_steps: int, *, stream: TextIO | None = None, live: bool | None = None
    ):
        self._title = f"{recipe_name} on {track}"
        self._total = total_steps
        self._stream = SafeStream(stream if stream is not None else sys.stdout)
        self._line = _LiveLine(self._stream, total_steps) if (is_live(self._stream) if live is None else live) else None
        self._redraw_s = 0.0  # when the next live line may be drawn
        self._next_step = 0  # when the next plain line is due
        self._val = ""

    def phase(self, name: str) -> None:
        """What the run does before and between its steps, such as "compiling"."""
        if self._line:
            self._line.draw(0, f"{self._title}: {name}")
        else:
            self._write(f"{self._title}: {name}")

    def step(self, step: int, loss: float, tokens_per_s: float, seconds_left: float) -> None:
        """After a step: training loss in nats per token, speed, time left of the whole run."""
        if self._line:
            if time.monotonic() < self._redraw_s:
                return
            speed = f"{tokens_per_s:,.0f} tokens/s  {duration(seconds_left)} left"
            self._line.draw(step, f"step {step}/{self._total}  loss {loss:.4f}{self._val}  {speed}")
            self._redraw_s = time.monotonic() + DRAW_INTERVAL_S
        elif step >= self._next_step or step == self._total:
            every = max(1, self._total // PLAIN_LINES)
            self._next_step = (step // every + 1) * every
            speed = f"{tokens_per_s:>10,.0f} tokens/s  {duration(seconds_left)} left"
            self._write(f"{self._step(step)}  loss {loss:8.4f}  {speed}")

    def evaluation(self, step: int, val_loss: float, bits_per_byte: float | None = None) -> None:
        """After an evaluation: val loss in nats per token, and in bits per byte of text where that is known."""
        self._val = f"  val {val_loss:.4f}"
        if self._line:
            self._line.draw(step, f"step {step}/{self._total}{self._val}")
        else:
            bits = "" if bits_per_byte is None else f"  {bits_per_byte:.4f} bits per byte"
            self._write(f"{self._step(step)}  val  {val_loss:8.4f}{bits}")

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._line:
            self._line.print_above(_printable(text))
        else:
            self._write(text)

    def table(self, rows: list[tuple[str, str]]) -> None:
        """The summary at the end: rows of (name, text)."""
        rows = [(name, _printable(text)) for name, text in rows]
        if self._line:
            self._line.table(self._title, rows)
        else:
            self._write("\n".join(["", self._title, *labelled(rows, whole_words=True)]))

    def close(self) -> None:
        """Leaves the terminal as it was; to be called last, also after an error."""
        if self._line:
            self._line.clear()

    def _step(self, step: int) -> str:
        return f"step {step:>{len(str(self._total))}}/{self._total}"

    def _write(self, text: str) -> None:
        self._stream.write(_printable(text) + "\n")
        self._stream.flush()


def _printable(text: str) -> str:
    return printable(text.replace("\t", " "))


class _LiveLine:
    """One line at the bottom of a terminal, drawn by rich, which is imported here only."""

    def __init__(self, stream: Any, total_steps: int):
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._total = total_steps

    def draw(self, step: int, text: str) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._live.is_started:
            self._live.start()
        line = Table.grid(padding=(0, 2, 0, 0))
        bar_width = min(30, self._console.width - len(text) - 3)
        cells: list[Any] = [Text(text, no_wrap=True, overflow="ellipsis")]
        if step and bar_width >= 10:
            cells.insert(0, ProgressBar(total=self._total, completed=step, width=bar_width))
        line.add_row(*cells)
        self._live.update(line, refresh=True)

    def print_above(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        from rich.box import ROUNDED
        from rich.table import Table
        from rich.text import Text

        self.clear()
        label_width = max((len(name) for name, _ in rows), default=0)
        if self._console.width < label_width + BORDERS + NARROWEST:  # no room for two columns: one below the other
            for name, text in [("", title), *rows]:
                for line in filter(None, (name, f"  {text}" if name else text)):
                    self._console.print(Text(line), overflow="fold")
            return
        width = None if self._console.width >= WIDTH else self._console.width
        table = Table(title=title, title_justify="left", box=ROUNDED, show_header=False, width=width)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold", max_width=WIDTH - label_width - BORDERS)
        for name, text in rows:
            table.add_row(name, Text(text))
        self._console.print(table)

    def clear(self) -> None:
        self._live.stop()
