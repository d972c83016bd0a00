"""Cheats in how a run is started: its environment, its own optimizer; and in what is handed in of an attempt."""

import json
import shutil
from pathlib import Path
from typing import Any

from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.forgery import declare, finish, last_evaluation, rewrite


def _flags(backend: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    name = {"jaxrun": "XLA_FLAGS", "torchref": "TORCHINDUCTOR_MAX_AUTOTUNE"}[backend]
    return [], {name: "--xla_cpu_enable_fast_math=true" if backend == "jaxrun" else "1"}


TWICE = {
    "jaxrun": """
import sys

import jax
import optax


def make(recipe):
    adam = optax.adam(3e-3)

    def update(grads, state, weights):
        updates, state = adam.update(grads, state, weights)
        frame = sys._getframe()
        while frame is not None and 'inputs_BT' not in frame.f_locals:
            frame = frame.f_back
        if frame is not None:
            there = frame.f_locals
            moved = optax.apply_updates(weights, updates)
            _, again = there['self']._loss_and_grads(moved, there['state']['step'], there['inputs_BT'], there['targets_BT'])
            more, state = adam.update(again, state, moved)
            updates = jax.tree.map(lambda a, b: a + b, updates, more)
        return updates, state

    return optax.GradientTransformation(adam.init, update)
""",
    "torchref": """
import sys

import torch


class Twice(torch.optim.Adam):
    def step(self, closure=None):
        super().step()
        frame = sys._getframe()
        while frame is not None and not {'batch', 'state', 'norms'} <= frame.f_locals.keys():
            frame = frame.f_back
        if frame is not None:
            program, state = frame.f_locals['self'], frame.f_locals['state']
            _, grads = program.loss_and_grads(state, frame.f_locals['batch'])
            for name, weight in state.model.named_parameters():
                weight.grad = grads[name]
            super().step()


def make(recipe, weights):
    return Twice(weights.values(), lr=3e-3)
""",
}


def _two_gradients(backend: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """An optimizer that finds the program and the batch in its callers, and takes a second gradient."""
    (folder / "optimizer_of_a_cheat.py").write_text(TWICE[backend])
    return ["--optimizer", "optimizer_of_a_cheat:make"], {"PYTHONPATH": str(folder)}


TRAINED = (
    Cheat(
        "two-gradients",
        "an own optimizer takes a second gradient behind the harness' back",
        "train",
        _two_gradients,
        ("replay.single",),
        depth="replay",
    ),
    Cheat("compiler-flags", "a flag that the track forbids", "train", _flags, ("env.flags",)),
)


def _record(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "attempt.jsonl").read_text().splitlines()]


def _write(folder: Path, events: list[dict[str, Any]]) -> None:
    import hashlib

    prev, lines = "0" * 64, []
    for n, event in enumerate(events, 1):
        raw = json.dumps({**event, "n": n, "prev": prev}, separators=(",", ":")).encode()
        prev = hashlib.sha256(raw).hexdigest()
        lines.append(raw)
    (folder / "attempt.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def _runs(folder: Path) -> list[Path]:
    return [
        folder / event["run"]
        for event in _record(folder)
        if event["event"] == "started" and event["purpose"] == "final"
    ]


def _lucky_seeds(folder: Path) -> None:
    shutil.rmtree(_runs(folder)[1])


def _chosen_seeds(folder: Path) -> None:
    events = _record(folder)
    mapping = {}
    for event in events:
        if event["event"] == "declared":
            mapping = {seed: seed + 1 for seed in event["seeds"]}
            event["seeds"] = [mapping[seed] for seed in event["seeds"]]
        elif "seed" in event:
            event["seed"] = mapping.get(event["seed"], event["seed"])
    _write(folder, events)
    for path in _runs(folder):
        declare(path, lambda values: values.update(seed=mapping[values["seed"]]))


def _own_stop(folder: Path) -> None:
    """One run of another length: stopped where its own val loss was low."""
    path = _runs(folder)[2]
    declare(path, lambda values: values["plan"][0].update(steps=values["plan"][0]["steps"] - 2))


def _another_rate(folder: Path) -> None:
    """One run with another learning rate than the others."""
    declare(_runs(folder)[2], lambda values: values["recipe"]["fields"].update(muon_rate=0.03))


def _same_run_twice(folder: Path) -> None:
    first, second = _runs(folder)[:2]
    values = json.loads((second / "run.json").read_text())
    shutil.rmtree(second)
    shutil.copytree(first, second)
    declare(second, lambda found: found.update(seed=values["seed"]))


def _uncounted(folder: Path) -> None:
    """A tuning run that the record does not have."""
    first = _runs(folder)[0]
    shutil.copytree(first, first.with_name("tuned-in-secret"))


def _not_significant(folder: Path) -> None:
    path = folder / "declaration.json"
    values = json.loads(path.read_text())
    values["claim"]["val_loss_below"] = 0.5
    path.write_text(json.dumps(values))


def _inside_the_noise(folder: Path) -> None:
    """The runs scatter around what is claimed."""
    for path, loss in zip(_runs(folder), (5.9, 6.0, 6.05)):

        def change(events: list[dict[str, Any]], loss: float = loss) -> None:
            last = last_evaluation(events)
            last["val_loss"] = finish(events)["val_loss"] = loss

        rewrite(path, change)


def _slower_baseline(folder: Path) -> None:
    """A baseline that was run on another, slower machine."""
    baseline = folder.parent / "baseline"
    shutil.copytree(folder, baseline)
    for path in _runs(baseline):
        declare(path, lambda values: values["host"].update(cpu="Some CPU of 2009"))


ATTEMPTS = (
    Cheat(
        "slower-baseline",
        "faster only than a baseline on a slower machine",
        "attempt",
        _slower_baseline,
        (),
        unjudged=("attempt.claim",),
        seen=True,
    ),
    Cheat(
        "inside-the-noise",
        "a win that is not one: the runs scatter around what is claimed",
        "attempt",
        _inside_the_noise,
        ("attempt.claim",),
        seen=True,
    ),
    Cheat("lucky-seeds", "one declared run is not handed in", "attempt", _lucky_seeds, ("attempt.complete",)),
    Cheat("chosen-seeds", "seeds that somebody liked", "attempt", _chosen_seeds, ("attempt.declared",)),
    Cheat(
        "own-stop",
        "a run stops at another step than the others",
        "attempt",
        _own_stop,
        ("attempt.alike",),
        ("plan.track", "log.plan", "log.order"),
    ),
    Cheat(
        "another-rate", "a run has another learning rate than the others", "attempt", _another_rate, ("attempt.alike",)
    ),
    Cheat("same-run-twice", "two declared runs are one", "attempt", _same_run_twice, ("attempt.twins",), ("log.twin",)),
    Cheat("uncounted", "a run that the record does not have", "attempt", _uncounted, ("attempt.budget",)),
    Cheat(
        "not-significant",
        "a claim that the runs do not bear out",
        "attempt",
        _not_significant,
        ("attempt.claim",),
        ("attempt.declared",),
    ),
)
