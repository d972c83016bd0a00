"""What is said of public logs: their trials, what was found, copies among them, and the table."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 100
NOTES = frozenset(
    (
        "several-trials",
        "repeated-lines",
        "clock-restarts",
        "step-avg-skips-steps",
        "step-avg-of-interval",
        "one-evaluation",
        "other-hardware",
        "several-devices",
    )
)
"""The kinds of findings that do not make a log fall short."""


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
            "path": self.path,
            "final": _final_json(self.final),
            "refused": self.refused,
            "whole": self.whole,
            "trials": [
                {
                    "final": _final_json(t.final),
                    "complete": t.complete,
                    "step_avg_ms": t.step_avg_ms,
                    "evaluations": t.evaluations,
                    "line": t.line,
                }
                for t in self.trials
            ],
            "hardware": {"devices": list(self.devices), "count": self.device_count} if self.devices else None,
            "findings": [asdict(finding) for finding in self.findings],
        }


def _final_json(final: Final | None) -> dict[str, Any] | None:
    if final is None:
        return None
    return asdict(final) | ({} if math.isfinite(final.val_loss) else {"val_loss": str(final.val_loss)})


class Findings:
    """Findings by kind, in the order in which they came up: of each kind the first three, and how many more."""

    def __init__(self) -> None:
        self.texts: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self.more: dict[str, int] = defaultdict(int)

    def add(self, kind: str, text: str, trial: int = 0) -> None:
        """Enters one; `trial` counts from 1, and 0 stands for the file as a whole."""
        texts = self.texts[kind]
        if text in texts or len(texts) < 3:
            texts.setdefault(text, []).append(trial)
        else:
            self.more[kind] += 1

    def done(self, trials: int) -> tuple[Finding, ...]:
        """All of them; of several trials, each says which it is of."""
        found = []
        for kind, texts in self.texts.items():
            for text, numbers in texts.items():
                which = f"trial {', '.join(map(str, numbers[:3]))}{' and others' if len(numbers) > 3 else ''}: "
                if len(numbers) == trials:
                    which = f"all {trials} trials: "
                found.append(Finding(kind, printable((which if trials > 1 and numbers[0] else "") + text, 240)))
            if self.more[kind]:
                found.append(Finding(kind, f"and {self.more[kind]} more"))
        return tuple(found)


def printable(text: str, longest: int) -> str:
    """Text from a file or a file's name, without what a terminal would obey, cut to a length."""
    text = "".join(c if c.isprintable() else "?" for c in text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 3] + "..."


def copies(logs: Sequence[PublicLog]) -> Iterator[tuple[int, int, str, str]]:
    """Trials that are not another run of their own: which log, which trial, the kind of finding and its text."""
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
    for at, log in enumerate(logs):
        for n, trial in enumerate(log.trials):
            for key, *_ in _marks(trial):
                groups[key].append((at, n))
    for at, log in enumerate(logs):
        for n, trial in enumerate(log.trials):
            for key, kind, text in _marks(trial):
                if len(group := groups[key]) > 1:
                    other = group[0] if group[0] != (at, n) else group[1]
                    yield (
                        at,
                        n,
                        kind,
                        f"{text} {_place(logs, other, at)}" + (f" and {len(group) - 2} more" if len(group) > 2 else ""),
                    )
                    break


def _marks(trial: Trial) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """By what two trials are known to be one run, from the surest on: key, kind of finding, beginning of its text."""
    final = trial.final
    if final is None or final.step == 0:
        return
    timed = final.train_time_ms is not None
    if timed or trial.evaluations > 1:
        evaluations = f"all {trial.evaluations} evaluations are" if trial.evaluations > 1 else "its evaluation is"
        yield (trial.curve,), "duplicate", f"{evaluations} also those of"
    if trial.evaluations > 2:
        yield (
            (trial.losses, "losses"),
            "same-losses",
            f"all {trial.evaluations} losses, though not the times, are also those of",
        )
    if timed:
        yield (final,), "duplicate", "the last evaluation, its time included, is also that of"


def _place(logs: Sequence[PublicLog], place: tuple[int, int], at: int) -> str:
    log, trial = logs[place[0]], place[1] + 1
    if place[0] == at:
        return f"trial {trial}"
    return f"trial {trial} of {log.path}" if len(log.trials) > 1 else log.path


def show(logs: Iterable[PublicLog]) -> str:
    """A table that fits 100 columns: a line for each log, below it what was found, with ! where it makes the log fall short."""
    logs = list(logs)
    lines = [f"{'log':<47}{'step':>16} {'val loss':>10} {'train time':>15} {'trials':>8}", "-" * WIDTH]
    for log in logs:
        final, path = log.final, printable(log.path, 4096)
        if len(path) > 46:
            lines.append(path if len(path) <= WIDTH else f"...{path[3 - WIDTH :]}")
            path = ""
        lines.append(f"{path:<47}" + (f"{'refused':>16}" if final is None else _row(log)))
        for finding in log.findings:
            first = "  - " if finding.note else "  ! "
            lines += textwrap.wrap(
                f"{finding.kind}: {finding.text}", WIDTH, initial_indent=first, subsequent_indent=" " * 6
            )
    whole = sum(log.whole for log in logs)
    return "\n".join([*lines, "-" * WIDTH, f"{len(logs)} logs: {whole} whole, {len(logs) - whole} fall short (!)"])


def _row(log: PublicLog) -> str:
    final = log.final
    step = f"{final.step}/{final.steps}" if final.steps is not None else f"{final.step}"
    time = "-" if final.train_time_ms is None else f"{final.train_time_ms / 1000:.3f} s"
    return f"{step:>16} {final.val_loss:>10.6g} {time:>15} {len(log.trials):>8}"
