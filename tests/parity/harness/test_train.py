"""Both trainers from end to end, in processes of their own: what they print, write and log, and that it is true."""

import json
import os
import pty
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from parity import program as programs
from parity import weights
from parity.data.slices import Slice
from parity.data.stream import span_digest, spans
from parity.data.synthetic import entropy_nats
from parity.formats import chain_log, run_log, schemas
from parity.harness.evaluation import evaluate
from parity.recipes import from_fields

OTHER = {"jaxrun": "torchref", "torchref": "jaxrun"}


@pytest.fixture(scope="module", params=["jaxrun-muon", "torchref-muon", "jaxrun-nanogpt", "torchref-nanogpt"])
def run(request: pytest.FixtureRequest, finished: Callable[..., Any]) -> Any:
    return finished(*request.param.split("-"))


def facts(run: Any) -> dict[str, Any]:
    return json.loads((run.path / "run.json").read_text())


def test_a_run_ends_with_exit_code_0_and_nothing_on_stderr(run):
    assert (run.done.code, run.done.err) == (0, "")


def test_in_a_pipe_a_run_prints_plain_lines_its_summary_samples_and_the_next_command(run):
    backend = facts(run)["backend"]
    assert "\x1b" not in run.done.out and "\r" not in run.done.out
    assert re.search(r"^step  3/60  loss +\d\.\d{4} +[\d,]+ tokens/s", run.done.out, re.MULTILINE)
    assert re.search(r"^step 60/60  val +\d\.\d{4} +\d\.\d{4} bits per byte$", run.done.out, re.MULTILINE)
    assert re.search(r"^  val loss +\d\.\d{4} nats per token over 8,192 tokens$", run.done.out, re.MULTILINE)
    assert len(re.findall(r"^sample: ", run.done.out, re.MULTILINE)) == 3
    last = run.done.out.rstrip().splitlines()[-1]
    assert re.match(rf"next: \S+ -m {backend}.sample {re.escape(str(run.path))} --prompt ", last)


def test_the_run_directory_holds_the_evidence_and_nothing_half_written(run):
    steps = from_fields(facts(run)["recipe"]).checkpoint_steps()
    assert {path.name for path in run.path.iterdir()} - {".lock"} == {
        "run.json",
        "log.jsonl",
        "weights.safetensors",
        "source.zip",
        "curve.png",
        "checkpoints",
    }
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [f"step-{n:06d}" for n in steps]
    assert (run.path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_run_json_is_what_its_schema_says_and_tells_what_was_run(run):
    result = facts(run)
    assert schemas.check_for("run.v1")(result) == ""
    assert (result["track"], result["seed"], result["precision"]) == ("tiny", 0, "float32")
    assert result["recipe"]["fields"]["dim"] == 32
    assert "--steps" in result["command"]


def test_the_source_is_packed(run):
    with zipfile.ZipFile(run.path / "source.zip") as archive:
        assert {"parity/harness/loop.py", f"{facts(run)['backend']}/model.py"} <= set(archive.namelist())


def test_the_log_is_a_whole_chain_of_valid_events(run):
    assert chain_log.scan(run.path / "log.jsonl", run_log.FORMAT, run_log.field_problem).lines == len(run.events())
    assert (run.events()[0]["event"], run.events()[-1]["event"]) == ("start", "finish")


def test_steps_are_logged_in_order_and_their_times_add_up_to_the_training_time(run):
    steps = run.events("step")
    assert [event["step"] for event in steps] == list(range(60))
    assert steps[-1]["tokens"] == 60 * 512
    total = sum(event["step_s"] for event in steps)
    # Sixty float64 sums of numbers below a minute: far below a nanosecond.
    assert total == pytest.approx(steps[-1]["train_s"], abs=1e-9)
    assert total == pytest.approx(run.events("finish")[0]["totals"]["train_s"], abs=1e-9)


def test_evaluations_and_checkpoints_are_where_the_recipe_puts_them(run):
    recipe = from_fields(facts(run)["recipe"])
    assert tuple(event["step"] for event in run.events("eval")) == recipe.eval_steps() == (0, 30, 60)
    assert (
        tuple(event["step"] for event in run.events("checkpoint")) == recipe.checkpoint_steps() == (0, 15, 30, 45, 60)
    )


def test_compilation_evaluation_and_checkpoints_are_outside_the_training_time(run):
    """Between the ends of a phase the training clock stands: of two steps with a phase between, step_s is less."""
    events = run.events()
    phases = [event for event in events if event["event"] == "phase"]
    inside = sum(
        end["clock_s"] - begin["clock_s"]
        for begin, end in zip(phases[::2], phases[1::2], strict=True)
        if begin["name"] not in ("init", "warm-up", "train")
    )
    steps = [event for event in events if event["event"] == "step"]
    first, last = run.events("phase")[3], steps[-1]  # from the end of the warm-up to the last step
    assert first["name"] == "warm-up"
    assert last["train_s"] <= last["clock_s"] - first["clock_s"] - (inside - _after(phases, last))


def _after(phases: list[dict[str, Any]], last: dict[str, Any]) -> float:
    """Seconds in phases after the last step."""
    return sum(
        end["clock_s"] - begin["clock_s"]
        for begin, end in pairwise(phases)
        if begin["edge"] == "begin" and begin["n"] > last["n"]
    )


def test_the_warm_up_leaves_the_state_as_it_was(run):
    assert run.state_digest("before warm-up") == run.state_digest("after warm-up")


def test_logged_batches_are_those_of_the_stream_order(run, synthetic: Slice):
    plan = from_fields(facts(run)["recipe"]).plan
    expected = [span_digest(synthetic.train, span) for span in spans(synthetic.train_lengths, plan)]
    assert [event["batch"] for event in run.events("step")] == expected


def test_the_final_weights_are_the_logged_ones(run):
    assert weights.digest(weights.load(run.path / "weights.safetensors")) == run.state_digest("final weights")


def test_the_other_backend_finds_the_same_val_loss_for_the_final_weights(run, synthetic: Slice):
    """A token's loss is a sum of some hundred float32 products below 15, so that each backend is within about 1e-5 of
    the exact one; the mean over tokens is no further off."""
    recipe = from_fields(facts(run)["recipe"])
    program = programs.build(OTHER[facts(run)["backend"]], recipe, device="cpu", devices=1)
    state = program.load(weights.load(run.path / "weights.safetensors"))
    result = evaluate(program, state, synthetic, "val", 8192, 2048, recipe.context)
    logged = run.events("eval")[-1]
    assert result.val_loss == pytest.approx(logged["val_loss"], abs=1e-5)
    assert result.bits_per_byte == pytest.approx(logged["bits_per_byte"], abs=1e-5)


@pytest.mark.parametrize("recipe", ["muon", "nanogpt"])
def test_both_backends_start_from_the_same_weights_and_read_the_same_batches(recipe: str, finished):
    one, two = finished("jaxrun", recipe), finished("torchref", recipe)
    assert one.state_digest("initial weights") == two.state_digest("initial weights")
    assert [e["batch"] for e in one.events("step")] == [e["batch"] for e in two.events("step")]
    assert [e["batches"] for e in one.events("eval")] == [e["batches"] for e in two.events("eval")]


@pytest.mark.parametrize("recipe", ["muon", "nanogpt"])
def test_both_backends_lose_alike(recipe: str, finished):
    """Float32 rounding, 1e-7 of a loss of 6 at the first step, grows as training continues; after 60 steps it is far
    below what a mistake in a rate or a gradient would do."""
    one, two = ([e["loss"] for e in finished(backend, recipe).events("step")] for backend in ("jaxrun", "torchref"))
    assert one[0] == pytest.approx(two[0], abs=1e-5)
    assert np.abs(np.subtract(one, two)).max() < 5e-3


def test_the_loss_falls_and_stays_above_the_entropy_of_the_source(finished):
    evaluations = [event["val_loss"] for event in finished("jaxrun", "muon").events("eval")]
    assert evaluations[0] == pytest.approx(np.log(512), abs=0.01)  # a head of zeros says nothing
    assert evaluations[0] > evaluations[1] > evaluations[2] > entropy_nats()


def test_on_a_terminal_there_is_a_live_line_and_a_table(commands, tmp_path):
    parent, child = pty.openpty()
    args = commands.small("torchref", tmp_path, "seen")
    process = commands.start(
        *args, env={"TERM": "xterm-256color", "COLUMNS": "100"}, stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    shown = b""
    while chunk := _read(parent):
        shown += chunk
    os.close(parent)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[" in text and "\r" in text
    assert re.search(r"step \d+/60 .*loss \d\.\d{4}", text)
    assert "╭" in text and "val loss" in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side was closed
        return b""


HEAVY = ("jax", "torch", "rich", "matplotlib", "tiktoken", "optax", "flax", "orbax", "requests")


@pytest.mark.parametrize("command", ["jaxrun.train", "torchref.train", "jaxrun.sample", "torchref.sample"])
def test_help_imports_nothing_heavy(command: str, commands):
    done = commands.run(command, "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines()}
    assert done.code == 0 and "--data-dir" in done.out
    assert "parity" in imported and imported.isdisjoint(HEAVY)


def test_tensorboard_finds_the_figures_of_a_run(commands, tmp_path):
    pytest.importorskip("tensorboard")
    done = commands.run(*commands.small("torchref", tmp_path, "seen", "--tensorboard"))
    assert done.code == 0
    assert list((tmp_path / "tiny" / "seen" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("backend", [pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"])
@pytest.mark.parametrize("recipe", [pytest.param("muon", marks=pytest.mark.slow), "nanogpt"])
def test_a_run_in_bfloat16_trains_and_saves(backend, recipe, commands, tmp_path):
    done = commands.run(
        *commands.small(backend, tmp_path, "narrow", "--recipe", recipe, "--precision", "bfloat16", "--steps", "8")
    )
    assert (done.code, done.err) == (0, "")
    log = (tmp_path / "tiny" / "narrow" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log if '"event":"step"' in line]
    assert losses[-1] < losses[0]
    first, last = json.loads(log[0]), json.loads(log[-1])
    assert first["event"] == "start" and last["event"] == "finish"
