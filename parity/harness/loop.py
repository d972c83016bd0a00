"""The training loop, the same for every program: plan, warm up, step, evaluate, log, checkpoint, finish."""

import math
from contextlib import suppress
from typing import Any

import numpy as np

from parity import weights as canonical
from parity.data.stream import Reader, spans
from parity.errors import InputError, Interrupted, RunFailed
from parity.harness import checkpoints, fingerprint, flops
from parity.harness.clock import now_s
from parity.harness.evaluation import evaluate
from parity.harness.interrupts import StopRequest
from parity.harness.run import LARGE_STATE_WEIGHTS, Run, host
from parity.program import with_step
from parity.user_program import explained

State = Any
ASK_S = 0.5  # about how often several processes ask one another for a wish to stop


def train(run: Run, stop: StopRequest) -> State:
    """Trains a run to the end of its plan and returns the final state; a resumed run goes on from its last checkpoint.

    Raises RunFailed where the loss is not finite, Interrupted where the user asked to stop; either way, and where
    anything else goes wrong, the run directory is left so that it can be resumed, and says what happened.
    """
    done = 0
    try:
        state, done = begin(run)
        state = warm_up(run, state)
        if done == 0 and run.team.share(not checkpoints.latest(run.place, run.identity)):
            pause(run, state, done)
        team = run.team
        with Reader(
            run.slice.train,
            spans(run.slice.train_lengths, run.recipe.plan, done),
            team.rank,
            team.size,
            vocab_size=run.slice.manifest.vocab_size,
            place=lambda *batch: (place(run, *batch), None),
            digests=team.first,
        ) as reader:
            stops = {*run.recipe.eval_steps(), *run.recipe.checkpoint_steps()}
            unread = None
            if done < run.recipe.steps:
                start(run)
            for batch in reader:
                # Step n + 1 is dispatched before step n's metrics are read, so that the device never waits for the log.
                state, metrics = run.program.step(state, batch.inputs)
                done = batch.step + 1
                team.mark()
                if unread:
                    record(run, *unread)
                unread = batch.step, batch.digest, metrics
                asked = (
                    stop.signal_number
                    if team.size == 1
                    else team.any(stop.signal_number)
                    if done % run.ask_every == 0
                    else None
                )
                if done in stops or asked:
                    run.program.wait(state)
                    halt(run)
                    record(run, *unread)
                    record_norms(run, batch.step, metrics)
                    unread = None
                    pause(run, state, done, asked)
                    if done < run.recipe.steps:
                        start(run)
        return state
    except (RunFailed, Interrupted):
        raise
    except BaseException as error:
        with suppress(InputError):  # the log itself may be what went wrong, as on a full disk
            run.log.event("failure", step=done, reason=f"{type(error).__name__}: {error}")
        if "OutOfMemory" in type(error).__name__ or "RESOURCE_EXHAUSTED" in str(error):
            rows = run.recipe.batch_tokens // run.recipe.context // len(run.program.devices)
            raise InputError(
                f"a device's memory does not hold {rows} rows in {run.options.microbatches} parts "
                f"({str(error).splitlines()[0][:120]}): choose more --microbatches"
            ) from error
        raise


def place(run: Run, inputs: np.ndarray, targets: np.ndarray) -> Any:
    """A batch, or this process' rows of one, on the devices."""
    return (run.program.put_global_batch if run.team.size == 1 else run.program.put_local_batch)(inputs, targets)


def start(run: Run) -> None:
    """The clock runs from here; the log has a phase for it, so that its time can be held against the log's own clock."""
    run.guard.phase = "train"
    if (
        run.team.size > 1 and run.losses
    ):  # an exchange for words takes a millisecond: not at every one of many short steps
        run.ask_every = run.team.share(max(1, int(ASK_S * len(run.losses) / max(run.clock.seconds, 1e-9))))
    run.log.event("phase", name="train", edge="begin", at_s=run.clock.start())


def halt(run: Run) -> None:
    """The clock stands from here: the devices are drained."""
    run.log.event("phase", name="train", edge="end", at_s=run.clock.stop())
    run.guard.phase = "pause"


def begin(run: Run) -> tuple[State, int]:
    """The state to go on from, and how many updates it has had."""
    found = checkpoints.latest(run.place, run.identity) if run.resumed else None
    run.team.agree({"newest checkpoint": found and found[0].name})
    if found:
        path, facts = found
        if run.team.first:
            checkpoints.check_files(path, facts)
        state = run.program.restore(path)
        digest = run.program.digest(state)
        if digest != facts["digest"]:
            raise InputError(
                f"{path}: expected a state of digest {facts['digest'][:12]}, found {digest[:12]}: the "
                "checkpoint is damaged; remove its folder to resume from the one before"
            )
        if facts["step"] not in run.saved:  # killed between the checkpoint and its line in the log
            run.log.event("checkpoint", step=facts["step"], path=f"checkpoints/{path.name}", digest=digest)
        log_resume(run, facts["step"], path.name, digest)
        return state, facts["step"]
    state = run.program.init(run.seed)
    run.log.event("state", name="initial weights", digest=canonical.digest(run.program.export(state)))
    if run.resumed:
        log_resume(run, 0, "none", run.program.digest(state))
    return state, 0


def log_resume(run: Run, step: int, checkpoint: str, digest: str) -> None:
    """Logs where a run goes on, with what: the code, the packages and the machine may be others than at its start."""
    run.log.event(
        "resume",
        step=step,
        checkpoint=checkpoint,
        digest=digest,
        source_sha256=run.source_sha256,
        devices=run.program.devices,
        host=host(run.team),
        versions=fingerprint.versions(),
        environment=fingerprint.environment(),
    )


def warm_up(run: Run, state: State) -> State:
    """Compiles the step and the evaluation on dummy data, counts the step's FLOPs, and puts the state back."""
    run.screen.phase("compiling")
    with run.phase("warm-up"):
        check_memory(run)
        before = run.program.digest(state)
        run.log.event("state", name="before warm-up", digest=before)
        kept = run.program.snapshot(state)
        rows, eval_rows = (
            run.recipe.batch_tokens // run.recipe.context,
            run.eval_batch_tokens // run.recipe.eval_context,
        )
        batch = place(run, *[np.zeros((rows // run.team.size, run.recipe.context), np.int32)] * 2)
        eval_batch = run.program.put_global_batch(*[np.zeros((eval_rows, run.recipe.eval_context), np.int32)] * 2)
        for step in run.recipe.window_stages():  # the last is the widest: that is counted
            state = with_step(run.program, state, step)
            if step == run.recipe.window_stages()[-1]:
                run.flops_per_step, state = count(run, state, batch)
                state = with_step(run.program, state, step)
            state, metrics = run.program.step(state, batch)
            run.program.fetch((metrics, run.program.token_losses(state, eval_batch)))
            run.team.mark()
        state = run.program.reset(state, kept)
        after = run.program.digest(state)
        run.log.event("state", name="after warm-up", digest=after)
    if after != before:
        blame = RunFailed if run.options.program or run.options.optimizer else RuntimeError
        raise blame(
            f"the warm-up changed the state: digest {before} before, {after} after: reset must undo what step did"
        )
    return state


def check_memory(run: Run) -> None:
    """Raises InputError where the compiled step needs more memory than a device has, with the microbatches that would fit."""
    found = run.program.memory() if hasattr(run.program, "memory") else None
    if found is not None:
        rows = run.recipe.batch_tokens // run.recipe.context // len(run.program.devices)
        if problem := too_little(*found, rows, run.options.microbatches):
            raise InputError(problem)


def too_little(needed: dict[str, int], there: int, rows: int, microbatches: int) -> str:
    """What to say of a step whose bytes (arguments, temporaries, results) are more than are `there`; "" where they fit. Temporaries
    shrink with the rows that are computed at once."""
    if sum(needed.values()) <= there:
        return ""
    still = needed["arguments"] + needed["results"]
    fitting = [
        n
        for n in range(microbatches + 1, rows + 1)
        if rows % n == 0 and still + needed["temporaries"] * microbatches / n <= there
    ]
    advice = (
        f"--microbatches {fitting[0]} would fit"
        if fitting
        else "no number of microbatches would fit: use more devices or a smaller model"
    )
    return (
        f"the step needs {sum(needed.values()) / 1e9:.1f} GB of a device's memory with {rows // microbatches} rows at once, found "
        f"{there / 1e9:.1f} GB: {advice}"
    )


def count(run: Run, state: State, batch: Any) -> tuple[int, State]:
    """FLOPs of a step. Raises InputError where an own program's step is nothing that can be counted."""
    if run.options.program is None:
        return flops.count_step(run.program, state, batch)
    with explained(
        str(run.options.program), "step, while its FLOPs are counted (in JAX it must be a function that can be traced),"
    ):
        return flops.count_step(run.program, state, batch)


def pause(run: Run, state: State, done: int, signal_number: int | None = None) -> None:
    """What happens between two steps while the clock stands: evaluation, checkpoint, and stopping where that is asked."""
    run.log.event("guard", step=done, **watched(run))
    if done in run.recipe.eval_steps():
        validate(run, state, done)
    if done in run.recipe.checkpoint_steps() or signal_number:
        with run.phase("checkpoint"):
            run.log.sync()  # what the log says of a checkpoint's steps is on the disk before the checkpoint is
            path, digest = checkpoints.save(run.place, run.program, state, done, run.identity, run.team)
            run.log.event("checkpoint", step=done, path=f"checkpoints/{path.name}", digest=digest)
            run.log.sync()
    if signal_number and done < run.recipe.steps:
        run.log.event("interrupt", step=done, signal=int(signal_number))
        raise Interrupted(
            f"stopped after step {done} of {run.recipe.steps}, all of it saved; go on with\n  {run.resume_command}",
            signal_number,
        )


def watched(run: Run) -> dict[str, list[Any]]:
    """What own code was seen to do since this was last asked, in all processes."""
    found: dict[str, list[Any]] = {}
    for seen in run.team.gather(run.guard.found()):
        for kind, events in seen.items():
            known = found.setdefault(kind, [])
            known += [one for one in events if one not in known]
    return found


def validate(run: Run, state: State, done: int) -> None:
    """Takes the val loss after `done` updates and logs it."""
    begin_s = now_s()
    digested = done in run.recipe.checkpoint_steps() or run.recipe.matmul_params() < LARGE_STATE_WEIGHTS
    with run.phase("evaluate"):
        if digested:
            run.log.event("state", name="before evaluation", step=done, digest=run.program.digest(state))
        found = evaluate(
            run.program,
            state,
            run.slice,
            "val",
            run.track.val_tokens,
            run.eval_batch_tokens,
            run.recipe.eval_context,
            run.team.mark,
        )
        if digested:
            run.log.event("state", name="after evaluation", step=done, digest=run.program.digest(state))
    event = {
        "step": done,
        "val_loss": found.val_loss,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "train_s": run.clock.seconds,
        "eval_s": now_s() - begin_s,
        "batches": found.batches,
        "batch_tokens": run.eval_batch_tokens,
    }
    run.log.event("eval", **event)
    run.log.event(
        "memory",
        host_bytes=fingerprint.peak_memory_bytes(),
        device_bytes=fingerprint.peak_device_bytes(run.program.framework),
    )
    run.evaluations[done] = event
    run.screen.evaluated(done, found.val_loss, found.bits_per_byte)
    if not math.isfinite(found.val_loss):
        fail(run, done, f"the val loss is {found.val_loss}")


def record(run: Run, step: int, batch_digest: str, metrics: dict[str, Any]) -> None:
    """Waits for a step's loss and logs the step; its time is the clock's since the last. Raises RunFailed on nan or inf."""
    found = run.program.fetch({name: metrics[name] for name in ("loss", "grad_norm")})
    seconds = run.clock.seconds
    begin_s = now_s()
    loss, step_s = float(found["loss"]), seconds - run.last_s
    tokens = (step + 1) * run.recipe.batch_tokens
    rates = run.recipe.learning_rates(step) if run.options.optimizer is None else {}
    run.log.event(
        "step",
        step=step,
        loss=loss,
        grad_norm=float(found["grad_norm"]),
        rates=rates,
        step_s=step_s,
        train_s=seconds,
        tokens=tokens,
        batch=batch_digest,
    )
    run.last_s, run.losses[step] = seconds, loss
    if not math.isfinite(loss):
        fail(run, step, f"the loss is {loss}")
    mean_s = seconds / len(run.losses)
    run.screen.step(step + 1, loss, run.recipe.batch_tokens / mean_s, (run.recipe.steps - step - 1) * mean_s)
    run.telemetry_s += now_s() - begin_s


def record_norms(run: Run, step: int, metrics: dict[str, Any]) -> None:
    """Logs norms of weights, gradients and updates by group. Raises RunFailed where the weights are not finite."""
    norms = {
        kind: {group: float(norm) for group, norm in groups.items()}
        for kind, groups in run.program.fetch(metrics["norms"]).items()
    }
    run.log.event("norms", step=step, **norms)
    if not all(math.isfinite(norm) for norm in norms["weights"].values()):
        fail(run, step, "the weights are not finite")


def fail(run: Run, step: int, what: str) -> None:
    """Ends the run: logs the failure and raises RunFailed with the step and the last good checkpoint."""
    found = checkpoints.latest(run.place, run.identity)
    good = f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written yet"
    run.log.event("failure", step=step, reason=what)
    raise RunFailed(f"{what} at step {step}; {good}; try a lower rate, or float32, with a new --name")
