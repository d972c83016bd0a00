"""Both backends as programs, in float32 and bfloat16: state, files, precision, user optimizers, bad input."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity import weights as canonical
from parity.errors import InputError
from parity.program import build
from parity.recipes import recipe_for

NAMES = ("nanogpt", "muon")
BACKENDS = ("jaxrun", "torchref")


def small(name, **fields):
    return dataclasses.replace(recipe_for(name, "tiny"), layers=1, **fields)


@functools.cache
def built(backend, name, **fields):
    """A program, built once for all tests: JAX compiles for seconds."""
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    return build(backend, small(name, **fields), device="cpu")


def batches(count=5):
    tokens = np.random.default_rng(3).integers(0, 512, (count, 16, 65)).astype(np.int32)
    return [(np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])) for x in tokens]


def run(program, state, steps=1):
    """Losses of some steps and the state after them."""
    losses = []
    for batch in batches(steps):
        state, metrics = program.step(state, program.put_global_batch(*batch))
        losses.append(metrics["loss"])
    return np.array(program.fetch(losses)), state


@pytest.fixture(scope="module", params=[(b, n) for b in BACKENDS for n in NAMES], ids="-".join)
def program(request):
    return built(*request.param)


@pytest.fixture
def adamw_module(tmp_path, monkeypatch):
    """A user's module with optimizers for both backends, and functions that return none."""
    (tmp_path / "user_optimizers.py").write_text(
        "import optax, torch\n"
        "def for_jax(recipe): return optax.sgd(0.5)\n"
        "def for_torch(recipe, parameters): return torch.optim.SGD(parameters.values(), lr=0.5)\n"
        "def scheduled(recipe, parameters):\n"
        "    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)\n"
        "    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)\n"
        "def wrong(recipe, parameters=None): return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_optimizers"
    sys.modules.pop("user_optimizers", None)


def test_initial_weights_are_the_canonical_ones_bit_for_bit(program):
    expected = canonical.digest(canonical.initial_weights(program.recipe, 3))
    assert canonical.digest(program.export(program.init(3))) == expected


def test_a_first_step_comes_near_its_twins_in_float32():
    for name in NAMES:
        losses = [run(p, p.init(0), 5)[0] for p in (built(backend, name) for backend in BACKENDS)]
        # float32 rounds to 6e-8, and the loss adds up 1024 tokens, perhaps one by one; AdamW's first steps change a
        # weight by its whole rate even where the gradient is only rounding: the loss's fourth digit at most
        np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1024 * 6e-8)
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_reset_brings_back_the_state_of_the_snapshot(program):
    _, state = run(program, program.init(0), 2)
    before, snapshot = program.digest(state), program.snapshot(state)
    first, state = run(program, state, 3)
    assert program.digest(state) != before
    state = program.reset(state, snapshot)
    assert program.digest(state) == before
    second, state = run(program, state, 3)
    assert np.array_equal(first, second)
    assert program.digest(program.reset(state, snapshot)) == before, "a snapshot can be used twice"


def test_reset_before_the_first_step_empties_the_optimizer_again(program):
    state = program.init(0)
    fresh, snapshot = program.digest(state), program.snapshot(state)
    _, state = run(program, state)
    state = program.reset(state, snapshot)
    assert program.digest(state) == fresh == program.digest(program.init(0))


def test_a_digest_sees_the_weights_and_the_optimizer(program):
    _, state = run(program, program.init(0))
    assert program.digest(program.load(program.export(state))) != program.digest(state)
    assert program.digest(program.init(0)) != program.digest(program.init(1))


def test_a_checkpoint_continues_bit_for_bit(program, tmp_path):
    _, state = run(program, program.init(0), 2)
    program.save(state, tmp_path)
    restored = program.restore(tmp_path)
    assert program.digest(restored) == program.digest(state)
    expected, state = run(program, state, 2)
    losses, restored = run(program, restored, 2)
    assert np.array_equal(losses, expected)
    assert program.digest(restored) == program.digest(state)


def test_a_checkpoint_of_another_recipe_is_refused(program, tmp_path):
    other = build(type(program).__module__.split(".")[0], dataclasses.replace(program.recipe, dim=32), device="cpu")
    other.save(other.init(0), tmp_path)
    with pytest.raises(InputError, match="does not fit the program"):
        program.restore(tmp_path)


def test_a_checkpoint_that_is_missing_is_named(program, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        program.restore(tmp_path)


def test_a_torch_checkpoint_with_a_changed_byte_or_a_missing_end_is_refused(tmp_path):
    program = built("torchref", "muon")
    program.save(program.init(0), tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:-100], b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="state.pt: expected what torchref saved"):
            program.restore(tmp_path)


def test_weights_go_from_one_backend_to_the_other_and_back_as_equal_bytes(tmp_path):
    for name, precision in (("muon", "bfloat16"), ("nanogpt", "float32")):
        jax, torch = (built(backend, name, precision=precision) for backend in BACKENDS)
        for first, second in ((jax, torch), (torch, jax)):
            weights = first.export(run(first, first.init(0))[1])
            canonical.save(tmp_path / "there", weights)
            back = first.export(first.load(second.export(second.load(canonical.load(tmp_path / "there")))))
            canonical.save(tmp_path / "back", back)
            assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_trains_and_keeps_its_weights_as_described(backend, name):
    program = built(backend, name, precision="bfloat16")
    losses, state = run(program, program.init(0), 2)
    assert losses.dtype == np.float32
    # logits are wrong by some 2^-8 of their size, a few units at most, and the mean is over 1024 tokens
    exact = built(backend, name)
    assert losses[0] == pytest.approx(run(exact, exact.init(0))[0][0], abs=5e-3)
    stored = {
        key: str(w.dtype).removeprefix("torch.")
        for key, w in (state["weights"].items() if backend == "jaxrun" else state.model.named_parameters())
    }
    narrow = {key for key, dtype in stored.items() if dtype == "bfloat16"}
    assert narrow == ({"embed.weight"} if name == "muon" else set())
    assert {dtype for key, dtype in stored.items() if key not in narrow} == {"float32"}
    assert {w.dtype for w in program.export(state).values()} == {np.dtype(np.float32)}
    logs = program.fetch(program.log_probs(state, batches(1)[0][0][:1], np.array([0])))
    assert (
        logs.dtype
        == program.fetch(program.token_losses(state, program.put_global_batch(*batches(1)[0]))).dtype
        == np.float32
    )


def test_user_optimizers_replace_the_recipes_and_see_gradients_that_were_not_clipped(adamw_module):
    results = []
    for backend, function in (("jaxrun", "for_jax"), ("torchref", "for_torch")):
        pytest.importorskip("jax" if backend == "jaxrun" else "torch")
        recipe = small("nanogpt", clip_norm=1e-6)  # were it applied, nothing would move
        program = build(backend, recipe, device="cpu", optimizer=f"{adamw_module}:{function}")
        state = program.init(0)
        start, (_, grads) = (
            program.export(state),
            program.fetch(program.loss_and_grads(state, program.put_global_batch(*batches(1)[0]))),
        )
        after = program.export(run(program, state)[1])
        for name in start:  # float32 rounds the weight, at most 1, to 6e-8
            np.testing.assert_allclose(after[name], start[name] - 0.5 * grads[name], rtol=0, atol=1.2e-7)
        results.append(after)
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=0, atol=1e-5)


def test_a_torch_scheduler_is_stepped_and_is_part_of_the_state(adamw_module, tmp_path):
    pytest.importorskip("torch")
    program = build("torchref", small("nanogpt"), device="cpu", optimizer=f"{adamw_module}:scheduled")
    _, state = run(program, program.init(0))
    program.save(state, tmp_path)
    first = canonical.digest(program.export(state))
    for same in (state, program.restore(tmp_path)):  # from the second step on the rate is zero
        assert canonical.digest(program.export(run(program, same)[1])) == first


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_optimizer_that_is_none_is_refused(backend, adamw_module):
    pytest.importorskip("jax" if backend == "jaxrun" else "torch")
    for spec, words in (
        (f"{adamw_module}:wrong", "found int"),
        (f"{adamw_module}:wrogn", "wrong"),
        ("no_such_module:make", "no module no_such_module"),
        ("make", "expected module:function"),
    ):
        with pytest.raises(InputError, match=words):
            build(backend, small("muon"), device="cpu", optimizer=spec).init(0)


def test_devices_that_are_not_there_are_refused():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device gpu: PyTorch finds 0 GPUs here"):
            build("torchref", small("muon"), device="gpu")
    with pytest.raises(InputError, match="--devices 2: expected 1: torchref computes on one device"):
        build("torchref", small("muon"), device="cpu", devices=2)
    with pytest.raises(InputError, match="no such kind of device"):
        build("torchref", small("muon"), device="gpus")


def test_weights_of_other_shapes_are_refused(program):
    with pytest.raises(InputError, match=r"embed\.weight expected shape"):
        program.load(program.export(program.init(0)) | {"embed.weight": np.zeros((3, 3), np.float32)})


PROCESSES = """
import sys
import numpy as np
from parity import weights
from parity.program import build
from parity.recipes import recipe_for
import dataclasses
out, name = sys.argv[1:]
program = build("torchref", dataclasses.replace(recipe_for(name, "tiny"), layers=1, precision="float64"), device="cpu")
state = program.init(0)
tokens = np.random.default_rng(3).integers(0, 512, (3, 16, 65)).astype(np.int32)
for x in tokens:
    state, metrics = program.step(state, program.put_global_batch(x[:, :-1], x[:, 1:]))
batch = program.put_global_batch(tokens[0][:, :-1], tokens[0][:, 1:])
scalars = program.fetch([metrics["loss"], metrics["grad_norm"], metrics["norms"]["updates"]["GROUP"]])
values = {"losses": program.fetch(program.token_losses(state, batch)), "scalars": np.array(scalars)}
rank = __import__("os").environ.get("RANK", "alone")
weights.save(__import__("pathlib").Path(out) / rank, values | program.export(state))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_do_what_one_does(name, tmp_path):
    """Sums in another order: float64's rounding, enlarged by three steps of an optimizer that divides small numbers."""
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(PROCESSES.replace("GROUP", "decay" if name == "nanogpt" else "matrix"))
    root = Path(__file__).parents[2]
    env = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    for command in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        subprocess.run([sys.executable, *command, script, tmp_path, name], check=True, env=env, timeout=300)
    alone, first, second = (canonical.load(tmp_path / rank) for rank in ("alone", "0", "1"))
    assert canonical.digest(first) == canonical.digest(second)
    for key in alone:
        np.testing.assert_allclose(first[key], alone[key], rtol=1e-10, atol=1e-10, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_program_is_near_the_eager_one_and_compiles_once_for_all_states(name):
    torch = pytest.importorskip("torch")
    eager, compiled = built("torchref", name), build("torchref", small(name), device="cpu", compile=True)
    state = compiled.init(0)
    fresh, snapshot = compiled.digest(state), compiled.snapshot(state)
    losses, state = run(compiled, state, 3)
    np.testing.assert_allclose(losses, run(eager, eager.init(0), 3)[0], rtol=1e-3)  # float32 in another order
    assert compiled.digest(compiled.reset(state, snapshot)) == fresh == eager.digest(eager.init(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert np.array_equal(run(compiled, compiled.init(0), 3)[0], losses)


def test_torchs_compiler_is_not_loaded_before_it_is_needed():
    """It takes 2 s, which every command would wait that only reads, evaluates or refuses."""
    pytest.importorskip("torch")
    code = "import sys, torchref.program; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
