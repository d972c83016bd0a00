"""The scripts for GPUs, on a machine without one: the check runs in full on the CPU, and XLA's programs for H100s keep
to bounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


def run(script: str, *args, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=1800,
        check=False,
    )


@pytest.mark.parametrize("script", ["bench.py", "bench_frontier.py", "compile_h100.py", "golden.py", "gpu_check.py"])
def test_a_script_says_how_it_is_called(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr[-1000:]


@pytest.mark.slow
def test_the_gpu_check_runs_in_full_on_the_cpu_at_tiny(tmp_path):
    options = "--device cpu --scale tiny --turns 1 --steps 2 --no-compile --budget-s 1500"
    done = run("gpu_check.py", *options.split(), "--out", tmp_path, JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    results = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    failures = {part: result["failed"] for part, result in results.items() if "failed" in result}
    assert done.returncode == 0, (done.stdout[-3000:], failures)
    assert not failures and [part for part, result in results.items() if "left out" in result] == []
    assert results["correctness:jaxrun"]["holds"] and results["correctness:torchref"]["holds"]
    for recipe in ("muon", "nanogpt"):
        for variant in ("jaxrun", "torchref eager"):
            assert results[f"step:{recipe}"][variant]["tokens_per_s"] > 0
            assert f"step:{recipe}" in done.stdout
        assert not results[f"program:{recipe}"]["step"]["float64"]


TEXT = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: bf16[8,16], p1: bf16[16,4]) -> bf16[8,4] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], bf16[8,16], bf16[16,4])) -> (s32[], bf16[8,16], bf16[16,4]) {
  %state = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %w = bf16[16,4]{1,0} get-tuple-element(%state), index=2
  %y = bf16[8,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused
  ROOT %next = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%i, %x, %w)
}

%condition (state.1: (s32[], bf16[8,16], bf16[16,4])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (q: bf16[8,16], w: bf16[16,4], g: f32[64]) -> f32[64] {
  %q = bf16[8,16]{1,0} parameter(0)
  %w.1 = bf16[16,4]{1,0} parameter(1)
  %g = f32[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%zero, %q, /*index=2*/%w.1)
  %loop = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %begun = f32[64]{0} all-reduce-start(%g), replica_groups={{0,1,2,3}}, to_apply=%add
  %gathered = f32[64]{0} all-gather(%g), replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, dimensions={0}
  ROOT %ended = f32[64]{0} all-reduce-done(%begun)
}
"""  # noqa: E501


def test_a_compiled_programs_text_is_read():
    from hlo import Compiled

    program = Compiled(TEXT)
    (product,) = program.products
    assert (product.factors, product.result, product.flops, product.runs) == ("bf16 x bf16", "bf16", 2 * 8 * 4 * 16, 5)
    reduced, gathered = program.collectives
    assert (reduced.kind, reduced.bytes, reduced.group, reduced.is_async) == ("all-reduce", 256, (0, 1, 2, 3), True)
    assert reduced.sent_bytes == 2 * 192  # three quarters of the bytes, there and back
    assert (gathered.kind, gathered.bytes, gathered.group) == ("all-gather", 1024, (0, 2, 4, 6))
    assert not gathered.is_async
    assert program.traffic_bytes == {"products": 5 * (256 + 128 + 64), "others": 0}
    assert next(iter(program.buffers)) == "f32[64]"


def has_plugin() -> bool:
    from importlib.util import find_spec

    return find_spec("jax_cuda13_plugin") is not None


@pytest.mark.slow
@pytest.mark.skipif(not has_plugin(), reason="compiling for H100s needs pip install -e '.[cuda]'")
@pytest.mark.parametrize("recipe", ["muon", "nanogpt", "record-11"])
def test_what_is_compiled_for_eight_h100s_keeps_its_bounds(recipe):
    """64 x 1024 tokens a GPU. For the measured figures see docs/performance.md."""
    done = run("compile_h100.py", "--recipe", recipe, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    step, evaluation = report["step"], report["evaluation"]
    assert step["bytes"]["peak"] < 40e9 and evaluation["bytes"]["peak"] < 20e9
    assert report["flops_over_model"] < 1.10
    assert "bf16[8192,50304]" in step["largest_buffers"]  # an eighth of the batch's scores at a time
    for compiled in (step, evaluation):
        assert all(types.startswith("bf16 x bf16") for types in compiled["products"])
        assert all(row["async"] == row["count"] for row in compiled["collectives"].values())
        assert not compiled["full_logits"] and not compiled["full_attention_matrix"] and not compiled["float64"]
    assert step["kernels"]["__cudnn$fmhaSoftmax"] == step["kernels"]["__cudnn$fmhaSoftmaxBackward"] == 12
    assert evaluation["kernels"]["__cudnn$fmhaSoftmax"] == 12
    if recipe != "nanogpt":
        assert step["collectives"]["all-to-all"]["count"] > 0  # its matrices are divided among the devices


@pytest.mark.slow
@pytest.mark.skipif(not has_plugin(), reason="compiling for H100s needs pip install -e '.[cuda]'")
def test_record_21_for_eight_h100s_has_attention_that_grows_with_its_window_and_8_bit_products():
    """One row of 49,152 tokens a GPU, evaluation of 262,144: the same bounds."""
    done = run("compile_h100.py", "--recipe", "record-21", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    step, evaluation = report["step"], report["evaluation"]
    assert report["tokens"] == {"step": 49_152, "evaluation": 262_144}
    assert step["bytes"]["peak"] < 40e9 and evaluation["bytes"]["peak"] < 20e9
    assert [step["kernels"][f"window_attention{name}"] for name in ("", "_dq", "_dkv")] == [11, 11, 11]
    assert evaluation["kernels"]["window_attention"] == 11
    eight = [types for types in step["products"] if types.startswith("f8")]
    assert sorted(eight) == ["f8e4m3fn x f8e4m3fn -> bf16", "f8e5m2 x f8e4m3fn -> bf16", "f8e5m2 x f8e4m3fn -> f32"]
    assert not any("f8" in types for types in evaluation["products"])
    for compiled in (step, evaluation):
        assert all(row["async"] == row["count"] for row in compiled["collectives"].values())
        assert not compiled["full_logits"] and not compiled["full_attention_matrix"] and not compiled["float64"]
