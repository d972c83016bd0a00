"""Results of public logs: their trials, findings, copies among them, and the table of all."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parity import tables

NOTES = {
    "several-trials",
    "repeated-lines",
    "clock-restarts",
    "step-avg-skips-steps",
    "step-avg-of-interval",
    "one-evaluation",
    "other-hardware",
    "several-devices",
}
"""The kinds of findings that do not make a log fall short."""
COLUMNS = (("log", "<46"), ("step", ">16"), ("val loss", ">10"), ("train time", ">15"), ("trials", ">8"))


@dataclass(frozen=True)
class Final:
    """The last evaluation: step, total steps (None: the log states none), nats per token, milliseconds."""

    step: int
    steps: int | None
    val_loss: float
    train_time_ms: float | None


@dataclass(frozen=True)
class Trial:
    """One training run from its beginning. `complete`: evaluated at its last step, which is the stated total if any.
    `line`: its first line. `losses` and `curve`: digests of all its (step, val loss), and of these with times."""

    final: Final | None
    complete: bool
    step_avg_ms: float | None
    evaluations: int
    line: int
    losses: str
    curve: str


@dataclass(frozen=True)
class Finding:
    """Something that a reader of the log should know. Only findings that are no notes make the log fall short."""

    kind: str
    text: str

    @property
    def note(self) -> bool:
        return self.kind in NOTES


@dataclass(frozen=True)
class PublicLog:
    """The content of one file. `final`: that of the last complete trial, or else the last evaluation of the last trial
    that has one. `refused`: why there is none. `devices` and `device_count`: as printed, empty and None if absent."""

    path: str
    final: Final | None
    refused: str | None
    trials: tuple[Trial, ...]
    devices: tuple[str, ...]
    device_count: int | None
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether the final is that of a complete trial, and every finding is a note."""
        return any(trial.complete for trial in self.trials) and all(finding.note for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The log as JSON values; a loss that is not finite is the word nan, inf or -inf."""
        return {
            "path": self.path,
            "final": _final_json(self.final),
            "refused": self.refused,
            "whole": self.whole,
            "trials": [
                {
                    "final": _final_json(trial.final),
                    "complete": trial.complete,
                    "step_avg_ms": trial.step_avg_ms,
                    "evaluations": trial.evaluations,
                    "line": trial.line,
                }
                for trial in self.trials
            ],
            "hardware": {"devices": list(self.devices), "count": self.device_count} if self.devices else None,
            "findings": [asdict(finding) for finding in self.findings],
        }


def _final_json(final: Final | None) -> dict[str, Any] | None:
    if final is None:
        return None
    return asdict(final) | ({} if math.isfinite(final.val_loss) else {"val_loss": str(final.val_loss)})


class Findings:
    """Findings by kind, in order of appearance: the first three of each kind, and how many more."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self._more: dict[str, int] = defaultdict(int)

    def add(self, kind: str, text: str, trial: int = 0) -> None:
        """Adds a finding; `trial` counts from 1, and 0 stands for the file as a whole."""
        texts = self._texts[kind]
        if text in texts or len(texts) < 3:
            texts.setdefault(text, []).append(trial)
        else:
            self._more[kind] += 1

    def result(self, trials: int) -> tuple[Finding, ...]:
        """All findings; where there are several trials, each names its own."""
        findings = []
        for kind, texts in self._texts.items():
            for text, numbers in texts.items():
                of = f"trial {', '.join(map(str, numbers[:3]))}{' and others' if len(numbers) > 3 else ''}: "
                if len(numbers) == trials:
                    of = f"all {trials} trials: "
                findings.append(Finding(kind, shown((of if trials > 1 and numbers[0] else "") + text, 240)))
            if self._more[kind]:
                findings.append(Finding(kind, f"and {self._more[kind]} more"))
        return tuple(findings)


def shown(text: str, width: int) -> str:
    """Text from a file, or a file's name, printable and cut to a width."""
    return tables.cut(tables.printable(text, keep=""), width, "...")


def copies(logs: Sequence[PublicLog]) -> Iterator[tuple[int, int, str, str]]:
    """Trials that are the same run as another: index of the log, index of the trial, kind of finding and text."""
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
    trials = [(i, n, trial) for i, log in enumerate(logs) for n, trial in enumerate(log.trials)]
    for i, n, trial in trials:
        for key, *_ in _marks(trial):
            groups[key].append((i, n))
    for i, n, trial in trials:
        for key, kind, text in _marks(trial):
            if len(group := groups[key]) > 1:
                other = group[0] if group[0] != (i, n) else group[1]
                more = f" and {len(group) - 2} more" if len(group) > 2 else ""
                yield i, n, kind, f"{text} {_name(logs, other, i)}{more}"
                break


def _marks(trial: Trial) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """What identifies two trials as one run, the surest first: key, kind of finding, beginning of its text."""
    final = trial.final
    if final is None or final.step == 0:
        return
    several, timed = trial.evaluations > 1, final.train_time_ms is not None
    if timed or several:
        evaluations = f"all {trial.evaluations} evaluations are" if several else "its evaluation is"
        yield (trial.curve,), "duplicate", f"{evaluations} also those of"
    if trial.evaluations > 2:
        text = f"all {trial.evaluations} losses, though not the times, are also those of"
        yield (trial.losses, "losses"), "same-losses", text
    if timed:
        yield (final,), "duplicate", "the last evaluation, its time included, is also that of"


def _name(logs: Sequence[PublicLog], trial: tuple[int, int], index: int) -> str:
    """A trial's name in a text about the log of that index."""
    log, number = logs[trial[0]], trial[1] + 1
    if trial[0] == index:
        return f"trial {number}"
    return f"trial {number} of {log.path}" if len(log.trials) > 1 else log.path


def show(logs: Iterable[PublicLog]) -> str:
    """A table: a line for each log, below it its findings, with ! where they make it fall short."""
    logs = list(logs)
    header, *rows = tables.table(COLUMNS, map(_row, logs))
    lines = [header, tables.RULE]
    for log, row in zip(logs, rows, strict=True):
        path = tables.printable(log.path, keep="")
        if len(path) > 46:
            lines.append(path if len(path) <= tables.WIDTH else f"...{path[3 - tables.WIDTH :]}")
        lines.append(row)
        for finding in log.findings:
            mark = "  - " if finding.note else "  ! "
            lines += tables.paragraph(f"{finding.kind}: {finding.text}", mark, " " * 6)
    whole = sum(log.whole for log in logs)
    return "\n".join([*lines, tables.RULE, f"{len(logs)} logs: {whole} whole, {len(logs) - whole} fall short (!)"])


def _row(log: PublicLog) -> tuple[object, ...]:
    final, path = log.final, tables.printable(log.path, keep="")
    path = path if len(path) <= 46 else ""  # then it has a line of its own
    if final is None:
        return path, "refused", "", "", ""
    step = f"{final.step}/{final.steps}" if final.steps is not None else final.step
    time = "-" if final.train_time_ms is None else f"{final.train_time_ms / 1000:.3f} s"
    return path, step, f"{final.val_loss:.6g}", time, len(log.trials)
