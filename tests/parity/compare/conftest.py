"""Fixtures of the comparer's tests: cases on the session's data, sides compiled once, the command in this process."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from parity.compare.case import Case, compared_recipe, track_of
from parity.compare.command import main
from parity.compare.side import Memo, Side


class Output(NamedTuple):
    """A command's exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session", autouse=True)
def both_backends() -> Iterator[None]:
    """Both frameworks, float64 in JAX, and no more threads than small matrices can use."""
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    torch.set_num_threads(1)
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def case(synthetic, tmp_path_factory) -> Callable[..., Case]:
    """A case of a recipe at tiny; one for each recipe, precision and seed, so that observations can be cached."""

    @functools.cache
    def get(recipe: str, precision: str = "float64", seed: int = 0) -> Case:
        folder = tmp_path_factory.mktemp("case")
        return Case(compared_recipe(recipe, "tiny", precision), track_of("tiny"), synthetic, folder, seed)

    return get


@pytest.fixture(scope="session")
def clean() -> dict[str, Side]:
    """Both backends without faults."""
    return {backend: Side(backend) for backend in ("jaxrun", "torchref")}


@pytest.fixture(scope="session")
def memo() -> Memo:
    """Observations of the clean sides."""
    return {}


@pytest.fixture(scope="session")
def compare(commands) -> Callable[..., Output]:
    """Runs `python -m parity.compare` in this process, where the frameworks are loaded already."""

    def run(*args: object) -> Output:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*map(str, args), "--data-dir", str(commands.data)])
        return Output(code, out.getvalue(), err.getvalue())

    return run
