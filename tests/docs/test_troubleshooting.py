"""The messages that docs/troubleshooting.md quotes are those that the program prints."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (?!symptom)([^|]+) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
MESSAGES = [message for row in ROWS for message in re.findall(r"`([^`]+)`", row) if " " in message]


def texts() -> str:
    """The sources, with strings that are written on several lines joined."""
    files = [file for top in ("parity", "jaxrun", "torchref") for file in (ROOT / top).rglob("*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))


def test_every_quoted_message_is_in_the_sources():
    """In one line of them, whose names in braces are the page's `...`."""
    sources = texts()
    missing = []
    for message in MESSAGES:
        pattern = r"[^\n]*?".join(re.escape(piece) for piece in message.split("..."))
        missing += [] if re.search(pattern, sources) else [message]
    assert len(MESSAGES) > 30 and missing == []


def test_the_page_stays_short():
    assert len(ROWS) <= 40
