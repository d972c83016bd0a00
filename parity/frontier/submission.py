"""Derives an entry from evidence: an attempt's folder or a run directory, with a verdict that holds."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.declaration.record import DECLARATION, RECORD
from parity.errors import InputError, RunFailed
from parity.formats import source_zip
from parity.formats.files import read_bounded
from parity.formats.strict_json import fault
from parity.frontier.entry import SCHEMA, Entry, digest, from_data, id_of
from parity.verify.attempts import costs, is_attempt, judge_attempt, open_attempt
from parity.verify.evidence import Evidence, open_run
from parity.verify.rules import chosen
from parity.verify.run import Settings, verify_run
from parity.verify.verdict import DEPTHS, Verdict
from parity.verify.verdict import SCHEMA as VERDICT_SCHEMA

LEAST_DEPTH = "replay"
CURVE_POINTS = 128
VERDICT_BYTES = 64 << 20
OPTIONAL = (
    "cross.loss",
    "replay.single",
    "recompute.confirm",
    "knowledge.relabelled",
)  # required or not by what the run is
HOST = ("cpu", "cores", "memory_bytes", "python")
LOCATION_OPTIONS = ("--data-dir", "--runs", "--name")  # of a trainer's command; they do not change its result


@dataclass(frozen=True)
class Attribution:
    """Who made an attempt, and by which techniques: from its declaration, or for a single run from `add`'s options."""

    author: str
    kind: str
    techniques: tuple[str, ...]
    note: str


def entry_of(
    path: Path,
    *,
    title: str | None = None,
    author: str | None = None,
    kind: str | None = None,
    techniques: tuple[str, ...] = (),
    note: str = "",
) -> Entry:
    """The entry of an attempt or of a single run. An attempt's declaration has its author, kind, techniques and note;
    for a single run they are arguments.

    Raises InputError where there is no verdict, or one of other evidence; RunFailed where it does not hold, or no
    longer.
    """

    if not path.is_dir():
        kind_of_path = "a file" if path.exists() else "nothing"
        raise InputError(
            f"{path}: expected an attempt's folder or a run directory, found {kind_of_path}: name one that was judged"
        )
    if is_attempt(path):
        if author or kind or techniques or note:
            raise InputError(
                f"{path}: an attempt's declaration says author, kind, techniques and note: leave those options out"
            )
        return _attempt_entry(path, title)
    if not (path / "run.json").exists():
        raise InputError(
            f"{path}: it is neither a run (no run.json in it) nor an attempt (no declaration.json): name one that was "
            "judged"
        )
    return _run_entry(path, title, Attribution(author or "unknown", kind or "unknown", techniques, note))


def _run_entry(path: Path, title: str | None, attribution: Attribution) -> Entry:
    """The entry of a single run."""
    verdict = _verdict(path, "python -m parity.verify", [path])
    _refuse_unless_holds(path, verify_run(path, Settings("log")))
    run = open_run(path)
    totals = run.log.of("finish")[-1]["totals"]
    cost = {"runs": 1, "tuning": 0, "seconds": totals["train_s"], "steps": len(run.log.step)}
    file = None
    if run.user_program:
        file = run.user_program["file"]
    elif run.optimizer:
        file = run.optimizer.partition(":")[0] + ".py"
    return _entry(
        title or run.run["recipe"]["name"],
        {path.name: run},
        verdict,
        [verdict],
        attribution,
        cost | {"flops": totals.get("flops")},
        command=_portable(run.run["command"]),
        source=None if file is None else _source(file, run.source[file]),
        declaration=None,
        record=None,
    )


def _attempt_entry(path: Path, title: str | None) -> Entry:

    attempt = open_attempt(path)
    run_dirs = {event["run"]: attempt.path(event["run"]) for event in attempt.finals()}
    verdict = _verdict(path, "python -m parity.attempt judge", list(run_dirs.values()))
    _refuse_unless_holds(path, judge_attempt(path, depth="log"))
    runs = {name: open_run(run_dir) for name, run_dir in run_dirs.items()}
    verdicts = {run_verdict["facts"]["log_sha256"]: run_verdict for run_verdict in verdict["runs"]}
    declared, spent = attempt.declaration, costs(attempt)
    return _entry(
        title or path.resolve().name,
        runs,
        verdict,
        [verdicts[run.log.sha256] for run in runs.values()],
        Attribution(declared.author, declared.kind, declared.techniques, declared.note),
        {name: spent[name] for name in ("runs", "tuning", "seconds", "steps", "flops")},
        command=(attempt.declared or {})["command"],
        source=_source(declared.file, read_bounded(path / declared.file, source_zip.MAX_BYTES, plain=True)),
        declaration=_lines(path / DECLARATION),
        record=_lines(path / RECORD),
    )


def _refuse_unless_holds(path: Path, verdict: Verdict) -> None:
    if verdict.status != "holds":
        raise RunFailed(f"{path}: its evidence no longer holds: {verdict.conclusion()}")


def _verdict(path: Path, command: str, run_dirs: list[Path]) -> dict[str, Any]:
    """verdict.json, which must hold, be deep enough, have judged every rule, and be of the runs as they are now."""
    name = path / "verdict.json"
    again = f"judge it again with {command} {path}"
    try:
        verdict = json.loads(read_bounded(name, VERDICT_BYTES, plain=True))
        verdicts = [verdict, *verdict.get("runs", [])]
        if verdict["schema"] != VERDICT_SCHEMA:
            raise InputError(
                f"{name}: expected schema {VERDICT_SCHEMA}, found {str(verdict['schema'])[:40]!r}: judge it again"
            )
        rules = [
            {str(rule["id"]): (rule["status"], rule["required"]) for rule in judged["rules"]} for judged in verdicts
        ]
        status, depth = verdict["status"], verdict["depth"]
        logs = {judged["facts"].get("log_sha256") for judged in verdicts}
    except FileNotFoundError:
        raise InputError(f"{path}: expected a verdict, found none: judge it with {command} {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{name}: expected a verdict, found something else ({_problem(error)}): {again}") from None
    failing = sorted({rule for judged in rules for rule, (result, _) in judged.items() if result == "fails"})
    if failing or status == "fails":
        names = ", ".join(failing) or "by its status"
        raise RunFailed(f"{path}: its verdict fails ({names}): a ledger takes what holds")
    if depth not in DEPTHS or DEPTHS.index(depth) < DEPTHS.index(LEAST_DEPTH):
        raise InputError(
            f"{path}: expected a verdict of depth {LEAST_DEPTH} or deeper, found {str(depth)[:20]}: {again}"
        )
    run_rules = {rule.id for rule, _ in chosen(depth)} - set(OPTIONAL)
    for i, judged in enumerate(rules):
        of_run = i > 0 or len(rules) == 1  # an attempt's own verdict comes before those of its runs
        needed = {rule for rule, (_, required) in judged.items() if required} | (run_rules if of_run else set())
        if missing := sorted(rule for rule in needed if judged.get(rule, ("",))[0] != "holds"):
            raise RunFailed(
                f"{path}: its verdict is incomplete ({', '.join(missing[:4])} not judged): a ledger takes what holds"
            )
    if any(open_run(run_dir).log.sha256 not in logs for run_dir in run_dirs):
        raise InputError(f"{name}: expected the verdict on the runs as they are, found that of other logs: {again}")
    return verdict


def _problem(error: Exception) -> str:
    """What is wrong with a file that is no verdict, in a few words."""
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror}"
    if isinstance(error, KeyError):
        return f"the field {str(error.args[0])[:40]} is missing"
    return "values of another kind" if isinstance(error, (TypeError, AttributeError)) else fault(error)[:80]


def _entry(
    title: str,
    runs: dict[str, Evidence],
    verdict: dict[str, Any],
    verdicts: list[dict[str, Any]],
    attribution: Attribution,
    cost: dict[str, Any],
    *,
    command: list[str],
    source: dict[str, Any] | None,
    declaration: list[str] | None,
    record: list[str] | None,
) -> Entry:
    first = next(iter(runs.values()))
    run_data = [_run(name, run, judged) for (name, run), judged in zip(runs.items(), verdicts, strict=True)]
    began = datetime.fromtimestamp(min(run["began_s"] for run in run_data), UTC)
    devices = first.run["devices"]
    host = {name: first.run["host"][name] for name in HOST}
    data = {
        "schema": SCHEMA,
        "id": "",
        "title": title,
        "date": f"{began:%Y-%m-%d}",
        "track": first.track.name,
        "slice": {name: first.run["slice"][name] for name in ("name", "digest")},
        "val_tokens": first.run["val_tokens"],
        "target": first.track.target,
        "author": attribution.author,
        "kind": attribution.kind,
        "backend": first.backend,
        "recipe": (first.run["program"]["base"] if first.user_program else first.run["recipe"])["name"],
        "techniques": list(attribution.techniques),
        "note": attribution.note,
        "precision": first.precision,
        "hardware": {"class": hardware_class(devices, host), "devices": devices, "host": host},
        "versions": first.run["versions"],
        "plan": first.run["plan"],
        "fields": first.run["recipe"]["fields"],
        "command": command,
        "source": source,
        "declaration": declaration,
        "record": record,
        "cost": cost,
        "verdict": _condensed(verdict),
        "runs": run_data,
    }
    data["id"] = id_of(data)
    data["digest"] = digest(data)
    return from_data(json.loads(json.dumps(data, allow_nan=False)), data["id"])


def hardware_class(devices: list[dict[str, Any]], host: dict[str, Any]) -> str:
    """The class of hardware that seconds are compared within: kind and number of the devices; of a CPU its model and
    the cores that it may use.

    Raises InputError where a fingerprint does not name them.
    """
    if not devices or any(not device.get("kind") for device in devices):
        raise InputError(
            "hardware: expected the kind and number of the devices, found none: seconds cannot be compared without them"
        )
    if all(device["platform"] == "cpu" for device in devices):
        simulated = f", as {devices[0]['count']} devices" if devices[0]["count"] > 1 else ""
        machines = f"{host['machines']} x " if host.get("machines", 1) > 1 else ""
        return f"{machines}{host['cpu'] or 'unknown CPU'}, {host['cores']} core{'s' * (host['cores'] != 1)}{simulated}"
    return " + ".join(f"{device['count']} x {device['kind']}" for device in devices)


def _run(name: str, run: Evidence, verdict: dict[str, Any]) -> dict[str, Any]:
    log, facts = run.log, verdict["facts"]
    start, finish = log.of("start")[0], log.of("finish")[-1]
    flops = finish["totals"].get("flops_per_step")
    flops_per_step = flops if isinstance(flops, int | float) and len(run.run["plan"]) == 1 else None
    tokens_at = {0: 0} | {int(step) + 1: int(tokens) for step, tokens in zip(log.step, log.tokens, strict=True)}
    evals = {event["step"]: event for event in log.of("eval")}  # a step repeated after a resume is evaluated again
    losses = {int(step): float(loss) for step, loss in zip(log.step, log.columns["loss"], strict=True)}
    every = max(1, -(-len(log.step) // CURVE_POINTS))
    recomputed = sorted(
        [int(step), float(loss)] for step, loss in facts.get("evaluations", {}).items() if int(step) in evals
    )
    return {
        "name": Path(name).name,
        "seed": run.run["seed"],
        "began_s": start["time_s"],
        "ended_s": finish["time_s"],
        "log_sha256": log.sha256,
        "weights": log.states("final weights")[-1]["digest"],
        "evals": [
            [
                step,
                tokens_at[step],
                None if flops_per_step is None else flops_per_step * step,
                round(float(event["train_s"]), 6),
                event["val_loss"],
            ]
            for step, event in sorted(evals.items())
        ],
        "train": [[step, round(loss, 5)] for step, loss in sorted(losses.items()) if step % every == 0],
        "val_loss": float(facts["val_loss"]),
        "confirm_loss": facts.get("confirm_loss"),
        "bits_per_byte": evals[max(evals)]["bits_per_byte"],
        "verdict": _condensed(verdict),
        **({"recomputed": recomputed} if recomputed else {}),
    }


def _condensed(verdict: dict[str, Any]) -> dict[str, Any]:
    """A verdict rule by rule, without the evidence and the times."""
    facts = verdict["facts"]
    return {
        "status": verdict["status"],
        "depth": verdict["depth"],
        "judged_utc": verdict["judged_utc"],
        "version": str(facts.get("version", "unknown")),
        "isolation": str(facts.get("isolation", "not asked")),
        "picks_seed": facts.get("picks_seed"),
        "rules": [[rule["id"], rule["status"], rule["required"], rule["reason"]] for rule in verdict["rules"]],
    }


def _source(file: str, content: bytes) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "lines": content.decode().split("\n")}


def _lines(path: Path) -> list[str]:
    """A file's lines; joined by newlines they are the file again, byte for byte."""
    return read_bounded(path, VERDICT_BYTES, plain=True).decode().split("\n")


def _portable(command: list[str]) -> list[str]:
    """A command without the options that name places of one machine."""
    words, skip = [], False
    for word in command:
        if not skip and word not in LOCATION_OPTIONS:
            words.append(word)
        skip = word in LOCATION_OPTIONS
    return words
