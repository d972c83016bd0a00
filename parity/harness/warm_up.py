"""The warm-up: compiles everything on dummy data, checks the memory, counts the FLOPs, and restores the state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from parity.data.stream import Segment
from parity.errors import InputError, RunFailed
from parity.harness import flops
from parity.harness.clock import cpu_readings
from parity.harness.run import RunFiles, RunSpec
from parity.program import with_step
from parity.user_program import user_code

State = Any


def warm_up(spec: RunSpec, files: RunFiles, state: State) -> tuple[State, int]:
    """Compiles every step and the evaluation; returns the state as it was before, and the FLOPs of the whole plan."""
    program, recipe, total_flops = spec.program, spec.recipe, 0
    files.screen.phase("compiling")
    with log_phase(spec, files, "warm-up"):
        check_memory(spec)
        before = program.digest(state)
        files.log.event("state", name="before warm-up", digest=before)
        snapshot = program.snapshot(state)
        eval_rows = spec.eval_batch_tokens // recipe.eval_context
        eval_batch = program.put_global_batch(*[np.zeros((eval_rows, recipe.eval_context), np.int32)] * 2)
        stages = recipe.window_stages()
        for (tokens, length), (steps, first_steps) in batch_shapes(recipe.plan, stages).items():
            batch, _ = put_batch(spec, *[np.zeros((tokens // length // spec.processes.size, length), np.int32)] * 2)
            for step in first_steps:
                state = with_step(program, state, step)
                if step == first_steps[-1]:  # of the widest window with batches of this shape FLOPs are counted
                    step_flops, state = count_flops(spec, state, batch)
                    total_flops += steps * step_flops
                    state = with_step(program, state, step)
                state, metrics = program.step(state, batch)
                program.fetch(metrics)
                spec.processes.progress()
        for step in stages:
            state = with_step(program, state, step)
            program.fetch(program.token_losses(state, eval_batch))
            spec.processes.progress()
        state = program.reset(state, snapshot)
        after = program.digest(state)
        files.log.event("state", name="after warm-up", digest=after)
    if after != before:
        error = RunFailed if spec.options.program or spec.options.optimizer else RuntimeError
        raise error(
            f"the warm-up changed the state: digest {before} before, {after} after: reset must undo what step did"
        )
    return state, total_flops


def batch_shapes(plan: Sequence[Segment], stages: Sequence[int]) -> dict[tuple[int, int], tuple[int, list[int]]]:
    """The (tokens, row length) of a plan's batches, each with its number of steps, and the first of its steps in each
    of the stages that begin at `stages`, in order."""
    shapes: dict[tuple[int, int], tuple[int, list[int]]] = {}
    first = 0
    for segment in plan:
        shape, end = (segment.tokens, segment.seq_len), first + segment.steps
        steps, first_steps = shapes.get(shape, (0, []))
        begun = [first, *(step for step in stages if first < step < end)] if segment.steps else []
        shapes[shape] = steps + segment.steps, [*first_steps, *begun]
        first = end
    return shapes


@contextmanager
def log_phase(spec: RunSpec, files: RunFiles, name: str) -> Iterator[None]:
    """Logs the beginning and the end of a phase that is not training; each line has the clocks' readings."""
    files.log.event("phase", name=name, edge="begin", **cpu_readings())
    before, spec.guard.phase = spec.guard.phase, name
    yield
    spec.guard.phase = before
    files.log.event("phase", name=name, edge="end", **cpu_readings())


def put_batch(spec: RunSpec, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> tuple[Any, None]:
    """A batch, or this process' rows of one, on the devices."""
    program = spec.program
    put = program.put_global_batch if spec.processes.size == 1 else program.put_local_batch
    return put(inputs_BT, targets_BT), None


def check_memory(spec: RunSpec) -> None:
    """Raises InputError where the compiled step needs more memory than a device has."""
    memory = getattr(spec.program, "memory", lambda: None)()
    if memory is not None:
        needed, available = memory
        rows = spec.recipe.batch_tokens // spec.recipe.context // len(spec.program.devices)
        if problem := memory_problem(needed, available, rows, spec.options.microbatches):
            raise InputError(problem)


def memory_problem(needed: dict[str, int], available: int, rows: int, microbatches: int) -> str:
    """Why a step does not fit, with the fewest microbatches that would; "" if it fits.

    `needed` are its bytes of arguments, temporaries and results; temporaries shrink with the rows computed at once.
    """
    if sum(needed.values()) <= available:
        return ""
    constant = needed["arguments"] + needed["results"]
    fitting = [
        count
        for count in range(microbatches + 1, rows + 1)
        if rows % count == 0 and constant + needed["temporaries"] * microbatches / count <= available
    ]
    advice = (
        f"--microbatches {fitting[0]} would fit"
        if fitting
        else "no number of microbatches would fit: use more devices or a smaller model"
    )
    return (
        f"the step needs {sum(needed.values()) / 1e9:.1f} GB of a device's memory with {rows // microbatches} rows at "
        f"once, found {available / 1e9:.1f} GB: {advice}"
    )


def count_flops(spec: RunSpec, state: State, batch: Any) -> tuple[int, State]:
    """FLOPs of a step. Raises InputError where the step of a user program cannot be counted."""
    what = "step, while its FLOPs are counted (in JAX it must be a function that can be traced),"
    with user_code(str(spec.options.program), what) if spec.options.program else nullcontext():
        return flops.count_step(spec.program, state, batch)
