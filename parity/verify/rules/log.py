"""Depth `log`: the evidence against itself. Form, chain, order, plan, totals, states, and the code that ran."""

import hashlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError
from parity.track import check_recipe
from parity.verify.evidence import Evidence, source_digest
from parity.verify.rules import Context, Found, NotJudged, fails, holds, rule

SAME = 1e-9  # relative: figures derived from logged ones by the same formula differ by rounding only
HARNESS = ("parity/harness/", "parity/data/")


@rule("log.form", "log", "every line of the log is an event as the schema describes it")
def form(context: Context) -> Found:
    problems = context.log.problems.get("log.form", [])
    return fails("; ".join(problems)) if problems else holds(f"{context.log.lines:,} lines", lines=context.log.lines)


@rule("log.chain", "log", "every line carries its number and the digest of the line before")
def chain(context: Context) -> Found:
    problems = context.log.problems.get("log.chain", [])
    if problems:
        return fails("; ".join(problems[:2]))
    return holds(f"unbroken; the last line's digest is {context.log.last[:12]}", last=context.log.last)


@rule("log.header", "log", "run.json is the one that the log began with, and both speak of one run")
def header(context: Context) -> Found:
    run, starts = context.evidence.run, context.log.of("start")
    if not starts:
        return fails("the log has no start")
    start = starts[0]
    found = hashlib.sha256((context.evidence.path / "run.json").read_bytes()).hexdigest()
    if start.get("run_json") != found:
        return fails(f"run.json has sha256 {found[:12]}; the log began with {str(start.get('run_json'))[:12]}")
    said = {"track": run["track"], "seed": run["seed"], "backend": run["backend"], "slice": run["slice"]["digest"]}
    for name, value in said.items():
        if start.get(name) != value:
            return fails(f"{name}: run.json says {value}, the log's start {start.get(name)}")
    return holds(f"seed {run['seed']} of {run['recipe']['name']} in {run['backend']}")


@rule("plan.track", "log", "slice, val tokens, plan and what the track fixes are those of the recipe and the track")
def plan_of_track(context: Context) -> Found:
    evidence, run, track = context.evidence, context.evidence.run, context.evidence.track
    wanted: dict[str, tuple[Any, Any]] = {
        "slice": (track.slice, run["slice"]["name"]),
        "val tokens": (track.val_tokens, run["val_tokens"]),
    }
    recipe = evidence.recipe
    if recipe is None:
        return fails(f"recipe {run['recipe']['name']!r} is not one of ours, and run.json names no own program")
    if not evidence.own:
        wanted |= {
            "plan": ([vars(s) for s in recipe.plan], run["plan"]),
            "precision": (recipe.precision, run["precision"]),
            "evaluations": (list(recipe.eval_steps()), run.get("eval_steps")),
            "checkpoints": (list(recipe.checkpoint_steps()), run["checkpoints"]),
        }
    for name, (expected, found) in wanted.items():
        if expected != found:
            return fails(f"{name}: expected {_short(expected)}, found {_short(found)}")
    try:
        check_recipe(track, recipe)
    except InputError as error:
        return fails(str(error))
    if track.fixed and evidence.own:
        return fails(f"track {track.name} fixes the architecture, and the run has an own program")
    return holds(f"{evidence.steps:,} steps, {track.val_tokens:,} val tokens of {track.slice}")


@rule("log.order", "log", "steps, evaluations and checkpoints follow one another as one run makes them")
def order(context: Context) -> Found:
    log, following, finished = context.log, 0, False
    tokens = _tokens_after(context.evidence)
    kept = {0}
    for n, line in log.stream:
        if finished:
            return fails(f"line {n}: something follows the finish")
        if isinstance(line, int):
            step = int(log.step[line])
            if step != following:
                return fails(f"line {n}: expected step {following}, found {step}")
            following += 1
            if following < len(tokens) and int(log.tokens[line]) != tokens[following]:
                return fails(
                    f"line {n}: expected {tokens[following]:,} tokens after step {step}, found {int(log.tokens[line]):,}"
                )
            continue
        kind = line["event"]
        if kind in ("eval", "checkpoint") and line["step"] != following:
            return fails(f"line {n}: {kind} of step {line['step']} after {following} steps")
        if kind == "checkpoint":
            kept.add(following)
        elif kind == "resume":
            if line["step"] not in kept or line["step"] > following:
                return fails(f"line {n}: goes on from step {line['step']}, of which the log has no checkpoint")
            following = line["step"]
        finished = kind == "finish"
    return holds(f"{len(log.n):,} steps, {len(log.of('eval'))} evaluations, {len(log.of('resume'))} resumes")


@rule(
    "log.plan",
    "log",
    "every step, evaluation, checkpoint and look of the guard that the plan has is there, to the finish",
)
def plan(context: Context) -> Found:
    run, log, steps = context.evidence.run, context.log, context.evidence.steps
    last = int(log.step.max()) + 1 if len(log.step) else 0
    if last != steps or len(np.unique(log.step)) != steps:
        return fails(f"the plan has {steps} steps, the log {len(np.unique(log.step))}, the last of them {last}")
    if not log.of("finish"):
        return fails("the log has no finish: the run was cut off; go on with --resume, or it is no result")
    evaluations = run.get("eval_steps") or []
    if not evaluations or evaluations[-1] != steps:
        return fails(f"the plan must end with an evaluation at step {steps}, found {evaluations[-1:]}")
    for name, wanted, kind in (
        ("evaluation", evaluations, "eval"),
        ("checkpoint", run["checkpoints"], "checkpoint"),
        ("look of the guard", evaluations, "guard"),
    ):
        if missing := sorted(set(wanted) - {event["step"] for event in log.of(kind)}):
            return fails(f"the {name} at step {missing[0]} is missing")
    return holds(f"all {steps:,} steps, {len(evaluations)} evaluations, {len(run['checkpoints'])} checkpoints")


@rule("log.totals", "log", "the finish's totals follow from the events")
def totals(context: Context) -> Found:
    log, evidence = context.log, context.evidence
    finish, evals = log.of("finish"), {event["step"]: event for event in log.of("eval")}
    if not finish or evidence.steps not in evals or not len(log.n):
        raise NotJudged("the log has no finish, or no evaluation at the last step")
    said, target = finish[-1]["totals"], evidence.track.target
    seconds, steps, tokens = float(log.columns["train_s"][-1]), evidence.steps, int(log.tokens[-1])
    reached = [
        step for step, event in sorted(evals.items()) if target is not None and _real(event["val_loss"]) <= target
    ]
    wanted = {
        "steps": steps,
        "tokens": tokens,
        "val_loss": evals[steps]["val_loss"],
        "target": target,
        "bits_per_byte": evals[steps]["bits_per_byte"],
        "target_reached_at_step": reached[0] if reached else None,
        "target_reached_train_s": evals[reached[0]]["train_s"] if reached else None,
    }
    for name, expected in wanted.items():
        if not _equal(expected, said.get(name)):
            return fails(f"{name}: expected {expected}, found {said.get(name)}")
    # the clock's last reading is taken when the last step is logged, and again for the totals: it stands in between
    if not math.isclose(_real(said.get("train_s")), seconds, rel_tol=1e-6, abs_tol=1e-4):
        return fails(f"train_s: the last step says {seconds:.6f}, the totals {said.get('train_s')}")
    for event in evals.values():
        row = int(np.searchsorted(log.n, event["n"])) - 1
        before = float(log.columns["train_s"][row]) if row >= 0 else 0.0
        if not math.isclose(_real(event["train_s"]), before, rel_tol=1e-6, abs_tol=1e-4):
            return fails(
                f"the evaluation at step {event['step']} says {event['train_s']} s of training, the steps {before}"
            )
    return holds(
        f"val loss {_real(said['val_loss']):.4f}, {seconds:.1f} s of training, {tokens:,} tokens",
        val_loss=said["val_loss"],
        train_s=said["train_s"],
        steps=steps,
        tokens=tokens,
        flops=said.get("flops"),
    )


def _pairs(context: Context, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The digests before and after something; one that a killed process left open has no pair."""
    found, opened = [], None
    for event in context.log.events:
        if event["event"] == "state" and event["name"] == f"before {name}":
            opened = event
        elif event["event"] == "state" and event["name"] == f"after {name}":
            if opened is None or opened.get("step") != event.get("step"):
                opened = {"digest": "none", "step": event.get("step")}
            found.append((opened, event))
            opened = None
    return found


@rule("state.warmup", "log", "the warm-up on dummy data left the state as it was")
def warm_up(context: Context) -> Found:
    pairs = _pairs(context, "warm-up")
    if not pairs:
        return fails("the log has no digests of the state around the warm-up")
    for before, after in pairs:
        if before["digest"] != after["digest"]:
            return fails(f"line {after['n']}: {before['digest'][:12]} before, {after['digest'][:12]} after")
    return holds(f"digest {pairs[0][0]['digest'][:12]} before and after")


@rule("state.evaluation", "log", "evaluation left the state as it was")
def evaluation_state(context: Context) -> Found:
    log, run = context.log, context.evidence.run
    pairs = _pairs(context, "evaluation")
    for before, after in pairs:
        if before["digest"] != after["digest"]:
            return fails(f"step {before.get('step')}: {before['digest'][:12]} before, {after['digest'][:12]} after")
    wanted = set(run["checkpoints"]) & {event["step"] for event in log.of("eval")}
    if missing := sorted(wanted - {before.get("step") for before, _ in pairs}):
        return fails(f"the digests around the evaluation at step {missing[0]} are missing")
    return holds(f"the same digest before and after {len(pairs)} evaluations")


@rule("state.checkpoint", "log", "what was evaluated, saved, and gone on with is one state")
def checkpoint_state(context: Context) -> Found:
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
            return fails(
                f"line {event['n']}: goes on with {str(event.get('digest'))[:12]}, saved was "
                f"{str(saved.get(event['step']))[:12]}"
            )
    return holds(f"{len(saved)} checkpoints")


@rule("code.source", "log", "the packed source is the one that run.json names, with the own code in it")
def source(context: Context) -> Found:
    evidence = context.evidence
    found = source_digest(evidence.source)
    if found != evidence.run["source_sha256"]:
        return fails(f"source.zip has digest {found[:12]}, run.json names {evidence.run['source_sha256'][:12]}")
    if own := evidence.own:
        content = evidence.source.get(own["file"])
        if content is None or hashlib.sha256(content).hexdigest() != own["sha256"]:
            return fails(f"source.zip lacks the program {own['file']} of sha256 {own['sha256'][:12]}")
    changed = {event.get("source_sha256") or found for event in context.log.of("resume")} - {found}
    if changed:
        return fails(f"the run was gone on with other code, of digest {min(changed)[:12]}")
    return holds(f"digest {found[:12]}, {len(evidence.source)} files")


@rule("code.harness", "log", "harness and backend are those of the installed version")
def harness(context: Context) -> Found:
    evidence = context.evidence
    root = Path(__file__).parents[3]
    packed = ran(evidence)
    wanted = {
        name: file
        for file in [*_files(root / "parity", root), *_installed(evidence.backend)]
        if _counts(name := _member(file), evidence.backend)
    }
    for name in sorted(packed.keys() | wanted.keys()):
        if name not in packed or name not in wanted or packed[name] != wanted[name].read_bytes():
            return fails(
                f"{name} is not that of the installed version: verify with the version that made the run, or make the "
                "run again"
            )
    return holds(f"{len(packed)} files, to the last byte")


@rule("log.twin", "log", "no other run beside it has its losses under another seed")
def twin(context: Context) -> Found:
    evidence, looked = context.evidence, 0
    mine = _opening(evidence.path / "log.jsonl")
    for other in sorted(evidence.path.parent.iterdir()):
        if other == evidence.path or not (other / "log.jsonl").is_file() or looked >= 1000:
            continue
        looked += 1
        theirs = _opening(other / "log.jsonl")
        if len(mine[1]) > 1 and mine[1] == theirs[1] and mine[0] != theirs[0]:
            return fails(f"{other.name} has the same losses under seed {theirs[0]}")
    return holds(f"compared with {looked} others")


def _opening(path: Path) -> tuple[Any, list[Any]]:
    """The seed of a log and its first losses; harmless for whatever the file holds."""
    seed, losses = None, []
    try:
        with open(path, "rb") as file:
            for _ in range(2000):
                raw = file.readline(1 << 20)
                if not raw or len(losses) == 8:
                    break
                if b'"event":"start"' in raw or b'"event":"step"' in raw:
                    event = json.loads(raw)
                    seed = event.get("seed", seed)
                    losses += [event["loss"]] if event.get("event") == "step" else []
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return None, []
    return seed, losses


def _tokens_after(evidence: Evidence) -> np.ndarray:
    """Tokens trained on after 0, 1, 2, ... steps of the plan."""
    tokens = [np.full(segment["steps"], min(segment["tokens"], 1 << 40), np.int64) for segment in evidence.run["plan"]]
    return np.concatenate([[0], np.cumsum(np.concatenate(tokens))])


def ran(evidence: Evidence) -> dict[str, bytes]:
    """The packed files of harness and backend: what takes part in a run."""
    return {name: content for name, content in evidence.source.items() if _counts(name, evidence.backend)}


def _counts(name: str, backend: str) -> bool:
    """Whether a packed file takes part in a run: the harness, the data, what both rest on, and the backend."""
    return name.startswith((*HARNESS, f"{backend}/")) or (name.startswith("parity/") and name.count("/") == 1)


def _files(package: Path, root: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def _installed(backend: str) -> list[Path]:
    """The files of a backend's package, found without importing it."""
    spec = importlib.util.find_spec(backend)
    if spec is None or spec.origin is None:
        raise NotJudged(f"{backend} is not installed here")
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def _member(file: Path) -> str:
    """Its name in source.zip."""
    for parent in file.parents:
        if parent.name in ("parity", "jaxrun", "torchref") and not (parent.parent / "__init__.py").exists():
            return file.relative_to(parent.parent).as_posix()
    return file.name


def _equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=SAME)
    return expected == found


def _real(value: Any) -> float:
    """A logged number; nan for what is none, as the log's words nan and inf are."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
