"""The training clock: seconds of training steps only, devices drained at every start and stop.

The functions are taken at import, before user code is loaded, so that patching `time` does not reach them.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

now_s = time.perf_counter
own_cpu_s = time.process_time


def machine_cpu_s() -> float | None:
    """Seconds that the processors that this process may use have worked since the machine started, for all programs.

    None where the system does not say.
    """
    with suppress(OSError, ValueError, AttributeError):
        lines = Path("/proc/stat").read_text().splitlines()
        processors = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
        usable = os.sched_getaffinity(0)
        times = [list(map(int, fields[1:9])) for fields in processors if int(fields[0][3:]) in usable]
        return sum(sum(row) - sum(row[3:5]) for row in times) / os.sysconf("SC_CLK_TCK")  # without idle and iowait
    return None


def cpu_readings() -> dict[str, float]:
    """Processor seconds of this process, `cpu_s`, and of all programs, `machine_cpu_s`, where the system says."""
    machine_s = machine_cpu_s()
    return {} if machine_s is None else {"cpu_s": own_cpu_s(), "machine_cpu_s": machine_s}


class TrainingClock:
    """Runs while training steps do; `seconds` is its total, with the seconds `carried` over from before a resume."""

    def __init__(self, carried: float = 0.0):
        self._before = carried
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (now_s() - self._since if self._since is not None else 0.0)

    def start(self) -> float:
        """Starts the clock; returns the reading of `now_s` at its start."""
        self._since = now_s()
        return self._since

    def stop(self) -> float:
        """Stops the clock, harmless when it does not run; returns the reading of `now_s` at its stop."""
        at_s = now_s()
        if self._since is not None:
            self._before, self._since = self._before + (at_s - self._since), None
        return at_s
