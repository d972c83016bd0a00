"""Plain text for a terminal: tables and paragraphs of at most 100 columns, and numbers as people read them.

Text that others wrote goes through `printable` or `fit`, so that it cannot steer the terminal.
"""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
RULE = "-" * WIDTH
ELLIPSIS = "…"


def printable(text: str, keep: str = "\n") -> str:
    """The text with "?" for every control character that is not in `keep`."""
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


def cut(text: str, width: int = WIDTH, ellipsis: str = ELLIPSIS) -> str:
    """The text, shortened to a width; what is cut ends in an ellipsis."""
    return text if len(text) <= width else text[: width - len(ellipsis)] + ellipsis


def fit(lines: Iterable[str]) -> str:
    """The lines as one text, each printable and cut to the width."""
    return "\n".join(cut(printable(line, keep="")).rstrip() for line in lines)


def paragraph(
    text: str, first: str = "", rest: str = "", *, whole_words: bool = False, max_lines: int | None = None
) -> list[str]:
    """The text in lines of at most WIDTH columns; `first` begins the first line, `rest` the others.

    `whole_words`: a word longer than a line, such as a path, stays whole and makes its line longer.
    """
    lines = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        max_lines=max_lines,
        break_long_words=not whole_words,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def labelled(
    rows: Iterable[tuple[str, str]], label_width: int = 0, indent: int = 2, *, whole_words: bool = False
) -> list[str]:
    """Labels with a paragraph each to their right, aligned; a line break in a text stays one.

    `label_width` 0: as wide as the longest label.
    """
    rows = list(rows)
    label_width = label_width or max((len(label) for label, _ in rows), default=0)
    blank, lines = " " * (indent + label_width + 2), []
    for label, text in rows:
        first = f"{'':{indent}}{label:<{label_width}}  "
        for line in text.splitlines() or [""]:
            lines += paragraph(line, first, blank, whole_words=whole_words)
            first = blank
    return lines


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> list[str]:
    """A line of titles and a line for each row, with a blank between columns.

    A column is its title and its format: "<26" or ">8", or without a width as wide as its widest cell. Text in a
    "<" column is cut where it is too long; a number in a ">" column never is.
    """
    titles, formats = zip(*columns, strict=True)
    cells = [list(titles), *([str(cell) for cell in row] for row in rows)]
    widths = [int(form[1:] or max(len(row[i]) for row in cells if i < len(row))) for i, form in enumerate(formats)]
    return [
        " ".join(
            f"{cut(cell, width) if form[0] == '<' else cell:{form[0]}{width}}"
            for cell, width, form in zip(row, widths, formats, strict=True)
        ).rstrip()
        for row in cells
    ]


def number(value: float | None, form: str, missing: str = "-") -> str:
    """A number in a format such as ".4f", or the sign for a missing one."""
    return missing if value is None else format(value, form)


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number of things: 1 entry, 2 entries."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def compact(value: float | None, missing: str = "unknown") -> str:
    """A number with at most one decimal, from ten million on as a power of ten."""
    if value is None:
        return missing
    return f"{value:,.1f}".removesuffix(".0") if value < 1e7 else f"{value:.2e}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit, with a prefix such as k, M or G where it is large; a fraction for "%"."""
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
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def duration(seconds: float) -> str:
    """A time span in the two units that matter: 41 s, 12 min 05 s, 3 h 07 min."""
    if not 0 <= seconds < 1e9:  # also nan
        return "? s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
