"""Ctrl-C, SIGTERM and SIGHUP as requests: the first is noticed by the loop, which stops in order; the second stops at
once."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_REQUEST_S = 0.5  # signals of one wish to stop: of a terminal and a job manager at once
ACKNOWLEDGEMENT = b"\nstopping after this step, with everything saved; once more to stop at once\n"


class StopRequest:
    """While it is entered, `signal_number` is None until the user asks to stop.

    A SIGHUP that is ignored, as under nohup, stays ignored. Python handles signals between two of its own
    instructions only, so a thread says at once that a request has come, in a long compilation too.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._first_s = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._request)
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._acknowledge, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _request(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.signal_number is None:
            self.signal_number, self._first_s = number, now_s
        elif self._at_once or now_s - self._first_s > SAME_REQUEST_S:
            raise KeyboardInterrupt

    def _acknowledge(self) -> None:
        """Runs in a thread: a byte comes for every signal, as soon as the system delivers it."""
        first_s = None
        while received := self._reader.recv(64):
            if not self._before.keys() & set(received):
                continue
            now_s = time.monotonic()
            if first_s is None:
                first_s = now_s
                with suppress(OSError):
                    os.write(2, ACKNOWLEDGEMENT)
            elif now_s - first_s > SAME_REQUEST_S:
                self._at_once = True
