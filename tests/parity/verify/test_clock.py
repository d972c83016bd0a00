"""How much longer a run may take between its phases where other programs leave it no processor."""

from types import SimpleNamespace

import pytest

from parity.harness.clock import cpu_readings
from parity.verify.rules.clock import SLOWED, slowed


def context(phases: list[dict], platform: str = "cpu", cores: int = 2) -> SimpleNamespace:
    run = {"devices": [{"platform": platform}], "host": {"cores": cores}}
    return SimpleNamespace(log=SimpleNamespace(events=phases), evidence=SimpleNamespace(run=run))


def readings(wall_s: float, own: float, machine: float) -> list[dict]:
    """Two phases `wall_s` apart; `own` and `machine` are in processors."""
    first = {"event": "phase", "clock_s": 5.0, "cpu_s": 3.0, "machine_cpu_s": 1e4}
    last = {
        "event": "phase",
        "clock_s": 5 + wall_s,
        "cpu_s": 3 + own * wall_s,
        "machine_cpu_s": 1e4 + machine * wall_s,
    }
    return [first, {"event": "eval", "clock_s": 6.0}, last]


@pytest.mark.parametrize(
    "own, machine, expected",
    [(1.9, 2.0, 2 / 1.9), (1.0, 2.0, 2.0), (0.2, 1.95, SLOWED), (1.0, 1.5, 1.0), (0.1, 0.5, 1.0)],
    ids=["alone", "half", "starved", "a-processor-idle", "waits-for-a-disk"],
)
def test_a_machine_without_idle_processors_slows_a_run(own, machine, expected):
    assert slowed(context(readings(20.0, own, machine))) == pytest.approx(expected)


def test_nothing_is_excused_with_a_gpu_or_without_readings():
    assert slowed(context(readings(20.0, 0.2, 2.0), "gpu")) == 1.0
    silent = [{"event": "phase", "clock_s": at} for at in (1.0, 20.0)]
    assert slowed(context(silent)) == slowed(context([])) == 1.0


def test_a_resume_begins_with_readings_of_its_own():
    later = [{**event, "cpu_s": 0.5, "machine_cpu_s": 7.0} for event in readings(1.0, 0, 0)]
    assert slowed(context([*readings(10.0, 1.0, 2.0), {"event": "resume"}, later[0]])) == 2.0


def test_this_machine_tells_its_processor_seconds():
    before = cpu_readings()
    sum(range(3_000_000))
    after = cpu_readings()
    if before:
        assert after["cpu_s"] > before["cpu_s"] and after["machine_cpu_s"] >= before["machine_cpu_s"]
