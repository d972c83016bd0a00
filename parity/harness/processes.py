"""The processes of one run: who they are, what they agree on, and what happens when one of them dies or hangs.

They talk over TCP with the first of them, in lines of JSON, beside whatever their frameworks exchange: numbers go there, words here.
Every process beats once a second and says how far it has come. Where one dies, falls silent, or stands still while another
waits for it, all end, and say which it was.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from typing import Any

from parity.errors import InputError

BEAT_S = 1.0
SILENT_S = 20.0  # without a beat: its machine or its whole process stands still
HANG_S = 300.0  # alive, but no further although others wait: longer than a large program takes to compile
JOIN_S = 120.0  # for all to come together
PATIENT_S = 3.0  # before it is said that others are waited for
PORT = 29_400  # where SLURM gives none


class Team:
    """This process among those of its run. Alone, it agrees with itself and costs nothing.

    `rank` counts from 0; `first` is whether this is the process that keeps the run directory.
    """

    def __init__(self, rank: int = 0, size: int = 1, hang_s: float = HANG_S):
        self.rank, self.size, self.hang_s = rank, size, hang_s
        self.resume_command = ""
        self._progress = 0
        self._closing, self._ending = threading.Event(), False
        self._replies: list[list[Any]] = []
        self._arrived = threading.Condition()
        self._lock = threading.Lock()  # one line at a time on a socket
        self._links: dict[int, socket.socket] = {}
        self._seen: dict[int, tuple[float, int, float]] = {}  # rank -> last beat, progress, when it last came further
        self._asked: dict[int, Any] = {}
        self._left: set[int] = set()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mark(self) -> None:
        """This process has come further: a step, a batch of an evaluation, a phase."""
        self._progress += 1

    def gather(self, value: Any) -> list[Any]:
        """What every process gives here, JSON values by rank; all must call, in the same order."""
        if self.size == 1:
            return [value]
        self.mark()
        with self._arrived:
            self._ask(self.rank, value) if self.first else self._send(0, {"ask": value, "at": self._progress})
            self._arrived.wait_for(lambda: self._replies)
            return self._replies.pop(0)

    def share(self, value: Any) -> Any:
        """What the first process gives, on all of them."""
        return self.gather(value if self.first else None)[0]

    def agree(self, facts: dict[str, Any]) -> None:
        """Raises InputError, on every process alike, where one has other facts than the first."""
        for rank, found in enumerate(everyone := self.gather(facts)):
            for name, value in everyone[0].items():
                if found.get(name) != value:
                    where, ours, theirs = _parted(name, value, found.get(name))
                    raise InputError(
                        f"process {rank} of {self.size} has another {where} than process 0: expected {_short(ours)}, found "
                        f"{_short(theirs)}: start all with the same command, code, data and packages"
                    )

    def any(self, value: int | None) -> int | None:
        """The first value that is not None, by rank; the same on all processes."""
        return next((found for found in self.gather(value) if found is not None), None)

    def close(self, reason: str = "") -> None:
        """Leaves the team; with a reason, such as an error, for which the others end too."""
        if self.size == 1:
            return
        if reason:
            time.sleep(
                BEAT_S
            )  # where another's death is what went wrong here, its connection tells, and ends this process
        if self._closing.is_set():
            time.sleep(SILENT_S if self._ending else 0)  # a thread is about to end this process, in its own words
            return
        self._closing.set()
        for rank in list(self._links):
            with contextlib.suppress(OSError):
                self._send(rank, {"bye": reason})
        if self.first:
            end_s = time.monotonic() + SILENT_S
            while len(self._left) < self.size - 1 and time.monotonic() < end_s:
                time.sleep(0.01)  # frameworks end the others in their own words when the first is gone
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
                link.close()

    # The line to the first process

    def connect(self, address: tuple[str, int]) -> None:
        """Comes together with the others at the address of the first process. Raises InputError where they do not come."""
        if self.first:
            self._listen(address)
        else:
            self._links[0] = _reach(address, self.rank, self.size)
            self._send(0, {"rank": self.rank, "size": self.size})
            hello = _greeting(self._links[0])
            if b"welcome" not in hello:
                raise InputError(
                    f"process {self.rank}: expected {self.size} processes at {address[0]}:{address[1]}, found another run's "
                    f"({hello.decode(errors='replace').strip()[:100] or 'closed'}): start each process once, with its own number"
                )
        now_s = time.monotonic()
        self._seen = dict.fromkeys(self._links, (now_s, 0, now_s))
        for rank, link in self._links.items():
            threading.Thread(target=self._read, args=(rank, link), name=f"team-{rank}", daemon=True).start()
        threading.Thread(target=self._beat, name="team-beat", daemon=True).start()

    def _listen(self, address: tuple[str, int]) -> None:
        try:
            server = socket.create_server(("", address[1]), reuse_port=False)
        except OSError as error:
            raise InputError(
                f"port {address[1]} of {address[0]} cannot be used ({error.strerror}): another run may have it; choose another "
                "--coordinator HOST:PORT, or MASTER_PORT"
            ) from None
        with server:
            begin_s = time.monotonic()
            said, end_s = False, begin_s + JOIN_S
            while len(self._links) < self.size - 1:
                if not said and time.monotonic() > begin_s + PATIENT_S:
                    said = _waiting(
                        f"{self.size - 1 - len(self._links)} more of {self.size} processes at port {address[1]}"
                    )
                server.settimeout(max(0.01, (end_s if said else begin_s + PATIENT_S) - time.monotonic()))
                try:
                    link, _ = server.accept()
                    link.settimeout(5)
                    hello = json.loads(link.makefile("rb").readline())
                    rank = hello["rank"]
                except TimeoutError:
                    if time.monotonic() < end_s:
                        continue
                    missing = ", ".join(str(i) for i in range(1, self.size) if i not in self._links)
                    raise InputError(
                        f"expected {self.size} processes at {address[0]}:{address[1]}, found {len(self._links) + 1} after "
                        f"{JOIN_S:.0f} s, without {missing}: start one process for each number"
                    ) from None
                except (ValueError, KeyError, TypeError, OSError):
                    continue  # somebody else
                if hello.get("size") != self.size or rank in self._links or not 0 < rank < self.size:
                    link.sendall(b'{"refused": "it has this number already, or is of another size"}\n')
                    link.close()
                    continue
                link.sendall(b'{"welcome": true}\n')
                link.settimeout(None)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._links[rank] = link

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        held = self._lock.acquire(
            timeout=SILENT_S
        )  # whoever ends this process must not wait for a thread that is stuck in it
        try:
            self._links[rank].sendall(json.dumps(message).encode() + b"\n")
        finally:
            if held:
                self._lock.release()

    def _read(self, rank: int, link: socket.socket) -> None:
        """Takes in what a process says until it leaves."""
        with contextlib.suppress(OSError, ValueError):
            for line in link.makefile("rb"):
                message = json.loads(line)
                if "end" in message:
                    self._left.add(rank)
                    return self._end(message["end"])
                if "bye" in message:
                    return self._gone(rank, message["bye"] and f"ended: {message['bye']}")
                if "reply" in message:
                    with self._arrived:
                        self._replies.append(message["reply"])
                        self._arrived.notify_all()
                else:
                    self._heard(rank, message)
        self._gone(rank, "died, or its connection did")

    def _heard(self, rank: int, message: dict[str, Any]) -> None:
        now_s = time.monotonic()
        _, progress, since_s = self._seen[rank]
        self._seen[rank] = (now_s, message["at"], since_s if message["at"] == progress else now_s)
        if "ask" in message:
            with self._arrived:
                self._ask(rank, message["ask"])

    def _ask(self, rank: int, value: Any) -> None:
        """One more process has given its value; the last one's arrival answers all."""
        self._asked[rank] = value
        if len(self._asked) == self.size:
            values, self._asked = [self._asked[i] for i in range(self.size)], {}
            for other in self._links:
                with contextlib.suppress(OSError):  # its own reader says what became of it
                    self._send(other, {"reply": values})
            self._replies.append(values)
            self._arrived.notify_all()

    def _beat(self) -> None:
        """Says that this process lives, and looks whether those that it hears do: the first hears all, the others the first."""
        own, since_s = 0, time.monotonic()
        while not self._closing.wait(BEAT_S):
            now_s = time.monotonic()
            own, since_s = (own, since_s) if own == self._progress else (self._progress, now_s)
            for rank in self._links:
                with contextlib.suppress(OSError):  # its reader says what became of it
                    self._send(rank, {"at": own})
            seen = self._seen | {self.rank: (now_s, own, since_s)}
            for rank, (beat_s, progress, further_s) in seen.items():
                if rank in self._left:
                    continue
                if now_s - beat_s > SILENT_S:
                    self._end(
                        f"process {rank} of {self.size} has said nothing for {SILENT_S:.0f} s: it stands still, or its machine does"
                    )
                if (
                    self.first
                    and now_s - further_s > self.hang_s
                    and progress < max(other[1] for other in seen.values())
                ):
                    self._end(
                        f"process {rank} of {self.size} has come no further for {self.hang_s:.0f} s while others wait for it: it hangs"
                    )

    def _gone(self, rank: int, reason: str) -> None:
        """A process has left: in order, or not."""
        self._left.add(rank)
        if not self._closing.is_set() and reason:
            self._end(f"process {rank} of {self.size} {reason}")

    def _end(self, reason: str) -> None:
        """Ends this process from whatever thread, since its own may wait in an exchange that never ends; the first tells the others."""
        if self._closing.is_set():
            return
        self._ending = True
        self._closing.set()
        for other in self._links:
            with contextlib.suppress(OSError):
                self._send(other, {"end": reason})
        go_on = (
            f"; go on with\n  {self.resume_command}\n(alone, or in as many processes as you like, started as before)"
            if self.resume_command
            else ""
        )
        print(f"error: {reason}; what was saved is safe{go_on}", file=sys.stderr, flush=True)
        if self.first:
            time.sleep(
                BEAT_S / 2
            )  # frameworks end the others in their own words when the first is gone: let them read ours before
        os._exit(2)


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Team:
    """The team that this process belongs to: by the options, by torchrun's variables, by those of a SLURM step; else it is alone.

    Afterwards the variables are set as torchrun sets them, for the frameworks. Raises InputError where what is given does not fit
    together, or the others do not come.
    """
    env = _asked_for(coordinator, processes, process) or _of_torchrun() or _of_slurm()
    if not env or env["WORLD_SIZE"] == "1":
        return Team()
    rank, size, port = int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["MASTER_PORT"])
    if not 0 <= rank < size:
        raise InputError(
            f"process {rank} of {size}: expected a number from 0 to {size - 1}: number the processes from 0"
        )
    if not 0 < port < 65_535:
        raise InputError(
            f"port {port} of {env['MASTER_ADDR']}: expected one from 1 to 65534, since the next one is used too: choose another"
        )
    if rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _check_free(env["MASTER_ADDR"], port)
    os.environ.update(env)
    team = Team(rank, size, float(os.environ.get("JAXRUN_HANG_S", HANG_S)))
    team.connect((env["MASTER_ADDR"], port + 1))
    return team


def _asked_for(coordinator: str | None, processes: int | None, process: int | None) -> dict[str, str] | None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if all(value is None for value in given.values()):
        return None
    if missing := [name for name, value in given.items() if value is None]:
        raise InputError(
            f"{' and '.join(missing)}: expected with the rest of --coordinator HOST:PORT, --processes N and --process I, found "
            "none: give all three"
        )
    found = re.fullmatch(r"\[?([^\[\]]+)\]?:(\d+)", str(coordinator))
    if not found:
        raise InputError(
            f"--coordinator {coordinator}: expected HOST:PORT of the first process, for example node1:29400"
        )
    return {
        "WORLD_SIZE": str(processes),
        "RANK": str(process),
        "MASTER_ADDR": found[1],
        "MASTER_PORT": found[2],
        "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0"),
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_WORLD_SIZE", "1"),
    }


def _of_torchrun() -> dict[str, str] | None:
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    if missing := [name for name in names if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {missing[0]} is not set: start the processes with torchrun, or give "
            "--coordinator, --processes and --process"
        )
    return {name: os.environ[name] for name in names}


def _of_slurm() -> dict[str, str] | None:
    env = os.environ
    if env.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in env:
        return None
    nodes = env.get("SLURM_STEP_NODELIST", "localhost")
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)  # the first of node1,node2 or of node[01-04,07]
    local = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return {
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": local[0] if local else "1",
        "MASTER_ADDR": (found[1] + (found[2] or "")) if found else nodes,
        "MASTER_PORT": env.get("MASTER_PORT", str(PORT + 2 * (int(env.get("SLURM_JOB_ID", "0")) % 10_000))),
    }


def _check_free(host: str, port: int) -> None:
    """Raises InputError where the port for the frameworks is taken: they would say so in their own words."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror}): another run may have it; choose another --coordinator "
            "HOST:PORT, or MASTER_PORT"
        ) from None


def _greeting(link: socket.socket) -> bytes:
    """What the first process answers; nothing, where whoever listens there says nothing."""
    link.settimeout(JOIN_S)
    with contextlib.suppress(OSError):
        hello = link.makefile("rb").readline(200)
        link.settimeout(None)
        return hello
    return b"nothing"


def _waiting(what: str) -> bool:
    print(f"waiting for {what}", file=sys.stderr, flush=True)
    return True


def _parted(name: str, ours: Any, theirs: Any) -> tuple[str, Any, Any]:
    """Where two facts part: the first field that differs, in whatever they are made of."""
    where = name
    while isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
        where, ours, theirs = f"{key} ({name})", ours.get(key), theirs.get(key)
    return where, ours, theirs


def _reach(address: tuple[str, int], rank: int, size: int) -> socket.socket:
    """A connection to the first process, which may not listen yet."""
    begin_s, said = time.monotonic(), False
    while True:
        try:
            link = socket.create_connection(address, timeout=5)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link
        except OSError as error:
            if not said and time.monotonic() > begin_s + PATIENT_S:
                said = _waiting(f"process 0 at {address[0]}:{address[1]}")
            if time.monotonic() > begin_s + JOIN_S:
                raise InputError(
                    f"process {rank} of {size}: expected process 0 at {address[0]}:{address[1]} within {JOIN_S:.0f} s, found none "
                    f"({error}): start it, or name its host"
                ) from None
            time.sleep(0.2)


def _short(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= 60 else said[:57] + "..."
