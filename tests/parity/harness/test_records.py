"""Runs of record-11 and record-21 in real processes: growing windows, longer rows in evaluation, what they need."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from parity import weights as canonical
from parity.data.slices import open_slice
from parity.harness.evaluation import evaluate
from parity.program import build, with_step
from parity.recipes import from_fields, recipe_for

STEPS = 20
SHORT = ("--steps", str(STEPS), "--val-every", "10", "--final-val-every", "10", "--samples", "0")


def command(backend, recipe, commands, runs, *args):
    return [
        f"{backend}.train",
        "--track",
        "tiny",
        "--recipe",
        recipe,
        "--data-dir",
        commands.data,
        "--runs",
        runs,
        "--name",
        "run",
        *args,
    ]


@pytest.fixture(scope="module", params=[pytest.param("jaxrun", marks=pytest.mark.slow), "torchref"])
def run(request, commands, tmp_path_factory):
    """A finished run of record-21: backend, folder."""
    runs = tmp_path_factory.mktemp("records")
    done = commands.run(*command(request.param, "record-21", commands, runs, *SHORT))
    assert done.code == 0, done.err
    return request.param, runs / "tiny" / "run"


def test_evaluation_of_the_final_weights_is_the_logged_one_with_the_last_window_alone(run, commands):
    backend, path = run
    recipe = from_fields(json.loads((path / "run.json").read_text())["recipe"])
    events = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    logged = next(event["val_loss"] for event in events if event["event"] == "eval" and event["step"] == STEPS)
    program, slice_ = build(backend, recipe, device="cpu"), open_slice("synthetic", commands.data)

    def score(step):
        state = with_step(program, program.load(canonical.load(path / "weights.safetensors")), step)
        return evaluate(program, state, slice_, "val", 8192, 1024, recipe.eval_context).val_loss

    assert score(STEPS) == pytest.approx(logged, abs=1e-6)  # float32 sums of 8,192 losses in float64
    assert abs(score(0) - logged) > 1e-4  # the first window is another model


def test_a_run_says_how_long_its_rows_of_evaluation_are(run):
    _, path = run
    facts = json.loads((path / "run.json").read_text())
    assert (facts["val_row"], facts["plan"][0]["seq_len"]) == (512, 128)


@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bytes(run, backend, commands, tmp_path):
    """Windows that grow with the steps continue: the last checkpoint is removed, as if the run was killed before it."""
    if run[0] != backend:
        pytest.skip("the other backend's run")
    shutil.copytree(run[1], tmp_path / "run")
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines(keepends=True)
    middle = next(
        i
        for i, line in enumerate(log)
        if '"event":"checkpoint"' in line.replace(" ", "") and f'"step":{STEPS // 2}' in line.replace(" ", "")
    )
    (tmp_path / "run" / "log.jsonl").write_text("".join(log[: middle + 1]))
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir()):
        if int(re.search(r"\d+$", folder.name)[0]) > STEPS // 2:
            shutil.rmtree(folder)
    (tmp_path / "run" / "weights.safetensors").unlink()
    done = commands.resume(tmp_path / "run", backend=backend)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--context", "64", "--block", "48"],
            ["--context must be a multiple of --block 48", "found 64"],
        ),
        (["--window", "200"], ["--window must be at most the context, 128", "found 200"]),
        (["--val-context", "510"], ["--val-context must be a multiple of --block 4", "found 510"]),
        (["--val-context", "20"], ["--val-context 20 does not divide the track's 8,192 val tokens"]),
        (["--layers", "5"], ["--layers must be even", "found 5"]),
        (["--bare-block", "0"], ["--bare-block must be a block without a value embedding", "found 0"]),
        (["--bare-block", "9"], ["--bare-block must be -1, or from 0 to 3", "found 9"]),
        (["--value-embeddings", "3"], ["--value-embeddings must be from 1 to 2", "found 3"]),
        (["--block", "0"], ["--block must be positive"]),
        (["--fp8-scales", "1.0", "0.0", "1.0"], ["--fp8-scales must be three positive numbers"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_a_run_directory_is_made(args, words, commands, tmp_path):
    done = commands.run(*command("torchref", "record-21", commands, tmp_path, *args))
    assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err
    assert not list(tmp_path.glob("*/*"))


def test_a_slice_without_document_starts_is_refused(commands):
    from parity.errors import InputError
    from parity.harness.setup import check_documents

    slice_, recipe = open_slice("synthetic", commands.data), recipe_for("record-21", "tiny")
    check_documents(slice_, recipe)
    bare = tuple(dataclasses.replace(shard, documents=0) for shard in slice_.manifest.shards)
    without = dataclasses.replace(slice_, manifest=dataclasses.replace(slice_.manifest, shards=bare))
    with pytest.raises(InputError, match="separates documents by the token 511 that each starts with, found none in"):
        check_documents(without, recipe)
    check_documents(without, recipe_for("record-11", "tiny"))
    other = dataclasses.replace(slice_, manifest=dataclasses.replace(slice_.manifest, end_of_text=7))
    with pytest.raises(InputError, match="expects documents to start with token 511, found end of text 7"):
        check_documents(other, recipe)


def test_documents_of_a_real_slice_are_kept_apart(run, commands):
    """Tokens of an earlier document change nothing after the start of the next, in rows longer than in training."""
    backend, path = run
    recipe = from_fields(json.loads((path / "run.json").read_text())["recipe"])
    program, slice_ = build(backend, recipe, device="cpu"), open_slice("synthetic", commands.data)
    shard, start, _ = slice_.part("val")
    tokens = np.asarray(shard[start : start + 2 * 512 + 1], np.int32)
    inputs, targets = (
        np.ascontiguousarray(tokens[:-1].reshape(2, 512)),
        np.ascontiguousarray(tokens[1:].reshape(2, 512)),
    )
    starts = [int(np.flatnonzero(row[100:] == recipe.end_of_text)[0]) + 100 for row in inputs]
    changed = inputs.copy()
    for row, first in enumerate(starts):
        changed[row, :first] = (changed[row, :first] * 7 + 1) % 500
    state = with_step(program, program.load(canonical.load(path / "weights.safetensors")), STEPS)
    before, after = (
        np.asarray(program.fetch(program.token_losses(state, program.put_global_batch(x, targets))))
        for x in (inputs, changed)
    )
    for row, first in enumerate(starts):
        assert (
            np.abs(before[row, first:] - after[row, first:]).max()
            < 2e-6
            < np.abs(before[row, :first] - after[row, :first]).max()
        )
