"""The processes of one run: what they agree on, and what happens when one of them dies or hangs.

They talk over TCP with the first of them, in lines of JSON, besides whatever their frameworks exchange: numbers go
there, facts here. Every process sends a heartbeat with its progress once a second. Where one dies, sends no heartbeat
within a timeout, or makes no progress while others wait for it, all end and name it.

The protocol is our own because neither framework's names a dead process within seconds. Tried with three processes, one
of them killed: `torch.distributed.TCPStore` tells the others when the first process is gone, but not when another is:
it keeps no record of its clients, so a death shows only as heartbeats that stop, as they also do while a compiler holds
the interpreter for seconds. It also needs the import of torch in every JAX run. JAX's coordination service ends the
others itself, in its own words, after its own heartbeat timeout, and is not there for PyTorch.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from parity.errors import InputError

HEARTBEAT_S = 1.0
SILENT_S = 20.0  # without a heartbeat: the whole process or its machine is stopped
HANG_S = 300.0  # alive, but without progress although others wait: longer than a large program takes to compile
JOIN_S = 120.0  # for all to connect
NOTICE_S = 3.0  # before a line says that others are waited for


class ProcessGroup:
    """This process among those of its run. A group of one agrees with itself at no cost.

    `rank` counts from 0; `first` is whether this process writes the run directory.
    """

    def __init__(self, rank: int = 0, size: int = 1, hang_s: float = HANG_S):
        self.rank, self.size, self.hang_s = rank, size, hang_s
        self.resume_command = ""
        self._progress = 0
        self._closing, self._aborting = threading.Event(), False
        self._gathered: list[list[Any]] = []  # complete results that `gather` has not returned yet
        self._changed = threading.Condition()
        self._send_lock = threading.Lock()  # one line at a time on a socket
        self._links: dict[int, socket.socket] = {}
        self._heard: dict[int, tuple[float, int, float]] = {}  # rank -> last heartbeat, progress, time of last progress
        self._values: dict[int, Any] = {}  # by rank, of the `gather` that is under way
        self._left: set[int] = set()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def progress(self) -> None:
        """Reports progress: a step, a batch of an evaluation, a phase."""
        self._progress += 1

    def gather(self, value: Any) -> list[Any]:
        """The JSON values that all processes give here, by rank; all must call, in the same order."""
        if self.size == 1:
            return [value]
        self.progress()
        with self._changed:
            if self.first:
                self._add_value(0, value)
            else:
                self._send(0, {"value": value, "progress": self._progress})
            self._changed.wait_for(lambda: self._gathered)
            return self._gathered.pop(0)

    def broadcast(self, value: Any) -> Any:
        """The first process' value, on all of them."""
        return self.gather(value if self.first else None)[0]

    def first_set(self, value: int | None) -> int | None:
        """The first value that is not None, by rank; the same on all processes."""
        return next((other for other in self.gather(value) if other is not None), None)

    def agree(self, facts: dict[str, Any]) -> None:
        """Raises InputError, on every process alike, where one has other facts than the first."""
        everyone = self.gather(facts)
        for rank, others in enumerate(everyone):
            for name, value in everyone[0].items():
                if others.get(name) != value:
                    where, expected, actual = _first_difference(name, value, others.get(name))
                    raise InputError(
                        f"process {rank} of {self.size} has another {where} than process 0: expected "
                        f"{_short(expected)}, found {_short(actual)}: start all with the same command, code, data and "
                        "packages"
                    )

    def close(self, reason: str = "") -> None:
        """Leaves the group; with a reason, such as an error, the others end too."""
        if self.size == 1:
            return
        if reason:
            # If another's death is the cause, its closed connection says so meanwhile, and ends this process.
            time.sleep(HEARTBEAT_S)
        if self._closing.is_set():
            time.sleep(SILENT_S if self._aborting else 0)  # a thread is about to end this process with its message
            return
        self._closing.set()
        self._send_all({"leave": reason})
        if self.first:  # frameworks end the others with messages of their own when the first is gone
            end_s = time.monotonic() + SILENT_S
            while len(self._left) < self.size - 1 and time.monotonic() < end_s:
                time.sleep(0.01)
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
                link.close()

    # Connections

    def connect(self, address: tuple[str, int]) -> None:
        """Connects all processes through the first one's address. Raises InputError where some do not come."""
        if self.first:
            self._accept_all(address)
        else:
            self._links[0] = _reach(address, self.rank, self.size)
            self._send(0, {"rank": self.rank, "size": self.size})
            answer = _answer(self._links[0])
            if b"welcome" not in answer:
                raise InputError(
                    f"process {self.rank}: expected {self.size} processes at {address[0]}:{address[1]}, found another "
                    f"run's ({answer.decode(errors='replace').strip()[:100] or 'closed'}): start each process once, "
                    "with its own number"
                )
        now_s = time.monotonic()
        self._heard = dict.fromkeys(self._links, (now_s, 0, now_s))
        for rank, link in self._links.items():
            threading.Thread(target=self._read, args=(rank, link), name=f"process-{rank}", daemon=True).start()
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def _accept_all(self, address: tuple[str, int]) -> None:
        try:
            server = socket.create_server(("", address[1]), reuse_port=False)
        except OSError as error:
            raise port_error(address[0], address[1], error) from None
        with server:
            begin_s, noticed = time.monotonic(), False
            while len(self._links) < self.size - 1:
                waited_s = time.monotonic() - begin_s
                if waited_s > JOIN_S:
                    missing = ", ".join(str(rank) for rank in range(1, self.size) if rank not in self._links)
                    raise InputError(
                        f"expected {self.size} processes at {address[0]}:{address[1]}, found {len(self._links) + 1} "
                        f"after {JOIN_S:.0f} s, without {missing}: start one process for each number"
                    )
                if waited_s > NOTICE_S and not noticed:
                    more = self.size - 1 - len(self._links)
                    _notice(f"{more} more of {self.size} processes at port {address[1]}")
                    noticed = True
                server.settimeout(max(0.01, (JOIN_S if noticed else min(NOTICE_S, JOIN_S)) - waited_s))
                with contextlib.suppress(TimeoutError, ValueError, KeyError, TypeError, OSError):  # or not one of ours
                    self._accept(server)

    def _accept(self, server: socket.socket) -> None:
        """Lets one process in, or refuses it."""
        link, _ = server.accept()
        link.settimeout(5)
        hello = json.loads(link.makefile("rb").readline())
        rank = hello["rank"]
        if hello.get("size") != self.size or rank in self._links or not 0 < rank < self.size:
            link.sendall(b'{"refused": "it has this number already, or is of another size"}\n')
            link.close()
            return
        link.sendall(b'{"welcome": true}\n')
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links[rank] = link

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        # With a timeout: whoever ends this process must not wait for a thread that is stuck in a send.
        locked = self._send_lock.acquire(timeout=SILENT_S)
        try:
            self._links[rank].sendall(json.dumps(message).encode() + b"\n")
        finally:
            if locked:
                self._send_lock.release()

    def _send_all(self, message: dict[str, Any]) -> None:
        for rank in list(self._links):
            with contextlib.suppress(OSError):  # the thread that reads from it reports its death
                self._send(rank, message)

    def _read(self, rank: int, link: socket.socket) -> None:
        """Handles the messages of a process until it leaves."""
        with contextlib.suppress(OSError, ValueError):
            for line in link.makefile("rb"):
                message = json.loads(line)
                if "abort" in message:
                    self._left.add(rank)
                    return self._abort(message["abort"])
                if "leave" in message:
                    return self._leave(rank, message["leave"] and f"ended: {message['leave']}")
                if "values" in message:
                    with self._changed:
                        self._gathered.append(message["values"])
                        self._changed.notify_all()
                else:
                    self._hear(rank, message)
        self._leave(rank, "died, or its connection did")

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        """A heartbeat, or a value for `gather`."""
        now_s = time.monotonic()
        _, progress, progress_s = self._heard[rank]
        self._heard[rank] = (now_s, message["progress"], progress_s if message["progress"] == progress else now_s)
        if "value" in message:
            with self._changed:
                self._add_value(rank, message["value"])

    def _add_value(self, rank: int, value: Any) -> None:
        """Adds a process' value to the current `gather`; the last one completes it for all."""
        self._values[rank] = value
        if len(self._values) == self.size:
            values, self._values = [self._values[i] for i in range(self.size)], {}
            self._send_all({"values": values})
            self._gathered.append(values)
            self._changed.notify_all()

    # Deaths and hangs

    def _watch(self) -> None:
        """Sends heartbeats and checks the others' timeouts: the first process hears all, the others the first."""
        progress, progress_s = 0, time.monotonic()
        while not self._closing.wait(HEARTBEAT_S):
            now_s = time.monotonic()
            if progress != self._progress:
                progress, progress_s = self._progress, now_s
            self._send_all({"progress": progress})
            if problem := self._timeout(self._heard | {self.rank: (now_s, progress, progress_s)}, now_s):
                self._abort(problem)

    def _timeout(self, heard: dict[int, tuple[float, int, float]], now_s: float) -> str:
        """Which process has passed one of the timeouts; "" if none has."""
        most = max(progress for _, progress, _ in heard.values())
        for rank, (heartbeat_s, progress, progress_s) in heard.items():
            if rank in self._left:
                continue
            if now_s - heartbeat_s > SILENT_S:
                return (
                    f"process {rank} of {self.size} has sent no heartbeat for {SILENT_S:.0f} s: it is stopped, or its "
                    "machine is"
                )
            if self.first and now_s - progress_s > self.hang_s and progress < most:
                return (
                    f"process {rank} of {self.size} has made no progress for {self.hang_s:.0f} s while others wait for "
                    "it: it hangs"
                )
        return ""

    def _leave(self, rank: int, reason: str) -> None:
        """A process has left; without a reason in good order."""
        self._left.add(rank)
        if not self._closing.is_set() and reason:
            self._abort(f"process {rank} of {self.size} {reason}")

    def _abort(self, reason: str) -> None:
        """Ends this process, from any thread, since its own may be stuck in an exchange; the first tells the others."""
        if self._closing.is_set():
            return
        self._aborting = True
        self._closing.set()
        self._send_all({"abort": reason})
        advice = ""
        if self.resume_command:
            advice = (
                f"; continue with\n  {self.resume_command}\n(alone or in any number of processes, started as before)"
            )
        print(f"error: {reason}; what was saved is safe{advice}", file=sys.stderr, flush=True)
        if self.first:  # frameworks end the others with messages of their own when the first is gone
            time.sleep(HEARTBEAT_S / 2)
        os._exit(2)


def port_error(host: str, port: int, error: OSError) -> InputError:
    """The sentence for a port that cannot be listened at."""
    return InputError(
        f"port {port} of {host} cannot be used ({error.strerror}): another run may have it; choose another "
        "--coordinator HOST:PORT, or MASTER_PORT"
    )


def _reach(address: tuple[str, int], rank: int, size: int) -> socket.socket:
    """A connection to the first process, which may not listen yet."""
    begin_s, noticed = time.monotonic(), False
    while True:
        try:
            link = socket.create_connection(address, timeout=5)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link
        except OSError as error:
            waited_s = time.monotonic() - begin_s
            if waited_s > NOTICE_S and not noticed:
                _notice(f"process 0 at {address[0]}:{address[1]}")
                noticed = True
            if waited_s > JOIN_S:
                raise InputError(
                    f"process {rank} of {size}: expected process 0 at {address[0]}:{address[1]} within {JOIN_S:.0f} s, "
                    f"found none ({error}): start it, or name its host"
                ) from None
            time.sleep(0.2)


def _answer(link: socket.socket) -> bytes:
    """The first process' answer to a greeting, or "nothing"."""
    link.settimeout(JOIN_S)
    with contextlib.suppress(OSError):
        line = link.makefile("rb").readline(200)
        link.settimeout(None)
        return line
    return b"nothing"


def _notice(what: str) -> None:
    print(f"waiting for {what}", file=sys.stderr, flush=True)


def _first_difference(name: str, expected: Any, actual: Any) -> tuple[str, Any, Any]:
    """The first field in which two values differ, however deep in dicts: its name and both values."""
    where = name
    while isinstance(expected, dict) and isinstance(actual, dict):
        key = next(key for key in [*expected, *actual] if expected.get(key) != actual.get(key))
        where, expected, actual = f"{key} ({name})", expected.get(key), actual.get(key)
    return where, expected, actual


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
