"""What a run says of the machine that it ran on."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from parity.errors import InputError
from parity.harness import fingerprint


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_a_fingerprint_has_devices_host_and_versions_as_json(backend):
    values = json.dumps([fingerprint.devices(backend), fingerprint.host(), fingerprint.versions()])
    devices, host, versions = json.loads(values)
    assert all(device["count"] >= 1 and device["kind"] and device["platform"] for device in devices)
    assert set(host) == {"cpu", "cores", "memory_bytes", "os", "python"} and "numpy" in versions


def test_jax_devices_of_one_kind_are_counted():
    code = "from parity.harness import fingerprint; print(fingerprint.devices('jaxrun'))"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[{'kind': 'cpu', 'platform': 'cpu', 'count': 3}]"


def test_an_unknown_backend_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean jaxrun"):
        fingerprint.devices("jaxrum")


def test_a_backend_whose_framework_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="torchref needs torch, which is not installed"):
        fingerprint.devices("torchref")


def test_cores_are_those_that_this_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from parity.harness import fingerprint; print(fingerprint.host()['cores'])"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout == "1\n"


def test_versions_are_those_installed_and_importing_nothing():
    code = "import sys; from parity.harness import fingerprint; fingerprint.versions(); fingerprint.host()\n"
    code += "print([name for name in ('jax', 'torch', 'numpy', 'flax') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout == "[]\n"
    assert fingerprint.versions()["numpy"] == metadata.version("numpy")


def test_the_environment_has_what_can_change_a_result_and_no_secret(monkeypatch):
    for name, value in {
        "XLA_FLAGS": "--a",
        "OMP_NUM_THREADS": "2",
        "TORCH_LOGS": "x",
        "TORCH_HUB_TOKEN": "hush",
        "HOME_ADDRESS": "y",
    }.items():
        monkeypatch.setenv(name, value)
    variables = fingerprint.environment()
    assert (variables["XLA_FLAGS"], variables["OMP_NUM_THREADS"], variables["TORCH_LOGS"]) == ("--a", "2", "x")
    assert "HOME_ADDRESS" not in variables and "hush" not in str(variables) and "TORCH_HUB_TOKEN" in variables


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held():
    code = "from parity.harness.fingerprint import peak_memory_bytes as peak\n"
    code += "before = peak(); held = bytearray(200_000_000); held[::4096] = held[::4096]; print(peak() - before)"
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
    assert 190_000_000 < grown < 250_000_000


def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    code = "from parity.harness.fingerprint import peak_memory_bytes as peak; print(peak())"
    assert (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
        < 150_000_000
    )
