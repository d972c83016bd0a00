"""The training loop, the same for every program: warm up, step, log, evaluate, checkpoint."""

import math
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from parity import weights as canonical
from parity.data.stream import Reader, spans, tokens_after
from parity.errors import InputError, Interrupted, RunFailed
from parity.harness import checkpoints, fingerprint
from parity.harness.clock import now_s
from parity.harness.evaluation import evaluate
from parity.harness.guard import guard_events
from parity.harness.interrupts import StopRequest
from parity.harness.options import Options, saving_interval
from parity.harness.run import Progress, Run, RunFiles, RunSpec
from parity.harness.run_json import host
from parity.harness.warm_up import log_phase, put_batch, warm_up
from parity.user_program import UserCodeFailed, error_sentence, source_file

State = Any
LARGE_STATE_WEIGHTS = 32_000_000  # a larger state is digested at checkpoints only, since that reads all of it
STOP_POLL_S = 0.5  # about how often several processes ask one another for a request to stop


def train(run: Run, stop: StopRequest) -> State:
    """Trains a run, or the rest of a resumed one, to the end of its plan; returns the final state.

    Raises RunFailed where the loss is not finite, Interrupted where the user asked to stop; after these and any other
    error the run directory can be resumed and its log has the reason. InputError before the first evaluation, as where
    user code raises in the warm-up: then no directory is left, so that the command can be given again.
    """
    try:
        return _train(run, stop)
    except InputError:
        if run.spec.processes.first and not run.files.resumed and not run.progress.evaluations:
            run.files.dir.discard(begun=True)
        raise


def _train(run: Run, stop: StopRequest) -> State:
    spec, files, progress = run.spec, run.files, run.progress
    processes, last = spec.processes, spec.recipe.steps
    done = 0
    try:
        state, done = restore_or_init(spec, files, progress)
        state, progress.flops = warm_up(spec, files, state)
        if done == 0 and processes.broadcast(not checkpoints.latest(files.dir, spec.identity)):
            evaluate_and_checkpoint(spec, files, progress, state, done)
        pauses = {*spec.recipe.eval_steps(), *spec.recipe.checkpoint_steps()}
        with batch_reader(spec, done) as reader:
            unread = None
            if done < last:
                start_clock(spec, files, progress)
            for batch in reader:
                # Step n + 1 is dispatched before step n's metrics are read, so that the device never waits for the log.
                state, metrics = spec.program.step(state, batch.inputs)
                done = batch.step + 1
                processes.progress()
                if unread:
                    log_step(spec, files, progress, *unread)
                unread = batch.step, batch.digest, metrics
                signal = requested_stop(spec, progress, stop, done)
                save = save_is_due(spec, progress, done)
                if done in pauses or signal or save:
                    spec.program.wait(state)
                    stop_clock(spec, files, progress)
                    log_step(spec, files, progress, *unread)
                    log_norms(spec, files, batch.step, metrics)
                    unread = None
                    evaluate_and_checkpoint(spec, files, progress, state, done, signal, save)
                    if done < last:
                        start_clock(spec, files, progress)
        return state
    except (RunFailed, Interrupted):
        raise
    except BaseException as error:
        with suppress(InputError):  # the log itself may be what went wrong, as on a full disk
            files.log.event("failure", step=done, reason=f"{type(error).__name__}: {error}")
        if "OutOfMemory" in type(error).__name__ or "RESOURCE_EXHAUSTED" in str(error):
            rows = spec.recipe.batch_tokens // spec.recipe.context // len(spec.program.devices)
            raise InputError(
                f"a device's memory does not hold {rows} rows in {spec.options.microbatches} microbatches "
                f"({str(error).splitlines()[0][:120]}): choose more --microbatches"
            ) from error
        if (file := user_file(spec.options)) and isinstance(error, Exception) and not isinstance(error, InputError):
            called = "the program" if spec.options.program else "the optimizer"
            sentence = error_sentence(error, file, called)
            if not done:
                raise InputError(sentence) from error
            raise UserCodeFailed(f"{sentence}, after step {done}; {last_good(spec, files, done)}") from error
        raise


def user_file(options: Options) -> str | None:
    """The file of the user program or user optimizer that a run has; None without one."""
    if options.program:
        return str(options.program)
    return source_file(options.optimizer) if options.optimizer else None


def restore_or_init(spec: RunSpec, files: RunFiles, progress: Progress) -> tuple[State, int]:
    """The state to continue from, and how many updates it has had."""
    checkpoint = checkpoints.latest(files.dir, spec.identity) if files.resumed else None
    spec.processes.agree({"newest checkpoint": checkpoint and checkpoint[0].name})
    if checkpoint is None:
        if progress.losses:
            lost = max(progress.losses) + 1
            files.screen.note(f"no checkpoint was written: all {lost:,} steps are lost, and are trained again")
        with log_phase(spec, files, "init"):
            state = spec.program.init(spec.seed)
            files.log.event("state", name="initial weights", digest=canonical.digest(spec.program.export(state)))
        if files.resumed:
            log_resume(spec, files, 0, "none", spec.program.digest(state))
        return state, 0
    path, facts = checkpoint
    if spec.processes.first:
        checkpoints.check_files(path, facts)
    state = spec.program.restore(path)
    step, digest = facts["step"], spec.program.digest(state)
    if digest != facts["digest"]:
        raise InputError(
            f"{path}: expected a state of digest {facts['digest'][:12]}, found {digest[:12]}: the checkpoint is "
            "damaged; remove its folder to resume from the one before"
        )
    if lost := max(progress.losses, default=-1) + 1 - step:
        files.screen.note(
            f"continuing from {path.name}: {lost:,} steps logged after it are lost, and are trained again"
        )
    progress.saved_step = step
    if step not in progress.checkpoints:  # killed between the checkpoint and its line in the log
        files.log.event("checkpoint", step=step, path=f"checkpoints/{path.name}", digest=digest)
    log_resume(spec, files, step, path.name, digest)
    return state, step


def log_resume(spec: RunSpec, files: RunFiles, step: int, checkpoint: str, digest: str) -> None:
    """Logs where a run continues, and with what: code, packages and machine may be others than at its start."""
    files.log.event(
        "resume",
        step=step,
        checkpoint=checkpoint,
        digest=digest,
        source_sha256=files.source_sha256,
        devices=spec.program.devices,
        host=host(spec.processes),
        versions=fingerprint.versions(),
        environment=fingerprint.environment(),
    )


def batch_reader(spec: RunSpec, done: int) -> Reader:
    """The batches from step `done` on, or this process' rows of them, put on the devices ahead of time."""
    return Reader(
        spec.slice.train,
        spans(spec.slice.train_lengths, spec.recipe.plan, done, spec.slice.documents),
        spec.processes.rank,
        spec.processes.size,
        vocab_size=spec.slice.manifest.vocab_size,
        put=partial(put_batch, spec),
        digests=spec.processes.first,
    )


def requested_stop(spec: RunSpec, progress: Progress, stop: StopRequest, done: int) -> int | None:
    """The signal that asks to stop after this step, the same in all processes."""
    if spec.processes.size == 1:
        return stop.signal_number
    return spec.processes.first_set(stop.signal_number) if done % progress.stop_poll_steps == 0 else None


def save_is_due(spec: RunSpec, progress: Progress, done: int) -> bool:
    """Whether --save-every asks for a checkpoint after this step, the same in all processes."""
    steps, seconds = saving_interval(spec.options.save_every)
    if steps is not None:
        return done % steps == 0
    if seconds is None or (spec.processes.size > 1 and done % progress.stop_poll_steps):
        return False
    return bool(spec.processes.broadcast(progress.clock.seconds - progress.saved_s >= seconds))


def start_clock(spec: RunSpec, files: RunFiles, progress: Progress) -> None:
    """Starts the training clock, in a phase of the log so that its time can be compared with the log's own clock."""
    spec.guard.phase = "train"
    if spec.processes.size > 1 and progress.losses:  # an exchange takes a millisecond: not in each of many short steps
        steps_per_s = len(progress.losses) / max(progress.clock.seconds, 1e-9)
        progress.stop_poll_steps = spec.processes.broadcast(max(1, int(STOP_POLL_S * steps_per_s)))
    files.log.event("phase", name="train", edge="begin", at_s=progress.clock.start())


def stop_clock(spec: RunSpec, files: RunFiles, progress: Progress) -> None:
    """Stops the training clock; the devices are drained."""
    files.log.event("phase", name="train", edge="end", at_s=progress.clock.stop())
    spec.guard.phase = "pause"


def evaluate_and_checkpoint(
    spec: RunSpec,
    files: RunFiles,
    progress: Progress,
    state: State,
    done: int,
    signal: int | None = None,
    save: bool = False,
) -> None:
    """After `done` updates, while the clock is stopped: the evaluation and the checkpoint that are due.

    Raises Interrupted, everything saved, where a signal asked to stop.
    """
    log = files.log
    log.event("guard", step=done, **guard_events(spec.guard, spec.processes))
    if done in spec.recipe.eval_steps():
        log_evaluation(spec, files, progress, state, done)
    if done in spec.recipe.checkpoint_steps() or signal or save:
        with log_phase(spec, files, "checkpoint"):
            log.sync()  # the log's lines about a checkpoint's steps are on the disk before the checkpoint is
            path, digest = checkpoints.save(files.dir, spec.program, state, done, spec.identity, spec.processes)
            log.event("checkpoint", step=done, path=f"checkpoints/{path.name}", digest=digest)
            log.sync()
        progress.saved_step, progress.saved_s = done, progress.clock.seconds
        if spec.processes.first:
            checkpoints.remove(checkpoints.unplanned(files.dir, spec.recipe.checkpoint_steps(), keep=done))
    if signal and done < spec.recipe.steps:
        log.event("interrupt", step=done, signal=int(signal))
        raise Interrupted(
            f"stopped after step {done} of {spec.recipe.steps}, all of it saved; continue with\n  "
            f"{files.resume_command}",
            signal,
        )


def log_evaluation(spec: RunSpec, files: RunFiles, progress: Progress, state: State, done: int) -> None:
    """Measures the val loss after `done` updates and logs it. Raises RunFailed where it is not finite."""
    begin_s, log = now_s(), files.log
    digested = done in spec.recipe.checkpoint_steps() or spec.recipe.matmul_params() < LARGE_STATE_WEIGHTS
    with log_phase(spec, files, "evaluate"):
        if digested:
            log.event("state", name="before evaluation", step=done, digest=spec.program.digest(state))
        result = evaluate(
            spec.program,
            state,
            spec.slice,
            "val",
            spec.track.val_tokens,
            spec.eval_batch_tokens,
            spec.recipe.eval_context,
            spec.processes.progress,
        )
        if digested:
            log.event("state", name="after evaluation", step=done, digest=spec.program.digest(state))
    event = {
        "step": done,
        **result._asdict(),
        "train_s": progress.clock.seconds,
        "eval_s": now_s() - begin_s,
        "batch_tokens": spec.eval_batch_tokens,
    }
    log.event("eval", **event)
    device_bytes = fingerprint.peak_device_bytes(spec.program.framework)
    log.event("memory", host_bytes=fingerprint.peak_memory_bytes(), device_bytes=device_bytes)
    progress.evaluations[done] = event
    files.screen.evaluation(done, result.val_loss, result.bits_per_byte)
    if not math.isfinite(result.val_loss):
        fail(spec, files, done, f"the val loss is {result.val_loss}")


def log_step(
    spec: RunSpec, files: RunFiles, progress: Progress, step: int, batch_digest: str, metrics: dict[str, Any]
) -> None:
    """Waits for a step's loss and logs the step; its time is the clock's since the last.

    Raises RunFailed on nan or inf.
    """
    own_rates = metrics.get("rates", {}) if spec.options.optimizer else {}
    values = spec.program.fetch({"rates": own_rates} | {name: metrics[name] for name in ("loss", "grad_norm")})
    rates = values["rates"] if spec.options.optimizer else spec.recipe.learning_rates(step)
    seconds, begin_s = progress.clock.seconds, now_s()
    loss, tokens = float(values["loss"]), tokens_after(spec.recipe.plan, step + 1)
    files.log.event(
        "step",
        step=step,
        loss=loss,
        grad_norm=float(values["grad_norm"]),
        rates={name: float(rate) for name, rate in rates.items()},
        step_s=seconds - progress.logged_s,
        train_s=seconds,
        tokens=tokens,
        batch=batch_digest,
    )
    progress.logged_s, progress.losses[step] = seconds, loss
    if not math.isfinite(loss):
        fail(spec, files, step, f"the loss is {loss}")
    tokens_per_s, left = tokens / seconds, tokens_after(spec.recipe.plan, spec.recipe.steps) - tokens
    files.screen.step(step + 1, loss, tokens_per_s, left / tokens_per_s)
    progress.telemetry_s += now_s() - begin_s


def log_norms(spec: RunSpec, files: RunFiles, step: int, metrics: dict[str, Any]) -> None:
    """Logs norms of weights, gradients and updates by group. Raises RunFailed where the weights are not finite."""
    norms = {
        kind: {group: float(norm) for group, norm in groups.items()}
        for kind, groups in spec.program.fetch(metrics["norms"]).items()
    }
    files.log.event("norms", step=step, **norms)
    if not all(math.isfinite(norm) for norm in norms["weights"].values()):
        fail(spec, files, step, "the weights are not finite")


def fail(spec: RunSpec, files: RunFiles, step: int, reason: str) -> NoReturn:
    """Logs a failure and raises RunFailed with the step and the last good checkpoint."""
    files.log.event("failure", step=step, reason=reason)
    good = last_good(spec, files, step)
    raise RunFailed(f"{reason} at step {step}; {good}; try a lower rate, or float32, with a new --name")


def last_good(spec: RunSpec, files: RunFiles, step: int) -> str:
    """A clause about the newest checkpoint, from which a run that failed at a step can be resumed."""
    checkpoint = checkpoints.latest(files.dir, spec.identity)
    if checkpoint is None:
        return "no checkpoint was written yet"
    lost = max(0, step - checkpoint[1]["step"])
    return f"the last good checkpoint is {checkpoint[0]}, {lost:,} steps before"
