"""Requests to stop: one wish may be several signals, and is acknowledged while no Python code runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WAITS = """
import os, sys, time
from parity.harness.interrupts import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    try:
        end = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < end:
            time.sleep(0.02)
        print(stop.signal_number, flush=True)
    except KeyboardInterrupt:
        print("at once", flush=True)
"""
COMPILES = """
import hashlib
from parity.harness.interrupts import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)  # like a compiler: seconds without Python, the GIL released
    print(stop.signal_number, flush=True)
"""


def started(code: str, *arguments: str, **popen) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)} | popen,  # ignored below nohup
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request(number):
    process = started(WAITS, "1")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == f"{int(number)}\n" and "stopping after this step" in err


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)])
def test_signals_of_one_instant_are_one_request(numbers):
    process = started(WAITS, "1")
    for number in numbers:
        process.send_signal(number)
    assert process.communicate(timeout=60)[0] in [f"{int(number)}\n" for number in numbers]


def test_a_later_signal_stops_at_once():
    process = started(WAITS, "30")
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "at once\n"


def test_a_hangup_that_is_ignored_stays_ignored():
    process = started(WAITS, "0.5", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "None\n"


def test_a_request_is_acknowledged_while_no_python_code_runs():
    process = started(COMPILES)
    process.send_signal(signal.SIGTERM)
    lines = [process.stderr.readline() for _ in range(2)]
    assert process.poll() is None and "stopping after this step" in lines[1]
    assert process.communicate(timeout=120)[0] == f"{int(signal.SIGTERM)}\n"
