"""Both backends' pieces behind one face, so that one test holds for each: numpy arrays in, numpy arrays out."""

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Pieces:
    """The modules of a backend, and arrays to and from its own kind."""

    name: str
    attention: ModuleType
    layers: ModuleType
    fp8: ModuleType
    optim: ModuleType
    transforms: ModuleType

    def dtype(self, name: str) -> Any:
        """The backend's type of a name."""
        return name if self.name == "jaxrun" else self.layers.torch_dtype(name)

    def put(self, array: np.ndarray, dtype: str | None = None) -> Any:
        """A numpy array as the backend's."""
        if self.name == "jaxrun":
            import jax.numpy as jnp

            return jnp.asarray(array, dtype)
        import torch

        tensor = torch.from_numpy(np.array(array))
        return tensor if dtype is None else tensor.to(self.dtype(dtype))

    def get(self, array: Any) -> np.ndarray:
        """A backend's array as float64."""
        return np.asarray(array).astype(np.float64) if self.name == "jaxrun" else array.detach().double().numpy()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are done before a second thread has woken up, and waiting threads take a busy machine's
    cores."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["jaxrun", "torchref"])
def pieces(request: pytest.FixtureRequest) -> Pieces:
    pytest.importorskip("jax" if request.param == "jaxrun" else "torch")
    return Pieces(
        request.param,
        *(
            importlib.import_module(f"{request.param}.{name}")
            for name in ("attention", "layers", "kernels.fp8", "optim", "transforms")
        ),
    )


@pytest.fixture(scope="module")
def x64() -> Iterator[None]:
    """float64 in JAX for the tests of a module."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """scripts/golden.py as a module."""
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).parents[2] / "scripts" / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
