"""FLOPs of a step against closed forms, in both frameworks."""

import types

import numpy as np
import pytest

from parity.devices import peak_flops
from parity.errors import InputError
from parity.harness.flops import count_step
from parity.program import build
from parity.recipes import recipe_for


def count(framework, step, state=None, batch=None):
    """FLOPs of a program that has this step, and the notes about them."""
    notes: list[str] = []
    program = types.SimpleNamespace(framework=framework, step=lambda s, b: (step(s, b), {}), wait=lambda s: None)
    return count_step(program, state, batch, notes)[0], notes


def jax_count(function, *arguments):
    return count("jax", lambda state, batch: function(*state), arguments)


def torch_count(function, *arguments):
    return count("torch", lambda state, batch: function(*state), arguments)[0]


@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_jax_products_count_two_for_each_pair_of_factors(jax):
    a, b, x = np.ones((4, 3, 5), np.float32), np.ones((4, 5, 7), np.float32), np.ones(5, np.float32)
    assert jax_count(jax.numpy.matmul, a, b) == (2 * 4 * 3 * 5 * 7, [])
    assert jax_count(lambda p, q: jax.numpy.einsum("bij,bjk->ik", p, q), a, b) == (2 * 4 * 3 * 5 * 7, [])
    assert jax_count(jax.numpy.dot, a[0], x) == (2 * 3 * 5, [])
    assert jax_count(lambda p, q: p * q + p.sum(), x, x) == (0, [])


def test_torch_products_count_two_for_each_pair_of_factors(torch):
    a, b, x = torch.ones(4, 3, 5), torch.ones(4, 5, 7), torch.ones(5)
    assert torch_count(torch.matmul, a, b) == 2 * 4 * 3 * 5 * 7
    assert torch_count(lambda p, q: torch.einsum("bij,bjk->ik", p, q), a, b) == 2 * 4 * 3 * 5 * 7
    assert torch_count(torch.mv, a[0], x) == 2 * 3 * 5
    assert torch_count(torch.dot, x, x) == 2 * 5
    assert torch_count(lambda p, q: torch.zeros(3, 7).addmm_(p, q), a[0], b[0]) == 2 * 3 * 5 * 7
    assert torch_count(lambda p, q: torch.zeros(4, 3, 7).baddbmm_(p, q), a, b) == 2 * 4 * 3 * 5 * 7
    assert torch_count(lambda p, q: torch.zeros(3).addmv_(p, q), a[0], x) == 2 * 3 * 5
    assert torch_count(lambda p: p * p + p.sum(), x) == 0


@pytest.mark.parametrize(("stride", "size"), [(1, 7), (3, 3)])
def test_jax_convolutions_count_in_forward_and_both_gradients(jax, stride, size):
    images, kernel = np.ones((2, 6, 9, 9), np.float32), np.ones((8, 3, 3, 3), np.float32)

    def forward(x, w):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "VALID", feature_group_count=2)

    flops = 2 * (2 * 8 * size * size) * (3 * 3 * 3)
    to_images = 2 * images.size * (4 * 3 * 3) // stride**2  # each image element from 4 channels of its group
    assert jax_count(forward, images, kernel)[0] == flops
    gradients = jax.grad(lambda x, w: forward(x, w).sum(), argnums=(0, 1))
    assert jax_count(gradients, images, kernel)[0] == 2 * flops + to_images


def test_jax_ragged_products_count_each_row_once(jax):
    rows, experts, sizes = np.ones((6, 5), np.float32), np.ones((3, 5, 7), np.float32), np.array([2, 3, 1], np.int32)
    assert jax_count(jax.lax.ragged_dot, rows, experts, sizes)[0] == 2 * 6 * 5 * 7


def test_a_scan_counts_as_often_as_it_runs(jax):
    a = np.ones((3, 3), np.float32)
    assert jax_count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=11)[0], a) == (11 * 54, [])
    assert jax_count(lambda x: jax.lax.fori_loop(0, 11, lambda _, c: c @ c, x), a) == (11 * 54, [])


@pytest.mark.parametrize(
    ("start", "step", "more", "rounds"),
    [
        (0, lambda i: i + 1, lambda i, c: (i < 7) & (c.sum() < 9), 7),
        (0, lambda i: i + 1, lambda i, c: (c.sum() < 9) & (i < 7) & (i < 5), 5),
        (0, lambda i: i + 1, lambda i, c: i < 7, 7),
        (-9, lambda i: i + 1, lambda i, c: i < 7, None),
        (0, lambda i: i, lambda i, c: i < 7, None),
        (0, lambda i: i - 1, lambda i, c: i < 7, None),
        (0, lambda i: i + 1, lambda i, c: (i < 7) | (c.sum() < 9), None),
    ],
)
def test_a_while_loop_that_counts_its_rounds_counts_as_often_as_they_may_be(jax, start, step, more, rounds):
    def run(x):
        return jax.lax.while_loop(
            lambda carried: more(*carried),
            lambda carried: (step(carried[0]), carried[1] @ carried[1]),
            (np.int32(start), x),
        )

    flops, notes = jax_count(run, np.ones((3, 3)))
    assert flops == 2 * 27 * (1 if rounds is None else rounds)
    assert len(notes) == (rounds is None)


def test_a_while_loop_counts_once_and_says_so(jax):
    flops, notes = jax_count(lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x), np.ones((3, 3)))
    assert flops == 54
    assert len(notes) == 1 and "while" in notes[0]


def test_a_condition_counts_its_dearer_branch(jax):
    a = np.ones((3, 3), np.float32)
    assert jax_count(lambda x: jax.lax.cond(x.sum() > 0, lambda c: c @ c @ c, lambda c: c @ c, x), a)[0] == 2 * 54


def test_compiled_recomputed_and_custom_functions_count_what_they_hold(jax):
    a = np.ones((3, 3), np.float32)

    @jax.custom_vjp
    def cube(x):
        return x @ x @ x

    cube.defvjp(lambda x: (x @ x @ x, x), lambda x, g: (g @ x @ x @ x,))
    assert jax_count(jax.jit(lambda x: x @ x), a)[0] == 54
    assert jax_count(cube, a)[0] == 2 * 54
    assert jax_count(jax.grad(lambda x: cube(x).sum()), a)[0] == 5 * 54
    square_sine = jax.checkpoint(lambda x: jax.numpy.sin(x @ x).sum())
    assert jax_count(jax.grad(square_sine), a)[0] == 4 * 54  # forward, forward again, two gradients


def test_a_shard_map_counts_on_every_device(jax):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    rows = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert jax_count(mapped, np.ones((4, 3), np.float32))[0] == 2 * 4 * 4 * 3
    abstract = jax.sharding.AbstractMesh((8,), ("data",))
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=abstract, in_specs=rows, out_specs=rows)
    assert jax_count(mapped, jax.ShapeDtypeStruct((32, 3), np.float32))[0] == 8 * 2 * 4 * 4 * 3


MLP = [(16, 8), (8, 4)]
ROWS = 32


def mlp_flops() -> int:
    """Three times the forward pass, without the gradient of the input that nobody asks for."""
    forward = [2 * ROWS * i * o for i, o in MLP]
    return 3 * sum(forward) - forward[0]


def test_the_gradient_of_a_jax_mlp_is_three_forward_passes_less_the_input_gradient(jax):
    def loss(weights, x):
        for w in weights:
            x = jax.numpy.tanh(x @ w)
        return x.sum()

    weights = [np.ones(shape, np.float32) for shape in MLP]
    assert jax_count(jax.grad(loss), weights, np.ones((ROWS, 16), np.float32))[0] == mlp_flops()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_torch_mlp_is_three_forward_passes_less_the_input_gradient(torch, compiled):
    weights = [torch.ones(shape, requires_grad=True) for shape in MLP]

    def loss(x):
        for w in weights:
            x = torch.tanh(x @ w)
        return x.sum()

    forward = torch.compile(loss, backend="aot_eager") if compiled else loss
    forward(torch.ones(ROWS, 16))  # compiled code exists before the count
    assert torch_count(lambda x: forward(x).backward(), torch.ones(ROWS, 16)) == mlp_flops()


def test_torch_attention_on_the_cpu_counts_two_products_forward_and_five_backward(torch):
    q, k, v = (torch.ones(2, 4, 32, 16, requires_grad=True) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 4 * 32 * 32 * 16
    assert torch_count(lambda: attention(q, k, v, is_causal=True)) == 2 * product
    assert torch_count(lambda: attention(q, k, v, is_causal=True).sum().backward()) == 7 * product


def newton_schulz_flops(recipe) -> int:
    """Muon's products: in every step X X^T, A A and B X of every matrix, short side first."""
    shapes = [sorted(p.shape) for p in recipe.parameters().values() if p.group == "matrix"]
    return recipe.newton_schulz_steps * sum(4 * r * r * c + 2 * r**3 for r, c in shapes)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
@pytest.mark.parametrize("name", ["muon", "nanogpt"])
def test_a_recipes_step_counts_what_the_formula_says_but_for_attention(backend, name):
    """Every product of the formula is there, and Newton-Schulz, which it leaves out.

    Attention may differ: an unmasked forward and backward pass is 6 products of B T T D, as in the formula; computed in
    causal blocks at least half of them remain; backward may compute the scores again, which makes 7.
    """
    pytest.importorskip({"jaxrun": "jax", "torchref": "torch"}[backend])
    recipe = recipe_for(name, "tiny")
    program = build(backend, recipe, device="cpu")
    rows = np.zeros((recipe.batch_tokens // recipe.context, recipe.context), np.int32)
    state = program.init(0)
    flops, _ = count_step(program, state, program.put_global_batch(rows, rows))
    matrices = 6 * recipe.matmul_params() * recipe.batch_tokens
    unmasked = 12 * recipe.layers * recipe.dim * recipe.context * recipe.batch_tokens
    assert recipe.model_flops_per_token() * recipe.batch_tokens == matrices + unmasked
    attention = flops - matrices - (newton_schulz_flops(recipe) if name == "muon" else 0)
    assert unmasked / 2 <= attention <= unmasked * 7 / 6


def test_counting_a_jax_step_leaves_its_state_as_it_was(jax):
    program = build("jaxrun", recipe_for("muon", "tiny"), device="cpu")
    state = program.init(0)
    before = program.digest(state)
    rows = np.zeros((16, 64), np.int32)
    _, after = count_step(program, state, program.put_global_batch(rows, rows))
    assert program.digest(after) == before


def test_a_program_of_another_framework_is_refused():
    with pytest.raises(InputError, match="expected 'jax' or 'torch', found 'numpy'"):
        count("numpy", lambda state, batch: None)


@pytest.mark.parametrize(
    ("kind", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 66.9),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H200 NVL", "bfloat16", 835.5),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
    ],
)
def test_peaks_are_the_data_sheets_dense_figures(kind, precision, tera):
    assert peak_flops(kind, precision) == tera * 1e12


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("cpu", "float32"), ("NVIDIA H100 80GB HBM3", "int3"), ("", "float32"), ("NVIDIA GeForce RTX 4090", "bfloat16")],
)
def test_an_unknown_peak_is_none(kind, precision):
    assert peak_flops(kind, precision) is None
