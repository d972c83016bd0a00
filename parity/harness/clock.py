"""The training clock: seconds of training steps only, devices drained at every start and stop.

The functions are taken at import, before user code is loaded, so that patching `time` does not reach them.
"""

import time

now_s = time.perf_counter


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
