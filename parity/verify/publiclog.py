"""Reads what public NanoGPT speedruns printed: the final step, val loss and training time of every trial, and what is wrong.

Two formats: `step:S/N val_loss:L train_time:Tms step_avg:Ams` (the time also in seconds; fields in any order, others between
or behind them; without val_loss it is a training step) and llm.c's `s:S tel:L` (validation) and `s:S trl:L` (training), which
has neither a total nor times. Other lines, such as the source code at the top of many logs, are passed over, except those
that name devices and those with which a program starts. A file is read as a stream and memory stays bounded, whatever it holds.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.verify.publiclog_report import NOTES, duplicates, printable, show

LINE_LIMIT = 8192  # characters of a line that are read; a log line has about 100
TRIALS_LIMIT = 1000
REMEMBERED = 100_000  # lines of a trial that are known again, and evaluations whose times are looked at
RECORD_DEVICE, RECORD_DEVICES = "NVIDIA H100 80GB HBM3", 8
DISAGREEMENT = 0.01  # of train_time: how far step_avg times steps may be from it
MOST_SKIPPED = 20  # steps at the start that a clock may leave out; the public logs leave out 10

_PREFIX = re.compile(r"(?:INFO|DEBUG|rank|default|[0-9\s\[\]().:,/TZ+|-])*")
_STEP = re.compile(r"step:[ \t]*([0-9]{1,12})[ \t]*/[ \t]*([0-9]{1,12})(?![^\s,;|])")
_LLMC = re.compile(r"\s*s:[ \t]*([0-9]{1,12})\s+(tel|trl):[ \t]*([^\s,;|]+)")
_FIELD = re.compile(r"(?<![\w.])([A-Za-z_]\w*):[ \t]*([^\s,;|]+)")
_NUMBER = re.compile(r"[0-9.eE+-]{1,40}|[+-]?(?:nan|inf)", re.IGNORECASE)
_PROGRAM = re.compile(r"\s*Running (?:python|pytorch) [0-9]", re.IGNORECASE)
_DEVICE = re.compile(r"\s*Running\b.{0,200}?(?:device_name=| on )([^{}\"]{1,80}?)\s+with world_size[= ]([0-9]{1,6})\s*$")
_SMI = re.compile(r"\s*\|\s+([0-9]{1,3})\s\s?(\S.{0,60}?)\s+(?:On|Off|N/A)\s*\|\s*[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:")
_SMI_LIST = re.compile(r"\s*GPU ([0-9]{1,3}): (\S.{0,60}?) \(UUID: ")


@dataclass(frozen=True)
class Final:
    """The last evaluation: its step, of how many (None where the log states no total), nats per token, milliseconds."""

    step: int
    steps: int | None
    val_loss: float
    train_time_ms: float | None


@dataclass(frozen=True)
class Trial:
    """One training from its beginning. `complete`: evaluated at its last step, which is the stated total if one is stated.
    `line`: where it begins. `losses` and `curve`: digests of all its (step, val loss), and of these with their times."""

    final: Final | None
    complete: bool
    step_avg_ms: float | None
    evaluations: int
    line: int
    losses: str
    curve: str


@dataclass(frozen=True)
class Finding:
    """Something that a reader of the log should know. Only what is not a note makes the log fall short."""

    kind: str
    text: str

    @property
    def note(self) -> bool:
        return self.kind in NOTES


@dataclass(frozen=True)
class PublicLog:
    """What one file says. `final`: that of the last complete trial; where none is complete, the last evaluation of the last
    trial that has one. `refused`: why there is none. `devices` and `device_count`: as printed, empty and None where not."""

    path: str
    final: Final | None
    refused: str | None
    trials: tuple[Trial, ...]
    devices: tuple[str, ...]
    device_count: int | None
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether the final is that of a complete trial, and nothing found speaks against it."""
        return any(trial.complete for trial in self.trials) and all(finding.note for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The log as JSON values; a loss that is not finite is the word nan, inf or -inf."""
        return {
            "path": self.path, "final": _final_json(self.final), "refused": self.refused, "whole": self.whole,
            "trials": [{"final": _final_json(t.final), "complete": t.complete, "step_avg_ms": t.step_avg_ms,
                        "evaluations": t.evaluations, "line": t.line} for t in self.trials],
            "hardware": {"devices": list(self.devices), "count": self.device_count} if self.devices else None,
            "findings": [asdict(finding) for finding in self.findings],
        }  # fmt: skip


def _final_json(final: Final | None) -> dict[str, Any] | None:
    if final is None:
        return None
    return asdict(final) | ({} if math.isfinite(final.val_loss) else {"val_loss": str(final.val_loss)})


class _Line(NamedTuple):
    """A line that states a step; `problem` says what of it could not be read."""

    number: int
    text: str
    step: int
    total: int | None
    loss: float | None = None
    time_ms: float | None = None
    avg_ms: float | None = None
    problem: str | None = None


def _number(text: str) -> float | None:
    try:
        return float(text) if _NUMBER.fullmatch(text) else None
    except ValueError:
        return None


def _milliseconds(text: str) -> float | None:
    """A time with its unit, ms or s, in milliseconds; None where it is no such time."""
    value, scale = (text[:-2], 1) if text.endswith("ms") else (text[:-1], 1000) if text.endswith("s") else ("", 1)
    found = _number(value)
    return None if found is None or not 0 <= found < math.inf else round(found * scale, 6)


def _parse(number: int, text: str) -> _Line | None:
    """What a line says of a step; None for all other lines."""
    at = text.find("step:", 0, 100)
    if at < 0:
        return _parse_llmc(number, text)
    found = _STEP.match(text, at)
    if not found or not _PREFIX.fullmatch(text, 0, at):
        return None
    if not (fields := _FIELD.findall(text, found.end())):
        return None
    said: dict[str, str] = {}
    problem = None
    for name, value in fields:
        if name in ("val_loss", "train_time", "step_avg") and said.setdefault(name, value) != value:
            problem = f"{name} is stated twice"
    loss, time_ms = _number(said.get("val_loss", "")), _milliseconds(said.get("train_time", ""))
    if loss is None and "val_loss" in said:
        problem = f"val_loss:{said['val_loss']} is not a number"
    elif time_ms is None and "train_time" in said:
        problem = f"train_time:{said['train_time']} is not a time in ms or s"
    return _Line(number, text[at:], int(found[1]), int(found[2]), loss, time_ms, _milliseconds(said.get("step_avg", "")), problem)


def _parse_llmc(number: int, text: str) -> _Line | None:
    found = _LLMC.match(text)
    if not found:
        return None
    loss = _number(found[3])
    problem = f"{found[2]}:{found[3]} is not a number" if loss is None else None
    return _Line(number, text.lstrip(), int(found[1]), None, loss if found[2] == "tel" else None, problem=problem)


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Number, text and whether it was ended, of each line; of too long ones the beginning."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    # Latin-1 reads any bytes, one character each, and what is looked for is ASCII.
    with path.open(encoding="utf-16" if wide else "latin-1", errors="replace", newline=None) as file:
        number, inside = 0, False
        while text := file.readline(LINE_LIMIT):
            ended = text.endswith("\n")
            if not inside:
                number += 1
                yield number, text.removeprefix("\xef\xbb\xbf") if number == 1 else text, ended or len(text) == LINE_LIMIT
            inside = not ended


class _Findings:
    """Findings by kind, in the order in which they came up; of each kind the first three and how many more."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.more: dict[str, int] = defaultdict(int)

    def add(self, kind: str, text: str) -> None:
        if len(self.texts[kind]) < 3:
            self.texts[kind].append(printable(text, 200))
        else:
            self.more[kind] += 1

    def done(self) -> list[Finding]:
        rest = [Finding(kind, f"and {count} more of the kind") for kind, count in self.more.items()]
        return [Finding(kind, text) for kind, texts in self.texts.items() for text in texts] + rest


@dataclass
class _Open:
    """A trial that is being read. `timed`: of its evaluations with times, the line, steps and milliseconds since the trial's
    start and since the evaluation before."""

    first: _Line
    last: _Line
    name: str
    evaluation: _Line | None = None
    timed_line: _Line | None = None
    evaluations: int = 0
    seen: set[int] = field(default_factory=set)
    timed: list[tuple[_Line, float, float]] = field(default_factory=list)
    losses: Any = field(default_factory=hashlib.sha256)
    curve: Any = field(default_factory=hashlib.sha256)

    def take(self, line: _Line, findings: _Findings) -> None:
        """Goes on by a line that is new and no step back."""
        if len(self.seen) < REMEMBERED:
            self.seen.add(hash(line.text))
        if line.problem:
            findings.add("unreadable-line", f"line {line.number}: {line.problem}")
        if line.total is not None and line.step > line.total:
            findings.add("steps-beyond-total", f"line {line.number}: step {line.step} of {line.total}")
        self._take_time(line, findings)
        if line.loss is not None:
            self._evaluate(line, findings)
        self.last = line

    def _take_time(self, line: _Line, findings: _Findings) -> None:
        if line.time_ms is None:
            return
        before, self.timed_line = self.timed_line, line
        if before is None or line.time_ms >= before.time_ms:
            return
        says = f"from {before.time_ms / 1000:.3f} s at step {before.step} to {line.time_ms / 1000:.3f} s at step {line.step}"
        if before.step <= MOST_SKIPPED and line.step > before.step:
            findings.add("clock-restarts", f"{self.name}the clock starts anew after step {before.step}, whose time "
                                           f"train_time leaves out ({says})")  # fmt: skip
        else:
            findings.add("times-fall", f"line {line.number}: train_time falls {says}")

    def _evaluate(self, line: _Line, findings: _Findings) -> None:
        before = self.evaluation
        if not math.isfinite(line.loss) or line.loss <= 0:
            findings.add("loss-impossible", f"line {line.number}: val_loss {line.loss} at step {line.step}")
        if before and before.step == line.step:
            findings.add("evaluated-twice", f"line {line.number}: step {line.step} is evaluated twice, "
                                            f"{before.loss} and {line.loss}; the second counts")  # fmt: skip
        if line.time_ms is not None and line.avg_ms is not None and line.step and len(self.timed) < REMEMBERED:
            step, time_ms = (before.step, before.time_ms) if before and before.time_ms is not None else (0, 0.0)
            self.timed.append((line, line.step - step, line.time_ms - time_ms))
        self.losses.update(repr((line.step, line.loss)).encode())
        self.curve.update(repr((line.step, line.total, line.loss, line.time_ms)).encode())
        self.evaluation = line
        self.evaluations += 1

    def close(self, findings: _Findings) -> Trial:
        """The trial as it stands, and what is to be said of it as a whole."""
        last, end = self.evaluation, self.last
        complete = bool(last and last.step == end.step > 0 and end.step == (end.step if end.total is None else end.total))
        if not complete:
            findings.add("truncated", self.name + _cut_off(last, end))
        elif self.timed_line and last.time_ms is None:
            findings.add("time-missing", f"line {last.number}: the last evaluation has no train_time, though others do")
        if self.evaluations == 1:
            findings.add("one-evaluation", f"{self.name}only one evaluation is printed, at step {last.step}: no course to check")
        _look_at_times(self, findings)
        final = last and Final(last.step, last.total, last.loss, last.time_ms)
        return Trial(final, complete, last and last.avg_ms, self.evaluations, self.first.number, self.losses.hexdigest(),
                     self.curve.hexdigest())  # fmt: skip


def _cut_off(last: _Line | None, end: _Line) -> str:
    """How a trial ends that is not complete."""
    ends = f"step {end.step}" + ("" if end.total is None else f" of {end.total}")
    if last is None:
        return f"ends at {ends} and was not evaluated"
    if last.step < end.step:
        return f"goes on to {ends}, but the last evaluation is that of step {last.step}"
    return f"ends at {ends}, line {last.number}: {last.text.strip()}"


def _average_of(line: _Line, steps: float, time_ms: float) -> bool:
    """Whether step_avg is this time over these steps, to the digits that are printed: 2 decimals, and milliseconds."""
    return steps > 0 and abs(time_ms / steps - line.avg_ms) <= 0.0051 + 1.01 / steps


def _look_at_times(trial: _Open, findings: _Findings) -> None:
    """Says what step_avg is an average over, from all evaluations, and where it disagrees with train_time unexplained."""
    meanings: dict[str | int, int] = defaultdict(int)
    for line, steps, time_ms in trial.timed:
        skipped = round(line.step - line.time_ms / line.avg_ms) if line.avg_ms else -1
        if 0 <= skipped <= MOST_SKIPPED and _average_of(line, line.step - skipped, line.time_ms):
            meanings[skipped] += 1
        if _average_of(line, steps, time_ms):
            meanings["interval"] += 1
    meaning = max(meanings, key=lambda m: (meanings[m], m == 0), default=0)
    if 2 * meanings[meaning] <= len(trial.timed):
        meaning = 0
    explained = 0
    for line, steps, time_ms in trial.timed:
        skipped = 0 if meaning == "interval" else meaning
        if abs(line.step * line.avg_ms - line.time_ms) <= DISAGREEMENT * line.time_ms:
            continue
        over = (steps, time_ms) if meaning == "interval" else (line.step - skipped, line.time_ms)
        if _average_of(line, *over):
            explained += 1
        else:
            findings.add("times-disagree", f"line {line.number}: step_avg {line.avg_ms} ms times {line.step} steps is "
                         f"{line.step * line.avg_ms / 1000:.3f} s, train_time {line.time_ms / 1000:.3f} s")  # fmt: skip
    if meaning == "interval" and explained:
        findings.add("step-avg-of-interval", f"{trial.name}step_avg is the average since the evaluation before, not since the start")
    elif meaning:
        findings.add("step-avg-skips-steps", f"{trial.name}step_avg is train_time over steps - {meaning}: the first {meaning} "
                                             "steps are not counted")  # fmt: skip
