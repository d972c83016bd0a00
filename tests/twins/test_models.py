"""The models of records 11 and 21 in both backends: their modules against formulas, and how a model puts them
together."""

import dataclasses
import functools
import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from parity import weights as canonical
from parity.compare.guarded import inspector_of
from parity.program import build
from parity.recipes import RMS_EPS, recipe_for

pytestmark = pytest.mark.usefixtures("x64")

RECORDS = ("record-11", "record-21")
CLOSE = {"rtol": 1e-13, "atol": 1e-14}  # a handful of float64 operations on numbers of order 1


def recipe_of(name, **fields):
    return dataclasses.replace(recipe_for(name, "tiny"), **({"precision": "float64"} | fields))


@pytest.fixture(scope="module")
def pieces(pieces):
    """With the models, and a module's weights and a function's gradients in either backend."""
    models = {
        name: importlib.import_module(f"{pieces.name}.models.{name.replace('-', '_')}") for name in ("muon", *RECORDS)
    }

    def fill(module, **weights):
        """A module with these weights; a__b stands for a.b."""
        for name, value in weights.items():
            *owners, last = name.split("__")
            owner = functools.reduce(getattr, owners, module)
            if pieces.name == "jaxrun":
                getattr(owner, last)[...] = pieces.put(value)
            else:
                getattr(owner, last).data = pieces.put(value)
        return module

    def build_model(kind, recipe):
        """A model whose weights are zeros."""
        return kind(recipe)

    def gradients(function, *arrays):
        """Of the function's sum by each of its arguments."""
        if pieces.name == "jaxrun":
            import jax

            found = jax.grad(lambda *x: function(*x).sum(), tuple(range(len(arrays))))(*map(pieces.put, arrays))
        else:
            import torch

            given = [pieces.put(x).requires_grad_() for x in arrays]
            found = torch.autograd.grad(function(*given).sum(), given)
        return [pieces.get(g) for g in found]

    return SimpleNamespace(
        name=pieces.name,
        attention=pieces.attention,
        layers=pieces.layers,
        fp8=pieces.fp8,
        models=models,
        put=pieces.put,
        get=pieces.get,
        dtype=pieces.dtype,
        fill=fill,
        build=build_model,
        gradients=gradients,
    )


def normed(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + RMS_EPS)


# Modules by themselves


def test_scale_by_is_a_product_and_its_factors_gradient_a_sum(pieces, rng):
    x, factor = rng.standard_normal((2, 3, 8)), np.array(0.7)
    np.testing.assert_allclose(pieces.get(pieces.layers.scale_by(pieces.put(x), pieces.put(factor))), 0.7 * x, **CLOSE)
    dy = rng.standard_normal(x.shape)
    dx, dfactor = pieces.gradients(lambda x, factor: pieces.put(dy) * pieces.layers.scale_by(x, factor), x, factor)
    np.testing.assert_allclose(dx, 0.7 * dy, **CLOSE)
    np.testing.assert_allclose(dfactor, (x * dy).sum(), rtol=1e-12)
    assert dfactor.shape == ()


def test_the_gradient_of_a_narrow_factor_is_summed_wide(pieces):
    ones, factor = (pieces.put(np.ones(shape), "bfloat16") for shape in ((10, 100), ()))
    if pieces.name == "jaxrun":
        import jax

        found = jax.grad(lambda f: pieces.layers.scale_by(ones, f).sum())(factor)
    else:
        factor.requires_grad_()
        pieces.layers.scale_by(ones, factor).sum().backward()
        found = factor.grad
    assert pieces.get(found) == 1000  # which bfloat16 has; a sum in bfloat16 would stop at 256


def test_the_input_residual_is_its_formula(pieces, rng):
    x, x0 = rng.standard_normal((2, 2, 3, 64))
    residual = pieces.fill(pieces.layers.InputResidual(recipe_of("record-11").dtypes), weight=np.array([0.9, -0.3]))
    np.testing.assert_allclose(pieces.get(residual(pieces.put(x), pieces.put(x0))), 0.9 * x - 0.3 * x0, **CLOSE)


def test_first_values_are_mixed_with_the_first_blocks(pieces, rng):
    v, v1 = rng.standard_normal((2, 2, 3, 4, 16))
    mix = pieces.fill(pieces.models["record-11"].FirstValueMix(recipe_of("record-11")), weight=np.array([0.2]))
    for first, expected in ((v1, 0.8 * v + 0.2 * v1), (None, v)):
        first_v = None if first is None else pieces.put(first)
        np.testing.assert_allclose(pieces.get(mix(pieces.put(v), first_v)), expected, **CLOSE)


def test_value_embeddings_are_added_to_v(pieces, rng):
    v, e = rng.standard_normal((2, 3, 4, 16)), rng.standard_normal((2, 3, 64))
    mix = pieces.fill(pieces.models["record-21"].ValueMix(recipe_of("record-21")), weight=np.array([0.4, -0.7]))
    for value, expected in ((e, 0.4 * v - 0.7 * e.reshape(v.shape)), (None, 0.4 * v)):
        value_BTD = None if value is None else pieces.put(value)
        np.testing.assert_allclose(pieces.get(mix(pieces.put(v), value_BTD)), expected, **CLOSE)


def test_each_skip_has_a_factor_of_its_own(pieces, rng):
    x, *outputs = rng.standard_normal((3, 2, 3, 64))
    skips = pieces.fill(pieces.layers.SkipConnections(2, recipe_of("record-11").dtypes), weight=np.array([0.5, -2.0]))
    for i, (w, y) in enumerate(((0.5, outputs[1]), (-2.0, outputs[0]))):  # the last output of the first half first
        added = skips(pieces.put(x), [pieces.put(y) for y in outputs], i)
        np.testing.assert_allclose(pieces.get(added), x + w * y, **CLOSE)


def test_a_stack_gives_a_product_with_each_of_its_matrices(pieces, rng):
    x, stack = rng.standard_normal((2, 5, 64)), rng.standard_normal((3, 64, 64))
    layer = pieces.fill(pieces.layers.StackedLinear(3, 64, 64, recipe_of("record-21").dtypes), weight=stack)
    products = np.split(pieces.get(layer(pieces.put(x))), 3, axis=-1)
    for product, matrix in zip(products, stack, strict=True):
        np.testing.assert_allclose(product, x @ matrix.T, rtol=1e-12, atol=1e-12)


def softcap_of(pieces, name, **fields):
    """The softcap of a recipe's model, as a function."""
    recipe = recipe_of(name, **fields)
    return pieces.build(pieces.models[name].Model, recipe).softcap


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("record-11", lambda z: 30 * np.tanh(z / 30)),
        ("record-21", lambda z: 30 / (1 + np.exp(-z / 7.5))),
        ("muon", lambda z: 15 * z / np.sqrt(z * z + 225)),
    ],
)
def test_a_softcap_is_its_formula_and_so_is_its_gradient(pieces, rng, name, formula):
    z, h = np.append(20 * rng.standard_normal(40), [0.0, 300.0, -300.0]), 1e-5
    softcap = softcap_of(pieces, name)
    np.testing.assert_allclose(pieces.get(softcap(pieces.put(z))), formula(z), rtol=1e-13, atol=1e-13)
    (slope,) = pieces.gradients(softcap, z)
    np.testing.assert_allclose(slope, (formula(z + h) - formula(z - h)) / (2 * h), atol=1e-9)  # h^2, and 1e-16 30 / h


def test_the_softcap_by_tanh_is_rounded_to_bfloat16_before_it_is_widened(pieces, rng):
    raw_logits = canonical.round_to(10 * rng.standard_normal(200), "bfloat16")
    logits = softcap_of(pieces, "record-11", precision="bfloat16")(pieces.put(raw_logits, "bfloat16"))
    assert "float32" in str(logits.dtype)
    exact = 30 * np.tanh(raw_logits.astype(np.float64) / 30)
    # float32's own rounding may decide a tie: at most one step of bfloat16, and almost nowhere
    differs = pieces.get(logits) != canonical.round_to(exact, "bfloat16")
    assert differs.mean() < 0.02
    assert np.array_equal(pieces.get(logits), canonical.round_to(pieces.get(logits), "bfloat16"))


@pytest.mark.parametrize(("full", "base", "count"), [(True, 10_000.0, 8), (False, 1024.0, 4)])
def test_rotary_rotates_by_the_records_angles(pieces, rng, full, base, count):
    """K = 16: eight pairs (i, i + 8), of which the half-truncated one rotates four."""
    x = rng.standard_normal((2, 40, 3, 16))
    frequency = [base ** (-2 * i / 16) if full else base ** (-i / 3) if i < count else 0.0 for i in range(8)]
    cos, sin = (f(np.arange(40)[:, None, None] * np.array(frequency)) for f in (np.cos, np.sin))
    x1, x2 = np.split(x, 2, axis=-1)
    expected = np.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], -1)
    rotated = pieces.get(pieces.attention.rotary(pieces.put(x), base, "float64", full))
    np.testing.assert_allclose(rotated, expected, rtol=1e-12, atol=1e-12)  # positions up to 39 enlarge an error


def test_record_11s_cosines_and_sines_are_bfloat16(pieces):
    recipe = recipe_of("record-11", precision="bfloat16")
    x = np.concatenate([np.ones((1, 50, 1, 8)), np.zeros((1, 50, 1, 8))], -1)  # gives the cosines and minus the sines
    found = pieces.get(
        pieces.attention.rotary(
            pieces.put(x, "float32"),
            10_000.0,
            "float32",
            full=True,
            table_dtype=recipe.dtypes.rotary,
        )
    )
    angle = np.arange(50)[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    for part, exact in ((found[0, :, 0, :8], np.cos(angle)), (found[0, :, 0, 8:], -np.sin(angle))):
        assert np.array_equal(part, canonical.round_to(part, "bfloat16"))
        np.testing.assert_allclose(part, exact, rtol=2**-8, atol=1e-5)


def test_norm_has_no_weights_and_is_its_formula(pieces, rng):
    recipe = recipe_of("record-21")
    x = rng.standard_normal((2, 3, 64))
    np.testing.assert_allclose(
        pieces.get(pieces.layers.Norm(recipe.norm_eps, recipe.dtypes)(pieces.put(x))), normed(x), **CLOSE
    )


# Documents and windows


def test_a_document_starts_with_the_end_of_text(pieces):
    tokens = np.array([[3, 9, 1, 1, 9, 9, 2], [9, 0, 0, 0, 0, 0, 9]])
    found = pieces.get(pieces.attention.segment_ids(pieces.put(tokens), 9))
    assert found.tolist() == [[0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]


def naive_window(q, k, v, scale, documents, window, block):
    y = np.empty_like(v)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = [
            s for s in range(t + 1) if documents[b, s] == documents[b, t] and s // block > t // block - max(1, window)
        ]
        scores = k[b, seen, h] @ q[b, t, h] * scale
        probs = np.exp(scores - scores.max())
        y[b, t, h] = probs / probs.sum() @ v[b, seen, h]
    return y


@pytest.mark.parametrize("window", [1, 2, 5, 14])
def test_windows_are_of_blocks_within_a_document(pieces, rng, window):
    q, k, v = rng.standard_normal((3, 2, 64, 2, 16))
    documents = np.cumsum(rng.random((2, 64)) < 0.05, axis=1).astype(np.int32)
    arrays = [pieces.put(x) for x in (q, k, v)]
    blocks = pieces.put(np.array(window, np.int32))
    y = pieces.get(pieces.attention.window_attention(*arrays, 0.3, pieces.put(documents), blocks, 4, window))
    np.testing.assert_allclose(y, naive_window(q, k, v, 0.3, documents, window, 4), **CLOSE)


@pytest.mark.parametrize("backend", [pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"])
def test_short_windows_are_half_of_the_long_one(backend, monkeypatch):
    """Of six blocks the first, the third, the fourth and the last have the long window; the fourth has no attention."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    recipe = recipe_of("record-21", layers=6, precision="float32")
    program, windows = build(backend, recipe, device="cpu"), []
    module = importlib.import_module(f"{backend}.models.record_21")
    original = module.window_attention

    def recording(q, k, v, scale, segments, window, block, max_window):
        windows.append((window, max_window))
        return original(q, k, v, scale, segments, window, block, max_window)

    monkeypatch.setattr(module, "window_attention", recording)
    state = program.load(canonical.initial_weights(recipe, 0))
    tokens = np.zeros((1, recipe.context), np.int32)
    if backend == "jaxrun":
        jax = pytest.importorskip("jax")
        with jax.disable_jit():
            program.log_probs(program.with_step(state, recipe.steps), tokens)
    else:
        program.log_probs(program.with_step(state, recipe.steps), tokens)
    widest = recipe.attention_window(recipe.steps)
    assert [int(window) for window, _ in windows] == [widest, widest // 2, widest, widest // 2, widest]
    assert all(int(window) <= bound for window, bound in windows)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_the_window_of_a_state_is_that_of_its_step(backend):
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    recipe = recipe_of("record-21", precision="float32", layers=2)
    program = build(backend, recipe, device="cpu")
    assert inspector_of(program).schedules()["window"].tolist() == [
        recipe.attention_window(step) for step in range(recipe.steps + 1)
    ]
    assert list(inspector_of(program).schedules()["momentum"]) == [
        recipe.momentum_at(step) for step in range(recipe.steps)
    ]
    tokens = np.random.default_rng(0).integers(0, 500, (2, 8, recipe.context)).astype(np.int32)
    noise = np.random.default_rng(1)
    start = {
        name: w + 0.1 * noise.standard_normal(w.shape).astype(w.dtype)
        for name, w in canonical.initial_weights(recipe, 0).items()
    }
    losses = []
    for step in (0, 30, 60, 61):
        batch = program.put_global_batch(*tokens)
        losses.append(
            np.array(program.fetch(program.token_losses(program.with_step(program.load(start), step), batch)))
        )
    assert not np.array_equal(losses[0], losses[1]) and not np.array_equal(losses[1], losses[2])
    assert np.array_equal(losses[2], losses[3]), "behind the last step the window stays"


# Together


def test_only_training_at_bfloat16_has_the_head_in_8_bits(pieces, rng):
    x = rng.standard_normal((2, 128, 64))
    weight = canonical.round_to(0.05 * rng.standard_normal((512, 64)), "bfloat16")
    for precision, fp8, rounds in (("bfloat16", True, True), ("bfloat16", False, False), ("float32", True, False)):
        recipe = recipe_of("record-21", precision=precision, fp8=fp8)
        model = pieces.build(pieces.models["record-21"].Model, recipe)
        pieces.fill(model.head, weight=weight.astype(np.float32))
        inputs = pieces.put(x, "bfloat16" if precision == "bfloat16" else "float32")
        plain, training = pieces.get(model.raw_logits(inputs)), pieces.get(model.training_raw_logits(inputs, 1 / 128))
        assert np.array_equal(plain, training) != rounds
        # e4m3 is off by up to 2^-4 of each factor: 64 products of 1 and 0.05, at random, give 0.4 x 2^-4 x sqrt(2) x
        # 2^-1
        np.testing.assert_allclose(training, plain, rtol=0, atol=0.15)


@pytest.fixture(
    scope="module", params=[(b, r) for r in ("record-11", "record-21") for b in ("jaxrun", "torchref")], ids="-".join
)
def shown(request, x64):
    """A recipe of six blocks, its weights, and all activations of a batch."""
    backend, name = request.param
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    more = {"value_embeddings": 2, "val_context": 32, "window": 16} if name == "record-21" else {}
    recipe = recipe_of(name, layers=6, dim=32, context=32, batch_tokens=64, **more)
    rng = np.random.default_rng(5)
    weights = {key: w + 0.3 * rng.standard_normal(w.shape) for key, w in canonical.initial_weights(recipe, 0).items()}
    program = build(backend, recipe, device="cpu")
    tokens = rng.integers(0, 512, (2, 2, 32)).astype(np.int32)
    state = program.with_step(program.load(weights), recipe.steps)
    return recipe, weights, program.fetch(inspector_of(program).activations(state, program.put_global_batch(*tokens)))


def test_the_last_output_of_the_first_half_is_the_first_that_is_added(shown):
    recipe, weights, found = shown
    for i in range(3):
        again = f"#{i + 1}" if i else ""
        block = found[f"blocks.{2 + i}"]
        np.testing.assert_allclose(found[f"skips:in{again}"], block, rtol=0, atol=0, err_msg="behind the block before")
        expected = block + weights["skips.weight"][i] * found[f"blocks.{2 - i}"]
        np.testing.assert_allclose(found[f"skips{again}"], expected, rtol=1e-13, atol=1e-12)
        np.testing.assert_allclose(found[f"blocks.{3 + i}:in"], found[f"skips{again}"], rtol=0, atol=0)


def test_every_block_begins_with_the_stream_and_the_normed_embedding(shown):
    _, weights, found = shown
    np.testing.assert_allclose(found["norm_in"], normed(found["embed"]), rtol=1e-12, atol=1e-13)
    for i in range(6):
        l0, l1 = weights[f"blocks.{i}.lambdas.weight"]
        expected = l0 * found[f"blocks.{i}:in"] + l1 * found["norm_in"]
        np.testing.assert_allclose(found[f"blocks.{i}.lambdas"], expected, rtol=1e-12, atol=1e-12)


def test_the_first_and_the_last_blocks_have_value_embeddings_in_the_same_order(shown):
    recipe, weights, found = shown
    if recipe.name == "record-11":
        pytest.skip("record-11 mixes v with the first block's")
    of = {0: 0, 1: 1, 4: 0, 5: 1}
    assert recipe.value_embedding_of == of and recipe.no_attention_layer == 3
    for i in (0, 1, 2, 4, 5):
        a0, a1 = weights[f"blocks.{i}.attn.lambdas.weight"]
        v = found[f"blocks.{i}.attn.lambdas:in"]
        e = found[f"value_embeds.{of[i]}"].reshape(v.shape) if i in of else 0
        np.testing.assert_allclose(found[f"blocks.{i}.attn.lambdas"], a0 * v + a1 * e, rtol=1e-12, atol=1e-12)
        assert np.array_equal(found[f"blocks.{i}.attn:v"], found[f"blocks.{i}.attn.lambdas"])


def test_v_is_mixed_with_the_first_blocks_own(shown):
    recipe, weights, found = shown
    if recipe.name == "record-21":
        pytest.skip("record-21 has value embeddings")
    first = found["blocks.0.attn.lambdas:in"]
    for i in range(6):
        (a,) = weights[f"blocks.{i}.attn.lambdas.weight"]
        expected = (1 - a) * found[f"blocks.{i}.attn.lambdas:in"] + a * first
        np.testing.assert_allclose(found[f"blocks.{i}.attn.lambdas"], expected, rtol=1e-12, atol=1e-12)


def test_the_block_without_attention_has_an_mlp_alone(shown):
    recipe, _, found = shown
    inside = {name.split(".")[2].split(":")[0] for name in found if name.startswith("blocks.3.")}
    assert inside == ({"lambdas", "norm2", "mlp"} | (set() if recipe.name == "record-21" else {"norm1", "attn"}))
