"""Makes an entry from evidence: an attempt's folder or a run directory, with a verdict that holds."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parity.errors import InputError, RunFailed
from parity.formats.files import read_bounded
from parity.formats.strict_json import fault
from parity.frontier.entry import SCHEMA, Entry, digest, from_data, id_of
from parity.verify.evidence import Evidence, open_run
from parity.verify.rules import chosen
from parity.verify.run import Settings, verify_run
from parity.verify.verdict import DEPTHS
from parity.verify.verdict import SCHEMA as VERDICT_SCHEMA

LEAST_DEPTH = "replay"
CURVE_POINTS = 128
VERDICT_BYTES = 64 << 20
OPTIONAL = ("cross.loss", "replay.single", "recompute.confirm")  # required or not by what the run is
HOST = ("cpu", "cores", "memory_bytes", "python")
HERE = ("--data-dir", "--runs", "--name")  # options of a command that say where, and not what


def entry_of(
    path: Path,
    *,
    title: str | None = None,
    author: str | None = None,
    kind: str | None = None,
    techniques: tuple[str, ...] = (),
    note: str = "",
) -> Entry:
    """The entry of an attempt or of a single run. Whose it is, and by which techniques, an attempt's declaration says; of a
    single run the arguments do.

    Raises InputError where there is no verdict, or one of other evidence; RunFailed where it does not hold, or no longer.
    """
    from parity.verify.attempts import is_attempt

    if not path.is_dir():
        raise InputError(
            f"{path}: expected an attempt's folder or a run directory, found {'a file' if path.exists() else 'nothing'}: "
            "name one that was judged"
        )
    if is_attempt(path):
        if author or kind or techniques or note:
            raise InputError(
                f"{path}: an attempt's declaration says author, kind, techniques and note: leave those options out"
            )
        return _of_attempt(path, title)
    if not (path / "run.json").exists():
        raise InputError(
            f"{path}: it is neither a run (no run.json in it) nor an attempt (no declaration.json): name one that was judged"
        )
    verdict = _verdict(path, "python -m parity.verify", [path])
    fresh = verify_run(path, Settings("log"))
    if fresh.status != "holds":
        raise RunFailed(f"{path}: its evidence no longer holds: {fresh.conclusion()}")
    run = open_run(path)
    whose = {"author": author or "unknown", "kind": kind or "unknown", "techniques": list(techniques), "note": note}
    totals = run.log.of("finish")[-1]["totals"]
    cost = {
        "runs": 1,
        "tuning": 0,
        "seconds": totals["train_s"],
        "steps": int(len(run.log.step)),
        "flops": totals.get("flops"),
    }
    own = (
        run.user_program["file"]
        if run.user_program
        else (run.optimizer.partition(":")[0] + ".py" if run.optimizer else None)
    )
    source = None if own is None else _source(own, run.source[own])
    return _entry(
        title or run.run["recipe"]["name"],
        [run],
        {path.name: run.path},
        verdict,
        [verdict],
        whose,
        source,
        cost,
        command=_what(run.run["command"]),
    )


def _of_attempt(path: Path, title: str | None) -> Entry:
    from parity.attempt.record import DECLARATION, RECORD
    from parity.verify.attempts import costs, judge_attempt, open_attempt

    attempt = open_attempt(path)
    places = {event["run"]: attempt.path(event["run"]) for event in attempt.finals()}
    verdict = _verdict(path, "python -m parity.attempt judge", list(places.values()))
    fresh = judge_attempt(path, depth="log")
    if fresh.status != "holds":
        raise RunFailed(f"{path}: its evidence no longer holds: {fresh.conclusion()}")
    runs = [open_run(place) for place in places.values()]
    of_log = {found["facts"]["log_sha256"]: found for found in verdict["runs"]}
    declared = attempt.declaration
    whose = {
        "author": declared.author,
        "kind": declared.kind,
        "techniques": list(declared.techniques),
        "note": declared.note,
    }
    spent = costs(attempt)
    cost = {name: spent[name] for name in ("runs", "tuning", "seconds", "steps", "flops")}
    event = attempt.declared or {}
    return _entry(
        title or path.resolve().name,
        runs,
        places,
        verdict,
        [of_log[run.log.sha256] for run in runs],
        whose,
        _source(declared.file, (path / declared.file).read_bytes()),
        cost,
        command=event["command"],
        declaration=_text(path / DECLARATION),
        record=_text(path / RECORD),
    )


def _verdict(path: Path, command: str, runs: list[Path]) -> dict[str, Any]:
    """verdict.json, which must hold, be deep enough, have judged every rule, and be of the runs as they are now."""
    name = path / "verdict.json"
    try:
        verdict = json.loads(read_bounded(name, VERDICT_BYTES, plain=True))
        parts = [verdict, *verdict.get("runs", [])]
        if verdict["schema"] != VERDICT_SCHEMA:
            raise InputError(
                f"{name}: expected schema {VERDICT_SCHEMA}, found {str(verdict['schema'])[:40]!r}: judge it again"
            )
        statuses = [{str(rule["id"]): (rule["status"], rule["required"]) for rule in part["rules"]} for part in parts]
        said, depth = verdict["status"], verdict["depth"]
        logs = {part["facts"].get("log_sha256") for part in parts}
    except FileNotFoundError:
        raise InputError(f"{path}: expected a verdict, found none: judge it with {command} {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{name}: expected a verdict, found something else ({_other(error)}): judge it again with {command} {path}"
        ) from None
    failing = sorted({rule for part in statuses for rule, (status, _) in part.items() if status == "fails"})
    if failing or said == "fails":
        raise RunFailed(f"{path}: its verdict fails ({', '.join(failing) or 'as it says'}): a ledger takes what holds")
    if depth not in DEPTHS or DEPTHS.index(depth) < DEPTHS.index(LEAST_DEPTH):
        raise InputError(
            f"{path}: expected a verdict of depth {LEAST_DEPTH} or deeper, found {str(depth)[:20]}: judge it again with "
            f"{command} {path}"
        )
    of_runs = {rule.id for rule, _ in chosen(depth)} - set(OPTIONAL)
    for part, of_attempt in zip(statuses, [len(parts) > 1, *[False] * (len(parts) - 1)]):
        wanted = (set() if of_attempt else of_runs) | {rule for rule, (_, required) in part.items() if required}
        if missing := sorted(rule for rule in wanted if part.get(rule, ("",))[0] != "holds"):
            raise RunFailed(
                f"{path}: its verdict is incomplete ({', '.join(missing[:4])} not judged): a ledger takes what holds"
            )
    if any(open_run(run).log.sha256 not in logs for run in runs):
        raise InputError(
            f"{name}: expected the verdict on the runs as they are, found that of other logs: judge it again with "
            f"{command} {path}"
        )
    return verdict


def _other(error: Exception) -> str:
    """What a file that is no verdict has, in a few words."""
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror}"
    if isinstance(error, KeyError):
        return f"the field {str(error.args[0])[:40]} is missing"
    return "values of another kind" if isinstance(error, (TypeError, AttributeError)) else fault(error)[:80]


def _entry(
    title: str,
    runs: list[Evidence],
    places: dict[str, Path],
    verdict: dict[str, Any],
    verdicts: list[dict[str, Any]],
    whose: dict[str, Any],
    source: dict[str, Any] | None,
    cost: dict[str, Any],
    *,
    command: list[str],
    declaration: list[str] | None = None,
    record: list[str] | None = None,
) -> Entry:
    first = runs[0]
    made = [_run(name, run, found) for name, run, found in zip(places, runs, verdicts, strict=True)]
    host = {name: first.run["host"][name] for name in HOST}
    data = {
        "schema": SCHEMA,
        "id": "",
        "title": title,
        "date": f"{datetime.fromtimestamp(min(run['began_s'] for run in made), UTC):%Y-%m-%d}",
        "track": first.track.name,
        "slice": {name: first.run["slice"][name] for name in ("name", "digest")},
        "val_tokens": first.run["val_tokens"],
        "target": first.track.target,
        "author": whose["author"],
        "kind": whose["kind"],
        "backend": first.backend,
        "recipe": (first.run["program"]["base"] if first.user_program else first.run["recipe"])["name"],
        "techniques": whose["techniques"],
        "note": whose["note"],
        "precision": first.precision,
        "hardware": {
            "class": hardware_class(first.run["devices"], host),
            "devices": first.run["devices"],
            "host": host,
        },
        "versions": first.run["versions"],
        "plan": first.run["plan"],
        "fields": first.run["recipe"]["fields"],
        "command": command,
        "source": source,
        "declaration": declaration,
        "record": record,
        "cost": cost,
        "verdict": _short(verdict),
        "runs": made,
    }
    data["id"] = id_of(data)
    data["digest"] = digest(data)
    return from_data(json.loads(json.dumps(data, allow_nan=False)), data["id"])


def hardware_class(devices: list[dict[str, Any]], host: dict[str, Any]) -> str:
    """What seconds are compared within: kind and number of the devices; of a CPU its model and the cores that it may use.

    Raises InputError where a fingerprint does not say.
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
    log = run.log
    totals, begun = log.of("finish")[-1], log.of("start")[0]
    rate = totals["totals"].get("flops_per_step")
    tokens_at = {0: 0} | {int(step) + 1: int(tokens) for step, tokens in zip(log.step, log.tokens)}
    evals = {event["step"]: event for event in log.of("eval")}  # a step made again after a resume is evaluated again
    per_step = rate if isinstance(rate, int | float) and len(run.run["plan"]) == 1 else None
    points = [
        [
            step,
            tokens_at[step],
            None if per_step is None else per_step * step,
            round(float(event["train_s"]), 6),
            event["val_loss"],
        ]
        for step, event in sorted(evals.items())
    ]
    every = max(1, -(-len(log.step) // CURVE_POINTS))
    last = {int(step): float(loss) for step, loss in zip(log.step, log.columns["loss"])}
    facts = verdict["facts"]
    return {
        "name": Path(name).name,
        "seed": run.run["seed"],
        "began_s": begun["time_s"],
        "ended_s": totals["time_s"],
        "log_sha256": log.sha256,
        "weights": log.states("final weights")[-1]["digest"],
        "evals": points,
        "train": [[step, round(loss, 5)] for step, loss in sorted(last.items()) if step % every == 0],
        "val_loss": float(facts["val_loss"]),
        "confirm_loss": facts.get("confirm_loss"),
        "bits_per_byte": evals[max(evals)]["bits_per_byte"],
        "verdict": _short(verdict),
    }


def _short(verdict: dict[str, Any]) -> dict[str, Any]:
    """What an entry keeps of a verdict: rule by rule, without the evidence and the times."""
    facts = verdict["facts"]
    rules = [[rule["id"], rule["status"], rule["required"], rule["reason"]] for rule in verdict["rules"]]
    return {
        "status": verdict["status"],
        "depth": verdict["depth"],
        "judged_utc": verdict["judged_utc"],
        "version": str(facts.get("version", "unknown")),
        "isolation": str(facts.get("isolation", "not asked")),
        "picks_seed": facts.get("picks_seed"),
        "rules": rules,
    }


def _source(file: str, content: bytes) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "lines": content.decode().split("\n")}


def _text(path: Path) -> list[str]:
    """A file's lines; joined by newlines they are the file again, byte for byte."""
    return read_bounded(path, 64 << 20, plain=True).decode().split("\n")


def _what(command: list[str]) -> list[str]:
    """A command without the options that only say where."""
    kept, skip = [], False
    for word in command:
        if not skip and word not in HERE:
            kept.append(word)
        skip = word in HERE
    return kept
