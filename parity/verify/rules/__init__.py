"""The list of rules, and how they are run. The modules of this package enter their rules when they are imported."""

import importlib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from parity.errors import InputError
from parity.verify.context import Context, NotJudged
from parity.verify.sandbox.client import SandboxError
from parity.verify.verdict import DEPTHS, Judgement, Rule, Status

# What evidence of an unforeseen form may raise: it is never counted as held, and no reason to stop judging.
MALFORMED = (
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

OWN_CODE = "the code is the verifier's own"


class Finding(NamedTuple):
    """What a rule says of a run or an attempt."""

    status: Status
    reason: str
    evidence: dict[str, Any]


def holds(reason: str, **evidence: Any) -> Finding:
    return Finding("holds", reason, evidence)


def fails(reason: str, **evidence: Any) -> Finding:
    return Finding("fails", reason, evidence)


def not_judged(reason: str, **evidence: Any) -> Finding:
    return Finding("not judged", reason, evidence)


Check = Callable[[Context], Finding]
RULES: dict[str, tuple[Rule, Check]] = {}
BESIDE: dict[str, Callable[[Context], Any]] = {}


def rule(
    id: str, depth: str, sentence: str, beside: Callable[[Context], Any] | None = None
) -> Callable[[Check], Check]:
    """Enters a function into the list of rules. `beside` begins work for it that goes on beside rules before it."""

    def enter(check: Check) -> Check:
        RULES[id] = Rule(id, depth, sentence), check
        if beside:
            BESIDE[id] = beside
        return check

    return enter


def chosen(depth: str, without: Iterable[str] = ()) -> list[tuple[Rule, Check]]:
    """The rules up to a depth, cheapest first, without some."""
    allowed = DEPTHS[: DEPTHS.index(depth) + 1]
    without = set(without)
    pairs = [pair for name, pair in RULES.items() if pair[0].depth in allowed and name not in without]
    return sorted(pairs, key=lambda pair: DEPTHS.index(pair[0].depth))


def begin_beside(context: Context, rules: Iterable[Rule]) -> None:
    """Begins what goes on beside the rules of depth `recompute`. What cannot begin is said where its rule is judged."""
    for each in rules:
        if each.id in BESIDE:
            with suppress(NotJudged, SandboxError, InputError, *MALFORMED):
                context.once(BESIDE[each.id])


def judge(id: str, check: Callable[[], Finding]) -> Judgement:
    """Judges one rule. Whatever the evidence makes it raise leaves the rule not judged."""
    begin_s = time.monotonic()
    try:
        finding = check()
    except (NotJudged, SandboxError, InputError) as error:
        finding = not_judged(str(error))
    except MALFORMED as error:
        finding = not_judged(f"the evidence is malformed ({type(error).__name__}: {str(error)[:100]})")
    return Judgement(id, finding.status, finding.reason, time.monotonic() - begin_s, finding.evidence)


MODULES = (  # in the order of the list
    *("log", "clock", "data", "guard", "probe", "lookahead", "recompute", "movement", "seeds", "replay", "work"),
    *("knowledge", "relabelled"),
)
for _module in MODULES:
    importlib.import_module(f"{__name__}.{_module}")
