"""Boards and pages that look real, and are the same every time: of any size, with hostile texts, and with null
wherever a value may be unknown."""

import datetime
import random
from typing import Any

HOSTILE = "<b>bold</b></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--\u2028\u202e\ud800"
HARDWARE = ("AMD EPYC 7B13, 2 cores", "Apple M2, 8 cores", "1 x NVIDIA H100 80GB")
SPEED = (1.0, 0.42, 0.06)  # seconds of a class, for the same steps
KINDS, BACKENDS = ("person", "model", "agent"), ("jaxrun", "torchref")
TECHNIQUES = (
    "muon",
    "logit cap",
    "rotary halves",
    "value embeddings",
    "short windows",
    "warm-down to zero",
    "larger batch at the end",
)
TITLES = (
    "muon",
    "muon, rate 0.03",
    "nanogpt",
    "value embeddings",
    "short window first",
    "batch grows at the end",
    "untied head",
    "rms on queries and keys",
)
AXES = ("seconds", "steps", "tokens", "flops")
RULES = (
    "log.form",
    "log.chain",
    "plan.track",
    "log.totals",
    "clock.agree",
    "clock.speed",
    "guard.network",
    "data.batches",
    "probe.causal",
    "probe.sums",
    "recompute.val",
    "replay.stretch",
)


def board(
    count: int = 40, reported: int = 94, text: str = "", nulls: bool = False, matrices: bool = True
) -> dict[str, Any]:
    """A board of `count` entries and `reported` records. `text`: the untrusted text, everywhere; `nulls`: every value
    that may be unknown is unknown in some entry."""
    rng = random.Random(count)
    entries: list[dict[str, Any]] = []
    for number in range(count):
        entries.append(_entry(rng, number, count, entries, text, nulls and number % 2 == 0))
    tracks = [
        _track("pocket", "a laptop, minutes on 2 cores", 4.65, "seconds"),
        _track("pocket-optimizer", "optimizer research on a laptop", 4.65, "steps"),
    ]
    tracks = [track for track in tracks if any(entry["track"] == track["name"] for entry in entries)]
    frontiers = _frontiers(entries)
    return {
        "generated_utc": "2026-11-25T17:00:00Z",
        "version": "0.1.0",
        "tracks": tracks,
        "hardware": list(dict.fromkeys(entry["hardware"] for entry in entries)),
        "entries": entries,
        "frontiers": frontiers,
        "progress": _progress(entries),
        "attribution": _attribution(rng, text) if entries else {"by_kind": [], "by_backend": [], "by_technique": []},
        "reported": {
            "source": "records of github.com/KellerJordan/modded-nanogpt",
            "note": "reported by others, not verified here",
            "records": [_record(number, reported, nulls) for number in range(1, reported + 1)],
        },
        "matrices": {"cheats": _cheats(text), "parity": _parity()} if matrices else {"cheats": None, "parity": None},
    }


def page(entry: dict[str, Any], text: str = "", nulls: bool = False, train_steps: int = 256) -> dict[str, Any]:
    """An entry's page."""
    rng = random.Random(entry["id"])
    text = text or "the digests of 256 batches"
    runs = [_run(rng, entry, number, text, nulls, train_steps) for number in range(entry["runs"])]
    return {
        **entry,
        "runs_detail": [] if nulls and entry["runs"] == 1 else runs,
        "attempt_rules": []
        if nulls
        else [
            ["attempt.claim", "holds", text],
            ["attempt.seeds", "not judged", "one run"],
            ["attempt.alone", "fails", "a twin"],
        ],
        "declaration": None if nulls else f'{{\n  "claim": "{text}"\n}}',
        "recipe_fields": {"steps": 256, "muon_rate": 0.02, "tied": True, "schedule": None},
        "versions": {"jax": "0.9.1", "jaxrun": "0.1.0"},
        "host": {"cores": 2, "memory_gib": 23.4, "name": text},
        "source": None
        if nulls
        else {"file": "program.py", "text": (text + "\n") * 3 + "def make(recipe):\n    return optax.adamw(0.001)\n"},
        "reproduce": []
        if nulls
        else [
            "python -m parity.attempt fetch " + entry["id"],
            "python -m parity.attempt run mine",
            f"python -m parity.attempt judge mine  # {text}",
        ],
        "everything_started": {"runs": 7, "tuning": 2, "seconds": 900.1, "flops": None if nulls else 1e14},
        "paired": []
        if nulls
        else [{"with": entry["id"], "seconds_change": -3.0, "low": -4.0, "high": -2.0, "p": 0.01, "pairs": 5}],
    }


def _track(name: str, purpose: str, target: float | None, scored: str | None) -> dict[str, Any]:
    volume = (
        [{"axis": scored, "hardware": HARDWARE[0] if scored == "seconds" else None, "value": 0.3127, "entries": 4}]
        if scored
        else []
    )
    return {
        "name": name,
        "purpose": purpose,
        "slice": "news",
        "val_tokens": 131_072,
        "target": target,
        "scored": scored,
        "hypervolume": volume,
    }


def _entry(
    rng: random.Random, number: int, count: int, before: list[dict[str, Any]], text: str, nulls: bool
) -> dict[str, Any]:
    track = "pocket" if rng.random() < 0.8 else "pocket-optimizer"
    index = rng.choices(range(3), (6, 3, 2))[0]
    progress, runs = number / max(count - 1, 1), 1 if nulls else rng.choice((3, 5, 5, 8))
    last = round(rng.uniform(160, 340) * (1 - 0.35 * progress))
    mean = round(4.60 - 0.1 * progress + 0.0009 * (250 - last) + abs(rng.gauss(0, 0.03)), 5)
    per_step = 0.46 * SPEED[index] * rng.uniform(0.9, 1.15)
    steps = [max(1, round(last * part / 12)) for part in range(1, 13)]
    points = [
        [
            step,
            step * 4096,
            None if nulls else step * 4.7e10,
            round(step * per_step, 2),
            round(mean + 3.7 * (1 - (step / last) ** 0.28), 5),
        ]
        for step in steps
    ]
    half = None if runs == 1 else abs(rng.gauss(0.003, 0.001)) + 0.0005
    reached = next((point for point in points if point[4] <= 4.65), None)
    day = datetime.date(2026, 1, 5) + datetime.timedelta(days=int(320 * progress))
    backend, title = rng.choice(BACKENDS), rng.choice(TITLES) + (f" {number}" if number > 7 else "")
    earlier = [entry for entry in before if entry["track"] == track]
    best = min(earlier, key=lambda entry: entry["loss"]["mean"]) if earlier else None
    return {
        "id": f"{day}-{title.split(',')[0].replace(' ', '-')}-{backend}-{rng.getrandbits(32):08x}",
        "title": text or title,
        "track": track,
        "author": text or rng.choice(("Ada Lovelace", "claude-x", "opt-agent-7", "Emmy Noether")),
        "kind": rng.choice(KINDS),
        "backend": backend,
        "recipe": text or "muon",
        "techniques": [text] if text else rng.sample(TECHNIQUES, rng.randint(0, 3)),
        "note": text or "",
        "hardware": text or HARDWARE[index],
        "date": str(day),
        "runs": runs,
        "depth": "replay",
        "isolation": "landlock and seccomp",
        "loss": {"mean": mean, "sd": half and half * 1.1, "low": half and mean - half, "high": half and mean + half},
        "bits_per_byte": None if nulls else 1.71,
        "confirm_loss": None if nulls else mean + 0.014,
        "cost": dict(zip(AXES, (points[-1][3], *points[-1][:3]), strict=True)),
        "points": points,
        "share": None if nulls else 1.0,
        "target": dict(zip(("steps", "tokens", "flops", "seconds"), reached[:4], strict=True)) | {"p": 0.001}
        if reached and not nulls
        else None,
        "target_reason": "" if reached and not nulls else (text or "no evaluation is at or below 4.65"),
        "delta": _delta(rng, best, mean, points, half, text),
        "record_reason": text or "the first to reach the target",
        "record": best is None or mean < best["loss"]["mean"],
        "on_frontier": ["seconds"] if rng.random() < 0.1 else [],
    }


def _delta(
    rng: random.Random,
    best: dict[str, Any] | None,
    mean: float,
    points: list[list[float]],
    half: float | None,
    text: str,
) -> dict[str, Any]:
    if best is None or half is None:
        verdict = "first" if best is None else "not judged"
        return {
            "sentence": text or f"{verdict}: nothing to compare with",
            "verdict": verdict,
            "loss": None,
            "costs": [],
            "p": None,
            "losses": [],
            "skipped": [text or "an attempt on other hardware"],
        }
    change = round(mean - best["loss"]["mean"] + 0.02 * rng.gauss(0, 0.3), 5)
    low, high = change - 1.6 * half, change + 1.6 * half
    verdict = "improves" if high < 0 else "worse" if low > 0 else "inside the noise"
    seconds = round(change * 400, 1)
    return {
        "sentence": text
        or f"{verdict}: {change:+.4f} nats at {points[-1][0]} steps, {seconds:+.1f} s to the same loss",
        "verdict": verdict,
        "loss": {"change": change, "low": low, "high": high, "p": 0.001, "against": best["id"], "axis": "steps"},
        "costs": [
            {
                "axis": axis,
                "change": seconds,
                "percent": seconds / 1.2,
                "low": seconds - 4,
                "high": seconds + 4,
                "p": 0.001,
                "against": best["id"],
            }
            for axis in AXES
        ],
    }


def _frontiers(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines, column = [], {"steps": 0, "tokens": 1, "flops": 2, "seconds": 3}
    for track in dict.fromkeys(entry["track"] for entry in entries):
        for axis in AXES:
            for hardware in dict.fromkeys(entry["hardware"] for entry in entries) if axis == "seconds" else (None,):
                points = sorted(
                    (point[column[axis]], point[4], entry["id"])
                    for entry in entries
                    if entry["track"] == track and hardware in (None, entry["hardware"])
                    for point in entry["points"]
                    if point[column[axis]] is not None
                )
                line: list[list[Any]] = []
                for cost, loss, identifier in points:
                    if not line or loss < line[-1][1]:
                        line.append([cost, loss, identifier])
                lines.append({"track": track, "axis": axis, "hardware": hardware, "points": line})
    return lines


def _progress(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = []
    for track, scored in (("pocket", "seconds"), ("pocket-optimizer", "steps")):
        for hardware in dict.fromkeys(entry["hardware"] for entry in entries) if scored == "seconds" else (None,):
            line: list[list[Any]] = []
            for entry in entries:
                if (
                    entry["track"] == track
                    and hardware in (None, entry["hardware"])
                    and entry["target"]
                    and (not line or entry["target"][scored] < line[-1][1])
                ):
                    line.append([entry["date"], entry["target"][scored], entry["id"]])
            lines.append({"track": track, "scored": scored, "hardware": hardware, "points": line})
    return lines


def _attribution(rng: random.Random, text: str) -> dict[str, Any]:
    def rows(names: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            {
                "track": "pocket",
                "name": text or name,
                "entries": rng.randint(1, 20),
                "records": rng.randint(0, 5),
                "gain": round(rng.uniform(0, 0.3), 3),
                "unit": "ln seconds at the target",
                "share": round(rng.random(), 2),
            }
            for name in names
        ]

    return {"by_kind": rows(KINDS), "by_backend": rows(BACKENDS), "by_technique": rows(TECHNIQUES)}


def _record(number: int, count: int, nulls: bool) -> dict[str, Any]:
    day = datetime.date(2024, 5, 28) + datetime.timedelta(days=9 * number)
    seconds = round(2700 * (73.8 / 2700) ** ((number - 1) / max(count - 1, 1)), 1)
    bare = nulls or number % 7 == 0
    points = (
        []
        if number % 3
        else [
            [
                125 * step,
                None if bare else round(seconds * step / 12, 1),
                round(3.27 + 3 * (1 - (step / 12) ** 0.25), 4),
            ]
            for step in range(1, 13)
        ]
    )
    return {
        "n": number,
        "label": f"{number} ({day})" if number == 21 else str(number),
        "date": str(day),
        "title": None if bare else f"Record of the public track {number}",
        "hardware": "8 x H100",
        "seconds": seconds,
        "runs": None if bare else 40,
        "loss_mean": None if bare else 3.2785 - 0.00001 * number,
        "loss_sd": None if bare else 0.0013,
        "p": None if bare else 0.0001,
        "gain_seconds": None if number == 1 else 30.0,
        "gain_percent": None if number == 1 else 4.1,
        "gain_nats": None,
        "share": None if nulls else 0.011,
        "sure": "its logs were published" if not bare else "no logs are public",
        "points": points,
    }


def _cheats(text: str) -> list[dict[str, Any]]:
    return [
        {
            "cheat": f"cheat-{number}",
            "sentence": text or "trains on the val tokens",
            "kind": ("edit", "program", "train", "attempt")[number % 4],
            "backend": backend,
            "depth": "probe",
            "status": "fails",
            "failing": [RULES[number % len(RULES)]],
            "not_judged": ["cross.losses"] if number == 3 else [],
            "expected": [RULES[number % len(RULES)]],
            "open": "no rule sees it yet" if number == 5 else "",
            "right": number != 6,
            "seconds": 1.2,
            "reasons": {RULES[number % len(RULES)]: "a row sums to 1.2"},
        }
        for number in range(10)
        for backend in BACKENDS
    ]


def _parity() -> list[dict[str, Any]]:
    return [
        {"level": level, "holds": True, "largest": 1.2e-12 * index, "tolerance": 1e-9}
        for index, level in enumerate(("data", "weights", "losses", "gradients"), 1)
    ]


def _run(
    rng: random.Random, entry: dict[str, Any], number: int, text: str, nulls: bool, train_steps: int
) -> dict[str, Any]:
    shift = rng.gauss(0, 0.004)
    evals = [
        [steps, tokens, flops, seconds, loss + shift * (1 + 20 / steps)]
        for steps, tokens, flops, seconds, loss in entry["points"]
    ]
    last = entry["points"][-1]
    train = [
        [step * last[0] / train_steps, last[4] + 0.02 + 3.7 * (1 - (step / train_steps) ** 0.28) + rng.gauss(0, 0.05)]
        for step in range(1, train_steps + 1)
    ]
    status = "not judged" if nulls else "holds"
    return {
        "name": f"final-{number}-{rng.randint(1, 999)}",
        "seed": rng.getrandbits(16),
        "started_utc": "2026-11-25T15:00:00Z",
        "verified": [evals[0][0], evals[-1][0]],
        "evals": evals,
        "train": train,
        "val_loss": evals[-1][4],
        "confirm_loss": None if nulls else evals[-1][4] + 0.014,
        "seconds": evals[-1][3],
        "verdict": {
            "status": "incomplete" if nulls else "holds",
            "depth": "replay",
            "rules": [[rule, status, f"{text}, run {number}" if rule == "data.batches" else text] for rule in RULES],
        },
    }
