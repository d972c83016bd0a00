"""Standard streams that never stop the work: what cannot be printed is lost, and nothing else is."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class SafeStream:
    """A text stream whose failing writes are swallowed; `error` is the first of them. None swallows everything."""

    def __init__(self, stream: TextIO | None):
        self._stream, self.error = stream, None if stream else OSError("the stream is closed")

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                return self.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError) as error:  # ValueError: a closed file
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _give_up(self, error: OSError | ValueError) -> None:
        """Sends what is buffered and what is still to come to nowhere, so that the process' end cannot fail either."""
        self.error = self.error or error
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_printing() -> None:
    """Makes stdout and stderr safe, and opens what is closed of the descriptors 0 to 2, so that no other file gets
    their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))
