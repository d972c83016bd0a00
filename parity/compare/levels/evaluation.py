"""Level 8: val loss over the whole val slice by the harness, of real runs' weights and of a live state."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from parity.compare import bounds
from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation
from parity.compare.training import stored_weights, train_steps
from parity.harness import evaluation as harness  # by module: faults are planted in its functions
from parity.harness.evaluation import Evaluation, largest_batch
from parity.program import Program


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Val loss of every run's weights in batches of two sizes, and of a live state against its exported weights."""
    recipe, val_tokens = case.recipe, case.track.val_tokens
    batch = largest_batch(val_tokens, recipe.batch_tokens, recipe.eval_context, 1)
    smaller = largest_batch(val_tokens, batch // 2, recipe.eval_context, 1)
    bound = bounds.losses(recipe, val_tokens)

    def score(state: Any, batch_tokens: int) -> Evaluation:
        running = cast(Program, program)
        return harness.evaluate(running, state, case.slice, "val", val_tokens, batch_tokens, recipe.eval_context)

    def val_loss(line: str, location: str, loss: float, expected: float | None = None) -> Observation:
        expected_array = None if expected is None else np.array(expected)
        return Observation(line, location, np.array(loss), bound, expected=expected_array, single=True)

    for name, path in case.written.items():
        state = program.with_step(program.load(stored_weights(case, path)), recipe.steps)
        whole, again = score(state, batch), score(state, smaller)
        yield Observation("tokens scored", name, f"{whole.tokens} tokens, batches {whole.batches[:16]}")
        yield val_loss("val loss", name, whole.val_loss)
        yield val_loss("size of a batch", f"{name}, {smaller:,} tokens at a time", again.val_loss, whole.val_loss)
    if not program.has("step", "export"):
        return
    state, _ = train_steps(program, case, program.load(case.initial), 0, 2)
    live = score(state, batch)
    loaded = score(program.with_step(program.load(program.export(state)), 2), batch)
    location = "after 2 steps, against its exported weights"
    yield val_loss("live state", location, live.val_loss, loaded.val_loss)
