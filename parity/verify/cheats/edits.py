"""Edits of the evidence after an honest run: of its log and its run.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity.verify.cheats.cheat import Catalogue
from parity.verify.cheats.forgery import Event, Events, declare, each, of_kind, read_events, rewrite, totals

Plant = Callable[[Path], None]

CHEATS = Catalogue("edit")
H100S = [{"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 8}]


def _declaring(honest_start: bool = False, **fields: Any) -> Plant:
    """An edit of fields of run.json, with which the log's start event agrees unless `honest_start`."""
    return lambda run: declare(run, lambda values: values.update(fields), honest_start)


def _logging(kind: str, where: Callable[[Event], bool] = lambda event: True, **fields: Any) -> Plant:
    """An edit of fields of every event of a kind for which `where` holds."""
    return lambda run: rewrite(run, each(kind, lambda event: event.update(fields), where))


def _at(*steps: int, name: str | None = None) -> Callable[[Event], bool]:
    """Whether an event is of one of these steps and, if given, of a name."""
    return lambda event: event.get("step", 0) in steps and name in (None, event.get("name"))


def _lines(run: Path) -> list[str]:
    return (run / "log.jsonl").read_text().splitlines()


def _write_lines(run: Path, lines: list[str]) -> None:
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")


def _is_step(line: str, step: int) -> bool:
    return '"event":"step"' in line and f'"step":{step},' in line


@CHEATS.add("edited-value", "a logged loss is edited after the fact", "log.chain")
def _edited_value(run: Path) -> None:
    lines = _lines(run)
    at = next(i for i, line in enumerate(lines) if _is_step(line, 7))
    loss = json.loads(lines[at])["loss"]
    lines[at] = lines[at].replace(f'"loss":{loss!r}', f'"loss":{loss - 0.25!r}')
    _write_lines(run, lines)


CHEATS.add("edited-seed", "the seed in run.json is edited", "log.header")(_declaring(True, seed=12))


@CHEATS.add("cut-line", "a step's line is cut out", "log.chain", "log.order", "log.plan", may=("clock.train",))
def _cut_line(run: Path) -> None:
    _write_lines(run, [line for line in _lines(run) if not _is_step(line, 9)])


@CHEATS.add(
    "two-trials",
    "the log of two trials in one file, with a new chain",
    "log.order",
    may=("clock.agree", "clock.train", "clock.phases", "clock.untimed", "log.totals", "guard.clock"),
    public=True,
)
def _two_trials(run: Path) -> None:
    rewrite(run, lambda events: events + [event for event in events if event["event"] != "start"])


@CHEATS.add(
    "spliced",
    "the second half is another run's, with a new chain",
    "clock.agree",
    may=("clock.train", "clock.phases", "log.totals", "clock.untimed", "guard.clock"),
)
def _spliced(run: Path, other: Path) -> None:
    others = {event["step"]: event for event in of_kind(read_events(other / "log.jsonl"), "step")}

    def splice(events: Events) -> Events:
        return [
            others[event["step"]] if event["event"] == "step" and event["step"] >= 31 else event for event in events
        ]

    rewrite(run, splice)


CHEATS.add("run-twice", "one run handed in again under another seed", "log.twin", public=True, beside_original=True)(
    _declaring(seed=78)
)


@CHEATS.add("truncated", "cut before the last step and finished by hand", "log.plan", may=("log.totals",), public=True)
def _truncated(run: Path) -> None:
    def cut(events: Events) -> Events:
        at = max(i for i, event in enumerate(events) if event["event"] == "eval" and event["step"] <= 30)
        end, steps = of_kind(events, "finish")[0], of_kind(events[:at], "step")
        end["totals"].update(val_loss=events[at]["val_loss"], steps=len(steps), train_s=steps[-1]["train_s"])
        return events[: at + 1] + [end]

    rewrite(run, cut)


CHEATS.add("malformed", "a figure that is a word", "log.form")(_logging("memory", host_bytes="little"))


@CHEATS.add("more-tokens", "a step says that more tokens were seen than the plan has", "log.order")
def _more_tokens(run: Path) -> None:
    more = each("step", lambda event: event.update(tokens=event["tokens"] + 512), lambda event: event["step"] == 20)
    rewrite(run, more)


CLOCKS = ("clock_s", "time_s", "at_s", "kernel_s")
TRAINED = {
    "step": ("step_s", "train_s"),
    "eval": ("train_s", "eval_s"),
    "totals": ("train_s", "eval_s", "target_reached_train_s"),
}


def scaling(clocks: tuple[str, ...], fields: dict[str, tuple[str, ...]], factor: float) -> Plant:
    """Scales clocks, and times by kind of event, as if the run had begun at the same moment and gone faster."""

    def scale(events: Events) -> None:
        start = of_kind(events, "guard")[0] | events[0]  # the kernel's count stands in the guard's events
        for event in events:
            for name in {*clocks} & event.keys():
                origin = start["clock_s" if name == "at_s" else name]
                event[name] = origin + (event[name] - origin) * factor
            for name in {*fields.get(event["event"], ())} & event.keys():
                event[name] *= factor
        for name in fields["totals"]:
            if totals(events)[name] is not None:
                totals(events)[name] *= factor

    return lambda run: rewrite(run, scale)


CHEATS.add("slow-clock", "the monotonic clock runs at half speed", "clock.agree", may=("guard.clock",))(
    scaling(("clock_s", "at_s"), TRAINED, 0.5)
)
CHEATS.add("less-training-time", "the training time is written 20% smaller", "clock.train")(
    scaling((), TRAINED | {"eval": ("train_s",), "totals": ("train_s", "target_reached_train_s")}, 0.8)
)
CHEATS.add("impossible-speed", "all clocks say a ten-thousandth", "clock.speed")(scaling(CLOCKS, TRAINED, 1e-4))
CHEATS.add(
    "faster-throughout",
    "all clocks, and everything that follows from them, written 10% smaller",
    depth="replay",
    open="seconds are compared on the machine that made the run alone, and differ by up to 30% there; elsewhere only "
    "steps with evaluations: only a run on hardware that others hold proves seconds",
)(scaling(CLOCKS, TRAINED, 0.9))


@CHEATS.add("renamed-phase", "the first segment of training is called warm-up", "clock.phases", may=("clock.train",))
def _renamed_phase(run: Path) -> None:
    """The first train phase is called a warm-up, and its seconds are taken off the clock."""

    def rename(events: Events) -> None:
        phases = [i for i, event in enumerate(events) if event["event"] == "phase"]
        first, last = [i for i in phases if events[i]["name"] == "train"][:2]
        events[first]["name"] = events[last]["name"] = "warm-up"
        following = next(i for i in phases if i > last)
        lost_s = max(event["train_s"] for event in of_kind(events[:following], "step"))
        for event in of_kind(events[:following], "step"):
            event.update(step_s=0.0, train_s=0.0)
        for event in of_kind(events[following:], "step"):
            event["train_s"] -= lost_s
        totals(events)["train_s"] -= lost_s
        train_s = 0.0
        for event in events:
            if event["event"] == "step":
                train_s = event["train_s"]
            elif event["event"] == "eval":
                event["train_s"] = train_s

    rewrite(run, rename)


def delay(event: Event, seconds: float) -> None:
    for name in {*CLOCKS} & event.keys():
        event[name] += seconds


@CHEATS.add("no-drain", "work is left running when the clock stops", "clock.phases")
def _no_drain(run: Path) -> None:
    """20 seconds more between a train phase's end and what follows: work that still ran when the clock stopped."""

    def shift(events: Events) -> None:
        end = next(event for event in of_kind(events, "phase") if (event["name"], event["edge"]) == ("train", "end"))
        for event in events[events.index(end) + 1 :]:
            delay(event, 20.0)

    rewrite(run, shift)


@CHEATS.add("long-evaluations", "training continues during the evaluations", "clock.untimed", "clock.evaluation")
def _long_evaluations(run: Path) -> None:
    """Every evaluation but the first takes five seconds longer."""

    def shift(events: Events) -> None:
        delay_s, begun = 0.0, 0
        for event in events:
            if event["event"] == "phase" and event["name"] == "evaluate":
                begun += event["edge"] == "begin"
                delay_s += 5.0 if event["edge"] == "end" and begun > 1 else 0.0
            delay(event, delay_s)

    rewrite(run, shift)


@CHEATS.add(
    "kernel-disagrees", "all of the log's clocks run slow together, and the kernel's count does not", "guard.clock"
)
def _kernel_disagrees(run: Path) -> None:
    """As if both clocks were slowed below Python: the kernel counts 20 seconds more at the end."""

    def later(events: Events) -> None:
        of_kind(events, "guard")[-1]["kernel_s"] += 20.0

    rewrite(run, later)


CHEATS.add("other-hardware", "run.json claims 8 x H100", "log.header")(_declaring(True, devices=H100S))
CHEATS.add("trained-in-warm-up", "the state is another after the warm-up", "state.warmup")(
    _logging("state", _at(0, 30, name="after warm-up"), digest="a" * 64)
)
CHEATS.add("trained-in-evaluation", "the state is another after an evaluation", "state.evaluation")(
    _logging("state", _at(0, 30, name="after evaluation"), digest="b" * 64)
)
CHEATS.add(
    "evaluated-another",
    "the checkpoint is not the state that was evaluated",
    "state.checkpoint",
    may=("data.checkpoints",),
)(_logging("checkpoint", _at(30), digest="c" * 64))
CHEATS.add("small-track", "fewer val tokens in run.json", "plan.track")(_declaring(val_tokens=4096))


@CHEATS.add("interpolated", "the target is met between two evaluations", "log.totals")
def _interpolated(run: Path) -> None:
    reached = {"target": 3.0, "target_reached_at_step": 17, "target_reached_train_s": 0.2}
    rewrite(run, lambda events: totals(events).update(reached))


@CHEATS.add("altered-shards", "the run was made on another slice", "data.slice", depth="data")
def _altered_shards(run: Path) -> None:
    declare(run, lambda values: values["slice"].update(digest="5" * 64))


@CHEATS.add("reordered-batches", "two batches changed places", "data.batches", depth="data")
def _reordered_batches(run: Path) -> None:
    def swap(events: Events) -> None:
        steps = of_kind(events, "step")
        steps[3]["batch"], steps[40]["batch"] = steps[40]["batch"], steps[3]["batch"]

    rewrite(run, swap)


@CHEATS.add("second-epoch", "the second half trains on the first half's batches", "data.batches", depth="data")
def _second_epoch(run: Path) -> None:
    def repeat(events: Events) -> None:
        steps = of_kind(events, "step")
        for late, early in zip(steps[30:], steps, strict=False):
            late["batch"] = early["batch"]

    rewrite(run, repeat)


CHEATS.add("fewer-val-tokens", "half of the val tokens are scored", "data.evaluation", depth="data")(
    _logging("eval", tokens=4096)
)
CHEATS.add("easier-val-tokens", "other val tokens are scored", "data.evaluation", depth="data")(
    _logging("eval", batches="e" * 64)
)


@CHEATS.add("other-tokenizer", "bits per byte of a kinder tokenizer", "data.bytes", depth="data")
def _other_tokenizer(run: Path) -> None:
    def scale(events: Events) -> None:
        for values in (*of_kind(events, "eval"), totals(events)):
            values["bits_per_byte"] *= 0.9

    rewrite(run, scale)


@CHEATS.add(
    "better-val-loss", "the val loss is written 0.02 nats better, everywhere", "recompute.val", depth="recompute"
)
def _better_val_loss(run: Path) -> None:
    def change(events: Events) -> None:
        last = of_kind(events, "eval")[-1]
        for values in (last, totals(events)):
            values["val_loss"] -= 0.02
        last["bits_per_byte"] *= last["val_loss"] / (last["val_loss"] + 0.02)
        totals(events)["bits_per_byte"] = last["bits_per_byte"]

    rewrite(run, change)


CHEATS.add(
    "other-final-digest", "the log ends with another digest of the weights", "recompute.weights", depth="recompute"
)(_logging("state", lambda event: event["name"] == "final weights", digest="d" * 64))


@CHEATS.add("foreign-backend", "run.json names a package of the run's own as the backend", refused=True)
def _foreign_backend(run: Path) -> None:
    """A package in the run's directory, for a verifier that looks the backend up by importing it."""
    (run / "evil").mkdir()
    (run / "evil" / "__init__.py").write_text(f"open({str(run / 'imported')!r}, 'w')\n")
    declare(run, lambda values: values.update(backend="evil.x"))


@CHEATS.add(
    "infinite-clock",
    "clocks that are no numbers",
    "log.form",
    may=(
        "log.chain",
        "log.order",
        "log.plan",
        "clock.agree",
        "guard.clock",
        "clock.train",
        "log.header",
        "guard.functions",
        "state.warmup",
        "clock.phases",
        "clock.untimed",
        "state.evaluation",
    ),
)
def _infinite_clock(run: Path) -> None:
    lines = _lines(run)
    clock_s = json.loads(lines[0])["clock_s"]
    _write_lines(run, [line.replace(f'"clock_s":{clock_s!r}', '"clock_s":1e999') for line in lines])


CHEATS.add("network-seen", "the guard saw a connection", "guard.network")(
    _logging("guard", _at(30), events=[{"kind": "network", "what": "socket.connect ('1.2.3.4', 80)", "phase": "train"}])
)


CHEATS.add(
    "hardware-forged",
    "8 x H100 claimed in run.json and in the log, of a run on a CPU",
    may=("clock.speed",),
    depth="data",
    open="the fingerprint is what the harness wrote; only impossible speeds give it away",
)(_declaring(devices=H100S))
