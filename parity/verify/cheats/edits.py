"""Cheats by the pen: what is done to the evidence after an honest run."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from parity.verify.cheats.cheat import Cheat
from parity.verify.cheats.forgery import Events, declare, each, events_of, finish, last_evaluation, rewrite


def _edit_line(run: Path) -> None:
    text = (run / "log.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(text) if '"event":"step"' in line and '"step":7,' in line)
    event = json.loads(text[at])
    text[at] = text[at].replace(f'"loss":{event["loss"]!r}', f'"loss":{event["loss"] - 0.25!r}')
    (run / "log.jsonl").write_text("\n".join(text) + "\n")


def _cut_lines(run: Path) -> None:
    text = (run / "log.jsonl").read_text().splitlines()
    kept = [line for line in text if not ('"event":"step"' in line and '"step":9,' in line)]
    (run / "log.jsonl").write_text("\n".join(kept) + "\n")


def _two_trials(run: Path) -> None:
    def twice(events: Events) -> Events:
        return events + [event for event in events if event["event"] != "start"]

    rewrite(run, twice)


def _spliced(run: Path, other: Path) -> None:
    theirs = {event["step"]: event for event in events_of(other) if event["event"] == "step"}

    def splice(events: Events) -> Events:
        return [
            theirs[event["step"]] if event["event"] == "step" and event["step"] >= 31 else event for event in events
        ]

    rewrite(run, splice)


def _renamed_seed(run: Path, other: Path) -> None:
    declare(run, lambda values: values.update(seed=77))


def _truncated(run: Path) -> None:
    def cut(events: Events) -> Events:
        at = max(i for i, event in enumerate(events) if event["event"] == "eval" and event["step"] <= 30)
        end = next(event for event in events if event["event"] == "finish")
        steps = [event for event in events[: at + 1] if event["event"] == "step"]
        end["totals"].update(val_loss=events[at]["val_loss"], steps=len(steps), train_s=steps[-1]["train_s"])
        return events[: at + 1] + [end]

    rewrite(run, cut)


def _without_evidence(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        path.rename(path.with_name("gone-" + path.name))
    (run / "weights.safetensors").unlink()
    (run / "source.zip").unlink()


def _scaled(run: Path, fields: dict[str, tuple[str, ...]], factor: float) -> None:
    """Times by kind of event (and "*" for all), as if the run had begun at the same moment and gone faster."""

    def scale(events: Events) -> None:
        start = events[0]
        for event in events:
            for name in (*fields.get("*", ()), *fields.get(event["event"], ())):
                if name not in event:
                    continue
                origin = start["clock_s" if name == "at_s" else name] if name in ("clock_s", "time_s", "at_s") else 0.0
                event[name] = origin + (event[name] - origin) * factor
            if event["event"] == "finish" and "totals" in fields:
                for name in fields["totals"]:
                    if event["totals"][name] is not None:
                        event["totals"][name] *= factor

    rewrite(run, scale)


TRAINED = {
    "step": ("step_s", "train_s"),
    "eval": ("train_s", "eval_s"),
    "totals": ("train_s", "eval_s", "target_reached_train_s"),
}


def _slow_clock(run: Path) -> None:
    _scaled(run, {"*": ("clock_s", "at_s"), **TRAINED}, 0.5)


def _less_training_time(run: Path) -> None:
    _scaled(
        run, {"step": ("step_s", "train_s"), "eval": ("train_s",), "totals": ("train_s", "target_reached_train_s")}, 0.8
    )


def _impossible_speed(run: Path) -> None:
    _scaled(run, {"*": ("clock_s", "time_s", "at_s"), **TRAINED}, 1e-4)


def _uniformly_faster(run: Path) -> None:
    _scaled(run, {"*": ("clock_s", "time_s", "at_s"), **TRAINED}, 0.9)


def _half_untimed(run: Path) -> None:
    """The first train phase is called a warm-up, and its seconds are taken off the clock."""

    def rename(events: Events) -> None:
        first = next(i for i, event in enumerate(events) if event["event"] == "phase" and event["name"] == "train")
        last = next(
            i for i in range(first + 1, len(events)) if events[i]["event"] == "phase" and events[i]["name"] == "train"
        )
        events[first]["name"] = events[last]["name"] = "warm-up"
        following = next(i for i in range(last + 1, len(events)) if events[i]["event"] == "phase")
        lost = max(event["train_s"] for event in events[:following] if event["event"] == "step")
        for i, event in enumerate(events):
            if event["event"] == "step":
                event.update(step_s=0.0, train_s=0.0) if i < following else event.update(
                    train_s=event["train_s"] - lost
                )
            elif event["event"] == "eval" and i > following:
                event["train_s"] -= lost
        finish(events)["train_s"] -= lost
        for event in events:
            if event["event"] == "eval" and event["step"] and event["train_s"] > 1e6:
                event["train_s"] = 0.0
        _repair(events)

    rewrite(run, rename)


def _repair(events: Events) -> None:
    """Evaluations say the training time of the step before them."""
    before = 0.0
    for event in events:
        if event["event"] == "step":
            before = event["train_s"]
        elif event["event"] == "eval":
            event["train_s"] = before


def _later(event: dict[str, Any], seconds: float) -> None:
    for name in {"clock_s", "time_s", "at_s"} & event.keys():
        event[name] += seconds


def _hidden_pause(run: Path) -> None:
    """Two seconds more between a train phase's end and what follows: work that was still running when the clock stopped."""

    def shift(events: Events) -> None:
        at = next(
            i
            for i, event in enumerate(events)
            if event["event"] == "phase" and event["name"] == "train" and event["edge"] == "end"
        )
        for event in events[at + 1 :]:
            _later(event, 20.0)

    rewrite(run, shift)


def _long_evaluations(run: Path) -> None:
    """Training goes on in every evaluation but the first: they take five seconds longer."""

    def shift(events: Events) -> None:
        late, begun = 0.0, 0
        for event in events:
            if event["event"] == "phase" and event["name"] == "evaluate":
                begun += event["edge"] == "begin"
                late += 5.0 if event["edge"] == "end" and begun > 1 else 0.0
            _later(event, late)

    rewrite(run, shift)


def _in_state(name: str, digest: str):
    return lambda run: rewrite(
        run,
        each(
            "state",
            lambda event: event.update(digest=digest),
            lambda event: event["name"] == name and event.get("step", 0) in (0, 30),
        ),
    )


def _other_state_saved(run: Path) -> None:
    rewrite(run, each("checkpoint", lambda event: event.update(digest="c" * 64), lambda event: event["step"] == 30))


def _other_final_digest(run: Path) -> None:
    rewrite(
        run, each("state", lambda event: event.update(digest="d" * 64), lambda event: event["name"] == "final weights")
    )


def _swapped_batches(run: Path) -> None:
    def swap(events: Events) -> None:
        steps = [event for event in events if event["event"] == "step"]
        steps[3]["batch"], steps[40]["batch"] = steps[40]["batch"], steps[3]["batch"]

    rewrite(run, swap)


def _second_epoch(run: Path) -> None:
    def again(events: Events) -> None:
        steps = [event for event in events if event["event"] == "step"]
        for late, early in zip(steps[30:], steps):
            late["batch"] = early["batch"]

    rewrite(run, again)


def _fewer_val_tokens(run: Path) -> None:
    rewrite(run, each("eval", lambda event: event.update(tokens=4096, bits_per_byte=event["bits_per_byte"])))


def _easier_val_tokens(run: Path) -> None:
    rewrite(run, each("eval", lambda event: event.update(batches="e" * 64)))


def _smaller_track(run: Path) -> None:
    declare(run, lambda values: values.update(val_tokens=4096))


def _fewer_bytes(run: Path) -> None:
    def change(events: Events) -> None:
        for event in events:
            if event["event"] == "eval":
                event["bits_per_byte"] *= 0.9
        finish(events)["bits_per_byte"] *= 0.9

    rewrite(run, change)


def _better_val_loss(run: Path) -> None:
    def change(events: Events) -> None:
        last = last_evaluation(events)
        for values in (last, finish(events)):
            values["val_loss"] -= 0.02
        last["bits_per_byte"] *= last["val_loss"] / (last["val_loss"] + 0.02)
        finish(events)["bits_per_byte"] = last["bits_per_byte"]

    rewrite(run, change)


def _interpolated_target(run: Path) -> None:
    rewrite(
        run, lambda events: finish(events).update(target=3.0, target_reached_at_step=17, target_reached_train_s=0.2)
    )


def _other_weights(run: Path) -> None:
    from parity import weights

    found = weights.load(run / "weights.safetensors")
    mixed = {name: (w * np.float32(0.999)) for name, w in found.items()}
    weights.save(run / "weights.safetensors", mixed)
    rewrite(
        run,
        each(
            "state",
            lambda event: event.update(digest=weights.digest(mixed)),
            lambda event: event["name"] == "final weights",
        ),
    )


def _other_slice(run: Path) -> None:
    declare(run, lambda values: values["slice"].update(digest="5" * 64))


def _other_hardware(run: Path) -> None:
    declare(
        run,
        lambda values: values.update(devices=[{"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 8}]),
        honest_start=True,
    )


def _other_seed_in_run_json(run: Path) -> None:
    declare(run, lambda values: values.update(seed=12), honest_start=True)


def _hardware_forged(run: Path) -> None:
    declare(
        run, lambda values: values.update(devices=[{"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 8}])
    )


def _field_of_another_type(run: Path) -> None:
    rewrite(run, each("memory", lambda event: event.update(host_bytes="little")))


def _more_tokens(run: Path) -> None:
    rewrite(
        run, each("step", lambda event: event.update(tokens=event["tokens"] + 512), lambda event: event["step"] == 20)
    )


def _foreign_backend(run: Path) -> None:
    """A package in the run's directory is named as the backend, for a verifier that looks it up by importing it."""
    (run / "evil").mkdir()
    (run / "evil" / "__init__.py").write_text(f"open({str(run / 'imported')!r}, 'w')\n")
    declare(run, lambda values: values.update(backend="evil.x"))


def _infinite_clock(run: Path) -> None:
    text = (run / "log.jsonl").read_text()
    first = json.loads(text.splitlines()[0])
    (run / "log.jsonl").write_text(text.replace(f'"clock_s":{first["clock_s"]!r}', '"clock_s":1e999'))


def _damaged_checkpoint(run: Path) -> None:
    for path in sorted((run / "checkpoints" / "step-000030").rglob("*")):
        if path.is_file() and path.name != "checkpoint.json" and path.stat().st_size > 2000:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            return


def _linked_checkpoint(run: Path) -> None:
    folder = run / "checkpoints" / "step-000030"
    path = max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != "checkpoint.json"), key=lambda p: p.stat().st_size
    )
    outside = run.parent / f"outside-{run.name}"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    os.symlink(outside, path)


def _changed_source(run: Path, name: str, content: bytes, agree: bool) -> None:
    from parity.verify.evidence import read_source, source_digest

    members = read_source(run / "source.zip")
    members[name] = content
    with zipfile.ZipFile(run / "source.zip", "w") as archive:
        for member, data in sorted(members.items()):
            archive.writestr(member, data)
    if agree:
        declare(run, lambda values: values.update(source_sha256=source_digest(members)))


def _patched_harness(run: Path) -> None:
    from parity.verify.evidence import read_source

    old = read_source(run / "source.zip")["parity/harness/evaluation.py"]
    _changed_source(
        run, "parity/harness/evaluation.py", old.replace(b"total / tokens", b"0.99 * total / tokens"), agree=True
    )


def _escaping_source(run: Path) -> None:
    with zipfile.ZipFile(run / "source.zip", "a") as archive:
        archive.writestr("../../escaped.py", "raise SystemExit")


def _bomb(run: Path) -> None:
    with zipfile.ZipFile(run / "source.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.py", bytes(1 << 30))


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def _pickled_checkpoint(run: Path) -> None:
    """A PyTorch checkpoint that runs code when it is unpickled, its digests in order."""
    from parity.formats.files import sha256_file

    folder = run / "checkpoints" / "step-000060"
    path = folder / "state.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = pickle.dumps(_Evil(str(run / "unpickled")), protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    facts = json.loads((folder / "checkpoint.json").read_text())
    facts["files"]["state.pt"] = sha256_file(path)
    (folder / "checkpoint.json").write_text(json.dumps(facts))


def _guard_event(kind: str, what: str):
    event = {"kind": kind, "what": what, "phase": "train"}
    return lambda run: rewrite(
        run, each("guard", lambda look: look.update(events=[event]), lambda look: look["step"] == 30)
    )


def _two_of_a_seed(run: Path, other: Path) -> None:
    """The same run again, under another seed: its directory beside the first."""
    declare(run, lambda values: values.update(seed=78))


CHEATS = (
    Cheat("edited-value", "a logged loss is edited after the fact", "edit", _edit_line, ("log.chain",)),
    Cheat("edited-seed", "the seed in run.json is edited", "edit", _other_seed_in_run_json, ("log.header",)),
    Cheat(
        "cut-line",
        "a step's line is cut out",
        "edit",
        _cut_lines,
        ("log.chain", "log.order", "log.plan"),
        ("clock.train",),
    ),
    Cheat(
        "two-trials",
        "the log of two trials in one file, chained anew",
        "edit",
        _two_trials,
        ("log.order",),
        ("clock.agree", "clock.train", "clock.phases", "clock.untimed", "log.totals"),
        seen=True,
    ),
    Cheat(
        "spliced",
        "the second half is another run's, chained anew",
        "edit",
        _spliced,
        ("clock.agree",),
        ("clock.train", "clock.phases", "log.totals", "clock.untimed"),
    ),
    Cheat("run-twice", "one run handed in again under another seed", "edit", _two_of_a_seed, ("log.twin",), seen=True),
    Cheat(
        "no-run-behind",
        "a log with no weights, source or checkpoints",
        "edit",
        _without_evidence,
        (),
        depth="recompute",
        unjudged=("code.source", "code.harness", "recompute.weights", "recompute.val", "data.checkpoints"),
        seen=True,
    ),
    Cheat(
        "truncated",
        "cut before the last step and finished by hand",
        "edit",
        _truncated,
        ("log.plan",),
        ("log.totals",),
        seen=True,
    ),
    Cheat("malformed", "a figure that is a word", "edit", _field_of_another_type, ("log.form",)),
    Cheat(
        "more-tokens", "a step says that more tokens were seen than the plan has", "edit", _more_tokens, ("log.order",)
    ),
    Cheat("slow-clock", "the monotonic clock runs at half speed", "edit", _slow_clock, ("clock.agree",)),
    Cheat(
        "less-training-time", "the training time is written 20% smaller", "edit", _less_training_time, ("clock.train",)
    ),
    Cheat(
        "renamed-phase",
        "the first stretch of training is called warm-up",
        "edit",
        _half_untimed,
        ("clock.phases",),
        ("clock.train",),
    ),
    Cheat("no-drain", "work is left running when the clock stops", "edit", _hidden_pause, ("clock.phases",)),
    Cheat("long-evaluations", "training goes on in the evaluations", "edit", _long_evaluations, ("clock.untimed",)),
    Cheat("impossible-speed", "all clocks say a ten-thousandth", "edit", _impossible_speed, ("clock.speed",)),
    Cheat("other-hardware", "run.json claims 8 x H100", "edit", _other_hardware, ("log.header",)),
    Cheat(
        "trained-in-warm-up",
        "the state is another after the warm-up",
        "edit",
        _in_state("after warm-up", "a" * 64),
        ("state.warmup",),
    ),
    Cheat(
        "trained-in-evaluation",
        "the state is another after an evaluation",
        "edit",
        _in_state("after evaluation", "b" * 64),
        ("state.evaluation",),
    ),
    Cheat(
        "evaluated-another",
        "the checkpoint is not the state that was evaluated",
        "edit",
        _other_state_saved,
        ("state.checkpoint",),
        ("data.checkpoints",),
    ),
    Cheat("small-track", "fewer val tokens in run.json", "edit", _smaller_track, ("plan.track",)),
    Cheat("interpolated", "the target is met between two evaluations", "edit", _interpolated_target, ("log.totals",)),
    Cheat(
        "source-swapped",
        "source.zip holds other code than run.json names",
        "edit",
        lambda run: _changed_source(run, "notes.py", b"# nothing", agree=False),
        ("code.source",),
    ),
    Cheat("patched-on-disk", "the harness' file on the disk was changed", "edit", _patched_harness, ("code.harness",)),
    Cheat("altered-shards", "the run was made on another slice", "edit", _other_slice, ("data.slice",), depth="data"),
    Cheat("reordered-batches", "two batches changed places", "edit", _swapped_batches, ("data.batches",), depth="data"),
    Cheat(
        "second-epoch",
        "the second half trains on the first half's batches",
        "edit",
        _second_epoch,
        ("data.batches",),
        depth="data",
    ),
    Cheat(
        "fewer-val-tokens",
        "half of the val tokens are scored",
        "edit",
        _fewer_val_tokens,
        ("data.evaluation",),
        depth="data",
    ),
    Cheat(
        "easier-val-tokens",
        "other val tokens are scored",
        "edit",
        _easier_val_tokens,
        ("data.evaluation",),
        depth="data",
    ),
    Cheat(
        "other-tokenizer", "bits per byte of a kinder tokenizer", "edit", _fewer_bytes, ("data.bytes",), depth="data"
    ),
    Cheat(
        "damaged-checkpoint",
        "one bit of a checkpoint",
        "edit",
        _damaged_checkpoint,
        ("data.checkpoints",),
        depth="data",
    ),
    Cheat(
        "linked-checkpoint",
        "a checkpoint's file is a link to a file outside",
        "edit",
        _linked_checkpoint,
        ("data.checkpoints",),
        depth="data",
    ),
    Cheat(
        "better-val-loss",
        "the val loss is written 0.02 nats better, everywhere",
        "edit",
        _better_val_loss,
        ("recompute.val",),
        depth="recompute",
    ),
    Cheat(
        "other-final-digest",
        "the log ends with another digest of the weights",
        "edit",
        _other_final_digest,
        ("recompute.weights",),
        depth="recompute",
    ),
    Cheat(
        "other-weights",
        "other weights are handed in than were trained",
        "edit",
        _other_weights,
        ("recompute.weights",),
        ("recompute.val",),
        depth="recompute",
    ),
    Cheat(
        "zip-escape",
        "source.zip has a file with a path outside",
        "edit",
        _escaping_source,
        (),
        unjudged=("code.source", "code.harness"),
    ),
    Cheat(
        "zip-bomb", "source.zip holds a gigabyte of zeros", "edit", _bomb, (), unjudged=("code.source", "code.harness")
    ),
    Cheat(
        "pickle",
        "a checkpoint runs code when it is unpickled",
        "edit",
        _pickled_checkpoint,
        (),
        backends=("torchref",),
        depth="recompute",
        unjudged=("recompute.weights",),
    ),
    Cheat(
        "foreign-backend",
        "run.json names a package of the run's own as the backend",
        "edit",
        _foreign_backend,
        (),
        refused=True,
    ),
    Cheat(
        "infinite-clock",
        "clocks that are no numbers",
        "edit",
        _infinite_clock,
        ("log.form",),
        (
            "log.chain",
            "log.order",
            "log.plan",
            "clock.agree",
            "clock.train",
            "log.header",
            "guard.functions",
            "state.warmup",
            "clock.phases",
            "clock.untimed",
            "state.evaluation",
        ),
    ),
    Cheat(
        "network-seen",
        "the guard saw a connection",
        "edit",
        _guard_event("network", "socket.connect ('1.2.3.4', 80)"),
        ("guard.network",),
    ),
    Cheat(
        "faster-throughout",
        "all clocks, and everything that follows from them, written 10% smaller",
        "edit",
        _uniformly_faster,
        (),
        depth="replay",
        open="nothing in the evidence says how fast the machine was: only a run on hardware that others hold proves "
        "seconds",
    ),
    Cheat(
        "hardware-forged",
        "8 x H100 claimed in run.json and in the log, of a run on a CPU",
        "edit",
        _hardware_forged,
        (),
        may=("clock.speed",),
        depth="data",
        open="the fingerprint is what the harness wrote; only impossible speeds give it away",
    ),
)
