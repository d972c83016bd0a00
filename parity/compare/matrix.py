"""The matrix fault x level: every fault of the catalogue planted in every backend, and the level that catches it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parity.compare.case import Case
from parity.compare.diagnosis import matches, named_faults
from parity.compare.faults.plant import Fault
from parity.compare.levels import LEVELS
from parity.compare.observation import ratio
from parity.compare.runner import Comparison
from parity.compare.side import Memo, Side

OTHER = {"jaxrun": "torchref", "torchref": "jaxrun"}


@dataclass(frozen=True)
class Caught:
    """One fault in one backend and recipe: the `level` that caught it (None: missed), `margin` measured / allowed."""

    fault: str
    backend: str
    recipe: str
    expected: str
    level: str | None
    line: str = ""
    location: str = ""
    margin: float = 0.0
    at_location: bool = False
    named: bool = False
    others: tuple[str, ...] = ()
    """Other faults of the catalogue that would give the very same numbers at this level."""

    @property
    def correct(self) -> bool:
        """Whether the level and the location are those that must catch it."""
        return self.level == self.expected and self.at_location


def matrix(
    cases: Iterable[Case],
    faults: Iterable[Fault],
    backends: Iterable[str],
    progress: Callable[[Caught], None] = lambda caught: None,
) -> list[Caught]:
    """Plants each fault in each backend, compares with the other backend, and stops at the level that catches it."""
    rows = []
    for case in cases:
        clean = {backend: Side(backend) for backend in OTHER}
        memo: Memo = {}
        for fault in (fault for fault in faults if case.recipe.name in fault.recipes):
            for backend in (backend for backend in backends if backend in fault.backends):
                rows.append(plant(fault, backend, case, clean, memo))
                for key in [key for key in memo if key[0] == Side(backend, fault).identity]:
                    del memo[key]
                progress(rows[-1])
    return rows


def plant(fault: Fault, backend: str, case: Case, clean: dict[str, Side], memo: Memo) -> Caught:
    """Plants one fault in one backend, and compares it with the other one of the clean sides."""
    # the expensive last level only for the faults that show nowhere else
    levels = [level for level in LEVELS.values() if level.by_default or fault.level == level.name]
    sides = Side(backend, fault), clean[OTHER[backend]]
    results = Comparison(*sides, case, levels, memo=memo, writers=list(clean.values())).run()
    finding = next((result.finding for result in results if result.finding), None)
    planted = fault.name, backend, case.recipe.name, fault.level
    if finding is None:
        return Caught(*planted, None)
    margin, named = ratio(finding.measured, finding.allowed), named_faults(finding)
    return Caught(
        *planted,
        finding.level,
        finding.line,
        finding.location,
        margin,
        at_location=matches(fault, finding),
        named=fault.name in named,
        others=tuple(name for name in named if name != fault.name),
    )
