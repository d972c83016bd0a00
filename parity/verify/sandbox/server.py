"""Runs in the sandboxed process: builds a program and answers the verifier's calls with plain arrays; judges nothing.

The calls look like training and evaluation, and bring their data with them, so that there is nothing to read.
"""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity.program import inspector_of, with_step
from parity.verify.sandbox import audit, wire


class Server:
    """Every public method is a call: arguments and result are JSON values and arrays. States are numbered."""

    def __init__(self) -> None:
        self.program: Any = None
        self.states: dict[int, Any] = {}
        self._numbers = itertools.count()

    def build(
        self, backend: str, recipe: dict, user_program: str | None, optimizer: str | None, device: str
    ) -> dict[str, Any]:
        """Builds a recipe in a backend, perhaps with a user optimizer (module:function), or a user program's file."""
        from parity import user_program as user_programs
        from parity.program import build
        from parity.recipes import from_fields

        base = from_fields(recipe)
        if user_program:
            module = user_programs.load(user_program)
            changed = user_programs.make_recipe(module, base)
            self.program = user_programs.build(module, changed, device=device, devices=1)
        else:
            options = {"optimizer": optimizer} if optimizer else {}
            self.program = build(backend, base, device=device, devices=1, **options)
        built = self.program.recipe
        return {
            "name": built.name,
            "precision": built.precision,
            "plan": [vars(segment) for segment in built.plan],
            "tokenizer_size": built.tokenizer_size,
            "eval_context": built.eval_context,
            "block": getattr(built, "block", None),
            "separate_documents": built.separate_documents,
            "end_of_text": built.end_of_text,
            "eval_steps": list(built.eval_steps()),
            "checkpoint_steps": list(built.checkpoint_steps()),
        }

    def init(self, seed: int) -> int:
        return self._add(self.program.init(seed))

    def load(self, weights: dict[str, np.ndarray], step: int) -> int:
        """A state with these weights, as if this many updates had made it."""
        state = self.program.load({name: np.array(value) for name, value in weights.items()})
        return self._add(with_step(self.program, state, step))

    def restore(self, directory: str) -> int:
        return self._add(self.program.restore(Path(directory)))

    def export(self, state: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in self.program.export(self.states[state]).items()}

    def digest(self, state: int) -> str:
        return self.program.digest(self.states[state])

    def token_losses(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self._fetch(self.program.token_losses(self.states[state], self._batch(inputs, targets)))

    def log_probs(self, state: int, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._fetch(self.program.log_probs(self.states[state], np.array(inputs), np.array(positions)))

    def gradients(self, state: int, inputs: np.ndarray, targets: np.ndarray, prefix: int) -> dict[str, np.ndarray]:
        _, grads = self.program.loss_and_grads(self.states[state], self._batch(inputs, targets), prefix)
        return {name: self._fetch(value) for name, value in grads.items()}

    def training_loss(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Mean nats per token of the loss whose gradient is taken, at the trained weights and not at an average."""
        loss, _ = self.program.loss_and_grads(self.states[state], self._batch(inputs, targets), inputs.shape[1])
        return float(np.asarray(self.program.fetch(loss))) / inputs.size

    def step(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        self.states[state], metrics = self.program.step(self.states[state], self._batch(inputs, targets))
        values = self.program.fetch({name: metrics[name] for name in ("loss", "grad_norm")})
        return {name: float(value) for name, value in values.items()}

    def update(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        """One optimizer update from the gradient of the batch, each called by itself."""
        _, grads = self.program.loss_and_grads(self.states[state], self._batch(inputs, targets))
        grads = {name: self._fetch(grad) for name, grad in grads.items()}
        program = self.program if hasattr(self.program, "update") else inspector_of(self.program)
        self.states[state] = program.update(self.states[state], grads)

    def drop(self, state: int) -> None:
        self.states.pop(state, None)

    def _batch(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        return self.program.put_global_batch(np.array(inputs, np.int32), np.array(targets, np.int32))

    def _fetch(self, value: Any) -> np.ndarray:
        array = np.asarray(self.program.fetch(value))
        return array if array.dtype.name in wire.DTYPES else array.astype(np.float32)

    def _add(self, state: Any) -> int:
        number = next(self._numbers)
        self.states[number] = state
        return number


def main(args: list[str]) -> int:
    """Answers calls until the pipe is closed; `args` are folders that user optimizers are imported from."""
    from parity.program import platform

    # Calls and answers get descriptors of their own: whatever untrusted code prints goes to stderr.
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:0] = args
    server = Server()
    methods: dict[str, Callable] = {name: getattr(server, name) for name in vars(Server) if not name.startswith("_")}
    while True:
        try:
            call = wire.read(calls)
        except wire.WireError:
            return 0
        name, arguments = call["call"], call["arguments"]
        try:
            if name == "build":
                platform(arguments["backend"], arguments["device"])
                audit.watch()  # only now: what frameworks do at their own start is not the program's doing
            answer = {"value": methods[name](**arguments)}
        except (Exception, SystemExit) as error:  # untrusted code may raise anything; the verifier judges what it means
            answer = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        wire.write(answers, answer | {"audit": audit.recorded()})
