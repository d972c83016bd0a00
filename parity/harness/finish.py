"""The end of a run: final weights, loss curve, samples, totals, and their summary on the screen."""

import json
import shlex
from typing import Any

from parity import weights as canonical
from parity.cli import python_command
from parity.data.stream import tokens_after
from parity.devices import peak_flops
from parity.errors import InputError
from parity.harness import fingerprint
from parity.harness.curve import draw_curve
from parity.harness.guard import guard_events
from parity.harness.run import Progress, Run, RunFiles, RunSpec
from parity.harness.rundir import RunDir
from parity.harness.runlog import read
from parity.harness.sampling import sample

SAMPLE_TOKENS = 40


def finish(run: Run, state: Any) -> dict[str, Any]:
    """Writes weights.safetensors and curve.png, samples, logs the totals, and shows the summary; returns the totals."""
    spec, files, progress = run.spec, run.files, run.progress
    spec.guard.phase = "finish"
    weights = spec.program.export(state)
    if spec.processes.first:
        canonical.save(files.dir.weights, weights)
    files.log.event("state", name="final weights", digest=canonical.digest(weights))
    files.log.event("guard", step=spec.recipe.steps, **guard_events(spec.guard, spec.processes))
    spec.guard.stop()
    samples = log_samples(spec, files, state)
    result = totals(spec, progress, files.resumed)
    if not spec.processes.first:
        return result
    draw_curve(
        files.dir.curve,
        list(progress.losses),
        list(progress.losses.values()),
        list(progress.evaluations),
        [event["val_loss"] for event in progress.evaluations.values()],
        target=spec.track.target,
        floor=spec.slice.manifest.entropy_nats,
        title=title(spec),
    )
    if spec.options.tensorboard:
        write_tensorboard(files.dir)
    files.log.event("finish", totals=result)  # last, so that a run that could not write the rest can be resumed
    show_summary(spec, files, result, samples)
    if spec.options.json:
        print(json.dumps({"run": str(files.dir.path), "totals": result}, default=str), flush=True)
    return result


def title(spec: RunSpec) -> str:
    return f"{spec.label} in {spec.backend}, track {spec.track.name}, seed {spec.seed}"


def totals(spec: RunSpec, progress: Progress, resumed: bool) -> dict[str, Any]:
    """What the run cost and reached: seconds, tokens, FLOPs, bytes, nats per token."""
    recipe, seconds, evaluations = spec.recipe, progress.clock.seconds, progress.evaluations
    tokens, final = tokens_after(recipe.plan, recipe.steps), evaluations[recipe.steps]
    model_flops = recipe.model_flops_per_token() * tokens
    peaks = [peak_flops(kind, recipe.precision) for kind in spec.program.devices]
    known_peaks = [peak for peak in peaks if peak is not None]
    reached = [step for step, event in sorted(evaluations.items()) if event["val_loss"] <= (spec.track.target or 0.0)]
    return {
        "steps": recipe.steps,
        "tokens": tokens,
        "train_s": seconds,
        "tokens_per_s": tokens / seconds,
        "step_ms": 1e3 * seconds / recipe.steps,
        "val_loss": final["val_loss"],
        "bits_per_byte": final["bits_per_byte"],
        "target": spec.track.target,
        "target_reached_at_step": reached[0] if reached else None,
        "target_reached_train_s": evaluations[reached[0]]["train_s"] if reached else None,
        "flops_per_step": progress.flops // recipe.steps,
        "flops": progress.flops,
        "model_flops": model_flops,
        "mfu": model_flops / seconds / sum(known_peaks) if len(known_peaks) == len(peaks) else None,
        "telemetry_fraction": progress.telemetry_s / seconds if not resumed else None,
        "eval_s": sum(event["eval_s"] for event in evaluations.values()),
        "peak_host_bytes": fingerprint.peak_memory_bytes(),
        "peak_device_bytes": fingerprint.peak_device_bytes(spec.program.framework),
    }


def show_summary(spec: RunSpec, files: RunFiles, result: dict[str, Any], samples: list[str]) -> None:
    """The table at the end, the samples, and what to do next."""
    files.screen.table(summary(spec, result))
    for line in samples:
        files.screen.note(f"sample: {line}")
    files.screen.note(f"\nrun directory: {files.dir.path}   loss curve: {files.dir.curve}")
    run, prompt = shlex.quote(str(files.dir.path)), shlex.quote(_first_words(spec))
    files.screen.note(f"next: {python_command()} -m {spec.backend}.sample {run} --prompt {prompt}")


def summary(spec: RunSpec, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table at the end."""
    track, entropy_nats = spec.track, spec.slice.manifest.entropy_nats
    if track.target is None:
        target = "none on this track"
    elif result["target_reached_at_step"] is None:
        target = f"{track.target:.3f} not reached"
    else:
        target = (
            f"{track.target:.3f} reached at step {result['target_reached_at_step']}, after "
            f"{result['target_reached_train_s']:.1f} s of training"
        )
    bits = result["bits_per_byte"]
    rows = [
        ("run", title(spec)),
        ("val loss", f"{result['val_loss']:.4f} nats per token over {track.val_tokens:,} tokens"),
        ("best possible", f"{entropy_nats or 0.0:.4f} nats per token, the source's entropy"),
        ("bits per byte", f"{bits:.4f}" if bits is not None else "unknown"),
        ("target", target),
        ("training time", f"{result['train_s']:.1f} s for {result['steps']:,} steps, {result['step_ms']:.0f} ms each"),
        ("building", f"{spec.build_s:.1f} s before training, for the program"),
        ("speed", f"{result['tokens_per_s']:,.0f} tokens/s over {result['tokens']:,} tokens"),
        ("FLOPs", f"{result['flops']:.3g} counted, {result['model_flops']:.3g} by the model's formula"),
        ("memory", f"{result['peak_host_bytes'] / 1e9:.2f} GB peak"),
        ("MFU", f"{100 * (result['mfu'] or 0.0):.1f}% of the devices' peak"),
    ]
    unknown = {"best possible"} if entropy_nats is None else set()
    unknown |= {"MFU"} if result["mfu"] is None else set()
    return [row for row in rows if row[0] not in unknown]


def write_tensorboard(directory: RunDir) -> None:
    """Writes the log's steps, norms and evaluations as TensorBoard events below the run directory."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"--tensorboard needs the package {error.name}: pip install 'jaxrun[tensorboard]'; the run is "
            f"complete in {directory.path}"
        ) from error
    with SummaryWriter(str(directory.path / "tensorboard")) as writer:
        for event in read(directory.log):
            for name, value in _scalars(event):
                writer.add_scalar(name, float(value), event["step"], walltime=event["time_s"])


def _scalars(event: dict[str, Any]) -> list[tuple[str, float]]:
    """Names and values that TensorBoard shows of an event."""
    if event["event"] == "step":
        values = [(f"train/{name}", event[name]) for name in ("loss", "grad_norm", "step_s")]
        return values + [(f"rate/{group}", rate) for group, rate in event["rates"].items()]
    if event["event"] == "eval":
        values = [("val/loss", event["val_loss"]), ("val/bits_per_byte", event["bits_per_byte"])]
        return [(name, value) for name, value in values if value is not None]
    if event["event"] == "norms":
        kinds = ("weights", "grads", "updates")
        return [(f"norms/{kind}/{group}", value) for kind in kinds for group, value in event[kind].items()]
    return []


def _first_words(spec: RunSpec) -> str:
    """The first words of the val text, as a prompt to continue."""
    shard, start, _ = spec.slice.part("val")
    return " ".join(spec.slice.tokenizer().decode(shard[start + 1 : start + 20].tolist()).split()[:3])


def log_samples(spec: RunSpec, files: RunFiles, state: Any) -> list[str]:
    """A few lines that the model writes from an empty prompt, logged."""
    if spec.options.samples < 1:
        return []
    tokenizer = spec.slice.tokenizer()
    rows = sample(
        spec.program,
        state,
        spec.recipe,
        [tokenizer.end_of_text],
        rows=spec.options.samples,
        tokens=SAMPLE_TOKENS,
        seed=spec.seed,
        end_of_text=tokenizer.end_of_text,
    )
    lines = [" ".join(tokenizer.decode(row).split()) for row in rows]
    for line in lines:
        files.log.event("sample", text=line)
    return lines
