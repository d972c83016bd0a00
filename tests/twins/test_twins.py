"""The two backends are twins: the same public names and parameters in the same order, equal numbers in float64."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from parity import weights as canonical
from parity.program import build
from parity.recipes import RECIPES, recipe_for

ROOT = Path(__file__).parents[2]

# What may differ, with the reason.
RENAMED = {  # JAX's name -> PyTorch's
    "__call__": "forward",  # each framework's name of what a module computes
    "JaxProgram": "TorchProgram",  # user programs derive from them side by side
    "pick_devices": "pick_device",  # a torch process has one device
    "by_group": "ByGroup",  # an optax transform is a pair of functions, a torch optimizer an object
}
ONLY_IN_ONE = {
    *("make_mesh", "param_spec", "param_shardings", "shard_map_rows"),  # in JAX one program covers a mesh of devices
    *("rank", "world_size", "gather_rows"),  # in PyTorch each device has its own process
    "can_compile",  # torch.compile needs a compiler on the machine, XLA has one
    *("memory", "lowered", "keep_compiled"),  # XLA's compiled programs can be measured, inspected and stored
    *("State.weights", "State.tree"),  # torch's state is an object, JAX's a dict
    *("apply", "Definition"),  # JAX runs a model's definition on weights that are passed in
    "torch_dtype",  # torch's types are objects, JAX takes their names
    *(
        "AdamState",
        "OddAdamState",
        "MomentumState",
        "EqualizeState",
        "scale_by_adam",
        *("bias_correction", "as_stored"),
        *("Muon", "NorMuon", "OddAdam"),
    ),  # torch's optimizers own their state; AdamW is torch's
    "check_updates",  # torch's optimizers change the weights themselves
    "Window",  # torch compiles for bounds of the window, which JAX traces
}
NAMES_ONLY = {
    *("optim.py", "transforms.py")
}  # optax's transforms are made from numbers, torch's functions change lists of tensors in place
PARAMETERS_OF_ONE = {
    *("mesh", "device"),  # where to compute: a mesh of devices in JAX, the process's device in PyTorch
    *("shards", "remat", "compile"),  # options that one framework has
}


def signatures(path: Path) -> list[str]:
    """Public functions, classes and methods of a module with the names of their parameters, in their order."""
    lines = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            lines.append(signature(node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            lines += [node.name, *(signature(method, f"{node.name}.") for method in methods)]
    if path.name in NAMES_ONLY:
        names = [line.partition("(")[0] for line in lines if line]
        lines = [RENAMED.get(name, name) for name in names if "." not in name]
    return [line for line in lines if line and line not in ONLY_IN_ONE]


def signature(function: ast.FunctionDef, owner: str = "") -> str | None:
    """ "owner.name(parameters)" with what may differ left out or renamed; None for a function that is not compared."""
    name = RENAMED.get(function.name, function.name)
    if name.startswith("_") or {name, owner + name} & ONLY_IN_ONE:
        return None
    arguments = function.args
    parameters = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return f"{owner}{name}({', '.join(x for x in parameters if x not in PARAMETERS_OF_ONE)})"


def files(package: str) -> list[str]:
    """Every file of a package but JAX's kernels: what makes its formulas fast on a platform."""
    paths = sorted(path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py"))
    return [str(path) for path in paths if path.parts[0] != "kernels"]


def test_both_packages_have_the_same_files():
    assert files("jaxrun") == files("torchref")


@pytest.mark.parametrize("name", files("jaxrun"))
def test_public_names_and_parameters_are_the_same_in_the_same_order(name):
    ours, theirs = signatures(ROOT / "jaxrun" / name), signatures(ROOT / "torchref" / name)
    assert [line.replace("JaxProgram", "TorchProgram") for line in ours] == theirs


LAYERS = {"record-21": 4, "record-40": 6, "record-58": 5}  # a block without attention, and short windows, need so many


class Pair:
    """A recipe in both backends, from equal weights that are no symmetric start, and batches for both."""

    def __init__(self, name):
        pytest.importorskip("jax")
        pytest.importorskip("torch")
        sizes = {"layers": LAYERS.get(name, 2), "tokenizer_size": 500, "precision": "float64"}  # 12 columns of padding
        self.recipe = dataclasses.replace(recipe_for(name, "tiny"), **sizes)
        rng = np.random.default_rng(1)
        self.start = {
            key: w + 0.02 * rng.standard_normal(w.shape) for key, w in canonical.initial_weights(self.recipe, 0).items()
        }
        self.programs = [build(backend, self.recipe, device="cpu") for backend in ("jaxrun", "torchref")]
        tokens = rng.integers(0, 500, (8, 1024 // self.recipe.context, self.recipe.context + 1)).astype(np.int32)
        self.batches = [(np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])) for x in tokens]

    def both(self, function):
        """The result of a function of (program, fresh state, first batch) in each backend, fetched."""
        return [p.fetch(function(p, p.load(self.start), p.put_global_batch(*self.batches[0]))) for p in self.programs]


SLOW = ("record-40", "record-58")  # whose formulas test_record_40.py and test_record_58.py hold in both backends


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES]
)
def pair(request, x64):
    return Pair(request.param)


# Sums of up to 500 float64 terms through some thirty layers: 1.1e-16 * sqrt(500) * 30 is 1e-13 of the largest entry.
TOLERANCE = 1e-12


def largest_difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_token_losses_and_probabilities_are_equal_in_float64(pair):
    ours, theirs = pair.both(lambda p, s, b: p.token_losses(s, b))
    assert ours.dtype == theirs.dtype == np.float64
    assert largest_difference(ours, theirs) < TOLERANCE
    ours, theirs = pair.both(lambda p, s, b: p.log_probs(s, pair.batches[0][0]))
    assert ours.shape == theirs.shape == (*pair.batches[0][0].shape, 512)
    assert largest_difference(np.exp(ours), np.exp(theirs)) < TOLERANCE
    np.testing.assert_allclose(np.exp(ours).sum(-1), 1, rtol=1e-12)


def test_log_probs_are_the_token_losses_with_their_sign_changed_at_any_positions(pair):
    inputs, targets = pair.batches[0]
    for losses, logs in pair.both(lambda p, s, b: (p.token_losses(s, b), p.log_probs(s, inputs, np.array([63, 3])))):
        found = -np.take_along_axis(logs, targets[:, [63, 3], None].astype(np.int64), -1)[..., 0]
        np.testing.assert_allclose(found, losses[:, [63, 3]], rtol=1e-12)


def test_padding_has_no_probability_in_nanogpt_and_takes_part_in_the_others(pair):
    for logs in pair.both(lambda p, s, b: p.log_probs(s, pair.batches[0][0])):
        padding = np.exp(logs)[..., 500:]
        assert (padding == 0).all() if pair.recipe.name == "nanogpt" else (padding > 0).all()


def test_loss_and_gradients_are_equal_in_float64(pair):
    (loss, grads), (peer_loss, peers) = pair.both(lambda p, s, b: p.loss_and_grads(s, b))
    assert abs(loss / peer_loss - 1) < TOLERANCE
    assert grads.keys() == peers.keys() == pair.start.keys()
    # the key bias has a gradient of zero, so nanogpt's is judged with q and v in the one bias they share; and that of
    # the factor that mixes the first block's v with itself is zero to the last bit
    for name in grads:
        whole = name.replace("attn.k.bias", "attn.v.bias")
        scale = np.abs(peers[whole]).max()
        assert np.abs(grads[name] - peers[name]).max() <= TOLERANCE * scale, name


def test_the_loss_is_the_sum_in_muon_the_mean_over_rows_in_late_records_and_over_tokens_in_the_others(pair):
    """At the last step, since record-58 counts several targets of a position before."""

    def last(p, s):
        return p.with_step(s, pair.recipe.steps - 1)

    for losses, (loss, _) in pair.both(
        lambda p, s, b: (p.token_losses(last(p, s), b), p.loss_and_grads(last(p, s), b))
    ):
        rows = len(losses)
        expected = losses.sum() / {"muon": 1, "record-40": rows, "record-58": rows}.get(pair.recipe.name, losses.size)
        assert loss == pytest.approx(expected, rel=1e-13)
    for losses, metrics in pair.both(lambda p, s, b: (p.token_losses(last(p, s), b), p.step(last(p, s), b)[1])):
        assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-13)


def test_twenty_steps_stay_equal_in_float64(pair):
    """Rounding grows with the steps, and AdamW divides small gradients by their own size: 1e-10 after 20."""
    ran = []
    for program in pair.programs:
        state, metrics = program.load(pair.start), []
        for i in range(20):
            state, found = program.step(state, program.put_global_batch(*pair.batches[i % 8]))
            metrics.append(found)
        ran.append((program.fetch(metrics), program.export(state)))
    (ours, weights), (theirs, peers) = ran
    np.testing.assert_allclose([m["loss"] for m in ours], [m["loss"] for m in theirs], rtol=1e-10)
    np.testing.assert_allclose([m["grad_norm"] for m in ours], [m["grad_norm"] for m in theirs], rtol=1e-10)
    for kind in ("weights", "grads", "updates"):
        for group in sorted({p.group for p in pair.recipe.parameters().values()}):
            np.testing.assert_allclose(
                [m["norms"][kind][group] for m in ours],
                [m["norms"][kind][group] for m in theirs],
                rtol=1e-9,
                err_msg=f"{kind} {group}",
            )
    assert ours[-1]["loss"] != ours[0]["loss"]
    assert max(largest_difference(weights[name], peers[name]) for name in weights) < 1e-10


def test_gradients_are_the_slopes_of_the_loss(pair):
    program = pair.programs[1]
    batch = program.put_global_batch(*pair.batches[0])
    _, grads = program.fetch(program.loss_and_grads(program.load(pair.start), batch))
    rng, h = np.random.default_rng(2), 1e-5
    direction = {name: rng.standard_normal(w.shape) for name, w in pair.start.items()}
    ends = [
        program.loss_and_grads(program.load({k: w + s * h * direction[k] for k, w in pair.start.items()}), batch)[0]
        for s in (-1, 1)
    ]
    slope = (float(ends[1]) - float(ends[0])) / (2 * h)
    # the third derivative along a random direction of 1e5 numbers times h^2 = 1e-10 stays below 1e-4 of the slope
    assert slope == pytest.approx(sum((grads[k] * direction[k]).sum() for k in grads), rel=1e-4)


def test_norms_of_updates_are_those_of_the_change_of_the_weights(pair):
    groups = {name: p.group for name, p in pair.recipe.parameters().items()}
    for program in pair.programs:
        state, metrics = program.step(program.load(pair.start), program.put_global_batch(*pair.batches[0]))
        after, norms = program.export(state), program.fetch(metrics["norms"])
        for group, norm in norms["updates"].items():
            change = [(after[k] - pair.start[k]).ravel() for k in after if groups[k] == group]
            assert norm == pytest.approx(np.linalg.norm(np.concatenate(change)), rel=1e-10)
