"""`python -m parity.attempt show`: every run that was ever started for an attempt, and what all of it cost."""

import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from parity.attempt.cost import flops_of, progress, spent
from parity.attempt.record import DECLARATION, RECORD, MadeRun, read_declaration, read_record, runs_of

WIDTH = 100
STATES = {0: "done", 1: "failed", 2: "not run", 3: "fault"}


def overview(folder: Path) -> dict[str, Any]:
    """What `show --json` prints: declarations, runs with their cost, totals and budget."""
    declaration = read_declaration(folder / DECLARATION)
    events = read_record(folder / RECORD) if (folder / RECORD).exists() else []
    runs = [_so_far(folder, run) for run in runs_of(events)]
    fields = ("utc", "seeds", "program_sha256", "declaration_sha256")
    declared = [{name: event[name] for name in fields} for event in events if event["event"] == "declared"]
    shown = [
        {
            "run": run.run,
            "purpose": run.purpose,
            "seed": run.seed,
            "declaration": run.declaration,
            "state": _state(run),
            "steps": run.steps_made,
            "val_loss": run.val_loss,
            "seconds": run.seconds,
            "flops": flops_of(run, runs),
        }
        for run in runs
    ]
    return {
        "attempt": str(folder),
        "declared": declared,
        "runs": shown,
        "used": asdict(spent(runs)),
        "budget": asdict(declaration.budget),
        "stopped": [event["reason"] for event in events if event["event"] == "stopped"],
    }


def table(folder: Path, found: dict[str, Any]) -> str:
    """The overview as lines of at most 100 columns."""
    declaration = read_declaration(folder / DECLARATION)
    lines = [
        _plain(
            f"{folder}: {declaration.recipe} in {declaration.backend}, track {declaration.track}, by "
            f"{declaration.author} ({declaration.kind})"
        ),
        "-" * WIDTH,
    ]
    for number, event in enumerate(found["declared"], 1):
        said = f"declared {event['utc'][:19]}Z ({number}): seeds {', '.join(map(str, event['seeds']))}"
        lines += textwrap.wrap(said, WIDTH, subsequent_indent="  ")
    lines += [] if found["declared"] else ["no seeds declared yet"]
    lines.append(f"{'run':<26}{'decl':>5}{'seed':>12}{'steps':>9}{'val loss':>10}{'train s':>10}{'FLOPs':>10}  state")
    for run in found["runs"]:
        name, loss = run["run"].split("/")[-1], "" if run["val_loss"] is None else f"{run['val_loss']:.4f}"
        lines.append(
            f"{name:<26.26}{run['declaration'] or '':>5}{run['seed']:>12}{run['steps']:>9,}{loss:>10}"
            f"{run['seconds']:>10,.1f}{_number(run['flops']):>10}  {run['state']}"
        )
    used, budget = found["used"], found["budget"]
    lines.append("-" * WIDTH)
    for name, unit in (("runs", "runs"), ("seconds", "s of training"), ("flops", "FLOPs")):
        limit = "no limit" if budget[name] is None else f"budget {_number(budget[name])}"
        lines.append(f"{_number(used[name]):>10} {unit:<14} {limit}")
    lines += [part for reason in found["stopped"][-1:] for part in textwrap.wrap(f"stopped: {_plain(reason)}", WIDTH)]
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def _so_far(folder: Path, run: MadeRun) -> MadeRun:
    """A run that is at work, or was cut off, with what its own log says by now."""
    if not run.live:
        return run
    seconds, steps, _ = progress(folder / run.run)
    return replace(run, seconds=run.before[0] + seconds, steps_made=run.before[1] + steps)


def _state(run: MadeRun) -> str:
    if run.exit_code is not None:
        return STATES.get(run.exit_code, f"exit code {run.exit_code}")
    return "at work" if run.live else "interrupted"


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.1f}".removesuffix(".0") if value < 1e7 else f"{value:.2e}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
