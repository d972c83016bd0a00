"""The matrix fault x level: every fault of the catalogue planted in every backend, and where it is caught."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parity.compare.case import Case
from parity.compare.faults.diagnosis import matches
from parity.compare.faults.plant import Fault
from parity.compare.levels import LEVELS
from parity.compare.observation import Result
from parity.compare.runner import Comparison, Memo
from parity.compare.side import Side

PAIR = {"jaxrun": "torchref", "torchref": "jaxrun"}


@dataclass(frozen=True)
class Caught:
    """One fault in one backend and recipe: `level` where it was caught (None: missed), `margin` found / allowed."""

    fault: str
    backend: str
    recipe: str
    expected: str
    level: str | None
    line: str = ""
    place: str = ""
    margin: float = 0.0
    in_place: bool = False
    named: bool = False
    others: tuple[str, ...] = ()
    """Other faults of the catalogue that would give the very same numbers at this level."""

    @property
    def right(self) -> bool:
        """Caught at the level that it must be caught at, and at the right place."""
        return self.level == self.expected and self.in_place


def matrix(
    cases: Iterable[Case],
    faults: Iterable[Fault],
    backends: Iterable[str],
    progress: Callable[[Caught], None] = lambda caught: None,
) -> list[Caught]:
    """Plants each fault in each backend, compares with the other backend, and stops at the level that catches it."""
    found = []
    for case in cases:
        clean = {backend: Side(backend) for backend in PAIR}
        memo: Memo = {}
        for fault in faults:
            for backend in backends:
                if case.recipe.name in fault.recipes and backend in fault.backends:
                    caught = plant(fault, backend, case, clean, memo)
                    for key in [key for key in memo if key[0] == Side(backend, fault).identity]:
                        del memo[key]
                    progress(caught)
                    found.append(caught)
    return found


def plant(fault: Fault, backend: str, case: Case, clean: dict[str, Side], memo: Memo) -> Caught:
    """Plants one fault in one backend, and compares it with the other one of the clean sides."""
    a, b = Side(backend, fault), clean[PAIR[backend]]
    # the expensive last level only for the faults that show nowhere else
    levels = [level for level in LEVELS.values() if level.by_default or fault.level == level.name]
    results = Comparison(a, b, case, levels, memo=memo, writers=list(clean.values())).run()
    return _caught(fault, backend, case.recipe.name, results)


def _caught(fault: Fault, backend: str, recipe: str, results: list[Result]) -> Caught:
    finding = next((result.finding for result in results if result.finding), None)
    if finding is None:
        return Caught(fault.name, backend, recipe, fault.level, None)
    margin = finding.found / finding.allowed if finding.allowed else float("inf")
    named = tuple(reason.split(" planted in ")[0].split()[-1] for reason in finding.reasons if " planted in " in reason)
    return Caught(
        fault.name,
        backend,
        recipe,
        fault.level,
        finding.level,
        finding.line,
        finding.place,
        margin,
        matches(fault, finding),
        fault.name in named,
        tuple(name for name in named if name != fault.name),
    )
