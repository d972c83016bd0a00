"""`python -m parity.attempt show`: every run that was ever started for an attempt, and the cost of all."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from parity.declaration.cost import flops_of, progress, spent
from parity.declaration.record import DECLARATION, RECORD, AttemptRun, read_declaration, read_record, runs_of
from parity.tables import RULE, compact, fit, number, paragraph, table

STATES = {0: "done", 1: "failed", 2: "not run", 3: "fault"}
COLUMNS = (
    ("run", "<26"),
    ("decl", ">4"),
    ("seed", ">12"),
    ("steps", ">8"),
    ("val loss", ">8"),
    ("train s", ">9"),
    ("FLOPs", ">9"),
    ("state", "<"),
)


def overview(folder: Path) -> dict[str, Any]:
    """What `show --json` prints: declarations, runs with their cost, totals and budget."""
    declaration = read_declaration(folder / DECLARATION)
    events = read_record(folder / RECORD) if (folder / RECORD).exists() else []
    runs = [_with_progress(folder, run) for run in runs_of(events)]
    fields = ("utc", "seeds", "program_sha256", "declaration_sha256")
    return {
        "attempt": str(folder),
        "declared": [{name: event[name] for name in fields} for event in events if event["event"] == "declared"],
        "runs": [
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
        ],
        "used": asdict(spent(runs)),
        "budget": asdict(declaration.budget),
        "stopped": [event["reason"] for event in events if event["event"] == "stopped"],
    }


def text(folder: Path, values: dict[str, Any]) -> str:
    """An overview for a terminal."""
    declaration = read_declaration(folder / DECLARATION)
    title = f"{declaration.recipe} in {declaration.backend}, track {declaration.track}"
    lines = [f"{folder}: {title}, by {declaration.author} ({declaration.kind})", RULE]
    for count, event in enumerate(values["declared"], 1):
        seeds = ", ".join(map(str, event["seeds"]))
        lines += paragraph(f"declared {event['utc'][:19]}Z ({count}): seeds {seeds}", rest="  ")
    lines += [] if values["declared"] else ["no seeds declared yet"]
    rows = [
        (
            run["run"].split("/")[-1],
            run["declaration"] or "",
            run["seed"],
            f"{run['steps']:,}",
            number(run["val_loss"], ".4f", ""),
            f"{run['seconds']:,.1f}",
            compact(run["flops"]),
            run["state"],
        )
        for run in values["runs"]
    ]
    lines += [*table(COLUMNS, rows), RULE]
    used, budget = values["used"], values["budget"]
    for name, unit in (("runs", "runs"), ("seconds", "s of training"), ("flops", "FLOPs")):
        limit = "no limit" if budget[name] is None else f"budget {compact(budget[name])}"
        lines.append(f"{compact(used[name]):>10} {unit:<14} {limit}")
    lines += [line for reason in values["stopped"][-1:] for line in paragraph(f"stopped: {reason}")]
    return fit(lines)


def _with_progress(folder: Path, run: AttemptRun) -> AttemptRun:
    """A run at work, or one that was cut off, with the cost that its own log has by now."""
    if not run.live:
        return run
    seconds, steps, _ = progress(folder / run.run)
    return replace(run, seconds=run.lost[0] + seconds, steps_made=run.lost[1] + steps)


def _state(run: AttemptRun) -> str:
    if run.exit_code is not None:
        return STATES.get(run.exit_code, f"exit code {run.exit_code}")
    return "at work" if run.live else "interrupted"
