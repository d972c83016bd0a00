"""Depth `data`: the slice by its digests, and every batch that was consumed, recomputed from the shards.

Batches follow the plain rules that the slice's documentation states, not the code that reads them in a run.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.data.documents import DocumentSpan
from parity.data.pinned import PINNED
from parity.data.plain import plain_spans, plain_tokens
from parity.data.stream import AnySpan, Segment
from parity.errors import InputError
from parity.formats import schemas
from parity.formats.files import sha256_file
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import logged_float
from parity.verify.rules import Finding, fails, holds, rule


@rule("data.slice", "data", "the slice is the track's, every file of it by its digest, and the run's is the same")
def slice_digest(context: Context) -> Finding:
    slice_, run = context.slice, context.evidence.run
    pinned = PINNED.get(slice_.name, {})
    manifest = slice_.manifest.used(1 + max((span.shard for span in planned(context)), default=0))
    for info in manifest.shards:
        digest = sha256_file(slice_.directory / info.file)
        if digest != info.sha256 or (pinned and pinned.get(info.file) != digest):
            raise NotJudged(
                f"{slice_.directory / info.file} is not the slice's (sha256 {digest[:12]}): prepare the slice again"
            )
    if manifest.digest != run["slice"]["digest"]:
        return fails(f"the slice has digest {manifest.digest[:12]}, the run was made on {run['slice']['digest'][:12]}")
    return holds(f"{len(manifest.shards)} files of {slice_.name}, digest {manifest.digest[:12]}")


@rule("data.batches", "data", "every batch consumed is the one that the plan puts at its place")
def batches(context: Context) -> Finding:
    log, slice_ = context.log, context.slice
    rows, at = np.argsort(log.step, kind="stable"), 0  # a step comes again where a run was resumed
    for step, span in enumerate(planned(context)):
        if at < len(rows) and log.step[rows[at]] == step:
            expected = _sha256(plain_tokens(slice_.train, span))
        while at < len(rows) and log.step[rows[at]] == step:
            if (consumed := log.batches[rows[at]]) != expected:
                reason = f"step {step}: expected the batch {expected[:12]}, consumed was {consumed[:12]}"
                return fails(reason, step=step)
            at += 1
    if at < len(rows):
        step = int(log.step[rows[at]])
        return fails(f"step {step}: expected no batch, as the plan has no such step, found one", step=step)
    return holds(f"{len(log.batches):,} batches", batches=len(log.batches))


@rule("data.evaluation", "data", "every evaluation scored exactly the track's val tokens, in order")
def evaluations(context: Context) -> Finding:
    track, row = context.evidence.track, context.evidence.eval_context
    evals = context.log.of("eval")
    if not evals:
        return fails("the log has no evaluation")
    expected: dict[int, str] = {}
    for event in evals:
        step, size = event["step"], event.get("batch_tokens")
        if event["tokens"] != track.val_tokens:
            return fails(f"step {step}: expected {track.val_tokens:,} tokens scored, found {event['tokens']:,}")
        if type(size) is not int or size < row or size % row:
            return fails(f"step {step}: a batch of {size} tokens is not rows of {row}")
        if size not in expected:
            expected[size] = _val_digest(context, min(size, track.val_tokens))
        if event.get("batches") != expected[size]:
            scored = str(event.get("batches"))[:12]
            return fails(f"step {step}: expected the batches {expected[size][:12]}, scored were {scored}")
    return holds(f"{track.val_tokens:,} tokens in each of {len(evals)} evaluations")


@rule("data.bytes", "data", "bits per byte follow from the val loss and the bytes of the scored text")
def bits(context: Context) -> Finding:
    shard, start, _ = context.slice.part("val")
    tokens = context.evidence.track.val_tokens
    size = int(context.slice.token_bytes[np.asarray(shard[start + 1 : start + tokens + 1])].sum(dtype=np.int64))
    for event in context.log.of("eval"):
        logged = event["bits_per_byte"]
        expected = logged_float(event["val_loss"]) * tokens / math.log(2) / size if size else None
        if expected is None or logged is None:
            equal = expected is logged
        else:
            equal = math.isclose(expected, logged_float(logged), rel_tol=1e-9)
        if not equal:
            return fails(f"step {event['step']}: expected {expected} bits per byte, found {logged}")
    return holds(f"{size:,} bytes of text in {tokens:,} tokens", bytes=size)


@rule("data.checkpoints", "data", "the checkpoints on the disk are those of the log, whole")
def checkpoints(context: Context) -> Finding:
    evidence = context.evidence
    logged = {event["step"]: event["digest"] for event in context.log.of("checkpoint")}
    for step in evidence.run["checkpoints"]:
        folder = evidence.checkpoint(step)
        if not os.path.lexists(folder):
            raise NotJudged(
                f"the checkpoint of step {step} is not in {folder.parent}: put it back, or make the run again"
            )
        try:
            present = evidence.checkpoint_files(evidence.checkpoint(step))
        except InputError as error:  # a link, a pipe, or more than a run saves
            return fails(str(error))
        facts = _read_facts(folder)
        if facts["digest"] != logged.get(step) or facts["step"] != step:
            return fails(
                f"{folder.name} is of state {str(facts['digest'])[:12]}, the log saved {str(logged.get(step))[:12]}"
            )
        for name in sorted((present.keys() | facts["files"].keys()) - {"checkpoint.json"}):
            digest = facts["files"].get(name)
            if digest is None or name not in present or sha256_file(folder / name) != digest:
                return fails(f"{folder.name}/{name} is not the file that was saved")
    return holds(f"{len(evidence.run['checkpoints'])} checkpoints, every file by its digest")


def _read_facts(folder: Path) -> dict[str, Any]:
    """checkpoint.json of a folder; InputError where it has another form."""
    path, remedy = folder / "checkpoint.json", "make the run again"
    facts = schemas.read(path, "checkpoint.v1", "the facts of a checkpoint", remedy, plain=True)
    if any(name.startswith("/") or ".." in name.split("/") for name in facts["files"]):
        raise InputError(f"{path}: names a file outside its folder: {remedy}")
    return facts


def planned(context: Context) -> Iterator[AnySpan]:
    """The batch of every step of the plan. Raises NotJudged where the slice here does not last for it."""
    slice_, plan = context.slice, [Segment(**segment) for segment in context.evidence.run["plan"]]
    steps = 0
    for span in plain_spans(slice_.train, plan, slice_.manifest.end_of_text):
        yield span
        steps += 1
    if steps < context.evidence.steps:
        raise NotJudged(f"slice {slice_.name} has too few train tokens here: prepare more of it")


def end_of(span: AnySpan) -> int:
    """The position behind a batch's last input in its shard."""
    if isinstance(span, DocumentSpan):
        at, count = span.rows[-1][-1]
        return at + count
    return span.position + span.tokens


def _digest(shard: np.ndarray, begin: int, tokens: int) -> str:
    """sha256 of a batch: its tokens and the last target."""
    return _sha256(shard[begin : begin + tokens + 1])


def _sha256(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, "<u2").data).hexdigest()


def _val_digest(context: Context, batch: int) -> str:
    """sha256 over the digests of the val batches of a size, in order."""
    shard, start, _ = context.slice.part("val")
    end = start + context.evidence.track.val_tokens
    total = hashlib.sha256()
    for begin in range(start, end, batch):
        total.update(_digest(shard, begin, min(batch, end - begin)).encode())
    return total.hexdigest()
