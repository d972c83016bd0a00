"""Cheats in how a run is started, by its environment or its user optimizer, and in what of an attempt is handed in."""

import json
import shutil
from pathlib import Path

from parity.verify.cheats.cheat import Catalogue
from parity.verify.cheats.forgery import Events, declare, of_kind, read_events, rewrite, totals, write_events

TRAINED, ATTEMPTS = Catalogue("train"), Catalogue("attempt")
Start = tuple[list[str], dict[str, str]]

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
            caller = frame.f_locals
            moved = optax.apply_updates(weights, updates)
            _, second = caller['self']._loss_and_grads(
                moved, caller['state']['step'], caller['inputs_BT'], caller['targets_BT']
            )
            more, state = adam.update(second, state, moved)
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


@TRAINED.add(
    "two-gradients",
    "an own optimizer takes a second gradient behind the harness' back",
    "replay.single",
    depth="replay",
)
def _two_gradients(backend: str, folder: Path) -> Start:
    """An optimizer that finds the program and the batch in its callers, and takes a second gradient."""
    (folder / "optimizer_of_a_cheat.py").write_text(TWICE[backend])
    return ["--optimizer", "optimizer_of_a_cheat:make"], {"PYTHONPATH": str(folder)}


ALIKE = {
    "jaxrun": """
import jax
import jax.numpy as jnp
import optax


def make(recipe):
    def update(grads, state, weights=None):
        return jax.tree.map(lambda g: -1e-3 * jnp.broadcast_to(jnp.sign(g.mean(0)), g.shape), grads), state

    return optax.GradientTransformation(lambda weights: (), update)
""",
    "torchref": """
import torch


class Alike(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            weight -= 1e-3 * weight.grad.mean(0).sign()


def make(recipe, weights):
    return Alike(weights.values(), lr=1e-3)
""",
}
COPIES = {
    "jaxrun": """
import jax
import optax


def make(recipe):
    adam = optax.adam(3e-3)

    def update(grads, state, weights):
        updates, state = adam.update(grads, state, weights)
        return {name: 0 * u if name.startswith("blocks") else u for name, u in updates.items()}, state

    return optax.GradientTransformation(adam.init, update)
""",
    "torchref": """
import torch


class OnCopies(torch.optim.Adam):
    def step(self, closure=None):
        weights = self.param_groups[0]["params"]
        before = {w: w.detach().clone() for w in weights if w.ndim == 2 and w.shape[0] < 200}
        super().step()
        for w, value in before.items():
            w.data.copy_(value)


def make(recipe, weights):
    return OnCopies(weights.values(), lr=3e-3)
""",
}


@TRAINED.add(
    "rows-alike", "an optimizer moves all rows of a weight by the same numbers", "recompute.moved", depth="recompute"
)
def _rows_alike(backend: str, folder: Path) -> Start:
    """An optimizer whose updates broadcast."""
    (folder / "optimizer_of_rows.py").write_text(ALIKE[backend])
    return ["--optimizer", "optimizer_of_rows:make"], {"PYTHONPATH": str(folder)}


@TRAINED.add(
    "never-moved", "an optimizer leaves the blocks' matrices as they were", "recompute.moved", depth="recompute"
)
def _never_moved(backend: str, folder: Path) -> Start:
    """An optimizer that updates copies."""
    (folder / "optimizer_of_copies.py").write_text(COPIES[backend])
    return ["--optimizer", "optimizer_of_copies:make"], {"PYTHONPATH": str(folder)}


ASIDE = {
    "jaxrun": """
import jax
import numpy as np
import optax
from jax.experimental import io_callback


def make(recipe):
    adam, kept = optax.adam(3e-3), {}

    def keep(weights):
        for name, weight in weights.items():
            kept[name] = 0.9 * kept.get(name, np.asarray(weight)) + 0.1 * np.asarray(weight)

    def update(grads, state, weights):
        io_callback(keep, None, weights)
        return adam.update(grads, state, weights)

    def eval_params(state, weights):
        def stored(weights):
            return {name: np.asarray(kept.get(name, w), w.dtype) for name, w in weights.items()}

        shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
        return jax.pure_callback(stored, shapes, weights)

    return optax.GradientTransformation(adam.init, update), eval_params
""",
    "torchref": """
import torch


class Keeping(torch.optim.Adam):
    kept = None

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        weights = self.param_groups[0]["params"]
        self.kept = self.kept or [w.clone() for w in weights]
        for mean, w in zip(self.kept, weights):
            mean.lerp_(w, 0.1)


def make(recipe, weights):
    optimizer = Keeping(weights.values(), lr=3e-3)
    return optimizer, lambda: dict(zip(weights, optimizer.kept or weights.values()))
""",
}


@TRAINED.add(
    "kept-aside",
    "an own optimizer evaluates weights that its state does not have",
    "recompute.weights",
    may=("recompute.evaluations",),
    depth="recompute",
)
def _kept_aside(backend: str, folder: Path) -> Start:
    """An average in a variable of the optimizer's own."""
    (folder / "optimizer_of_others.py").write_text(ASIDE[backend])
    return ["--optimizer", "optimizer_of_others:make"], {"PYTHONPATH": str(folder)}


@TRAINED.add("compiler-flags", "a flag that the track forbids", "env.flags")
def _compiler_flags(backend: str, folder: Path) -> Start:
    if backend == "jaxrun":
        return [], {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}
    return [], {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}


def _record(folder: Path) -> Events:
    return read_events(folder / "attempt.jsonl")


def runs_of_attempt(folder: Path) -> list[Path]:
    """The directories of an attempt's final runs."""
    return [folder / event["run"] for event in of_kind(_record(folder), "started") if event["purpose"] == "final"]


@ATTEMPTS.add(
    "slower-baseline",
    "faster only than a baseline on a slower machine",
    unjudged=("attempt.claim",),
    public=True,
)
def _slower_baseline(folder: Path) -> None:
    baseline = folder.parent / "baseline"
    shutil.copytree(folder, baseline)
    for path in runs_of_attempt(baseline):
        declare(path, lambda values: values["host"].update(cpu="Some CPU of 2009"))


@ATTEMPTS.add(
    "inside-the-noise",
    "a win that is not one: the runs scatter around what is claimed",
    "attempt.claim",
    public=True,
)
def _inside_the_noise(folder: Path) -> None:
    for path, loss in zip(runs_of_attempt(folder), (5.9, 6.0, 6.05), strict=True):

        def change(events: Events, loss: float = loss) -> None:
            for values in (of_kind(events, "eval")[-1], totals(events)):
                values["val_loss"] = loss

        rewrite(path, change)


@ATTEMPTS.add("lucky-seeds", "one declared run is not handed in", "attempt.complete")
def _lucky_seeds(folder: Path) -> None:
    shutil.rmtree(runs_of_attempt(folder)[1])


@ATTEMPTS.add("chosen-seeds", "seeds that somebody liked", "attempt.declared")
def _chosen_seeds(folder: Path) -> None:
    events = _record(folder)
    liked = {seed: seed + 1 for event in of_kind(events, "declared") for seed in event["seeds"]}
    for event in events:
        if event["event"] == "declared":
            event["seeds"] = [liked[seed] for seed in event["seeds"]]
        elif "seed" in event:
            event["seed"] = liked.get(event["seed"], event["seed"])
    write_events(folder / "attempt.jsonl", events)
    for path in runs_of_attempt(folder):
        declare(path, lambda values: values.update(seed=liked[values["seed"]]))


@ATTEMPTS.add(
    "own-stop",
    "a run stops at another step than the others",
    "attempt.alike",
    may=("plan.track", "log.plan", "log.order"),
)
def _own_stop(folder: Path) -> None:
    """One run of another length: stopped where its own val loss was low."""
    declare(runs_of_attempt(folder)[2], lambda values: values["plan"][0].update(steps=values["plan"][0]["steps"] - 2))


@ATTEMPTS.add("another-rate", "a run has another learning rate than the others", "attempt.alike")
def _another_rate(folder: Path) -> None:
    declare(runs_of_attempt(folder)[2], lambda values: values["recipe"]["fields"].update(muon_rate=0.03))


@ATTEMPTS.add("same-run-twice", "two declared runs are one", "attempt.twins", may=("log.twin",))
def _same_run_twice(folder: Path) -> None:
    first, second = runs_of_attempt(folder)[:2]
    seed = json.loads((second / "run.json").read_text())["seed"]
    shutil.rmtree(second)
    shutil.copytree(first, second)
    declare(second, lambda values: values.update(seed=seed))


@ATTEMPTS.add("uncounted", "a run that the record does not have", "attempt.budget")
def _uncounted(folder: Path) -> None:
    first = runs_of_attempt(folder)[0]
    shutil.copytree(first, first.with_name("tuned-in-secret"))


@ATTEMPTS.add("not-significant", "a claim that the runs do not bear out", "attempt.claim", may=("attempt.declared",))
def _not_significant(folder: Path) -> None:
    path = folder / "declaration.json"
    values = json.loads(path.read_text())
    values["claim"]["val_loss_below"] = 0.5
    path.write_text(json.dumps(values))
