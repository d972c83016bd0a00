"""Depth `data`: the slice by its digests, and every batch that was consumed, computed anew from the shards.

Positions are computed here by the plain rule that the slice's documentation states, not by the code that reads them in a run.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.data.pinned import PINNED
from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.verify.evidence import contents
from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule
from parity.verify.rules.log import _real


@rule("data.slice", "data", "the slice is the track's, every file of it by its digest, and the run's is the same")
def slice_digest(context: Context) -> Found:
    slice_, run = context.slice, context.evidence.run
    pinned = PINNED.get(slice_.name, {})
    used = 1 + max((shard for shard, *_ in positions(context)), default=0)
    kept = slice_.manifest.used(used)
    for info in kept.shards:
        found = sha256_file(slice_.directory / info.file)
        if found != info.sha256 or (pinned and pinned.get(info.file) != found):
            raise NotJudged(
                f"{slice_.directory / info.file} is not the slice's (sha256 {found[:12]}): prepare the slice again"
            )
    if kept.digest != run["slice"]["digest"]:
        return fails(f"the slice has digest {kept.digest[:12]}, the run was made on {run['slice']['digest'][:12]}")
    return holds(f"{len(kept.shards)} files of {slice_.name}, digest {kept.digest[:12]}")


@rule("data.batches", "data", "every batch consumed is the one that the plan puts at its place")
def batches(context: Context) -> Found:
    log, slice_ = context.log, context.slice
    wanted: dict[int, str] = {}
    logged = set(log.step.tolist())
    for step, (shard, position, tokens, _) in enumerate(positions(context)):
        if step in logged:
            window = np.ascontiguousarray(slice_.train[shard][position : position + tokens + 1], "<u2")
            wanted[step] = hashlib.sha256(window).hexdigest()
    for step, digest in zip(log.step.tolist(), log.batches):
        if wanted.get(step) != digest:
            return fails(
                f"step {step}: expected the batch {wanted.get(step, 'that the plan does not have')[:12]}, consumed was "
                f"{digest[:12]}",
                step=step,
            )
    return holds(f"{len(log.batches):,} batches", batches=len(log.batches))


@rule("data.evaluation", "data", "every evaluation scored exactly the track's val tokens, in order")
def evaluations(context: Context) -> Found:
    track, row = context.evidence.track, context.evidence.eval_context
    evals = context.log.of("eval")
    if not evals:
        return fails("the log has no evaluation")
    known: dict[int, str] = {}
    for event in evals:
        if event["tokens"] != track.val_tokens:
            return fails(
                f"step {event['step']}: expected {track.val_tokens:,} tokens scored, found {event['tokens']:,}"
            )
        size = event.get("batch_tokens")
        if type(size) is not int or size < row or size % row:
            return fails(f"step {event['step']}: a batch of {size} tokens is not rows of {row}")
        if size not in known:
            known[size] = _scored(context, min(size, track.val_tokens))
        if event.get("batches") != known[size]:
            return fails(
                f"step {event['step']}: expected the batches {known[size][:12]}, scored were {str(event.get('batches'))[:12]}"
            )
    return holds(f"{track.val_tokens:,} tokens in each of {len(evals)} evaluations")


@rule("data.bytes", "data", "bits per byte follow from the val loss and the bytes of the scored text")
def bits(context: Context) -> Found:
    shard, start, _ = context.slice.part("val")
    tokens = context.evidence.track.val_tokens
    size = int(context.slice.token_bytes[np.asarray(shard[start + 1 : start + tokens + 1])].sum(dtype=np.int64))
    for event in context.log.of("eval"):
        expected = _real(event["val_loss"]) * tokens / math.log(2) / size if size else None
        found = event["bits_per_byte"]
        if (expected is None) != (found is None) or (
            expected is not None and not math.isclose(expected, _real(found), rel_tol=1e-9)
        ):
            return fails(f"step {event['step']}: expected {expected} bits per byte, found {found}")
    return holds(f"{size:,} bytes of text in {tokens:,} tokens", bytes=size)


@rule("data.checkpoints", "data", "the checkpoints on the disk are those of the log, whole")
def checkpoints(context: Context) -> Found:
    evidence = context.evidence
    logged = {event["step"]: event["digest"] for event in context.log.of("checkpoint")}
    for step in evidence.run["checkpoints"]:
        folder = evidence.checkpoint(step)
        if not folder.is_dir():
            raise NotJudged(
                f"the checkpoint of step {step} is not in {folder.parent}: put it back, or make the run again"
            )
        facts = _facts(folder)
        if facts["digest"] != logged.get(step) or facts["step"] != step:
            return fails(
                f"{folder.name} is of state {str(facts['digest'])[:12]}, the log saved {str(logged.get(step))[:12]}"
            )
        found = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
        }
        found.discard("checkpoint.json")
        for name in sorted(found | facts["files"].keys()):
            path = folder / name
            if (
                name not in facts["files"]
                or path.is_symlink()
                or not path.is_file()
                or sha256_file(path) != facts["files"][name]
            ):
                return fails(f"{folder.name}/{name} is not the file that was saved")
    return holds(f"{len(evidence.run['checkpoints'])} checkpoints, every file by its digest")


def _facts(folder) -> dict[str, Any]:
    """checkpoint.json of a folder; InputError where it is not of the form it has."""
    path = folder / "checkpoint.json"
    try:
        facts = json.loads(contents(path, 16 << 20))
        names = facts["files"]
        if not isinstance(facts["digest"], str) or not isinstance(facts["step"], int) or not isinstance(names, dict):
            raise ValueError("of another form")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the facts of a checkpoint, found none that can be read ({str(error)[:60]}): make the "
            "run again"
        ) from None
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise InputError(f"{path}: names a file outside its folder: make the run again")
    return facts


def positions(context: Context) -> Iterator[tuple[int, int, int, int]]:
    """(shard, position, tokens, row length) of every step of the plan: n tokens at p; then p += n; where p + n + 1 would
    reach the end of a shard, the next one from 0."""
    lengths, shard, position = context.slice.train_lengths, 0, 0
    for segment in context.evidence.run["plan"]:
        tokens = segment["tokens"]
        for _ in range(segment["steps"]):
            while shard < len(lengths) and position + tokens + 1 >= lengths[shard]:
                shard, position = shard + 1, 0
            if shard == len(lengths):
                raise NotJudged(f"slice {context.slice.name} has too few train tokens here: prepare more of it")
            yield shard, position, tokens, segment["seq_len"]
            position += tokens


def _scored(context: Context, batch: int) -> str:
    """sha256 over the digests of the val batches of a size, in order."""
    shard, start, _ = context.slice.part("val")
    total = hashlib.sha256()
    tokens = context.evidence.track.val_tokens
    for begin in range(start, start + tokens, batch):
        stop = min(begin + batch, start + tokens)
        total.update(hashlib.sha256(np.ascontiguousarray(shard[begin : stop + 1], "<u2")).hexdigest().encode())
    return total.hexdigest()
