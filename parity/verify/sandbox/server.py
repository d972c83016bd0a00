"""Runs in the sandboxed process: builds a program and answers the verifier's calls with plain arrays; judges nothing.

The calls look like training and evaluation, and bring their data with them, so that there is nothing to read.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity.program import import_backend, inspector_of, plain, platform, with_step
from parity.verify.sandbox import audit, constants, tokens, wire


class Server:
    """Every public method is a call: arguments and result are JSON values and arrays. States are numbered."""

    def __init__(self) -> None:
        self.program: Any = None
        self.states: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._plain: Any = None

    def prepare(self, backend: str, device: str, modules: list[str]) -> None:
        """Imports the backend and installed modules, which takes seconds and is not the program's doing."""
        platform(backend, device)
        import_backend(backend)
        for name in modules:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit):  # the program's own import will say why
                continue

    def build(
        self,
        backend: str,
        recipe: dict,
        user_program: str | None,
        optimizer: str | None,
        device: str,
        compile: bool = False,
    ) -> dict[str, Any]:
        """Builds a recipe in a backend, perhaps with a user optimizer (module:function) and with torch.compile, or a
        user program's file."""
        from parity import user_program as user_programs
        from parity.harness import fingerprint
        from parity.program import build
        from parity.recipes import from_fields

        present = fingerprint.devices(backend)  # before any code of the user could say otherwise
        base = from_fields(recipe)
        if user_program:
            module = user_programs.load(user_program)
            changed = user_programs.make_recipe(module, base)
            self.program = user_programs.build(module, changed, device=device, devices=1)
        else:
            options = ({"optimizer": optimizer} if optimizer else {}) | ({"compile": True} if compile else {})
            self.program = build(backend, base, device=device, devices=1, **options)
        built = self.program.recipe
        return {
            "name": built.name,
            "precision": built.precision,
            "plan": [segment.to_json() for segment in built.plan],
            "tokenizer_size": built.tokenizer_size,
            "eval_context": built.eval_context,
            "block": getattr(built, "block", None),
            "seen_before_document": built.seen_before_document,
            "end_of_text": built.end_of_text,
            "token_ids": str(getattr(self.program, "token_ids", "")),
            "eval_steps": list(built.eval_steps()),
            "checkpoint_steps": list(built.checkpoint_steps()),
            "device": "cpu" if device == "cpu" else present[0]["kind"],
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
        loss, _ = self.program.loss_and_grads(self.states[state], self._batch(inputs, targets))
        return float(np.asarray(self.program.fetch(loss))) * self.program.recipe.loss_per_token(*inputs.shape)

    def step(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        self.states[state], metrics = self.program.step(self.states[state], self._batch(inputs, targets))
        return self._metrics(metrics)

    def steps(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
        """Updates by several batches, (N, B, T), one after another as the harness makes them: a step is dispatched
        before the metrics of the one before it are read."""
        batches, read = [self._batch(*pair) for pair in zip(inputs, targets, strict=True)], []
        unread: list[dict[str, Any]] = []
        for batch in batches:
            self.states[state], metrics = self.program.step(self.states[state], batch)
            read += map(self._metrics, unread)
            unread = [metrics]
        return [*read, *map(self._metrics, unread)]

    def save(self, state: int, directory: str) -> None:
        self.program.save(self.states[state], Path(directory))

    def plain_init(self, seed: int) -> None:
        """Makes the first state as the backend's own program does."""
        self.plain.init(seed)

    def plain_weights(self, state: int) -> dict[str, np.ndarray]:
        """The weights that are trained, whatever the program exports."""
        return {name: np.asarray(value) for name, value in self.plain.export(self.states[state]).items()}

    def plain_gradient(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """The loss of a batch as the optimizer sees it, and its gradient, by the backend's own program."""
        loss, grads = self.plain.loss_and_grads(self.states[state], self._batch(inputs, targets))
        return {"loss": float(self._fetch(loss)), "grads": {name: self._fetch(grad) for name, grad in grads.items()}}

    def plain_update(self, state: int, grads: dict[str, np.ndarray]) -> None:
        """One update of the optimizer by these gradients, by the backend's own program."""
        self.states[state] = inspector_of(self.plain).update(self.states[state], grads)

    @property
    def plain(self) -> Any:
        """The backend's own program with the user's model and optimizer. TypeError for a program of another class."""
        if self._plain is None:
            self._plain = plain(self.program)
        return self._plain

    def flops(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, int | None]:
        """FLOPs of a step and of an evaluation on a batch; None where one cannot be counted. Drops the state."""
        from parity.harness import flops

        counts, batch, state = {}, self._batch(inputs, targets), self.states.pop(state)
        for name, count in {"evaluation": flops.count_evaluation, "step": flops.count_step}.items():
            try:
                counts[name], state = count(self.program, state, batch)
            except Exception:  # untrusted, and perhaps no function that can be traced
                counts[name] = self._flops_of_calls(state, batch) if name == "evaluation" else None
        return counts

    def _flops_of_calls(self, state: Any, batch: Any) -> int | None:
        """FLOPs of the compiled functions of a JAX program that scoring calls, for one that works on arrays between."""
        from parity.harness import flops

        functions = {name: value for name, value in vars(self.program).items() if name.startswith("_compiled_")}
        counts: list[int] = []

        def counted(function: Callable) -> Callable:
            def call(*args: Any) -> Any:
                counts.append(flops.count(function, *args))
                return function(*args)

            return call

        try:
            vars(self.program).update({name: counted(function) for name, function in functions.items()})
            self.program.fetch(self.program.token_losses(state, batch))
        except Exception:  # untrusted
            return None
        finally:
            vars(self.program).update(functions)
        return sum(counts) or None

    def echo(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Does nothing, to measure what a call takes."""

    def token_axes(self, shapes: dict[str, list[int]]) -> dict[str, list[int]]:
        """The axes of exported weights of these shapes that token ids index."""
        axes = tokens.TokenAxes(self.program.recipe)
        return {name: list(axes.of(tuple(shape), [name])) for name, shape in shapes.items()}

    def rename_tokens(self, state: int, ids: np.ndarray) -> None:
        """Gives every token of a state another id."""
        self.states[state] = tokens.renamed_state(self.program, self.states[state], np.array(ids))

    def constants(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
        """What the program carries beside its state; the batch is one to trace its functions with."""
        return constants.constants(self.program, self.states[state], self._batch(inputs, targets))

    def drop(self, state: int) -> None:
        self.states.pop(state, None)

    def _metrics(self, metrics: dict[str, Any]) -> dict[str, float]:
        values = self.program.fetch({name: metrics[name] for name in ("loss", "grad_norm")})
        return {name: float(value) for name, value in values.items()}

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
    # Calls and answers get descriptors of their own: whatever untrusted code prints goes to stderr.
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:0] = args
    server = Server()
    methods: dict[str, Callable] = {
        name: getattr(server, name)
        for name, kind in vars(Server).items()
        if not name.startswith("_") and callable(kind)
    }
    while True:
        try:
            call = wire.read(calls)
        except wire.WireError:
            return 0
        name, arguments = call["call"], call["arguments"]
        try:
            if name == "build":
                audit.watch()  # only now: what frameworks do at their own start is not the program's doing
            answer = {"value": methods[name](**arguments)}
        except (Exception, SystemExit) as error:  # untrusted code may raise anything; the verifier judges what it means
            answer = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        wire.write(answers, answer | {"audit": audit.recorded()})
