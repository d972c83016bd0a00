"""Depth `log`: the evidence against itself. Form, chain, order, plan, totals, states, and the code that ran."""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.formats import source_zip
from parity.formats.files import open_plain, sha256_file
from parity.track import check_recipe
from parity.verify.context import Context, NotJudged
from parity.verify.evidence import Evidence, logged_float
from parity.verify.rules import Finding, fails, holds, rule

MOST_NEIGHBOURS = 10_000  # that log.twin looks for runs among
SAME = 1e-9  # relative: figures derived from logged ones by the same formula differ by rounding only
HARNESS = ("parity/harness/", "parity/data/", "parity/recipes/", "parity/formats/")
ROOT = Path(__file__).parents[3]


@rule("log.form", "log", "every line of the log is an event as the schema describes it")
def form(context: Context) -> Finding:
    problems = context.log.problems.get("log.form", [])
    return fails("; ".join(problems)) if problems else holds(f"{context.log.lines:,} lines", lines=context.log.lines)


@rule("log.chain", "log", "every line carries its number and the digest of the line before")
def chain(context: Context) -> Finding:
    problems = context.log.problems.get("log.chain", [])
    if problems:
        return fails("; ".join(problems[:2]))
    return holds(f"unbroken; the last line's digest is {context.log.last[:12]}", last=context.log.last)


@rule("log.header", "log", "run.json is the one that the log began with, and both speak of one run")
def header(context: Context) -> Finding:
    run, starts = context.evidence.run, context.log.of("start")
    if not starts:
        return fails("the log has no start event")
    start = starts[0]
    digest = sha256_file(context.evidence.path / "run.json")
    if start.get("run_json") != digest:
        return fails(f"run.json has sha256 {digest[:12]}; the log began with {str(start.get('run_json'))[:12]}")
    declared = {name: run[name] for name in ("track", "seed", "backend")} | {"slice": run["slice"]["digest"]}
    for name, value in declared.items():
        if start.get(name) != value:
            return fails(f"{name}: run.json has {value}, the log's start event {start.get(name)}")
    return holds(f"seed {run['seed']} of {run['recipe']['name']} in {run['backend']}")


@rule("plan.track", "log", "slice, val tokens, plan and what the track fixes are those of the recipe and the track")
def plan_of_track(context: Context) -> Finding:
    evidence, run, track = context.evidence, context.evidence.run, context.evidence.track
    expected: dict[str, tuple[Any, Any]] = {
        "slice": (track.slice, run["slice"]["name"]),
        "val tokens": (track.val_tokens, run["val_tokens"]),
    }
    recipe = evidence.recipe
    if recipe is None:
        return fails(f"recipe {run['recipe']['name']!r} is not one of ours, and run.json names no user program")
    if not evidence.user_program:
        expected |= {
            "plan": ([segment.to_json() for segment in recipe.plan], run["plan"]),
            "precision": (recipe.precision, run["precision"]),
            "evaluations": (list(recipe.eval_steps()), run.get("eval_steps")),
            "checkpoints": (list(recipe.checkpoint_steps()), run["checkpoints"]),
        }
    for name, (wanted, declared) in expected.items():
        if wanted != declared:
            return fails(f"{name}: expected {_short(wanted)}, found {_short(declared)}")
    try:
        check_recipe(track, recipe)
    except InputError as error:
        return fails(str(error))
    if track.fixed and evidence.user_program:
        return fails(f"track {track.name} fixes the architecture, but the run has a user program")
    return holds(f"{evidence.steps:,} steps, {track.val_tokens:,} val tokens of {track.slice}")


@rule("log.order", "log", "steps, evaluations and checkpoints follow one another as one run makes them")
def order(context: Context) -> Finding:
    log, next_step, finished = context.log, 0, False
    tokens = _tokens_after(context.evidence)
    saved_steps = {0}
    for n, line in log.stream:
        if finished:
            return fails(f"line {n}: an event follows the finish")
        if isinstance(line, int):
            step = int(log.step[line])
            if step != next_step:
                return fails(f"line {n}: expected step {next_step}, found {step}")
            next_step += 1
            logged = int(log.tokens[line])
            if next_step < len(tokens) and logged != tokens[next_step]:
                return fails(f"line {n}: expected {tokens[next_step]:,} tokens after step {step}, found {logged:,}")
            continue
        kind = line["event"]
        if kind in ("eval", "checkpoint") and line["step"] != next_step:
            return fails(f"line {n}: {kind} of step {line['step']} after {next_step} steps")
        if kind == "checkpoint":
            saved_steps.add(next_step)
        elif kind == "resume":
            if line["step"] not in saved_steps or line["step"] > next_step:
                return fails(f"line {n}: resumes from step {line['step']}, of which the log has no checkpoint")
            next_step = line["step"]
        finished = kind == "finish"
    return holds(f"{len(log.n):,} steps, {len(log.of('eval'))} evaluations, {len(log.of('resume'))} resumes")


@rule(
    "log.plan",
    "log",
    "every step, evaluation, checkpoint and look of the guard that the plan has is there, to the finish",
)
def plan(context: Context) -> Finding:
    run, log, steps = context.evidence.run, context.log, context.evidence.steps
    last, distinct = int(log.step.max(initial=-1)) + 1, len(np.unique(log.step))
    if last != steps or distinct != steps:
        return fails(f"the plan has {steps} steps, the log {distinct}, the last of them {last}")
    if not log.of("finish"):
        return fails("the log has no finish: the run was cut off; continue it with --resume, or it is no result")
    spaced = evenly_spaced(steps, len(run["checkpoints"]))
    if run["checkpoints"] != spaced:
        return fails(f"checkpoints: expected evenly spaced ones, {_short(spaced)}, found {_short(run['checkpoints'])}")
    evaluations = run.get("eval_steps") or []
    if not evaluations or evaluations[-1] != steps:
        return fails(f"the plan must end with an evaluation at step {steps}, found {evaluations[-1:]}")
    for name, planned, kind in (
        ("evaluation", evaluations, "eval"),
        ("checkpoint", run["checkpoints"], "checkpoint"),
        ("check by the guard", evaluations, "guard"),
    ):
        if missing := sorted(set(planned) - {event["step"] for event in log.of(kind)}):
            return fails(f"the {name} at step {missing[0]} is missing")
    return holds(f"all {steps:,} steps, {len(evaluations)} evaluations, {len(run['checkpoints'])} checkpoints")


def evenly_spaced(steps: int, count: int) -> list[int]:
    """Where the harness puts so many checkpoints of a run: at its start, its end, and evenly between."""
    return sorted({round(i * steps / max(count - 1, 1)) for i in range(count)} | {steps})


@rule("log.totals", "log", "the finish's totals follow from the events")
def totals(context: Context) -> Finding:
    log, evidence = context.log, context.evidence
    finish, evals = log.of("finish"), {event["step"]: event for event in log.of("eval")}
    if not finish or evidence.steps not in evals or not len(log.n):
        raise NotJudged("the log has no finish, or no evaluation at the last step")
    logged, target = finish[-1]["totals"], evidence.track.target
    seconds, steps, tokens = float(log.columns["train_s"][-1]), evidence.steps, int(log.tokens[-1])
    reached = [] if target is None else [s for s in sorted(evals) if logged_float(evals[s]["val_loss"]) <= target]
    expected = {
        "steps": steps,
        "tokens": tokens,
        "val_loss": evals[steps]["val_loss"],
        "target": target,
        "bits_per_byte": evals[steps]["bits_per_byte"],
        "target_reached_at_step": reached[0] if reached else None,
        "target_reached_train_s": evals[reached[0]]["train_s"] if reached else None,
    }
    for name, value in expected.items():
        if not _equal(value, logged.get(name)):
            return fails(f"{name}: expected {value}, found {logged.get(name)}")
    # the clock is read when the last step is logged, and again for the totals: it is stopped in between
    if not _same_time(logged.get("train_s"), seconds):
        return fails(f"train_s: the last step has {seconds:.6f}, the totals {logged.get('train_s')}")
    for event in evals.values():
        row = int(np.searchsorted(log.n, event["n"])) - 1
        before = float(log.columns["train_s"][row]) if row >= 0 else 0.0
        if not _same_time(event["train_s"], before):
            return fails(
                f"the evaluation at step {event['step']} has {event['train_s']} s of training, the steps {before}"
            )
    return holds(
        f"val loss {logged_float(logged['val_loss']):.4f}, {seconds:.1f} s of training, {tokens:,} tokens",
        val_loss=logged["val_loss"],
        train_s=logged["train_s"],
        steps=steps,
        tokens=tokens,
        flops=logged.get("flops"),
    )


def _same_time(logged: Any, seconds: float) -> bool:
    return math.isclose(logged_float(logged), seconds, rel_tol=1e-6, abs_tol=1e-4)


def _pairs(context: Context, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The digests before and after something; one that a killed process left open has no pair."""
    pairs, before = [], None
    for event in context.log.of("state"):
        if event["name"] == f"before {name}":
            before = event
        elif event["name"] == f"after {name}":
            if before is None or before.get("step") != event.get("step"):
                before = {"digest": "none", "step": event.get("step")}
            pairs.append((before, event))
            before = None
    return pairs


@rule("state.warmup", "log", "the warm-up on dummy data left the state as it was")
def warm_up(context: Context) -> Finding:
    pairs = _pairs(context, "warm-up")
    if not pairs:
        return fails("the log has no digests of the state around the warm-up")
    for before, after in pairs:
        if before["digest"] != after["digest"]:
            return fails(f"line {after['n']}: {before['digest'][:12]} before, {after['digest'][:12]} after")
    return holds(f"digest {pairs[0][0]['digest'][:12]} before and after")


@rule("state.evaluation", "log", "evaluation left the state as it was")
def evaluation_state(context: Context) -> Finding:
    log, run = context.log, context.evidence.run
    pairs = _pairs(context, "evaluation")
    for before, after in pairs:
        if before["digest"] != after["digest"]:
            return fails(f"step {before.get('step')}: {before['digest'][:12]} before, {after['digest'][:12]} after")
    expected = set(run["checkpoints"]) & {event["step"] for event in log.of("eval")}
    if missing := sorted(expected - {before.get("step") for before, _ in pairs}):
        return fails(f"the digests around the evaluation at step {missing[0]} are missing")
    return holds(f"the same digest before and after {len(pairs)} evaluations")


@rule("state.checkpoint", "log", "what was evaluated, saved, and gone on with is one state")
def checkpoint_state(context: Context) -> Finding:
    log = context.log
    saved: dict[int, str] = {}
    for event in log.of("checkpoint"):
        if saved.setdefault(event["step"], event["digest"]) != event["digest"]:
            return fails(f"two checkpoints of step {event['step']} have different states")
    evaluated = {event.get("step"): event["digest"] for event in log.states("before evaluation")}
    for step, digest in saved.items():
        if evaluated.get(step, digest) != digest:
            return fails(f"step {step}: evaluated {evaluated[step][:12]}, saved {digest[:12]}")
    first = log.states("before warm-up")
    if first and 0 in saved and first[0]["digest"] != saved[0]:
        return fails(
            f"the state before the warm-up is {first[0]['digest'][:12]}, the checkpoint of step 0 {saved[0][:12]}"
        )
    for event in log.of("resume"):
        if event.get("checkpoint") != "none" and event.get("digest") != saved.get(event["step"]):
            resumed, wanted = str(event.get("digest"))[:12], str(saved.get(event["step"]))[:12]
            return fails(f"line {event['n']}: resumes with state {resumed}, saved was {wanted}")
    return holds(f"{len(saved)} checkpoints")


@rule("code.source", "log", "the packed source is the one that run.json names, with the user's code in it")
def source(context: Context) -> Finding:
    evidence = context.evidence
    digest = source_zip.digest(evidence.source)
    if digest != evidence.run["source_sha256"]:
        return fails(f"source.zip has digest {digest[:12]}, run.json names {evidence.run['source_sha256'][:12]}")
    if program := evidence.user_program:
        content = evidence.source.get(program["file"])
        if content is None or hashlib.sha256(content).hexdigest() != program["sha256"]:
            return fails(f"source.zip lacks the program {program['file']} of sha256 {program['sha256'][:12]}")
    changed = {event.get("source_sha256") or digest for event in context.log.of("resume")} - {digest}
    if changed:
        return fails(f"the run was resumed with other code, of digest {min(changed)[:12]}")
    return holds(f"digest {digest[:12]}, {len(evidence.source)} files")


@rule("code.harness", "log", "harness and backend are those of the installed version")
def harness(context: Context) -> Finding:
    evidence = context.evidence
    packed = harness_code(evidence)
    files = source_zip.package_modules(ROOT / "parity") | source_zip.package_modules(_backend_folder(evidence.backend))
    installed = {name: files[name] for name in _harness_names(files, evidence.backend)}
    for name in sorted(packed.keys() | installed.keys()):
        if packed.get(name) != installed.get(name):
            return fails(
                f"{name} is not that of the installed version: verify with the version that made the run, or make the "
                "run again"
            )
    return holds(f"{len(packed)} files, to the last byte")


@rule("log.twin", "log", "no other run in its folder has its losses under another seed")
def twin(context: Context) -> Finding:
    evidence, compared = context.evidence, 0
    seed, losses = _first_losses(evidence.path / "log.jsonl")
    with os.scandir(evidence.path.parent) as entries:
        others = sorted(Path(entry.path) for entry in islice(entries, MOST_NEIGHBOURS))
    for other in others:
        if other == evidence.path or not (other / "log.jsonl").is_file() or compared >= 1000:
            continue
        compared += 1
        other_seed, other_losses = _first_losses(other / "log.jsonl")
        if len(losses) > 1 and losses == other_losses and seed != other_seed:
            return fails(f"{other.name} has the same losses under seed {other_seed}")
    return holds(f"compared with {compared} others")


def _first_losses(path: Path) -> tuple[Any, list[Any]]:
    """The seed of a log and its first losses; harmless for whatever the file holds."""
    seed, losses = None, []
    try:
        with open_plain(path) as file:
            while len(losses) < 8 and file.tell() < 1 << 20:
                if not (raw := file.readline(1 << 20)):
                    break
                if b'"event":"start"' in raw or b'"event":"step"' in raw:
                    event = json.loads(raw)
                    seed = event.get("seed", seed)
                    losses += [event["loss"]] if event.get("event") == "step" else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError):
        return None, []
    return seed, losses


def _tokens_after(evidence: Evidence) -> np.ndarray:
    """Tokens trained on after 0, 1, 2, ... steps of the plan."""
    tokens = [np.full(segment["steps"], min(segment["tokens"], 1 << 40), np.int64) for segment in evidence.run["plan"]]
    return np.concatenate([[0], np.cumsum(np.concatenate(tokens))])


def harness_code(evidence: Evidence) -> dict[str, bytes]:
    """The packed files of harness and backend: the code that takes part in a run, and so what Python can import."""
    packed = {name: evidence.source[name] for name in _harness_names(evidence.source, evidence.backend)}
    return {
        name: content
        for name, content in packed.items()
        if source_zip.is_module_name(name) and source_zip.is_readable(content)
    }


def _harness_names(names: Iterable[str], backend: str) -> list[str]:
    """The files that take part in a run: the harness, the data, the modules that both use, and the backend."""
    prefixes = (*HARNESS, f"{backend}/")
    return [
        name for name in names if name.startswith(prefixes) or (name.startswith("parity/") and name.count("/") == 1)
    ]


def _backend_folder(backend: str) -> Path:
    """The folder of a backend's package, found without importing it."""
    spec = importlib.util.find_spec(backend)
    if spec is None or spec.origin is None:
        raise NotJudged(f"{backend} is not installed here")
    return Path(spec.origin).parent


def _equal(expected: Any, logged: Any) -> bool:
    if isinstance(expected, int | float) and isinstance(logged, int | float):
        return math.isclose(expected, logged, rel_tol=SAME)
    return expected == logged


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
