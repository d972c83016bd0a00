"""jaxrun.sharding: any devices, shards and microbatches compute the same numbers, and compile once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import dataclasses, json, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from jaxrun.program import JaxProgram
from parity import weights
from parity.recipes import recipe_for

sizes = {"layers": int(sys.argv[3]), "dim": 32, "head_dim": 16, "context": 32, "batch_tokens": 512}
recipe = dataclasses.replace(recipe_for(sys.argv[1], "tiny"), precision="float64", **sizes)
rng = np.random.default_rng(0)
start = {name: w + rng.normal(0, 0.1, w.shape) for name, w in weights.initial_weights(recipe, 0).items()}
batches = rng.integers(0, 500, (3, 2, 16, 32)).astype(np.int32)
results = []
for devices, shards, microbatches in json.loads(sys.argv[2]):
    program = JaxProgram(recipe, jax.devices()[:devices], microbatches=microbatches, shards=shards)
    state, metrics = program.load(start), []
    for batch in batches:
        state, values = program.step(state, program.put_global_batch(*batch))
        metrics.append(program.fetch(values))
    losses = program.fetch(program.token_losses(state, program.put_global_batch(*batches[0])))
    prefix = program.fetch(program.loss_and_grads(state, program.put_global_batch(*batches[0]), prefix=5))
    values = jax.tree.leaves([metrics, program.export(state), losses, prefix])
    expected = results[0]["values"] if results else values
    results.append({
        "values": values,
        "difference": max(float(np.abs(np.asarray(a) - b).max() / max(1e-3, np.abs(b).max()))
                          for a, b in zip(values, expected, strict=True)),
        "compiled": program._compiled_step._cache_size(),
        "shards": [len(x.addressable_shards[0].data) / len(x) for x in state["weights"].values() if x.ndim == 2],
    })
    program.loss_and_grads(state, program.put_global_batch(*batches[0]))
print(json.dumps([{key: result[key] for key in ("difference", "compiled", "shards")} for result in results]))
"""
LAYOUTS = [(1, 1, 1), (1, 1, 4), (2, 2, 1), (4, 4, 2), (4, 2, 1), (8, 8, 1), (8, 2, 2), (8, 1, 1)]


@pytest.mark.parametrize(
    "recipe, layers, layouts",
    [
        ("muon", 1, LAYOUTS[:1] + LAYOUTS[-2:-1]),
        *(pytest.param(name, 2, LAYOUTS, marks=pytest.mark.slow) for name in ("muon", "nanogpt")),
    ],
)
def test_every_layout_computes_the_same_numbers_and_is_compiled_once(recipe, layers, layouts):
    """Float64 sums in another order through three steps: 1e-16 x sqrt(500) terms x some thirty layers is below 1e-12.

    AdamW divides small gradients by their own size, for which a hundred times as much is allowed.
    """
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, recipe, json.dumps(layouts), str(layers)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr  # XLA's word for gathering a whole array where a shard would do
    for layout, result in zip(layouts, json.loads(done.stdout), strict=True):
        assert result["difference"] < 1e-10, layout
        assert result["compiled"] == 1, layout
        assert 1 / layout[1] in result["shards"], layout


def test_devices_that_do_not_divide_are_refused():
    import jax

    from jaxrun.sharding import make_mesh
    from parity.errors import InputError

    with pytest.raises(InputError, match="--shards 3: expected a divisor of the number of devices, 1"):
        make_mesh(jax.devices()[:1], 3)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_microbatches_must_divide_the_rows_of_a_device(backend):
    from parity.errors import InputError
    from parity.program import build
    from parity.recipes import recipe_for

    with pytest.raises(
        InputError, match="--microbatches 3: expected a divisor of the 16 rows that each of 1 devices has"
    ):
        build(backend, recipe_for("muon", "tiny"), device="cpu", microbatches=3)


def test_a_gpu_without_its_plugin_is_told(monkeypatch, tmp_path):
    from jaxrun import sharding
    from parity.errors import InputError

    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(sharding, "NVIDIA", tmp_path / "version")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(
        InputError, match="this machine has an NVIDIA GPU, and JAX has no plugin for it: pip install 'jaxrun.cuda.'"
    ):
        sharding.pick_devices()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert sharding.pick_devices()[0].platform == "cpu"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["muon", "nanogpt"])
def test_a_program_has_no_type_wider_than_the_precision_of_its_recipe(recipe, precision):
    """With 64-bit types allowed, a number without a type of its own would come out as float64."""
    import dataclasses

    import jax

    from jaxrun.program import JaxProgram
    from parity.recipes import recipe_for

    with jax.enable_x64(True):
        program = JaxProgram(dataclasses.replace(recipe_for(recipe, "tiny"), precision=precision), jax.devices()[:1])
        for what in ("step", "evaluation"):
            # only scalars on their way to float32 may be float64
            assert not re.search(r"tensor<[0-9x]+xf64>", program.lowered(16, what).as_text()), what
        assert not any(x.weak_type for x in jax.tree.leaves(program.shapes))


def test_a_run_compiles_its_step_once(commands, tmp_path):
    done = commands.run(*commands.small("jaxrun", tmp_path, "counted"), env={"JAX_LOG_COMPILES": "1"})
    assert done.code == 0, done.err
    compiled = [line for line in done.err.splitlines() if "Finished XLA compilation" in line]
    assert (
        sum("jit(_step)" in line for line in compiled) == 1
        and sum("jit(_token_losses)" in line for line in compiled) == 1
    ), compiled


def test_rematerialized_gradients_are_the_same_and_take_more_products():
    import dataclasses

    import jax
    import numpy as np

    from jaxrun.program import JaxProgram
    from parity import weights as canonical
    from parity.harness.flops import count
    from parity.recipes import recipe_for

    recipe = dataclasses.replace(
        recipe_for("muon", "tiny"), layers=2, dim=32, head_dim=16, context=32, batch_tokens=128
    )
    batch = np.random.default_rng(0).integers(0, 500, (2, 4, 32)).astype(np.int32)
    grads, flops = [], []
    for policy in ("none", "blocks"):
        program = JaxProgram(recipe, jax.devices()[:1], remat=policy)
        state = program.load(canonical.initial_weights(recipe, 0))
        grads.append(program.fetch(program.loss_and_grads(state, program.put_global_batch(*batch)))[1])
        flops.append(count(program._compiled_grads, state["weights"], state["step"], *program.put_global_batch(*batch)))
    assert flops[1] > 1.1 * flops[0]
    for name, grad in grads[0].items():  # float32, the same operations, perhaps fused in another way
        np.testing.assert_allclose(grads[1][name], grad, rtol=0, atol=1e-5 * max(1.0, np.abs(grad).max()))
