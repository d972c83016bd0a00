"""Downloads through a proxy that cannot work: one sentence with the variable's name and value, and nothing left."""

import os
import subprocess
import sys

import pytest

from parity.data import hub
from parity.errors import InputError
from parity.progress import ProgressLine

WRONG = {
    "socks": ("ALL_PROXY", "socks5://localhost:1080"),
    "no-host": ("HTTPS_PROXY", "http://[bad"),
    "no-port": ("https_proxy", "http://me:secret@localhost:port"),
    "no-scheme": ("HTTPS_PROXY", "localhost:9"),
    "other-scheme": ("all_proxy", "ftp://localhost:9"),
    "nobody-there": ("HTTPS_PROXY", "http://127.0.0.1:9"),
}


@pytest.fixture(params=WRONG)
def named(request, monkeypatch):
    """The environment with a wrong proxy; the words that a sentence must have."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    name, value = WRONG[request.param]
    monkeypatch.setenv(name, value)
    return f"{name}={value.replace('me:secret', '...')!r}"


def test_the_hub_cannot_be_reached_through_it(named, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE_S", 0)
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    with pytest.raises(InputError) as caught:
        hub._download("https://127.0.0.1:1/x", {}, tmp_path / "part", 100, "x", ProgressLine(silent=True))
    assert named in str(caught.value) and "correct or unset" in str(caught.value) and "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pip_cannot_download_through_it(named, tmp_path):
    command = [sys.executable, "-m", "parity.data", "prepare", "news", "--data-dir", str(tmp_path / "data")]
    # whatever index this machine is set to, none is reached
    environment = os.environ | {"PIP_INDEX_URL": "https://192.0.2.1/simple", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert named in line and "correct or unset" in line and "secret" not in line and "Exception:" not in line
    assert list(tmp_path.iterdir()) == []


def test_without_a_proxy_none_is_named(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert "proxy" not in str(hub._unreachable("https://x", OSError("no network")))


def test_certificates_that_are_not_there_are_no_full_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match="expected to read it from the Hugging Face hub, found: .*none.pem"):
        hub._download("https://127.0.0.1:1/x", {}, tmp_path / "part", 100, "x", ProgressLine(silent=True))
