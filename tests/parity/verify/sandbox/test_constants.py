"""What a program carries beside its state is found wherever it is kept, in both backends."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from parity.recipes import recipe_for, to_fields
from parity.verify.cheats.programs import frozen, template
from parity.verify.sandbox.server import Server

SIZES = {"layers": 1, "dim": 32, "head_dim": 16, "context": 32, "batch_tokens": 128}
NUMBERS = "\n\nimport numpy as np\n\n_random = np.random.default_rng(1)\n_TABLE = _random.standard_normal((50, 60))\n"
PLACES = {
    "a global": "",
    "a list": "_TABLE = _TABLE.ravel().tolist()\n",
    "rows of a few": "_TABLE = _TABLE.reshape(-1, 4).tolist()\n",
    "a mapping": "_TABLE = {int(1e6 * x): i for i, x in enumerate(_TABLE.ravel())}\n",
    "a string": "_TABLE = _TABLE.tobytes().hex()\n",
    "a closure": "def _make(table):\n    return lambda: table\nbuild.get, _TABLE = _make(_TABLE), None\n",
    "a default": "def _get(table=_TABLE):\n    return table\n_TABLE = None\n",
    "a class": "class _Kept:\n    table = _TABLE\n_TABLE = None\n",
    "an object": "class _Kept:\n    pass\n_kept = _Kept()\n_kept.parts = {'a': [_TABLE]}\n_TABLE = None\n",
}


def carried(backend: str, text: str, folder: Path) -> list[dict]:
    file = folder / "program.py"
    file.write_text(text)
    recipe = dataclasses.replace(recipe_for("muon", "tiny"), **SIZES)
    server = Server()
    server.build(backend, to_fields(recipe), str(file), None, "cpu")
    inputs, targets = np.random.default_rng(0).integers(0, 512, (2, 4, 32))
    if backend == "jaxrun":  # shapes are enough to trace it
        return server.constants(server._add(server.program.shapes), inputs, targets)
    state = server.init(0)
    before = server.digest(state)
    found = server.constants(state, inputs, targets)
    assert server.digest(state) == before
    server.step(state, inputs, targets)  # the program still works
    return found


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_an_honest_program_carries_next_to_nothing(backend: str, tmp_path):
    assert sum(constant["bytes"] for constant in carried(backend, template(backend), tmp_path)) < 4096


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_a_frozen_matrix_is_found_once_with_its_shape(backend: str, tmp_path):
    first, *others = carried(backend, frozen(backend), tmp_path)
    assert first["shape"] == [2, 32, 600] and first["type"] == "float32" and first["bytes"] > 100_000
    assert sum(constant["bytes"] for constant in others) < 4096 or others[0]["shape"] in ([32, 600], [600, 32])


@pytest.mark.parametrize("place", PLACES)
def test_a_table_is_found_wherever_it_is_kept(place: str, tmp_path):
    found = carried("torchref", template("torchref") + NUMBERS + PLACES[place], tmp_path)
    assert found[0]["bytes"] > 10_000 and sum(each["bytes"] for each in found[1:]) < 4096, found


def test_a_buffer_of_the_model_is_found(tmp_path):
    text = template("torchref").replace("import torch.nn.functional", "import torch\nimport torch.nn.functional", 1)
    at = "super().__init__()\n"
    where = text.index(at, text.index("class Model(")) + len(at)
    text = text[:where] + "        self.register_buffer('frozen', torch.randn(60, 70))\n" + text[where:]
    assert [60, 70] in [constant["shape"] for constant in carried("torchref", text, tmp_path)]
