"""What a forward pass shows of its modules: each once, however a user's model calls its parts, alike in both
backends."""

import dataclasses
import importlib

import numpy as np
import pytest

from parity import weights as canonical
from parity.capture import Capture
from parity.program import inspector_of
from parity.recipes import recipe_for

RECIPE = dataclasses.replace(recipe_for("nanogpt", "tiny"), layers=2)


class Backend:
    """A backend, and subclasses of its models' classes that differ in their forward pass."""

    def __init__(self, name):
        self.name = name
        self.models = importlib.import_module(f"{name}.models.nanogpt")
        self.method = "__call__" if name == "jaxrun" else "forward"

    def subclass(self, base, forward, **more):
        """`forward(inherited, self, ...)` is the subclass's forward pass."""
        kind = type(f"Mine{base.__name__}", (base,), more)

        def call(module, *args, **options):
            return forward(getattr(base, self.method), module, *args, **options)

        setattr(kind, self.method, call)
        return kind

    def activations(self, change):
        """Of the model whose first block `change(backend, block)` has changed."""
        backend = self

        class Model(self.models.Model):
            def __init__(self, recipe):
                super().__init__(recipe)
                change(backend, self.blocks[0])

        if self.name == "jaxrun":
            from jaxrun.program import JaxProgram
            from jaxrun.sharding import pick_devices

            program = JaxProgram(RECIPE, pick_devices("cpu", 1), make_model=Model)
        else:
            import torch

            from torchref.program import TorchProgram

            program = TorchProgram(RECIPE, torch.device("cpu"), make_model=Model)
        state = program.load(canonical.initial_weights(RECIPE, 0))
        tokens = np.arange(64, dtype=np.int32)[None]
        activations = inspector_of(program).activations(state, program.put_global_batch(tokens, tokens))
        return {name: np.asarray(program.fetch(value)) for name, value in activations.items()}


@pytest.fixture(scope="module", params=["jaxrun", "torchref"])
def backend(request):
    pytest.importorskip("jax" if request.param == "jaxrun" else "torch")
    return Backend(request.param)


def through_the_parent(backend, block):
    block.mlp.__class__ = backend.subclass(type(block.mlp), lambda inherited, mlp, x: inherited(mlp, x))


def through_two_parents(backend, block):
    parent = backend.subclass(type(block.norm1), lambda inherited, norm, x: inherited(norm, x))
    block.norm1.__class__ = backend.subclass(parent, lambda inherited, norm, x: inherited(norm, x))
    block.norm2.__class__ = parent


def through_itself(backend, block):
    def forward(inherited, attention, x, again=True):
        return attention(x, again=False) if again else inherited(attention, x)

    block.attn.__class__ = backend.subclass(type(block.attn), forward)


def by_keyword(backend, block):
    def forward(inherited, block, x_BTD):
        x_BTD = x_BTD + block.attn(x_BTD=block.norm1(x_BTD))
        return x_BTD + block.mlp(x_BTD=block.norm2(x_BTD))

    block.__class__ = backend.subclass(type(block), forward)


def rematerialised(backend, block):
    def forward(inherited, block, x):
        if backend.name == "jaxrun":
            import jax

            return jax.checkpoint(lambda x: inherited(block, x))(x)
        from torch.utils.checkpoint import checkpoint

        return checkpoint(inherited, block, x, use_reentrant=False)

    block.__class__ = backend.subclass(type(block), forward)


def nothing(backend, block):
    """The model as it is."""


@pytest.fixture(scope="module")
def unchanged(backend):
    return backend.activations(nothing)


@pytest.mark.parametrize(
    "change", [through_the_parent, through_two_parents, through_itself, by_keyword, rematerialised]
)
def test_a_module_is_shown_once_however_its_forward_pass_is_reached(backend, unchanged, change):
    activations = backend.activations(change)
    assert list(activations) == list(unchanged) and "blocks.0.mlp#2" not in activations
    for name, value in activations.items():
        np.testing.assert_allclose(value, unchanged[name], rtol=1e-4, atol=1e-5)


def test_a_module_that_runs_twice_is_shown_twice(backend, unchanged):
    def twice(backend, block):
        block.mlp.__class__ = backend.subclass(type(block.mlp), lambda inherited, mlp, x: inherited(mlp, x))
        block.__class__ = backend.subclass(type(block), lambda inherited, block, x: inherited(block, block.mlp(x)))

    more = backend.activations(twice).keys() - unchanged.keys()
    assert more == {f"blocks.0.mlp{part}#2" for part in ("", ":in", ".fc", ".fc:in", ".proj", ".proj:in")}


def test_values_of_an_inner_trace_are_left_out():
    jax = pytest.importorskip("jax")
    backend = Backend("jaxrun")

    def scanned(backend, block):
        def forward(inherited, block, x):
            return jax.lax.scan(lambda x, _: (inherited(block, x), None), x, None, length=1)[0]

        block.__class__ = backend.subclass(type(block), forward)

    shown = backend.activations(scanned)
    assert {"blocks.0:in", "blocks.0", "blocks.1.mlp"} <= shown.keys() and "blocks.0.mlp" not in shown


def test_what_is_no_array_is_not_shown_and_of_several_the_first_is():
    captured, x = Capture(), np.zeros(2)
    captured.enter("a", (), {})
    captured.leave({"x": x})
    captured.enter("b", (None, x), {})
    captured.leave((x, "more"))
    captured.enter("c", (), {"x": x})
    captured.leave(None)
    assert list(captured) == ["b", "c:in"]
