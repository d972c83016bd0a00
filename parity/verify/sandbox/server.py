"""Runs in the process apart: builds a program and answers the verifier's calls with plain arrays. It judges nothing.

What is asked for looks like training and evaluation; the data comes with the calls, so that there is nothing to read.
"""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity.program import with_step
from parity.verify.sandbox import wire


class Server:
    """The calls; each method's arguments and result are JSON values and arrays. States are kept here by number."""

    def __init__(self) -> None:
        self.program: Any = None
        self.states: dict[int, Any] = {}
        self.snapshots: dict[int, Any] = {}
        self._numbers = itertools.count()

    def build(self, backend: str, recipe: dict, own: str | None, optimizer: str | None, device: str) -> dict[str, Any]:
        """A recipe in a backend, with an own optimizer (module:function) perhaps; or the program of the file `own`."""
        from parity import user_program as own_programs
        from parity.program import build
        from parity.recipes import from_fields

        base = from_fields(recipe)
        if own:
            module = own_programs.load(own)
            made = own_programs.make_recipe(module, base)
            self.program = own_programs.build(module, made, device=device, devices=1)
        else:
            self.program = build(
                backend, base, device=device, devices=1, **({"optimizer": optimizer} if optimizer else {})
            )
        made = self.program.recipe
        return {
            "framework": self.program.framework,
            "devices": list(self.program.devices),
            "name": made.name,
            "precision": made.precision,
            "plan": [vars(segment) for segment in made.plan],
            "context": made.context,
            "tokenizer_size": made.tokenizer_size,
            "eval_context": made.eval_context,
            "block": getattr(made, "block", None),
            "separate_documents": made.separate_documents,
            "end_of_text": made.end_of_text,
            "eval_steps": list(made.eval_steps()),
            "checkpoint_steps": list(made.checkpoint_steps()),
        }

    def init(self, seed: int) -> int:
        return self._keep(self.program.init(seed))

    def load(self, weights: dict[str, np.ndarray], step: int) -> int:
        """A state with these weights, as if it had been made by so many updates."""
        return self._keep(
            with_step(self.program, self.program.load({name: np.array(value) for name, value in weights.items()}), step)
        )

    def restore(self, directory: str) -> int:
        return self._keep(self.program.restore(Path(directory)))

    def export(self, state: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in self.program.export(self.states[state]).items()}

    def digest(self, state: int) -> str:
        return self.program.digest(self.states[state])

    def token_losses(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self._array(self.program.token_losses(self.states[state], self._place(inputs, targets)))

    def log_probs(self, state: int, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._array(self.program.log_probs(self.states[state], np.array(inputs), np.array(positions)))

    def gradients(self, state: int, inputs: np.ndarray, targets: np.ndarray, prefix: int) -> dict[str, np.ndarray]:
        _, grads = self.program.loss_and_grads(self.states[state], self._place(inputs, targets), prefix)
        return {name: self._array(value) for name, value in grads.items()}

    def training_loss(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Mean nats per token of the loss whose gradient is taken; of a state that evaluates an average, not that one's."""
        loss, _ = self.program.loss_and_grads(self.states[state], self._place(inputs, targets), inputs.shape[1])
        return float(np.asarray(self.program.fetch(loss))) / inputs.size

    def step(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        self.states[state], metrics = self.program.step(self.states[state], self._place(inputs, targets))
        found = self.program.fetch({name: metrics[name] for name in ("loss", "grad_norm")})
        return {name: float(value) for name, value in found.items()}

    def update(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        """One update of the optimizer from the gradient of the batch, each asked for by itself."""
        _, grads = self.program.loss_and_grads(self.states[state], self._place(inputs, targets))
        self.states[state] = self.program.update(
            self.states[state], {name: self._array(g) for name, g in grads.items()}
        )

    def snapshot(self, state: int) -> None:
        self.snapshots[state] = self.program.snapshot(self.states[state])

    def reset(self, state: int) -> None:
        self.states[state] = self.program.reset(self.states[state], self.snapshots[state])

    def drop(self, state: int) -> None:
        self.states.pop(state, None)
        self.snapshots.pop(state, None)

    def _place(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        return self.program.put_global_batch(np.array(inputs, np.int32), np.array(targets, np.int32))

    def _array(self, value: Any) -> np.ndarray:
        found = np.asarray(self.program.fetch(value))
        return found if found.dtype.name in wire.DTYPES else found.astype(np.float32)

    def _keep(self, state: Any) -> int:
        number = next(self._numbers)
        self.states[number] = state
        return number


def main(args: list[str]) -> int:
    """Answers calls until the pipe is closed; `args` are folders that own optimizers are imported from."""
    # Calls and answers get descriptors of their own: whatever strange code prints goes to the standard error.
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:0] = args
    server = Server()
    methods: dict[str, Callable] = {name: getattr(server, name) for name in vars(Server) if not name.startswith("_")}
    watch, recorded = _audit()
    while True:
        try:
            call = wire.read(calls)
        except wire.Broken:
            return 0
        try:
            if call["call"] == "build":
                _start(**call["arguments"])
                watch()  # what frameworks do at their own start is no strange code's doing
            answer = {"value": methods[call["call"]](**call["arguments"])}
        except (Exception, SystemExit) as error:  # strange code may raise anything; the verifier says what it means
            answer = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        wire.write(answers, answer | {"audit": recorded()})


def _start(backend: str, device: str, **others: Any) -> None:
    from parity.program import platform

    platform(backend, device)


def _audit() -> tuple[Callable[[], Any], Callable[[], list[str]]]:
    """The confinement's record of what the code tried; nothing is recorded where there is none."""
    from parity.verify.sandbox import child as confine

    return confine.watch, confine.recorded
