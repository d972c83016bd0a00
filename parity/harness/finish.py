"""The end of a run: final weights, loss curve, samples, totals, and what the user sees of them."""

import json
import shlex
from typing import Any

from parity import weights as canonical
from parity.devices import peak_flops
from parity.harness import fingerprint
from parity.harness.curve import draw_curve
from parity.harness.loop import watched
from parity.harness.run import Run, python
from parity.harness.runlog import read
from parity.harness.sampling import sample

SAMPLE_TOKENS = 40


def finish(run: Run, state: Any) -> dict[str, Any]:
    """Writes weights.safetensors and curve.png, samples, logs the totals, and shows the summary; returns the totals."""
    run.guard.phase = "finish"
    final = run.program.export(state)
    if run.team.first:
        canonical.save(run.place.weights, final)
    run.log.event("state", name="final weights", digest=canonical.digest(final))
    run.log.event("guard", step=run.recipe.steps, **watched(run))
    run.guard.stop()
    lines = _samples(run, state)
    found = totals(run)
    if not run.team.first:
        return found
    draw_curve(
        run.place.curve,
        list(run.losses),
        list(run.losses.values()),
        list(run.evaluations),
        [event["val_loss"] for event in run.evaluations.values()],
        target=run.track.target,
        floor=run.slice.manifest.entropy_nats,
        title=f"{run.recipe.name} in {run.backend}, track {run.track.name}, seed {run.seed}",
    )
    if run.options.tensorboard:
        write_tensorboard(run)
    run.log.event("finish", totals=found)  # last, so that a run that could not write the rest can be resumed
    run.screen.finish({}, summary(run, found))
    for line in lines:
        run.screen.note(f"sample: {line}")
    run.screen.note(f"\nrun directory: {run.place.path}   loss curve: {run.place.curve}")
    run.screen.note(
        f"next: {python()} -m {run.backend}.sample {shlex.quote(str(run.place.path))} --prompt {shlex.quote(_opening(run))}"
    )
    if run.options.json:
        print(json.dumps({"run": str(run.place.path), "totals": found}, default=str), flush=True)
    return found


def totals(run: Run) -> dict[str, Any]:
    """What the run cost and reached: seconds, tokens, FLOPs, bytes, nats per token."""
    recipe, seconds, final = run.recipe, run.clock.seconds, run.evaluations[run.recipe.steps]
    tokens = recipe.steps * recipe.batch_tokens
    model_flops = recipe.model_flops_per_token() * tokens
    peaks = [peak_flops(kind, recipe.precision) for kind in run.program.devices]
    reached = [n for n, event in sorted(run.evaluations.items()) if event["val_loss"] <= (run.track.target or 0.0)]
    return {
        "steps": recipe.steps,
        "tokens": tokens,
        "train_s": seconds,
        "tokens_per_s": tokens / seconds,
        "step_ms": 1e3 * seconds / recipe.steps,
        "val_loss": final["val_loss"],
        "bits_per_byte": final["bits_per_byte"],
        "target": run.track.target,
        "target_reached_at_step": reached[0] if reached else None,
        "target_reached_train_s": run.evaluations[reached[0]]["train_s"] if reached else None,
        "flops_per_step": run.flops_per_step,
        "flops": (run.flops_per_step or 0) * recipe.steps,
        "model_flops": model_flops,
        "mfu": model_flops / seconds / sum(peaks) if None not in peaks else None,
        "telemetry_fraction": run.telemetry_s / seconds if not run.resumed else None,
        "eval_s": sum(event["eval_s"] for event in run.evaluations.values()),
        "peak_host_bytes": fingerprint.peak_memory_bytes(),
        "peak_device_bytes": fingerprint.peak_device_bytes(run.program.framework),
    }


def summary(run: Run, found: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table at the end."""
    track = run.track
    if track.target is None:
        target = "none on this track"
    elif found["target_reached_at_step"] is None:
        target = f"{track.target:.3f} not reached"
    else:
        target = (
            f"{track.target:.3f} reached at step {found['target_reached_at_step']}, after "
            f"{found['target_reached_train_s']:.1f} s of training"
        )
    rows = [
        ("run", f"{run.recipe.name} in {run.backend}, track {track.name}, seed {run.seed}"),
        ("val loss", f"{found['val_loss']:.4f} nats per token over {track.val_tokens:,} tokens"),
        ("bits per byte", f"{found['bits_per_byte']:.4f}" if found["bits_per_byte"] is not None else "unknown"),
        ("target", target),
        ("training time", f"{found['train_s']:.1f} s for {found['steps']:,} steps, {found['step_ms']:.0f} ms each"),
        ("speed", f"{found['tokens_per_s']:,.0f} tokens/s over {found['tokens']:,} tokens"),
        ("FLOPs", f"{found['flops']:.3g} counted, {found['model_flops']:.3g} by the model's formula"),
        ("memory", f"{found['peak_host_bytes'] / 1e9:.2f} GB peak"),
    ]
    if run.slice.manifest.entropy_nats is not None:
        rows.insert(2, ("best possible", f"{run.slice.manifest.entropy_nats:.4f} nats per token, the source's entropy"))
    if found["mfu"] is not None:
        rows.append(("MFU", f"{100 * found['mfu']:.1f}% of the devices' peak"))
    return rows


def write_tensorboard(run: Run) -> None:
    """Writes the log's steps, norms and evaluations as TensorBoard events below the run directory."""
    from parity.errors import InputError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"--tensorboard needs the package {error.name}: pip install 'jaxrun[tensorboard]'; the run is "
            f"complete in {run.place.path}"
        ) from error
    with SummaryWriter(str(run.place.path / "tensorboard")) as writer:
        for event in read(run.place.log):
            for name, value in _scalars(event):
                writer.add_scalar(name, float(value), event["step"], walltime=event["time_s"])


def _scalars(event: dict[str, Any]) -> list[tuple[str, float]]:
    if event["event"] == "step":
        rates = [(f"rate/{group}", rate) for group, rate in event["rates"].items()]
        return [
            ("train/loss", event["loss"]),
            ("train/grad_norm", event["grad_norm"]),
            ("train/step_s", event["step_s"]),
            *rates,
        ]
    if event["event"] == "eval":
        return [("val/loss", event["val_loss"])] + [("val/bits_per_byte", event["bits_per_byte"])] * (
            event["bits_per_byte"] is not None
        )
    if event["event"] == "norms":
        return [
            (f"norms/{kind}/{group}", value)
            for kind in ("weights", "grads", "updates")
            for group, value in event[kind].items()
        ]
    return []


def _opening(run: Run) -> str:
    """The first words of the val text, as something to continue."""
    shard, start, _ = run.slice.part("val")
    return " ".join(run.slice.tokenizer().decode(shard[start + 1 : start + 20].tolist()).split()[:3])


def _samples(run: Run, state: Any) -> list[str]:
    """A few lines that the model writes from nothing, logged."""
    if run.options.samples < 1:
        return []
    tokenizer = run.slice.tokenizer()
    rows = sample(
        run.program,
        state,
        run.recipe,
        [tokenizer.end_of_text],
        rows=run.options.samples,
        tokens=SAMPLE_TOKENS,
        seed=run.seed,
        end_of_text=tokenizer.end_of_text,
    )
    lines = [" ".join(tokenizer.decode(row).split()) for row in rows]
    for line in lines:
        run.log.event("sample", text=line)
    return lines
