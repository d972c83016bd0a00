"""Both backends' optimizers, in float64, against PyTorch's and optax's.

Rounding in float64 is 1.1e-16; a step of AdamW is a dozen operations on numbers of order 1, so five steps agree to
1e-14.
"""

import math

import numpy as np
import pytest

from parity.recipes import RECIPES, recipe_for
from parity.recipes.record_40 import POLAR_EXPRESS

pytestmark = pytest.mark.usefixtures("x64")

RATES = np.array([0.1, 0.2, 0.05, 0.3, 0.1])
CLOSE = {"rtol": 1e-13, "atol": 1e-13}
NEWTON_SCHULZ = (2.0, -1.5, 0.5)
SHAPES = {"wide": (8, 24), "tall": (24, 8), "square1": (12, 12), "square2": (12, 12)}


def start(rng, shapes):
    """Weights, and their gradients of five steps."""
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return weights, [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in RATES]


def adamw_after(pieces, weights, grads, decay=0.0, betas=(0.8, 0.95), eps=1e-8):
    """The weights after a step of the backend's `adamw` for each mapping of gradients."""
    if pieces.name == "jaxrun":
        return optax_after(pieces.optim.adamw(RATES, betas, eps, decay), weights, grads)
    return by_group_after(pieces, lambda groups: pieces.optim.adamw(groups, betas, eps, {"all": decay}), weights, grads)


def muon_after(pieces, weights, grads, decay=0.05, mu=0.95, **options):
    """The same of the backend's `muon`."""
    newton_schulz = (12, NEWTON_SCHULZ, pieces.dtype("float64"))
    if pieces.name == "jaxrun":
        return optax_after(pieces.optim.muon(RATES, decay, mu, *newton_schulz, **options), weights, grads)
    return by_group_after(
        pieces, lambda groups: pieces.optim.muon(groups, decay, mu, *newton_schulz, **options), weights, grads
    )


def odd_adam_after(pieces, weights, grads, betas=(0.65, 0.95), eps=1e-8, dtype="float64"):
    """The same of the backend's `odd_adam`."""
    if pieces.name == "jaxrun":
        return optax_after(pieces.optim.odd_adam(RATES, betas, eps, dtype), weights, grads)
    return by_group_after(
        pieces, lambda groups: pieces.optim.odd_adam(groups, {"all": betas}, eps, pieces.dtype(dtype)), weights, grads
    )


def optax_after(transform, weights, grads):
    """The same by an optax transform."""
    import jax
    import jax.numpy as jnp
    import optax

    weights = jax.tree.map(jnp.asarray, weights)
    state = transform.init(weights)

    @jax.jit  # operation by operation, each would be compiled for each shape
    def step(weights, state, gradients):
        updates, state = transform.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    for gradients in grads:
        weights, state = step(weights, state, gradients)
    return {name: np.asarray(w) for name, w in weights.items()}


def by_group_after(pieces, make, weights, grads):
    """The same by torchref's `ByGroup`, which sets the learning rates."""
    import torch

    parameters = {name: torch.nn.Parameter(pieces.put(w)) for name, w in weights.items()}
    optimizer = pieces.optim.ByGroup({"one": make({"all": parameters})}, {"all": RATES})
    for step, gradients in enumerate(grads):
        for name, p in parameters.items():
            p.grad = pieces.put(gradients[name])
        optimizer.update(step, [p.grad for p in parameters.values()], None)
    return {name: pieces.get(p) for name, p in parameters.items()}


def torch_after(make, weights, grads):
    """The same by a torch optimizer."""
    import torch

    parameters = {name: torch.nn.Parameter(torch.from_numpy(w.copy())) for name, w in weights.items()}
    optimizer = make(list(parameters.values()))
    for rate, gradients in zip(RATES, grads, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        for name, p in parameters.items():
            p.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}


def same(result, expected, **tolerance):
    assert result.keys() == expected.keys()
    for name in result:
        np.testing.assert_allclose(result[name], expected[name], **(tolerance or CLOSE))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(pieces, rng, decay):
    torch = pytest.importorskip("torch")
    weights, grads = start(rng, {"a": (3, 4), "b": (5,)})
    peer = torch_after(
        lambda p: torch.optim.AdamW(p, betas=(0.8, 0.95), eps=1e-8, weight_decay=decay, foreach=False), weights, grads
    )
    same(adamw_after(pieces, weights, grads, decay), peer)


def test_odd_adam_acts_on_odd_steps_on_the_sum_of_two_gradients(pieces, rng):
    weights, grads = start(rng, {"a": (3, 4), "b": (5,)})
    for steps in range(1, 6):
        expected = {}
        for name, first in weights.items():
            w, m, v = first, np.zeros_like(first), np.zeros_like(first)
            for t in range(1, steps // 2 + 1):
                g = grads[2 * t - 2][name] + grads[2 * t - 1][name]
                m, v = 0.65 * m + 0.35 * g, 0.95 * v + 0.05 * g * g
                rate = RATES[2 * t - 1] * math.sqrt(1 - 0.95**t) / (1 - 0.65**t)
                w = w - rate * m / (np.sqrt(v) + 1e-8)
            expected[name] = w
        same(odd_adam_after(pieces, weights, grads[:steps]), expected)


def test_odd_adams_moments_are_kept_in_their_own_type(pieces, rng):
    """Two updates: the second sees moments that were rounded to bfloat16, by up to 2^-9 of their size."""
    weights, grads = start(rng, {"a": (40,)})
    exact, rounded = (odd_adam_after(pieces, weights, grads[:4], dtype=dtype) for dtype in ("float64", "bfloat16"))
    apart = np.abs(exact["a"] - rounded["a"]).max()
    assert 0 < apart < 0.3 * 4 * 2.0**-9


def test_coefficients_of_every_step_in_turn_and_another_norm(pieces, rng):
    x = rng.standard_normal((2, 5, 9))
    coefficients = (2.0, -1.5, 0.5, 3.0, -2.0, 0.25)
    found = pieces.get(
        pieces.transforms.newton_schulz(pieces.put(x), 2, coefficients, pieces.dtype("float64"), norm=(1.02, 1e-6))
    )
    for matrix, result in zip(x, found, strict=True):
        y = matrix / (1.02 * np.linalg.norm(matrix) + 1e-6)
        for a, b, c in (coefficients[:3], coefficients[3:]):
            gram = y @ y.T
            y = a * y + (b * gram + c * gram @ gram) @ y
        np.testing.assert_allclose(result, y, rtol=1e-13, atol=1e-14)


def test_polar_express_makes_singular_values_alike(pieces, rng):
    """Its coefficients are made for singular values from 1e-3 of the largest on: within 0.3 of 1 after five steps."""
    u, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    v, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    x = (u * np.geomspace(1, 0.01, 16)) @ v
    found = pieces.get(
        pieces.transforms.newton_schulz(
            pieces.put(x[None]), 5, POLAR_EXPRESS, pieces.dtype("float64"), norm=(1.02, 1e-6)
        )
    )[0]
    assert np.abs(np.linalg.svd(found, compute_uv=False) - 1).max() < 0.3


def test_muon_without_the_factor_for_the_aspect_moves_tall_matrices_less(pieces, rng):
    weights, grads = start(rng, {"tall": (24, 8)})
    scaled, plain = (muon_after(pieces, weights, grads[:1], decay=0.0, aspect=aspect) for aspect in (True, False))
    moved, less = scaled["tall"] - weights["tall"], plain["tall"] - weights["tall"]
    np.testing.assert_allclose(moved, math.sqrt(3) * less, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_optaxs(pieces, rng, decay):
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    weights, grads = start(rng, {"a": (3, 4), "b": (5,)})
    peer = optax.adamw(lambda step: jnp.asarray(RATES)[step], b1=0.8, b2=0.95, eps=1e-8, weight_decay=decay)
    same(adamw_after(pieces, weights, grads, decay), optax_after(peer, weights, grads))


def test_adamw_first_step_moves_every_weight_by_its_rate_against_the_sign(pieces, rng):
    weights, grads = start(rng, {"a": (6,)})
    result = adamw_after(pieces, weights, grads[:1], betas=(0.9, 0.95), eps=1e-12)
    expected = {"a": weights["a"] - RATES[0] * np.sign(grads[0]["a"])}
    same(result, expected, rtol=0, atol=1e-10)  # eps / |g| is up to 1e-10


def test_adam_corrects_its_moments_to_float32s_rounding_at_any_step(rng):
    """In float32, 1 - beta^t would lose what is below 1; and a beta of 0 is no momentum at all."""
    pytest.importorskip("jax")
    import jax
    import jax.numpy as jnp

    from jaxrun import transforms

    moment = {"a": jnp.ones(1, jnp.float32)}
    for count in (0, 1, 9, 999, 99_999):
        for betas in ((0.9, 0.95), (0.0, 0.9999)):
            adam = transforms.scale_by_adam(betas, 0.0)
            state = transforms.AdamState(jnp.asarray(count, jnp.int32), moment, moment)
            u, _ = jax.jit(adam.update)(moment, state)
            c1, c2 = (1 - beta ** (count + 1.0) for beta in betas)  # with all moments and gradients at 1
            np.testing.assert_allclose(u["a"], (1 / c1) / math.sqrt(1 / c2), rtol=2e-6)


def naive_muon(weights, grads, decay=0.05, mu=0.95, ema=True):
    """The description's formulas, a matrix at a time; `mu` is one number, or one a step."""
    weights, moments = dict(weights), {name: np.zeros_like(w) for name, w in weights.items()}
    for rate, mu_t, gradients in zip(RATES, np.broadcast_to(mu, len(RATES)), grads, strict=True):
        for name, g in gradients.items():
            m = moments[name] = mu_t * moments[name] + ((1 - mu_t) * g if ema else g)
            x = (1 - mu_t) * g + mu_t * m if ema else g + mu_t * m
            u = np.stack([naive_update(matrix) for matrix in x]) if x.ndim == 3 else naive_update(x)
            weights[name] = weights[name] * (1 - rate * decay) - rate * u
    return weights


def naive_update(x):
    a, b, c = NEWTON_SCHULZ
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / (np.sqrt((x * x).sum()) + 1e-7)
    for _ in range(12):
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return (x.T if rows > columns else x) * math.sqrt(max(1.0, rows / columns))


def test_muon_is_its_description_for_wide_tall_and_square_matrices(pieces, rng):
    weights, grads = start(rng, SHAPES)
    # small singular values double in each of up to 12 steps, and their rounding with them: 1e-16 * 2^12
    same(muon_after(pieces, weights, grads), naive_muon(weights, grads), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ema", [False, True])
def test_muon_has_a_momentum_of_its_own_at_every_step_as_an_average_or_a_sum(pieces, rng, ema):
    weights, grads = start(rng, SHAPES)
    options = {"decay": 0.0, "mu": np.array([0.85, 0.88, 0.91, 0.94, 0.95])}
    result = muon_after(pieces, weights, grads, **options, ema=ema)
    same(result, naive_muon(weights, grads, **options, ema=ema), rtol=0, atol=1e-12)
    other = naive_muon(weights, grads, **options, ema=not ema)
    assert max(np.abs(result[name] - other[name]).max() for name in result) > 1e-3


def test_muon_takes_a_stack_as_the_matrices_that_it_holds(pieces, rng):
    """Also next to single matrices of the same shape, which are orthogonalised in the same batch."""
    weights, grads = start(rng, {"stack": (3, 12, 12), "one": (12, 12), "tall": (2, 24, 8)})
    result = muon_after(pieces, weights, grads)
    same(result, naive_muon(weights, grads), rtol=0, atol=1e-12)

    def unstacked(tensors):
        return {f"{name}.{i}": x[i] for name, x in tensors.items() if x.ndim == 3 for i in range(len(x))}

    alone = muon_after(pieces, unstacked(weights), [unstacked(g) for g in grads])
    same(alone, unstacked(result), rtol=0, atol=1e-12)


def test_muon_is_torchs_up_to_the_bfloat16_that_torch_always_orthogonalises_in(pieces, rng):
    """Momentum, look-ahead, aspect factor and decay agree. Epsilon does not (torch divides by at least 1e-7, ours adds
    it), nor do the defaults (coefficients 3.4445, -4.7750, 2.0315; 5 steps), nor the precision, which torch fixes."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    weights, grads = start(rng, SHAPES)
    # matrices with singular values near one another, whose orthogonal factor does not enlarge bfloat16's rounding
    grads = [{name: g + 10 * np.eye(*g.shape) for name, g in gradients.items()} for gradients in grads]
    peer = torch_after(
        lambda p: torch.optim.Muon(p, weight_decay=0.05, momentum=0.95, ns_coefficients=NEWTON_SCHULZ, ns_steps=12),
        weights,
        grads,
    )
    result = muon_after(pieces, weights, grads)
    # an entry of u is at most sqrt(3) in size and wrong by some roundings of 2^-9 a step; the rates add up to 0.75
    same(result, peer, rtol=0, atol=0.75 * math.sqrt(3) * 12 * 2**-9)
    moved = {name: np.abs(result[name] - weights[name]).max() for name in result}
    assert min(moved.values()) > 0.5, "the tolerance must be small against the movement"


def optax_muon_after(weights, grads):
    from optax.contrib import MuonDimensionNumbers, muon

    # ours are (out, in); optax's default is (in, out), for which the aspect factor is the other way round
    axes = dict.fromkeys(weights, MuonDimensionNumbers(reduction_axis=1, output_axis=0))
    optimizer = muon(
        float(RATES[0]),
        ns_coeffs=NEWTON_SCHULZ,
        ns_steps=12,
        beta=0.95,
        eps=1e-7,
        weight_decay=0.05,
        muon_weight_dimension_numbers=axes,
    )
    return optax_after(optimizer, weights, grads)


def test_muon_is_optaxs_at_the_first_step(pieces, rng):
    """Orthogonalisation, aspect factor, decay and epsilon agree where momentum has no say."""
    pytest.importorskip("optax")
    weights, grads = start(rng, {name: SHAPES[name] for name in ("wide", "tall")})
    result = muon_after(pieces, weights, grads[:1])
    # optax's first look-ahead is g itself, ours g / 10: epsilon is 1e-7 of the one's norm and 1e-6 of the other's
    same(result, optax_muon_after(weights, grads[:1]), rtol=0, atol=2e-6)


def test_muon_is_not_optaxs_later_because_optax_corrects_the_momentum_for_its_start(pieces, rng):
    pytest.importorskip("optax")
    weights, grads = start(rng, {"wide": SHAPES["wide"]})
    peer = optax_muon_after(weights, grads[:2])
    result = muon_after(pieces, weights, grads[:2])
    # the first step agrees; in the second optax gives the old gradient a little less weight, a few percent of the step
    assert 1e-3 < np.abs(result["wide"] - peer["wide"]).max() < 0.1


def test_scale_by_muon_agrees_once_the_correction_has_died_away(rng):
    """jaxrun's against optax's from a momentum in the middle of a run."""
    optax = pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    from jaxrun import transforms

    moment, g = (jnp.asarray(rng.standard_normal((8, 24))) for _ in range(2))
    peer = scale_by_muon(NEWTON_SCHULZ, 12, 0.95, 1e-7, weight_dimension_numbers={"a": MuonDimensionNumbers()})
    state = peer.init({"a": g})._replace(count=jnp.int32(5000), mu={"a": moment})  # 0.95^5000 is 0
    expected, _ = jax.jit(peer.update)({"a": g}, state)
    ours = optax.chain(transforms.momentum(0.95), transforms.orthogonalize(12, NEWTON_SCHULZ, "float64"))
    first, second = ours.init({"a": g})
    result, _ = jax.jit(ours.update)({"a": g}, (first._replace(momentum={"a": moment}), second))
    np.testing.assert_allclose(result["a"], expected["a"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_as_a_sum_is_that_of_sgd(pieces, rng, nesterov):
    torch = pytest.importorskip("torch")
    weights, grads = start(rng, {"a": (3, 4)})
    peer = torch_after(lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=nesterov), weights, grads)
    options = {"nesterov": nesterov, "ema": False}
    if pieces.name == "jaxrun":
        import optax

        piece = optax.chain(pieces.transforms.momentum(0.9, **options), pieces.transforms.scale_by_learning_rate(RATES))
        same(optax_after(piece, weights, grads), peer)
        return
    w, m = torch.from_numpy(weights["a"].copy()), torch.zeros(3, 4, dtype=torch.float64)
    for rate, gradients in zip(RATES, grads, strict=True):
        updates = pieces.transforms.momentum([torch.from_numpy(gradients["a"])], [m], 0.9, **options)
        w += pieces.transforms.scale_by_learning_rate(updates, float(rate))[0]
    same({"a": w.numpy()}, peer)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_clipping_is_torchs_clip_grad_norm(pieces, rng, size):
    torch = pytest.importorskip("torch")
    grads = {"a": size * rng.standard_normal((3, 4)), "b": size * rng.standard_normal(5)}
    peers = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads.values()]
    for p, g in zip(peers, grads.values(), strict=True):
        p.grad = torch.from_numpy(g.copy())
    torch.nn.utils.clip_grad_norm_(peers, 1.0)
    clipped = {name: pieces.put(g) for name, g in grads.items()}
    if pieces.name == "jaxrun":
        clipped, _ = pieces.optim.clip_by_global_norm(1.0).update(clipped, ())
    else:
        pieces.optim.clip_by_global_norm(list(clipped.values()), 1.0, pieces.optim.global_norm(clipped))
    expected = {name: p.grad.numpy() for name, p in zip(grads, peers, strict=True)}
    same({name: pieces.get(g) for name, g in clipped.items()}, expected)
    assert np.array_equal(pieces.get(clipped["a"]), grads["a"]) == (size < 1)


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_are_the_recipes_at_every_step(pieces, name):
    recipe = recipe_for(name, "tiny")
    for group in recipe.learning_rates(0):
        assert list(pieces.optim.learning_rates(recipe, group)) == [
            recipe.learning_rates(step)[group] for step in range(60)
        ]
    if hasattr(recipe, "momentum"):
        assert list(pieces.optim.momentum_schedule(recipe)) == [recipe.momentum_at(step) for step in range(60)]


@pytest.mark.parametrize("name", RECIPES)
def test_torchs_optimizer_has_every_weight_once_in_the_group_of_the_recipe(name):
    pytest.importorskip("torch")
    from torchref import model, optim

    recipe = recipe_for(name, "tiny")
    parameters = dict(model.make_model(recipe).to_empty(device="cpu").named_parameters())
    names = {id(p): name for name, p in parameters.items()}
    optimizer = optim.make_optimizer(recipe, parameters)
    memberships = [
        (names[id(p)], group["name"])
        for each in optimizer.optimizers.values()
        for group in each.param_groups
        for p in group["params"]
    ]
    assert sorted(memberships) == sorted(optim.group_of(recipe).items())
    assert set(optimizer.learning_rates) == set(recipe.learning_rates(0))
