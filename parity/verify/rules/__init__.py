"""The list of rules, what they look at, and how they are run. The rules themselves are in the *_rules modules."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity.data.slices import Slice, open_slice, prepare_command
from parity.errors import InputError
from parity.verify.evidence import Evidence
from parity.verify.verdict import DEPTHS, Judgement, Rule, Status


class Found(NamedTuple):
    """What a rule found."""

    status: Status
    reason: str
    evidence: dict[str, Any]


# What evidence of a form that no schema foresaw leads to: never counted as held, and no reason to stop judging.
STRANGE = (
    OSError,
    MemoryError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    ArithmeticError,
)


class NotJudged(Exception):
    """Why a rule could not be judged, in a sentence that says what to do."""


def holds(reason: str, **evidence: Any) -> Found:
    return Found("holds", reason, evidence)


def fails(reason: str, **evidence: Any) -> Found:
    return Found("fails", reason, evidence)


@dataclass
class Context:
    """What the rules of one run look at; what costs something is made when the first rule asks for it."""

    evidence: Evidence
    data_dir: Path | None
    seed: int
    """Of everything that is picked at random: chosen after the run, so that the run could not know it."""
    segments: int
    trust_code: bool
    scratch: Path
    device: str = "auto"
    whole: bool = False
    """Make the whole training again from the seed, and trust no checkpoint."""
    facts: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, Any] = field(default_factory=dict)
    closing: list[Callable[[], None]] = field(default_factory=list)

    @property
    def log(self):
        return self.evidence.log

    @cached_property
    def slice(self) -> Slice:
        """The track's slice. Raises NotJudged where it is not on this machine."""
        name = self.evidence.track.slice
        try:
            return open_slice(name, self.data_dir)
        except InputError as error:
            raise NotJudged(
                f"slice {name} is not here ({error}): get it with {prepare_command(name, self.data_dir)}"
            ) from None

    @property
    def remote(self):
        """The program, in a process apart. Raises NotJudged where it may not or cannot run."""
        return self.started("remote")

    def started(self, name: str):
        """A process apart of its own for one purpose, started once; where that fails, it fails the same way again at once."""
        from parity.verify.sandbox.client import Remote

        if name not in self.processes:
            try:
                self.processes[name] = Remote.start(self)
                self.closing.append(self.processes[name].close)
            except NotJudged as reason:
                self.processes[name] = reason
        if isinstance(self.processes[name], NotJudged):
            raise self.processes[name]
        return self.processes[name]

    def random(self, name: str) -> np.random.Generator:
        """Random numbers for one purpose, the same for a seed however many others were drawn."""
        from parity.weights import generator

        return generator(self.seed, name)

    def close(self) -> None:
        """Ends the process apart."""
        while self.closing:
            self.closing.pop()()


Check = Callable[[Context], Found]
RULES: dict[str, tuple[Rule, Check]] = {}


def rule(id: str, depth: str, sentence: str) -> Callable[[Check], Check]:
    """Enters a function into the list of rules."""

    def enter(check: Check) -> Check:
        RULES[id] = Rule(id, depth, sentence), check
        return check

    return enter


def chosen(depth: str, without: Iterable[str] = ()) -> list[tuple[Rule, Check]]:
    """The rules up to a depth, cheapest first, less some."""
    allowed = DEPTHS[: DEPTHS.index(depth) + 1]
    without = set(without)
    return sorted(
        (pair for name, pair in RULES.items() if pair[0].depth in allowed and name not in without),
        key=lambda pair: DEPTHS.index(pair[0].depth),
    )


def judge(rules: Iterable[tuple[Rule, Check]], context: Context, say: Callable[[str], None]) -> list[Judgement]:
    """Judges rule after rule; one that cannot be judged does not keep the others from it."""
    judgements = []
    for one, check in rules:
        say(f"{one.id}: {one.sentence}")
        begin_s = time.monotonic()
        try:
            found = check(context)
        except NotJudged as reason:
            found = Found("not judged", str(reason), {})
        except InputError as error:  # what the run left behind is not of the form it must have
            found = Found("not judged", str(error), {})
        except STRANGE as error:
            found = Found(
                "not judged", f"the evidence makes no sense here ({type(error).__name__}: {str(error)[:100]})", {}
            )
        judgements.append(Judgement(one.id, found.status, found.reason, time.monotonic() - begin_s, found.evidence))
    return judgements
