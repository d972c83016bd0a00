"""How long a sandboxed process takes for its work, told from what other programs on the machine do meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from parity.verify.sandbox.process import SandboxedProcess

BUSY = 0.15  # of a core: what others may use of an idle machine, by a counter that steps by 10 ms
TICK_S = 0.03


@dataclass
class Spent:
    """Seconds of a piece of work: on the wall clock, of processors by the process, of processors by other programs.

    The last two are None where the system does not tell.
    """

    wall_s: float = 0.0
    cpu_s: float | None = 0.0
    others_s: float | None = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.wall_s + other.wall_s, _sum(self.cpu_s, other.cpu_s, 1), _sum(self.others_s, other.others_s, 1)
        )

    def less(self, other: "Spent") -> "Spent":
        """Without what another piece of work takes; never below 0."""
        return Spent(max(0.0, self.wall_s - other.wall_s), _sum(self.cpu_s, other.cpu_s, -1), self.others_s)

    @property
    def busy(self) -> bool:
        """Whether other programs had a part of the machine that could have made the work slower."""
        return self.others_s is None or self.others_s > TICK_S + BUSY * self.wall_s

    def least_s(self, threads: int) -> float:
        """Seconds that the work takes at least on an idle machine with so many threads.

        On an idle machine that is the wall clock's time. Otherwise only the processors' time is sure, shared by all
        threads.
        """
        if not self.busy:
            return self.wall_s
        return self.wall_s if self.cpu_s is None else min(self.wall_s, self.cpu_s / threads)


def _sum(a: float | None, b: float | None, sign: int) -> float | None:
    return None if a is None or b is None else max(0.0, a + sign * b)


@contextmanager
def timed(process: SandboxedProcess) -> Iterator[Spent]:
    """Measures the work between its beginning and its end."""
    from parity.harness.clock import machine_cpu_s  # the verifier imports nothing that makes a run until it is asked

    spent, wall_s, cpu_s = Spent(), time.monotonic(), process.cpu_s()
    own_s, all_s = time.process_time(), machine_cpu_s()
    yield spent
    spent.wall_s, cpu_after_s = time.monotonic() - wall_s, process.cpu_s()
    spent.cpu_s = None if cpu_s is None or cpu_after_s is None else cpu_after_s - cpu_s
    after_s, own_s = machine_cpu_s(), time.process_time() - own_s
    if all_s is None or after_s is None or spent.cpu_s is None:
        spent.others_s = None
    else:
        spent.others_s = max(0.0, after_s - all_s - spent.cpu_s - own_s)
