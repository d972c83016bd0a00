"""Runs the levels one after another on two sides; the first that fails ends the comparison."""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from parity import weights as canonical
from parity.compare import low_precision
from parity.compare.case import Case
from parity.compare.faults.diagnosis import diagnosed
from parity.compare.judge import Names, judge
from parity.compare.levels import LEVELS, Level
from parity.compare.levels.training import written_by
from parity.compare.observation import Result, Seen
from parity.compare.side import Side
from parity.errors import InputError

OTHER_SEEDS = 10_000  # between the seeds of a trajectory and of its repetitions
Memo = dict[tuple[Any, str, Case], list[Seen]]


@dataclass
class Comparison:
    """Two sides on one case. `recorded` holds the errors of unplanted code by line (low_precision.py), `memo` what was seen of a side."""

    a: Side
    b: Side
    case: Case
    levels: list[Level]
    recorded: dict | None = None
    keep_going: bool = False
    diagnose: bool = True
    memo: Memo = field(default_factory=dict)
    writers: list[Side] | None = None
    truth: Side | None = None

    @property
    def names(self) -> Names:
        a, b = self.a.name, self.b.name
        return Names(
            f"a ({a})" if a == b else a,
            f"b ({b})" if a == b else b,
            bool(self.a.backend and self.b.backend),
            b_is_reference=bool(self.b.backend),
        )

    def run(self) -> list[Result]:
        """A result for every level."""
        if self.case.recipe.precision == "bfloat16" and any(level.numeric for level in self.levels):
            return self.run_draws()
        results: list[Result] = []
        for level in self.levels:
            failed = next((r.level for r in results if r.status == "fails"), None)
            if failed and not self.keep_going:
                results.append(Result(level.name, "not judged", f"it stands on {failed}, which fails"))
                continue
            begin_s = time.monotonic()
            result = self._judged(level)
            result.seconds = time.monotonic() - begin_s
            results.append(result)
        return results

    def _judged(self, level: Level) -> Result:
        if missing := self._missing(level):
            return Result(level.name, "not judged", missing)
        if level.name in ("evaluation", "restore"):
            self.write_runs()
        a, b = (side.observe(level, self.case, self.memo) for side in (self.a, self.b))
        precision = self.case.recipe.precision
        if precision == "float64" or not level.numeric:
            result = judge(level.name, a, b, self.names, precision)
        else:
            truth = self.truth.observe(level, self.case.exact, self.memo)
            result = judge(level.name, a, b, self.names, precision, truth, self.recorded)
        if level.name == "trajectory":
            result.curves = curves(a, b)
            if precision == "float32" and result.status == "fails":
                result = self._once_more(level, result)
        if result.finding and self.diagnose:
            result.finding = diagnosed(self.a, self.b, self.case, level, result.finding, a, b, self.memo)
        return result

    def run_draws(self, count: int = low_precision.DRAWS) -> list[Result]:
        """As `run`, in bfloat16: several draws of what rounding has a part in, judged by tests over all of them."""
        cases = [dataclasses.replace(self.case, seed=self.case.seed * count + i, written={}) for i in range(count)]
        exact = [level for level in self.levels if not level.numeric]
        first = dataclasses.replace(
            cases[0], written={}
        )  # level 9 reads real runs, level 8 here the weights of every draw
        results = {result.level: result for result in dataclasses.replace(self, case=first, levels=exact).run()}
        found: list[dict[str, list[low_precision.Size]]] = [{}, {}]
        for level in (level for level in self.levels if level.numeric):
            results[level.name] = self.drawn(level, cases, found)
        both = (self.a.name, self.b.name), (self.a.backend, self.b.backend)
        low_precision.add_tests(
            list(results.values()), low_precision.tests(found[0], found[1], self.recorded or {}, *both)
        )
        for result in results.values():
            if result.status == "holds" and not result.lines:
                result.status, result.reason = "not judged", "the two have no place in common"
        return [results[level.name] for level in self.levels]

    def drawn(self, level: Level, cases: list[Case], found: list[dict[str, list[low_precision.Size]]]) -> Result:
        """Adds the sizes of error of every draw to `found`, side by side; the result of what is exact."""
        begin_s = time.monotonic()
        if missing := self._missing(level):
            return Result(level.name, "not judged", missing)
        for case in cases:
            path = case.folder / f"start-{case.recipe.name}-{case.seed}.safetensors"
            canonical.save(path, case.start)
            case.written["weights of level 3"] = path
            a, b = (side.observe(level, case, self.memo) for side in (self.a, self.b))
            truth = self.truth.observe(level, case.exact, self.memo)
            for sizes, seen in zip(found, (a, b)):
                for key, size in low_precision.sizes(level.name, seen, truth).items():
                    sizes.setdefault(key, []).append(size)
            if case is cases[0]:
                result = low_precision.exact_result(level.name, a, b, self.names)
            self.memo.clear()
        result.seconds = time.monotonic() - begin_s
        return result

    def _missing(self, level: Level) -> str | None:
        """Why a level cannot be judged."""
        for side in (self.a, self.b):
            with side.active():
                missing = side.lacks(self.case.recipe, level.needs)
            if missing:
                return f"{side.name} has no method {missing}"
        if level.name == "layout" and not (self.a.backend and self.b.backend):
            return "devices and processes are jaxrun's and torchref's"
        if level.name == "layout" and self.case.recipe.precision != "float64":
            return "layouts are compared in float64"
        return None

    def _once_more(self, level: Level, failed: Result) -> Result:
        """A trajectory in float32 that fails is judged with two other seeds: one of some forty parts from float64 by
        chance. A mistake fails with every seed."""
        for seed in (self.case.seed + OTHER_SEEDS, self.case.seed + 2 * OTHER_SEEDS):
            case = dataclasses.replace(self.case, seed=seed, first=None)
            a, b, truth = (
                side.observe(level, x, self.memo)
                for side, x in ((self.a, case), (self.b, case), (self.truth, case.exact))
            )
            result = judge(level.name, a, b, self.names, "float32", truth, self.recorded)
            if result.status == "holds":
                result.curves = curves(a, b)
                result.reason = (
                    f"with seed {seed}; with {self.case.seed} {failed.finding.line} parted from float64 by chance"
                )
                return result
        return failed

    def write_runs(self) -> None:
        """Real runs of both sides, whose weights both then evaluate."""
        writers = self.writers or [self.a, self.b]
        if len(self.case.written) == len(writers):
            return
        for label, side in zip(("a", "b"), writers):
            name = f"{side.name}'s run" if writers[0].name != writers[1].name else f"{label}'s run"
            if name not in self.case.written:
                with side.active():
                    self.case.written[name] = written_by(side, self.case)


def curves(a: list[Seen], b: list[Seen]) -> dict[str, list[float]]:
    """Relative difference of losses and gradient norms at every step of a trajectory."""
    others = {seen.key: seen.value for seen in b}
    found = {}
    for seen in a:
        if seen.axes == ("step",) and seen.key in others:
            other = others[seen.key]
            found[seen.line] = [abs(float(x) - float(y)) / abs(float(y) or 1.0) for x, y in zip(seen.value, other)]
    return found


def chosen_levels(spec: str | None) -> list[Level]:
    """The levels that a text such as "1-5", "data,forward" or "all" names; by default 1 to 9. InputError for others."""
    names = list(LEVELS)
    if spec is None:
        return [level for level in LEVELS.values() if level.by_default]
    if spec == "all":
        return list(LEVELS.values())
    chosen: set[str] = set()
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [_number(x, names, spec) for x in ([first, last] if dash else [first])]
        if ends[0] > ends[-1]:
            raise InputError(f"--levels {spec}: expected {part.strip()} to end behind its beginning: turn it round")
        chosen |= set(names[ends[0] - 1 : ends[-1]])
    return [LEVELS[name] for name in names if name in chosen]


def _number(text: str, names: list[str], spec: str) -> int:
    if text in names:
        return names.index(text) + 1
    if text.isdecimal() and 1 <= int(text) <= len(names):
        return int(text)
    raise InputError(
        f"--levels {spec}: expected names or numbers of levels, found {text!r}; known: "
        f"{', '.join(f'{i} {name}' for i, name in enumerate(names, 1))}, or all"
    )
