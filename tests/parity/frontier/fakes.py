"""Entries with given numbers, for tests of what is computed from them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.frontier.entry import Entry, digest, from_data, id_of
from parity.frontier.submission import OPTIONAL
from parity.verify.rules import chosen

HOST = {"cpu": "AMD EPYC", "cores": 2, "memory_bytes": 1 << 34, "python": "3.11.7"}
STEPS = (0, 64, 128, 192, 256)
SHAPE = (8.3, 5.6, 5.0, 4.75, 4.6)
"""A mean val loss at those steps."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fake(
    title: str = "a",
    losses: Sequence[Sequence[float]] = (SHAPE,),
    *,
    steps: Sequence[int] = STEPS,
    track: str = "pocket",
    backend: str = "jaxrun",
    kind: str = "person",
    techniques: Sequence[str] = (),
    tokens: int = 4096,
    flops: float | None = 1e10,
    step_s: Sequence[float] = (),
    began_s: float = 1.8e9,
    turn_s: float = 1000.0,
    host: dict[str, Any] | None = None,
    **fields: Any,
) -> Entry:
    """An entry whose run i has `losses[i]` after `steps`, takes `step_s[i]` a step (0.5 s by default) and begins
    `turn_s` after the run before it. `fields` replace others of the JSON."""
    host = host or HOST
    verdict = {
        "status": "holds",
        "depth": "replay",
        "judged_utc": "2026-11-25T12:00:00Z",
        "version": "0.0.1",
        "isolation": "bubblewrap",
        "picks_seed": 7,
        "rules": [["log.form", "holds", True, "all lines"]],
    }
    runs = []
    for i, curve in enumerate(losses):
        a_step = float(step_s[i]) if len(step_s) else 0.5
        evals = [
            [step, step * tokens, None if flops is None else step * flops, step * a_step, loss]
            for step, loss in zip(steps, curve, strict=True)
        ]
        runs.append(
            {
                "name": f"final-{i + 1}",
                "seed": i,
                "began_s": began_s + i * turn_s,
                "ended_s": began_s + i * turn_s + steps[-1] * a_step + 20,
                "log_sha256": sha(f"{title}{backend}{i}{began_s}"),
                "weights": sha(f"w{title}{backend}{i}{began_s}"),
                "evals": evals,
                "train": [[0, 8.3], [steps[-1] - 1, curve[-1]]],
                "val_loss": curve[-1],
                "confirm_loss": curve[-1] + 0.015,
                "bits_per_byte": curve[-1] / 2.7,
                "verdict": verdict | {"rules": []},
                "recomputed": [[point[0], point[4]] for point in evals[:-1]],
            }
        )
    data = {
        "schema": "entry.v1",
        "id": "",
        "title": title,
        "date": "2026-11-25",
        "track": track,
        "slice": {"name": "news", "digest": sha("news")},
        "val_tokens": 131_072,
        "target": 4.65,
        "author": "Ada",
        "kind": kind,
        "backend": backend,
        "recipe": "muon",
        "techniques": list(techniques),
        "note": "",
        "precision": "float32",
        "hardware": {
            "class": f"{host['cpu']}, {host['cores']} cores",
            "devices": [{"kind": "cpu", "platform": "cpu", "count": 1}],
            "host": host,
        },
        "versions": {"numpy": "2"},
        "plan": [{"steps": steps[-1], "tokens": tokens, "seq_len": 256}],
        "fields": {"steps": steps[-1]},
        "command": ["python", "-m", f"{backend}.train"],
        "source": None,
        "declaration": None,
        "record": None,
        "cost": {"runs": len(runs), "tuning": 0, "seconds": 100.0, "steps": 256, "flops": None},
        "verdict": verdict,
        "runs": runs,
    } | fields
    data["id"] = id_of(data)
    data["digest"] = digest(data)
    return from_data(data, title)


def around(means: Sequence[float], rng: Any, n: int, sd: float = 0.005) -> list[list[float]]:
    """Curves of n seeds around means: a normal shift for the run and one for each evaluation, together of deviation
    `sd`."""
    shift = rng.normal(0, sd * 0.8, (n, 1)) + rng.normal(0, sd * 0.6, (n, len(means)))
    return (shift + list(means)).tolist()


def promoted(path: Path) -> None:
    """Adds to a verdict of depth log that all deeper rules hold: deeper verdicts take long, and have own tests."""
    data = json.loads((path / "verdict.json").read_text())
    for part in (data, *data.get("runs", [])):
        part["depth"] = "replay"
        if part is not data or "runs" not in data:
            judged = {rule["id"] for rule in part["rules"]}
            part["rules"] += [
                {
                    "id": rule.id,
                    "status": "holds",
                    "required": rule.id not in OPTIONAL,
                    "reason": "",
                    "seconds": 0,
                    "evidence": {},
                }
                for rule, _ in chosen("replay")
                if rule.id not in judged
            ]
            part["facts"] |= {
                "val_loss": part["facts"].get("val_loss") or last_loss(Path(part["subject"])),
                "isolation": "none",
            }
    (path / "verdict.json").write_text(json.dumps(data))


def last_loss(run: Path) -> float:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"event":"eval"' in line][-1][
        "val_loss"
    ]
