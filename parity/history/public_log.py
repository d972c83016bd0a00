"""Reads public NanoGPT speedruns' logs: the final step, val loss and training time of every trial, and any problems.

Other lines than steps, such as the source code at the top of many logs, are skipped, except those that name devices and
those with which a program starts. A file is read as a stream; memory stays bounded, whatever the file holds.
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.history.public_log_lines import StepLine, device_line, is_torn, starts_program, step_line, text_lines
from parity.history.public_log_report import Final, Findings, PublicLog, Trial, copies, show, shown

TRIALS_LIMIT = 1000
REMEMBERED = 100_000  # lines of a trial whose repetition is recognized, and evaluations whose times are checked
LOG_SUFFIXES = (".txt", ".log")
RECORD_DEVICE, RECORD_DEVICES = "NVIDIA H100 80GB HBM3", 8
DISAGREEMENT = 0.01  # of train_time: how far step_avg times steps may be from it
MOST_SKIPPED = 20  # steps at the start that a clock may leave out; the public logs leave out 10
OF_INTERVAL = -1  # stands for the steps that an average since the evaluation before leaves out


class _Evaluation(NamedTuple):
    line: StepLine
    loss: float


class _Timing(NamedTuple):
    """Times of one evaluation; `steps` and `interval_ms` are those since the evaluation before, or the start."""

    line: int
    step: int
    time_ms: float
    avg_ms: float
    steps: int
    interval_ms: float

    def is_average(self, skipped: int) -> bool:
        """Whether step_avg is the time over all steps but those skipped at the start, to the digits that are printed: 2
        decimals, and milliseconds."""
        steps, time_ms = (self.steps, self.interval_ms) if skipped < 0 else (self.step - skipped, self.time_ms)
        return steps > 0 and abs(time_ms / steps - self.avg_ms) <= 0.0051 + 1.01 / steps

    @property
    def product_ms(self) -> float:
        return self.step * self.avg_ms


@dataclass
class _OpenTrial:
    """A trial that is being read."""

    number: int
    first: StepLine
    last: StepLine
    findings: Findings
    evaluation: _Evaluation | None = None
    last_time: tuple[int, float] | None = None  # the last stated time, with its step
    evaluations: int = 0
    hashes: set[int] = field(default_factory=set)
    timings: list[_Timing] = field(default_factory=list)
    losses: Any = field(default_factory=hashlib.sha256)
    curve: Any = field(default_factory=hashlib.sha256)

    def report(self, kind: str, text: str, line: int | None = None) -> None:
        self.findings.add(kind, text if line is None else f"line {line}: {text}", self.number)

    def add(self, line: StepLine) -> None:
        """Adds a new line at or after the last step."""
        if len(self.hashes) < REMEMBERED:
            self.hashes.add(hash(line.text))
        if line.problem:
            self.report("unreadable-line", line.problem, line.number)
        if line.total is not None and line.step > line.total:
            self.report("steps-beyond-total", f"step {line.step} of {line.total}", line.number)
        if line.time_ms is not None:
            self._check_time(line, line.time_ms)
        if line.loss is not None:
            self._evaluate(line, line.loss)
        self.last = line

    def _check_time(self, line: StepLine, time_ms: float) -> None:
        before, self.last_time = self.last_time, (line.step, time_ms)
        if before is None or time_ms >= before[1]:
            return
        step, before_ms = before
        if step <= MOST_SKIPPED and line.step > step:
            self.report("clock-restarts", f"the clock starts anew after step {step}: train_time leaves those steps out")
        else:
            fall = f"from {before_ms / 1000:.3f} s at step {step} to {time_ms / 1000:.3f} s at step {line.step}"
            self.report("times-fall", f"train_time falls {fall}", line.number)

    def _evaluate(self, line: StepLine, loss: float) -> None:
        before = self.evaluation
        if not math.isfinite(loss) or loss <= 0:
            self.report("loss-impossible", f"val_loss {loss} at step {line.step}", line.number)
        if before and before.line.step == line.step:
            text = f"step {line.step} is evaluated twice, {before.loss} and {loss}; the second counts"
            self.report("evaluated-twice", text, line.number)
        if line.time_ms is not None and line.avg_ms is not None and line.step and len(self.timings) < REMEMBERED:
            start, start_ms = 0, 0.0
            if before and before.line.time_ms is not None:
                start, start_ms = before.line.step, before.line.time_ms
            interval = line.step - start, line.time_ms - start_ms
            self.timings.append(_Timing(line.number, line.step, line.time_ms, line.avg_ms, *interval))
        self.losses.update(repr((line.step, loss)).encode())
        self.curve.update(repr((line.step, line.total, loss, line.time_ms)).encode())
        self.evaluation = _Evaluation(line, loss)
        self.evaluations += 1

    def close(self) -> Trial:
        """The trial as it stands; reports what concerns it as a whole."""
        last, end = self.evaluation, self.last
        complete = last is not None and last.line.step == end.step > 0 and end.total in (None, end.step)
        if not complete:
            self.report("truncated", _cut_off(last and last.line, end))
        elif last and last.line.time_ms is None and self.last_time:
            text = "the last evaluation has no train_time, though other lines do"
            self.report("time-missing", text, last.line.number)
        if last and self.evaluations == 1:
            text = f"only one evaluation is printed, at step {last.line.step}: there is no course to check"
            self.report("one-evaluation", text)
        self._check_averages()
        return Trial(
            last and Final(last.line.step, last.line.total, last.loss, last.line.time_ms),
            complete,
            last and last.line.avg_ms,
            self.evaluations,
            self.first.number,
            self.losses.hexdigest(),
            self.curve.hexdigest(),
        )

    def _check_averages(self) -> None:
        """Reports what step_avg is the average over, and where it disagrees with train_time unexplained."""
        votes: dict[int, int] = defaultdict(int)  # by the number of steps at the start that are left out
        for timing in self.timings:
            skipped = round(timing.step - timing.time_ms / timing.avg_ms) if timing.avg_ms else OF_INTERVAL
            if 0 <= skipped <= MOST_SKIPPED and timing.is_average(skipped):
                votes[skipped] += 1
            if timing.is_average(OF_INTERVAL):
                votes[OF_INTERVAL] += 1
        skipped = max(votes, key=lambda skipped: (votes[skipped], skipped == 0), default=0)
        if 2 * votes[skipped] <= len(self.timings):
            skipped = 0
        disagreeing = [t for t in self.timings if abs(t.product_ms - t.time_ms) > DISAGREEMENT * t.time_ms]
        for timing in disagreeing:
            if not timing.is_average(skipped):
                product = f"step_avg {timing.avg_ms} ms times {timing.step} steps is {timing.product_ms / 1000:.3f} s"
                text = f"{product}, but train_time {timing.time_ms / 1000:.3f} s"
                self.report("times-disagree", text, timing.line)
        if skipped > 0:
            text = f"step_avg is train_time over step - {skipped}: the first {skipped} steps are not counted"
            self.report("step-avg-skips-steps", text)
        elif skipped == OF_INTERVAL and disagreeing:
            text = "step_avg is the average since the evaluation before, not since the start"
            self.report("step-avg-of-interval", text)

    def followed_by_final(self, line: StepLine) -> bool:
        """Whether this trial is a last evaluation alone, and the line that of another such trial."""
        only = self.evaluation
        if only is None or line.loss is None or not self.first is self.last is only.line:
            return False
        return only.line.step == only.line.total == line.step


def _cut_off(last: StepLine | None, end: StepLine) -> str:
    """How an incomplete trial ends."""
    ends = f"step {end.step}" + ("" if end.total is None else f" of {end.total}")
    if last is None:
        return f"ends at {ends} and was not evaluated"
    if last.step < end.step:
        return f"goes on to {ends}, but the last evaluation is that of step {last.step}"
    return f"ends at {ends}, line {last.number}: {last.text}"


class _Reader:
    """A file as far as it is read: the trials that have ended, the open one, and lines that may be its repetition."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.trials: list[Trial] = []
        self.trial: _OpenTrial | None = None
        self.pending: list[StepLine] = []
        self.repeats, self.first_repeat = 0, 0
        self.restarted = False
        self.devices: dict[str, None] = {}
        self.counts: set[int] = set()
        self.numbers: set[int] = set()

    def read(self, number: int, text: str, ended: bool) -> None:
        """Reads the next line of the file."""
        line = step_line(number, text)
        if line:
            self._step(line, ended)
            return
        text = text[:300].strip()
        self.restarted = self.restarted or (self.trial is not None and starts_program(text))
        if device := device_line(text):
            if len(self.devices) < 16:
                self.devices[shown(device.name, 60)] = None
            if device.devices is not None:
                self.counts.add(device.devices)
            if device.number is not None:
                self.numbers.add(device.number)

    def _step(self, line: StepLine, ended: bool) -> None:
        trial, pending = self.trial, self.pending
        if not ended and trial and is_torn(line, trial.evaluation and trial.evaluation.line):
            self.findings.add("truncated", f"the file ends within line {line.number}: {line.text}")
        elif trial is None or self.restarted or line.total != trial.last.total:
            self._begin([line])
        elif hash(line.text) in trial.hashes:
            if pending and (line.step < pending[-1].step or len(pending) >= REMEMBERED):
                self._drop_pending()
            self.pending.append(line)
        elif pending and pending[0].step < trial.last.step >= line.step:
            self._begin([*pending, line] if line.step >= pending[-1].step else [line])
        elif line.step < trial.last.step or trial.followed_by_final(line):
            self._begin([line])
        else:
            self._drop_pending()
            trial.add(line)

    def _drop_pending(self) -> None:
        """Counts the pending lines as repetitions of lines before them."""
        if self.pending:
            self.first_repeat = self.first_repeat or self.pending[0].number
            self.repeats += len(self.pending)
        self.pending = []

    def _begin(self, lines: list[StepLine]) -> None:
        """Closes the open trial and begins one with these lines."""
        before, first = self.trial, lines[0]
        if first not in self.pending:
            self._drop_pending()
        self.pending = []
        if before:
            if not self.restarted and before.first.step < first.step < before.last.step:
                fall = f"the step falls from {before.last.step} to {first.step}, not to a beginning"
                text = f"line {first.number}: {fall}; taken for a new trial"
                self.findings.add("non-monotonic-steps", text)
            self.trials.append(before.close())
        self.restarted = False
        self.trial = _OpenTrial(len(self.trials) + 1, first, first, self.findings)
        for line in lines:
            self.trial.add(line)

    def close(self, path: str) -> PublicLog:
        """The file as a whole."""
        self._drop_pending()
        if self.trial:
            self.trials.append(self.trial.close())
        if self.repeats:
            text = f"{self.repeats} lines are printed a second time, from line {self.first_repeat} on; they count once"
            self.findings.add("repeated-lines", text)
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
            trials = f"{len(self.trials)} trials one after another, {len(complete)} of them complete"
            self.findings.add("several-trials", f"{trials}; the final is that of trial {chosen + 1}")
        final, count = None if refused else self.trials[chosen].final, self._check_devices()
        findings = self.findings.result(len(self.trials))
        return PublicLog(path, final, refused, tuple(self.trials), tuple(self.devices), count, findings)

    def refuse(self, path: str, reason: str) -> PublicLog:
        """The result for a file that is not read to its end."""
        self.findings.add("refused", reason)
        return PublicLog(path, None, reason, (), (), None, self.findings.result(0))

    def _check_devices(self) -> int | None:
        """The number of devices; reports anything unusual about them."""
        count = max(self.counts) if self.counts else len(self.numbers) or None
        names = " and ".join(self.devices)
        if len(self.devices) > 1 or len(self.counts) > 1:
            self.findings.add("several-devices", f"it names {names}, {sorted(self.counts) or count} of them")
        elif names and (names, count) != (RECORD_DEVICE, RECORD_DEVICES):
            record = f"{RECORD_DEVICES} x {RECORD_DEVICE}"
            text = f"ran on {count or 'some'} x {names}, where the public records are timed on {record}"
            self.findings.add("other-hardware", text)
        return count


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
    reader = _Reader()
    try:
        for number, text, ended in text_lines(path):
            reader.read(number, text, ended)
            if len(reader.trials) >= TRIALS_LIMIT:
                return reader.refuse(str(path), f"more than {TRIALS_LIMIT} trials begin in it")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions and the disk") from None
    return reader.close(str(path))


def read_logs(paths: Sequence[str | os.PathLike[str]]) -> list[PublicLog]:
    """Reads logs and finds trials among them that are the same run; a file that is named twice is read once.

    Raises:
        InputError: as `read_log`.
    """
    logs = [read_log(path) for path in {Path(path).resolve(): path for path in paths}.values()]
    findings: dict[int, Findings] = defaultdict(Findings)
    for index, trial, kind, text in copies(logs):
        findings[index].add(kind, text, trial + 1)
    return [replace(log, findings=log.findings + findings[i].result(len(log.trials))) for i, log in enumerate(logs)]


def log_files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and all .txt and .log files below the folders among them, sorted.

    Raises:
        InputError: there is nothing at a path, or no such file below a folder.
    """
    files: list[Path] = []
    for path in paths:
        below = (
            sorted(p for p in path.rglob("*") if p.suffix in LOG_SUFFIXES and p.is_file()) if path.is_dir() else [path]
        )
        if not below:
            raise InputError(f"no .txt or .log file is below {path}: name the logs, or a folder that holds them")
        files += below
    return files


def main_logs(paths: Sequence[Path], as_json: bool) -> int:
    """Prints the logs' results, as a table or as a JSON list of one object per file; 0 where all are whole, else 1.

    Raises:
        InputError: as `log_files` and `read_log`.
    """
    logs = read_logs(log_files([Path(path) for path in paths]))
    print(json.dumps([log.to_json() for log in logs], indent=1) if as_json else show(logs))
    return 0 if all(log.whole for log in logs) else 1
