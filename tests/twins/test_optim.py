"""Both backends' optimizers, in float64, against PyTorch's and optax's.

Rounding in float64 is 1.1e-16; a step of AdamW is a dozen operations on numbers of order 1, so five steps agree to
1e-14.
"""

import math

import numpy as np
import pytest

from parity.recipes import RECIPES, recipe_for

pytestmark = pytest.mark.usefixtures("x64")

RATES = np.array([0.1, 0.2, 0.05, 0.3, 0.1])
CLOSE = {"rtol": 1e-13, "atol": 1e-13}
NEWTON_SCHULZ = (2.0, -1.5, 0.5)


def start(rng, shapes):
    """Weights, and their gradients of five steps."""
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return weights, [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in RATES]


def after(pieces, kind, weights, grads, decay, *rest, **more):
    """The weights after a step for each mapping of gradients, by the backend's `adamw` or `muon`."""
    if pieces.name == "jaxrun":
        import optax

        transform = getattr(pieces.optim, kind)(RATES, *rest[:-1], decay) if kind == "adamw" else None
        transform = transform or pieces.optim.muon(RATES, decay, *rest, **more)
        return optax_after(transform, weights, grads, optax)
    import torch

    parameters = {name: torch.nn.Parameter(pieces.put(w)) for name, w in weights.items()}
    groups = {"all": parameters}
    part = (
        pieces.optim.adamw(groups, *rest[:-1], {"all": decay})
        if kind == "adamw"
        else pieces.optim.muon(groups, decay, *rest[:-1], getattr(torch, rest[-1]), **more)
    )
    whole = pieces.optim.ByGroup({kind: part}, {"all": RATES})
    for step, gradients in enumerate(grads):
        for name, p in parameters.items():
            p.grad = pieces.put(gradients[name])
        whole.update(step, [p.grad for p in parameters.values()], None)
    return {name: pieces.get(p) for name, p in parameters.items()}


def optax_after(transform, weights, grads, optax):
    """The same by an optax transform."""
    import jax
    import jax.numpy as jnp

    weights = jax.tree.map(jnp.asarray, weights)
    state = transform.init(weights)

    @jax.jit  # operation by operation, each would be compiled for each shape
    def step(weights, state, gradients):
        updates, state = transform.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    for gradients in grads:
        weights, state = step(weights, state, gradients)
    return {name: np.asarray(w) for name, w in weights.items()}


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


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], **(tolerance or CLOSE))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(pieces, rng, decay):
    torch = pytest.importorskip("torch")
    weights, grads = start(rng, {"a": (3, 4), "b": (5,)})
    peer = torch_after(
        lambda p: torch.optim.AdamW(p, betas=(0.8, 0.95), eps=1e-8, weight_decay=decay, foreach=False), weights, grads
    )
    same(after(pieces, "adamw", weights, grads, decay, (0.8, 0.95), 1e-8, None), peer)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_optaxs(pieces, rng, decay):
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    weights, grads = start(rng, {"a": (3, 4), "b": (5,)})
    peer = optax.adamw(lambda step: jnp.asarray(RATES)[step], b1=0.8, b2=0.95, eps=1e-8, weight_decay=decay)
    same(
        after(pieces, "adamw", weights, grads, decay, (0.8, 0.95), 1e-8, None), optax_after(peer, weights, grads, optax)
    )


def test_adamw_first_step_moves_every_weight_by_its_rate_against_the_sign(pieces, rng):
    weights, grads = start(rng, {"a": (6,)})
    found = after(pieces, "adamw", weights, grads[:1], 0.0, (0.9, 0.95), 1e-12, None)
    same(found, {"a": weights["a"] - RATES[0] * np.sign(grads[0]["a"])}, rtol=0, atol=1e-10)  # eps / |g| is up to 1e-10


def naive_muon(weights, grads, decay, momentum, steps, summed=False):
    """The description's formulas, a matrix at a time; `momentum` is one number, or one a step."""
    weights, kept = dict(weights), {name: np.zeros_like(w) for name, w in weights.items()}
    for rate, share, gradients in zip(RATES, np.broadcast_to(momentum, len(RATES)), grads, strict=True):
        for name, g in gradients.items():
            m = kept[name] = share * kept[name] + (g if summed else (1 - share) * g)
            x = g + share * m if summed else (1 - share) * g + share * m
            u = np.stack([turned(one, steps) for one in x]) if x.ndim == 3 else turned(x, steps)
            weights[name] = weights[name] * (1 - rate * decay) - rate * u
    return weights


def turned(x, steps):
    a, b, c = NEWTON_SCHULZ
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / (np.sqrt((x * x).sum()) + 1e-7)
    for _ in range(steps):
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return (x.T if rows > columns else x) * math.sqrt(max(1.0, rows / columns))


SHAPES = {"wide": (8, 24), "tall": (24, 8), "square1": (12, 12), "square2": (12, 12)}


def test_muon_is_its_description_for_wide_tall_and_square_matrices(pieces, rng):
    weights, grads = start(rng, SHAPES)
    found = after(pieces, "muon", weights, grads, 0.05, 0.95, 12, NEWTON_SCHULZ, "float64")
    # small singular values double in each of up to 12 steps, and their rounding with them: 1e-16 * 2^12
    same(found, naive_muon(weights, grads, 0.05, 0.95, 12), rtol=0, atol=1e-12)


@pytest.mark.parametrize("summed", [False, True])
def test_muon_has_a_momentum_of_its_own_at_every_step_as_an_average_or_a_sum(pieces, rng, summed):
    weights, grads = start(rng, SHAPES)
    momentum = np.array([0.85, 0.88, 0.91, 0.94, 0.95])
    found = after(pieces, "muon", weights, grads, 0.0, momentum, 12, NEWTON_SCHULZ, "float64", summed=summed)
    same(found, naive_muon(weights, grads, 0.0, momentum, 12, summed), rtol=0, atol=1e-12)
    other = naive_muon(weights, grads, 0.0, momentum, 12, not summed)
    assert max(np.abs(found[name] - other[name]).max() for name in found) > 1e-3


def test_muon_takes_a_stack_as_the_matrices_that_it_holds(pieces, rng):
    """Beside single matrices of the same shape, which are orthogonalised in the same batch."""
    weights, grads = start(rng, {"stack": (3, 12, 12), "one": (12, 12), "tall": (2, 24, 8)})
    found = after(pieces, "muon", weights, grads, 0.05, 0.95, 12, NEWTON_SCHULZ, "float64")
    same(found, naive_muon(weights, grads, 0.05, 0.95, 12), rtol=0, atol=1e-12)
    apart = {
        f"{name}.{i}": (w[i], [g[name][i] for g in grads])
        for name, w in weights.items()
        if w.ndim == 3
        for i in range(len(w))
    }
    alone = after(
        pieces,
        "muon",
        {name: w for name, (w, _) in apart.items()},
        [{name: g[step] for name, (_, g) in apart.items()} for step in range(len(grads))],
        0.05,
        0.95,
        12,
        NEWTON_SCHULZ,
        "float64",
    )
    for name, w in alone.items():
        whole, i = name.split(".")
        np.testing.assert_allclose(found[whole][int(i)], w, rtol=0, atol=1e-12)


def test_muon_is_torchs_up_to_the_bfloat16_that_torch_always_orthogonalises_in(pieces, rng):
    """Momentum, look ahead, aspect factor and decay agree. Epsilon does not (torch divides by at least 1e-7, ours adds
    it),
    nor do the defaults (coefficients 3.4445, -4.7750, 2.0315; 5 steps), nor the precision, which torch fixes."""
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
    found = after(pieces, "muon", weights, grads, 0.05, 0.95, 12, NEWTON_SCHULZ, "float64")
    # an entry of u is at most sqrt(3) in size and wrong by some roundings of 2^-9 a step; the rates add up to 0.75
    same(found, peer, rtol=0, atol=0.75 * math.sqrt(3) * 12 * 2**-9)
    moved = {name: np.abs(found[name] - weights[name]).max() for name in found}
    assert min(moved.values()) > 0.5, "the tolerance must be small beside the movement"


def optax_muon(optax, weights):
    from optax.contrib import MuonDimensionNumbers, muon

    # ours are (out, in); optax's default is (in, out), which turns the aspect factor around
    axes = dict.fromkeys(weights, MuonDimensionNumbers(reduction_axis=1, output_axis=0))
    return muon(
        float(RATES[0]),
        ns_coeffs=NEWTON_SCHULZ,
        ns_steps=12,
        beta=0.95,
        eps=1e-7,
        weight_decay=0.05,
        muon_weight_dimension_numbers=axes,
    )


def test_muon_is_optaxs_at_the_first_step(pieces, rng):
    """Orthogonalisation, aspect factor, decay and epsilon agree where momentum has no say."""
    optax = pytest.importorskip("optax")
    weights, grads = start(rng, {name: SHAPES[name] for name in ("wide", "tall")})
    found = after(pieces, "muon", weights, grads[:1], 0.05, 0.95, 12, NEWTON_SCHULZ, "float64")
    # optax's first look ahead is g itself, ours g / 10: epsilon is 1e-7 of the one's norm and 1e-6 of the other's
    same(found, optax_after(optax_muon(optax, weights), weights, grads[:1], optax), rtol=0, atol=2e-6)


def test_muon_is_not_optaxs_later_because_optax_corrects_the_momentum_for_its_start(pieces, rng):
    optax = pytest.importorskip("optax")
    weights, grads = start(rng, {"wide": SHAPES["wide"]})
    peer = optax_after(optax_muon(optax, weights), weights, grads[:2], optax)
    found = after(pieces, "muon", weights, grads[:2], 0.05, 0.95, 12, NEWTON_SCHULZ, "float64")
    # the first step agrees; in the second the old gradient's share is a little smaller with optax, a few percent of the
    # step
    assert 1e-3 < np.abs(found["wide"] - peer["wide"]).max() < 0.1


def test_scale_by_muon_agrees_once_the_correction_has_died_away(rng):
    """jaxrun's against optax's from a momentum in the middle of a run."""
    pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    from jaxrun import optim

    momentum, g = (jnp.asarray(rng.standard_normal((8, 24))) for _ in range(2))
    peer = scale_by_muon(NEWTON_SCHULZ, 12, 0.95, 1e-7, weight_dimension_numbers={"a": MuonDimensionNumbers()})
    state = peer.init({"a": g})._replace(count=jnp.int32(5000), mu={"a": momentum})  # 0.95^5000 is 0
    expected, _ = jax.jit(peer.update)({"a": g}, state)
    ours = optim.muon(np.ones(1), 0.0, 0.95, 12, NEWTON_SCHULZ, "float64")
    found, _ = jax.jit(ours.update)({"a": g}, ours.init({"a": g})._replace(momentum={"a": momentum}), {"a": g})
    np.testing.assert_allclose(-np.asarray(found["a"]), np.asarray(expected["a"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_clipping_is_torchs_clip_grad_norm(pieces, rng, size):
    torch = pytest.importorskip("torch")
    grads = {"a": size * rng.standard_normal((3, 4)), "b": size * rng.standard_normal(5)}
    peers = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads.values()]
    for p, g in zip(peers, grads.values(), strict=True):
        p.grad = torch.from_numpy(g.copy())
    torch.nn.utils.clip_grad_norm_(peers, 1.0)
    mine = {name: pieces.put(g) for name, g in grads.items()}
    if pieces.name == "jaxrun":
        mine, _ = pieces.optim.clip_by_global_norm(1.0).update(mine, ())
    else:
        pieces.optim.clip_by_global_norm(list(mine.values()), 1.0, pieces.optim.global_norm(mine))
    same(
        {name: pieces.get(g) for name, g in mine.items()},
        dict(zip(grads, (p.grad.numpy() for p in peers), strict=True)),
    )
    changed = not np.array_equal(pieces.get(mine["a"]), grads["a"])
    assert changed == (size > 1)


@pytest.mark.parametrize("name", RECIPES)
def test_rates_are_the_recipes_at_every_step(pieces, name):
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
    found = [
        (names[id(p)], group["name"])
        for part in optimizer.parts.values()
        for group in part.param_groups
        for p in group["params"]
    ]
    assert sorted(found) == sorted(optim.group_of(recipe).items())
    assert set(optimizer.tables) == set(recipe.learning_rates(0))
