"""What a run shows: a live line on a terminal, plain lines elsewhere, and a table at the end."""

import os
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

WIDTH = 100  # columns of the summary at most
DRAW_INTERVAL_S = 0.125
PLAIN_LINES = 20  # lines about steps in a whole run, where there is no terminal
DUMB_TERMINALS = ("dumb", "unknown", "")


class Screen:
    """Tells a stream how a run is going; safe to call as often as one likes, and harmless when the reader goes away.

    `live` None: a live line if the stream is a terminal that can redraw one. Steps are numbers of updates made so far.
    """

    def __init__(
        self, recipe_name: str, track: str, total_steps: int, *, stream: TextIO | None = None, live: bool | None = None
    ):
        self._title = f"{recipe_name} on {track}"
        self._total = total_steps
        self._stream = stream if stream is not None else sys.stdout
        capable = self._stream.isatty() and os.environ.get("TERM", "") not in DUMB_TERMINALS
        self._line = _LiveLine(self._stream, total_steps) if (capable if live is None else live) else None
        self._redraw_s = 0.0  # when the next live line may be drawn
        self._next_step = 0  # from which step on the next plain line is due
        self._doing, self._val = "", ""

    def phase(self, name: str) -> None:
        """What the run does before and between its steps, such as "compiling"."""
        self._doing = name
        if self._line:
            self._line.draw(0, f"{self._title}: {name}")
        else:
            self._write(f"{self._title}: {name}")

    def step(self, step: int, loss: float, tokens_per_s: float, seconds_left: float) -> None:
        """After a step: training loss in nats per token, speed, time left of the whole run."""
        if self._line:
            now_s = time.monotonic()
            if now_s < self._redraw_s:
                return
            self._line.draw(
                step,
                f"step {step}/{self._total}  loss {loss:.4f}{self._val}  "
                f"{tokens_per_s:,.0f} tokens/s  {duration(seconds_left)} left",
            )
            self._redraw_s = time.monotonic() + DRAW_INTERVAL_S
        elif step >= self._next_step or step == self._total:
            every = max(1, self._total // PLAIN_LINES)
            self._next_step = (step // every + 1) * every
            self._write(
                f"step {step:>{self._digits}}/{self._total}  loss {loss:8.4f}  "
                f"{tokens_per_s:>10,.0f} tokens/s  {duration(seconds_left)} left"
            )

    def evaluated(self, step: int, val_loss: float, bits_per_byte: float | None = None) -> None:
        """After an evaluation: val loss in nats per token, and in bits per byte of text where that is known."""
        self._val = f"  val {val_loss:.4f}"
        if self._line:
            self._line.draw(step, f"step {step}/{self._total}{self._val}")
        else:
            bits = "" if bits_per_byte is None else f"  {bits_per_byte:.4f} bits per byte"
            self._write(f"step {step:>{self._digits}}/{self._total}  val  {val_loss:8.4f}{bits}")

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._line:
            self._line.above(printable(text))
        else:
            self._write(text)

    def finish(self, totals: Mapping[str, Any], rows: Iterable[tuple[str, str]] = ()) -> None:
        """The summary: the run's totals, each with the unit that ends its name (`train_s`, `peak_bytes`, `val_loss`),
        then `rows` of (name, text) as they are. A total of None is left out."""
        table = [labelled(name, value) for name, value in totals.items() if value is not None]
        table += [(name, printable(text)) for name, text in rows]
        if self._line:
            self._line.table(self._title, table)
        else:
            self._write("\n".join(["", self._title, *plain_table(table)]))

    def close(self) -> None:
        """Leaves the terminal as it was; the last thing to call, also after an error."""
        if self._line:
            self._line.clear()

    @property
    def _digits(self) -> int:
        return len(str(self._total))

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(printable(text).encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except BrokenPipeError:  # `| head` has seen enough: the run goes on, and nothing is left to fail at exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _LiveLine:
    """One line at the bottom of a terminal, drawn by rich, which is imported here only."""

    def __init__(self, stream: TextIO, total_steps: int):
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
        room = self._console.width - len(text) - 3
        cells: list[Any] = [Text(text, no_wrap=True, overflow="ellipsis")]
        if step and room >= 10:
            cells.insert(0, ProgressBar(total=self._total, completed=step, width=min(30, room)))
        line.add_row(*cells)
        self._live.update(line, refresh=True)

    def above(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        from rich.box import ROUNDED
        from rich.table import Table
        from rich.text import Text

        self.clear()
        table = Table(
            title=title,
            title_justify="left",
            box=ROUNDED,
            show_header=False,
            width=None if self._console.width >= WIDTH else self._console.width,
        )
        table.add_column(style="cyan", no_wrap=True)
        widest = max((len(name) for name, _ in rows), default=0)
        table.add_column(overflow="fold", max_width=WIDTH - widest - 7)
        for name, text in rows:
            table.add_row(name, Text(text))
        self._console.print(table)

    def clear(self) -> None:
        self._live.stop()


def plain_table(rows: list[tuple[str, str]]) -> list[str]:
    """Lines of two aligned columns, at most WIDTH wide except for a word that is longer, such as a path."""
    widest = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, text in rows:
        parts = [
            part
            for line in text.splitlines()
            for part in textwrap.wrap(line, WIDTH - widest - 4, break_long_words=False, break_on_hyphens=False)
        ] or [""]
        lines += [f"  {label:<{widest}}  {part}".rstrip() for label, part in zip([name] + [""] * len(parts), parts)]
    return lines


NAMES = {"tokens_per_s": "speed", "mfu": "model FLOP utilisation"}
UNITS = {"tokens_per_s": "tokens/s", "_s": "s", "_bytes": "B", "flops": "FLOP", "loss": "nats per token", "mfu": "%"}


def labelled(name: str, value: Any) -> tuple[str, str]:
    """A total as (its name in words, its value with the unit that the end of its name stands for)."""
    ending = next((ending for ending in UNITS if name.endswith(ending)), None)
    words = NAMES.get(name) or (name.removesuffix(ending) if ending in ("_s", "_bytes") else name).replace("_", " ")
    if isinstance(value, bool):
        return words, "yes" if value else "no"
    if not isinstance(value, int | float):
        return words, printable(str(value))
    if ending:
        return words, with_unit(value, UNITS[ending])
    return words, f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def with_unit(value: float, unit: str) -> str:
    """A number with its unit, with k, M, G, ... where bytes or FLOPs are many; a fraction for "%"."""
    plain = {
        "s": f"{value:,.1f} s",
        "%": f"{100 * value:.1f} %",
        "tokens/s": f"{value:,.0f} tokens/s",
        "nats per token": f"{value:.4f} nats per token",
    }
    if unit in plain:
        return plain[unit]
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            break
        value /= 1000
    else:
        prefix = "E"
    return f"{value:.3g} {prefix}{unit}"


def duration(seconds: float) -> str:
    """A time span in the two units that matter: 41 s, 12 min 05 s, 3 h 07 min."""
    if not 0 <= seconds < 1e9:  # also nan
        return "? s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """The text with every control character but the end of a line as "?": sampled text may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)
