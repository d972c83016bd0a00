"""Reads what public NanoGPT speedruns printed: the final step, val loss and training time of every trial, and what is wrong.

Two formats: `step:S/N val_loss:L train_time:Tms step_avg:Ams` (the time also in seconds; fields in any order, others between
or behind them; without val_loss it is a training step) and llm.c's `s:S tel:L` (validation) and `s:S trl:L` (training), which
has neither a total nor times. Other lines, such as the source code at the top of many logs, are passed over, except those
that name devices and those with which a program starts. A file is read as a stream and memory stays bounded, whatever it holds.
"""

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.history.public_log_report import Final, Findings, PublicLog, Trial, copies, printable, show

LINE_LIMIT = 8192  # characters of a line that are read; a log line has about 100
TRIALS_LIMIT = 1000
REMEMBERED = 100_000  # lines of a trial that are known again, and evaluations whose times are looked at
LOG_SUFFIXES = (".txt", ".log")
RECORD_DEVICE, RECORD_DEVICES = "NVIDIA H100 80GB HBM3", 8
DISAGREEMENT = 0.01  # of train_time: how far step_avg times steps may be from it
MOST_SKIPPED = 20  # steps at the start that a clock may leave out; the public logs leave out 10

_PREFIX = re.compile(r"(?:INFO|DEBUG|rank|default|[0-9\s\[\]().:,/TZ+|-])*")
_STEP = re.compile(r"step:[ \t]*([0-9]{1,12})[ \t]*/[ \t]*([0-9]{1,12})(?![^\s,;|])")
_LLMC = re.compile(r"\s*s:[ \t]*([0-9]{1,12})\s+(tel|trl):[ \t]*([^\s,;|]+)")
_FIELD = re.compile(r"(?<![\w.])([A-Za-z_]\w*):[ \t]*([^\s,;|]+)")
_NUMBER = re.compile(r"[0-9.eE+-]{1,40}|[+-]?(?:nan|inf)", re.IGNORECASE)
_PROGRAM = re.compile(r"\s*Running (?:python|pytorch) [0-9]", re.IGNORECASE)
_TABLE_ROW = re.compile(r"\|\s+([0-9]{1,3})\s+(\S.{0,60}?)\s+(?:On|Off|N/A)\s*\|\s*[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:")
_LISTED = re.compile(r"GPU ([0-9]{1,3}): (\S.{0,60}?) \(UUID: ")


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
    return _Line(
        number,
        text[at:].rstrip(),
        int(found[1]),
        int(found[2]),
        loss,
        time_ms,
        _milliseconds(said.get("step_avg", "")),
        problem,
    )


def _parse_llmc(number: int, text: str) -> _Line | None:
    found = _LLMC.match(text)
    if not found:
        return None
    loss = _number(found[3])
    problem = f"{found[2]}:{found[3]} is not a number" if loss is None else None
    return _Line(number, text.strip(), int(found[1]), None, loss if found[2] == "tel" else None, problem=problem)


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
                yield (
                    number,
                    text.removeprefix("\xef\xbb\xbf") if number == 1 else text,
                    ended or len(text) == LINE_LIMIT,
                )
            inside = not ended


@dataclass
class _Open:
    """A trial that is being read. `timed`: of its evaluations with times, the line, and the steps and milliseconds since the
    evaluation before, or the start."""

    number: int
    first: _Line
    last: _Line
    findings: Findings
    evaluation: _Line | None = None
    timed_line: _Line | None = None
    evaluations: int = 0
    seen: set[int] = field(default_factory=set)
    timed: list[tuple[_Line, int, float]] = field(default_factory=list)
    losses: Any = field(default_factory=hashlib.sha256)
    curve: Any = field(default_factory=hashlib.sha256)

    def say(self, kind: str, text: str) -> None:
        self.findings.add(kind, text, self.number)

    def take(self, line: _Line) -> None:
        """Goes on by a line that is new and no step back."""
        if len(self.seen) < REMEMBERED:
            self.seen.add(hash(line.text))
        if line.problem:
            self.say("unreadable-line", f"line {line.number}: {line.problem}")
        if line.total is not None and line.step > line.total:
            self.say("steps-beyond-total", f"line {line.number}: step {line.step} of {line.total}")
        if line.time_ms is not None:
            self._take_time(line)
        if line.loss is not None:
            self._evaluate(line)
        self.last = line

    def _take_time(self, line: _Line) -> None:
        before, self.timed_line = self.timed_line, line
        if before is None or line.time_ms >= before.time_ms:
            return
        if before.step <= MOST_SKIPPED and line.step > before.step:
            self.say(
                "clock-restarts", f"the clock starts anew after step {before.step}: train_time leaves those steps out"
            )
        else:
            self.say(
                "times-fall",
                f"line {line.number}: train_time falls from {before.time_ms / 1000:.3f} s at step "
                f"{before.step} to {line.time_ms / 1000:.3f} s at step {line.step}",
            )

    def _evaluate(self, line: _Line) -> None:
        before = self.evaluation
        if not math.isfinite(line.loss) or line.loss <= 0:
            self.say("loss-impossible", f"line {line.number}: val_loss {line.loss} at step {line.step}")
        if before and before.step == line.step:
            self.say(
                "evaluated-twice",
                f"line {line.number}: step {line.step} is evaluated twice, {before.loss} and "
                f"{line.loss}; the second counts",
            )
        if line.time_ms is not None and line.avg_ms is not None and line.step and len(self.timed) < REMEMBERED:
            step, time_ms = (before.step, before.time_ms) if before and before.time_ms is not None else (0, 0.0)
            self.timed.append((line, line.step - step, line.time_ms - time_ms))
        self.losses.update(repr((line.step, line.loss)).encode())
        self.curve.update(repr((line.step, line.total, line.loss, line.time_ms)).encode())
        self.evaluation = line
        self.evaluations += 1

    def close(self) -> Trial:
        """The trial as it stands; says what there is to say of it as a whole."""
        last, end = self.evaluation, self.last
        complete = last is not None and last.step == end.step > 0 and end.total in (None, end.step)
        if not complete:
            self.say("truncated", _cut_off(last, end))
        elif self.timed_line and last.time_ms is None:
            self.say(
                "time-missing", f"line {last.number}: the last evaluation has no train_time, though other lines do"
            )
        if self.evaluations == 1:
            self.say(
                "one-evaluation", f"only one evaluation is printed, at step {last.step}: there is no course to check"
            )
        _look_at_times(self)
        final = last and Final(last.step, last.total, last.loss, last.time_ms)
        return Trial(
            final,
            complete,
            last and last.avg_ms,
            self.evaluations,
            self.first.number,
            self.losses.hexdigest(),
            self.curve.hexdigest(),
        )


def _cut_off(last: _Line | None, end: _Line) -> str:
    """How a trial ends that is not complete."""
    ends = f"step {end.step}" + ("" if end.total is None else f" of {end.total}")
    if last is None:
        return f"ends at {ends} and was not evaluated"
    if last.step < end.step:
        return f"goes on to {ends}, but the last evaluation is that of step {last.step}"
    return f"ends at {ends}, line {last.number}: {last.text}"


def _is_average(line: _Line, steps: int, time_ms: float) -> bool:
    """Whether step_avg is this time over these steps, to the digits that are printed: 2 decimals, and milliseconds."""
    return steps > 0 and abs(time_ms / steps - line.avg_ms) <= 0.0051 + 1.01 / steps


def _look_at_times(trial: _Open) -> None:
    """Says what step_avg is the average over, from all evaluations, and where it disagrees with train_time unexplained."""
    meanings: dict[int, int] = defaultdict(int)  # how many steps at the start are left out; -1: all before the interval
    for line, steps, time_ms in trial.timed:
        skipped = round(line.step - line.time_ms / line.avg_ms) if line.avg_ms else -1
        if 0 <= skipped <= MOST_SKIPPED and _is_average(line, line.step - skipped, line.time_ms):
            meanings[skipped] += 1
        if _is_average(line, steps, time_ms):
            meanings[-1] += 1
    meaning = max(meanings, key=lambda m: (meanings[m], m == 0), default=0)
    if 2 * meanings[meaning] <= len(trial.timed):
        meaning = 0
    apart = [
        each
        for each in trial.timed
        if abs(each[0].step * each[0].avg_ms - each[0].time_ms) > DISAGREEMENT * each[0].time_ms
    ]
    for line, steps, time_ms in apart:
        if not _is_average(line, *((steps, time_ms) if meaning == -1 else (line.step - meaning, line.time_ms))):
            trial.say(
                "times-disagree",
                f"line {line.number}: step_avg {line.avg_ms} ms times {line.step} steps is "
                f"{line.step * line.avg_ms / 1000:.3f} s, but train_time {line.time_ms / 1000:.3f} s",
            )
    if meaning > 0:
        trial.say(
            "step-avg-skips-steps",
            f"step_avg is train_time over step - {meaning}: the first {meaning} steps are not counted",
        )
    elif meaning == -1 and apart:
        trial.say("step-avg-of-interval", "step_avg is the average since the evaluation before, not since the start")


class _Reading:
    """What has been read of a file: the trials that have ended, the one that is open, and lines that may be its repetition."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.trials: list[Trial] = []
        self.trial: _Open | None = None
        self.pending: list[_Line] = []
        self.repeats: list[int] = [0, 0]
        self.started = False
        self.devices: dict[str, None] = {}
        self.counts: set[int] = set()
        self.listed: set[int] = set()

    def read(self, number: int, text: str, ended: bool) -> None:
        """Takes the next line of the file."""
        line = _parse(number, text)
        if line:
            self._step(line, ended)
            return
        text = text[:300].strip()
        if text.startswith("Running"):
            self.started = self.started or (self.trial is not None and _PROGRAM.match(text) is not None)
            before, _, count = text.partition(" with world_size")
            name = before.rpartition("device_name=" if "device_name=" in before else " on ")[2].strip()
            if "{" not in text and name and count[1:].isdigit():
                self._device(name)
                self.counts.add(int(count[1:7]))
        elif found := _TABLE_ROW.match(text) or _LISTED.match(text):
            self._device(found[2])
            self.listed.add(int(found[1]))

    def _device(self, name: str) -> None:
        if len(self.devices) < 16:
            self.devices[printable(name, 60)] = None

    def _step(self, line: _Line, ended: bool) -> None:
        trial, pending = self.trial, self.pending
        if not ended and trial and _torn(line, trial.evaluation):
            self.findings.add("truncated", f"the file ends within line {line.number}: {line.text}")
        elif trial is None or self.started or line.total != trial.last.total:
            self._begin([line])
        elif hash(line.text) in trial.seen:
            if pending and (line.step < pending[-1].step or len(pending) >= REMEMBERED):
                self._drop()
            self.pending.append(line)
        elif pending and pending[0].step < trial.last.step >= line.step:
            self._begin([*pending, line] if line.step >= pending[-1].step else [line])
        elif line.step < trial.last.step or _another_final(trial, line):
            self._begin([line])
        else:
            self._drop()
            trial.take(line)

    def _drop(self) -> None:
        """Counts the pending lines as repetitions of lines before them."""
        if self.pending:
            self.repeats = [self.repeats[0] + len(self.pending), self.repeats[1] or self.pending[0].number]
        self.pending = []

    def _begin(self, lines: list[_Line]) -> None:
        """Closes the open trial and begins one with these lines."""
        before = self.trial
        if lines[0] not in self.pending:
            self._drop()
        self.pending = []
        if before:
            if not self.started and before.first.step < lines[0].step < before.last.step:
                self.findings.add(
                    "non-monotonic-steps",
                    f"line {lines[0].number}: the step falls from {before.last.step} to "
                    f"{lines[0].step}, not to a beginning; taken for a new trial",
                )
            self.trials.append(before.close())
        self.started = False
        self.trial = _Open(len(self.trials) + 1, lines[0], lines[0], self.findings)
        for line in lines:
            self.trial.take(line)

    def done(self, path: str) -> PublicLog:
        """What the file says as a whole."""
        self._drop()
        if self.trial:
            self.trials.append(self.trial.close())
        if self.repeats[0]:
            self.findings.add(
                "repeated-lines",
                f"{self.repeats[0]} lines are printed a second time, from line {self.repeats[1]} on; they count once",
            )
        complete = [n for n, trial in enumerate(self.trials) if trial.complete]
        evaluated = [n for n, trial in enumerate(self.trials) if trial.final]
        refused = None
        if not evaluated:
            kind, refused = (
                ("no-validation", "it has training steps, but no val loss")
                if self.trials
                else ("not-a-log", "no line states a step, such as step:S/N val_loss:L train_time:Tms or s:S tel:L")
            )
            self.findings.add(kind, refused)
        chosen = (complete or evaluated or [-1])[-1]
        if len(self.trials) > 1:
            self.findings.add(
                "several-trials",
                f"{len(self.trials)} trials one after another, {len(complete)} of them complete; "
                f"the final is that of trial {chosen + 1}",
            )
        count = self._look_at_devices()
        return PublicLog(
            path,
            None if refused else self.trials[chosen].final,
            refused,
            tuple(self.trials),
            tuple(self.devices),
            count,
            self.findings.done(len(self.trials)),
        )

    def refuse(self, path: str, reason: str) -> PublicLog:
        """What is said of a file that is not read to its end."""
        self.findings.add("refused", reason)
        return PublicLog(path, None, reason, (), (), None, self.findings.done(0))

    def _look_at_devices(self) -> int | None:
        """How many devices there were; says what is odd about them."""
        count = max(self.counts) if self.counts else len(self.listed) or None
        if len(self.devices) > 1 or len(self.counts) > 1:
            self.findings.add(
                "several-devices", f"it names {' and '.join(self.devices)}, {sorted(self.counts) or count} of them"
            )
        elif self.devices and (next(iter(self.devices)), count) != (RECORD_DEVICE, RECORD_DEVICES):
            self.findings.add(
                "other-hardware",
                f"ran on {count or 'some'} x {next(iter(self.devices))}, where the public records "
                f"are timed on {RECORD_DEVICES} x {RECORD_DEVICE}",
            )
        return count


def _torn(line: _Line, before: _Line | None) -> bool:
    """Whether a last line that no line end follows was cut within what is read of it, by the evaluation before."""
    if line.problem or before is None or line.loss is None:
        return line.problem is not None
    word, model = (text.split()[-1].partition(":") for text in (line.text, before.text))
    fewer = len(word[2].partition(".")[2]) < len(model[2].partition(".")[2])
    return (fewer and word[0] == model[0] and word[0] in ("val_loss", "tel")) or (
        line.time_ms is None and before.time_ms is not None
    )


def _another_final(trial: _Open, line: _Line) -> bool:
    """Whether a file goes on with another trial's last evaluation, all that is kept of each."""
    only = trial.evaluation
    return trial.first is trial.last is only and line.loss is not None and only.step == only.total == line.step


def read_log(path: str | os.PathLike[str]) -> PublicLog:
    """Reads one log, whatever the file holds.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"expected a log that a public speedrun printed, found {'no file' if not path.exists() else 'a folder'} "
            f"at {path}: give a text file, or with the command a folder of .txt and .log files"
        )
    reading = _Reading()
    try:
        for number, text, ended in _lines(path):
            reading.read(number, text, ended)
            if len(reading.trials) >= TRIALS_LIMIT:
                return reading.refuse(str(path), f"more than {TRIALS_LIMIT} trials begin in it")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk") from None
    return reading.done(str(path))


def read_logs(paths: Sequence[str | os.PathLike[str]]) -> list[PublicLog]:
    """Reads logs and finds trials among them that are one and the same run; a file that is named twice is read once.

    Raises:
        InputError: as `read_log`.
    """
    logs = [read_log(path) for path in {Path(path).resolve(): path for path in paths}.values()]
    found: dict[int, Findings] = defaultdict(Findings)
    for at, trial, kind, text in copies(logs):
        found[at].add(kind, text, trial + 1)
    return [replace(log, findings=log.findings + found[at].done(len(log.trials))) for at, log in enumerate(logs)]


def log_files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and all .txt and .log files below the folders among them, sorted.

    Raises:
        InputError: there is nothing at a path, or no such file below a folder.
    """
    files: list[Path] = []
    for path in paths:
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix in LOG_SUFFIXES and p.is_file()) if path.is_dir() else [path]
        )
        if not inside:
            raise InputError(f"no .txt or .log file is below {path}: name the logs, or a folder that holds them")
        files += inside
    return files


def main_logs(paths: Sequence[Path], as_json: bool) -> int:
    """Prints what the logs say, as a table or as a JSON list of one object per file; 0 where all are whole, 1 where not.

    Raises:
        InputError: as `log_files` and `read_log`.
    """
    logs = read_logs(log_files([Path(path) for path in paths]))
    print(json.dumps([log.to_json() for log in logs], indent=1) if as_json else show(logs))
    return 0 if all(log.whole for log in logs) else 1
