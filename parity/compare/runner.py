"""Runs the levels one after another on two sides; the first that fails ends the comparison."""

import dataclasses
import time
from dataclasses import dataclass, field

from parity import weights as canonical
from parity.compare import low_precision
from parity.compare.case import Case
from parity.compare.diagnosis import diagnosed
from parity.compare.judge import Pairing, judge
from parity.compare.levels import LEVELS, Level
from parity.compare.observation import Observation, Result
from parity.compare.side import Memo, Side
from parity.compare.training import write_run
from parity.errors import InputError

SEED_STRIDE = 10_000  # between the seeds of a trajectory and of its repetitions


@dataclass
class Comparison:
    """Two sides on one case. `recorded`: the errors of fault-free code (reference_errors.py); `memo`: observations so
    far; `writers`: sides whose runs are evaluated, by default the two; `truth`: the side that computes in float64."""

    a: Side
    b: Side
    case: Case
    levels: list[Level]
    recorded: dict | None = None
    keep_going: bool = False
    diagnose: bool = True
    memo: Memo = field(default_factory=dict)
    writers: list[Side] | None = None
    truth: Side = field(default_factory=lambda: Side("torchref"))

    @property
    def pairing(self) -> Pairing:
        """Names, and what is asked of the two: backends must both show everything."""
        a, b = self.a.name, self.b.name
        if a == b:
            a, b = f"a ({a})", f"b ({b})"
        return Pairing(a, b, strict=bool(self.a.backend and self.b.backend), b_is_reference=bool(self.b.backend))

    def run(self) -> list[Result]:
        """A result for every level."""
        if self.case.recipe.precision == "bfloat16" and any(level.numeric for level in self.levels):
            return self._run_over_seeds()
        results: list[Result] = []
        for level in self.levels:
            failed = next((r.level for r in results if r.status == "fails"), None)
            if failed and not self.keep_going:
                results.append(Result(level.name, "not judged", f"it stands on {failed}, which fails"))
                continue
            begin_s = time.monotonic()
            held = [r.level for r in results if r.status == "holds" and not r.reason]
            result = self._run_level(level, held)
            result.seconds = time.monotonic() - begin_s
            results.append(result)
        return results

    def _run_level(self, level: Level, held: list[str]) -> Result:
        """The result of a level; `held`: the levels before it that hold at every location."""
        if missing := self._missing(level):
            return Result(level.name, "not judged", missing)
        if level.name in ("evaluation", "restore"):
            self.write_runs()
        a, b = self._observe(level, self.case)
        result = self._judge(level, self.case, a, b)
        if level.name == "trajectory":
            result.curves = curves(a, b)
            if self.case.recipe.precision == "float32" and result.finding:
                result = self._with_other_seeds(level, result, result.finding.line)
        if result.finding and self.diagnose:
            result.finding = diagnosed(result.finding, level, self.case, {self.a: a, self.b: b}, self.memo, held)
        return result

    def _observe(self, level: Level, case: Case) -> list[list[Observation]]:
        return [side.observe(level, case, self.memo) for side in (self.a, self.b)]

    def _judge(self, level: Level, case: Case, a: list[Observation], b: list[Observation]) -> Result:
        precision, truth = case.recipe.precision, None
        if precision != "float64" and level.numeric:
            truth = self.truth.observe(level, case.exact, self.memo)
        return judge(level.name, a, b, self.pairing, precision, truth, self.recorded)

    def _with_other_seeds(self, level: Level, failed: Result, line: str) -> Result:
        """A trajectory in float32 that fails is judged with two other seeds: one of some forty departs from float64 by
        chance, a mistake fails with every seed."""
        for seed in (self.case.seed + SEED_STRIDE, self.case.seed + 2 * SEED_STRIDE):
            case = dataclasses.replace(self.case, seed=seed, first=None)
            a, b = self._observe(level, case)
            result = self._judge(level, case, a, b)
            if result.status == "holds":
                result.curves = curves(a, b)
                result.reason = f"with seed {seed}; with {self.case.seed} {line} parted from float64 by chance"
                return result
        return failed

    def _run_over_seeds(self, count: int = low_precision.SEEDS) -> list[Result]:
        """As `run`, in bfloat16: numeric levels over several seeds, judged by tests over all of them."""
        cases = [dataclasses.replace(self.case, seed=self.case.seed * count + i, written={}) for i in range(count)]
        # of its own, since restore reads real runs, and evaluation here the weights of every seed
        first = dataclasses.replace(cases[0], written={})
        exact = dataclasses.replace(self, case=first, levels=[level for level in self.levels if not level.numeric])
        results = {result.level: result for result in exact.run()}
        errors: tuple[low_precision.PerSeed, low_precision.PerSeed] = {}, {}
        for level in (level for level in self.levels if level.numeric):
            results[level.name] = self.measure_errors(level, cases, errors)
        names, backends = (self.a.name, self.b.name), (self.a.backend, self.b.backend)
        tests = low_precision.ratio_tests(*errors, self.recorded or {}, names, backends)
        low_precision.enter_tests(list(results.values()), tests)
        for result in results.values():
            if result.status == "holds" and not result.lines:
                result.status, result.reason = "not judged", "the two have no place in common"
        return [results[level.name] for level in self.levels]

    def measure_errors(
        self, level: Level, cases: list[Case], errors: tuple[low_precision.PerSeed, low_precision.PerSeed]
    ) -> Result:
        """Adds the errors of every seed to those of the two sides; the result of what does not depend on rounding."""
        begin_s, result = time.monotonic(), Result(level.name, "holds")
        if missing := self._missing(level):
            return Result(level.name, "not judged", missing)
        for case in cases:
            path = case.folder / f"start-{case.recipe.name}-{case.seed}.safetensors"
            canonical.save(path, case.start)
            case.written["weights of level 3"] = path
            a, b = self._observe(level, case)
            truth = self.truth.observe(level, case.exact, self.memo)
            for per_seed, observations in zip(errors, (a, b), strict=True):
                for key, of_line in low_precision.log_errors(level.name, observations, truth).items():
                    per_seed.setdefault(key, []).append(of_line)
            if case is cases[0]:
                result = low_precision.exact_result(level.name, a, b, self.pairing)
            self.memo.clear()
        result.seconds = time.monotonic() - begin_s
        return result

    def _missing(self, level: Level) -> str | None:
        """Why a level cannot be judged."""
        for side in (self.a, self.b):
            with side.active():
                missing = side.program(self.case.recipe).missing(*level.needs)
            if missing:
                return f"{side.name} has no method {missing}"
        if level.name == "layout" and not (self.a.backend and self.b.backend):
            return "devices and processes are jaxrun's and torchref's"
        if level.name == "layout" and self.case.recipe.precision != "float64":
            return "layouts are compared in float64"
        return None

    def write_runs(self) -> None:
        """Writes real runs of both sides, whose weights both then evaluate."""
        writers, written = self.writers or [self.a, self.b], self.case.written
        if len(written) == len(writers):
            return
        same = writers[0].name == writers[1].name
        for label, side in zip("ab", writers, strict=True):
            name = f"{label if same else side.name}'s run"
            if name not in written:
                with side.active(), side.answering("a run"):
                    written[name] = write_run(side, self.case)


def curves(a: list[Observation], b: list[Observation]) -> dict[str, list[float]]:
    """Relative difference of losses and gradient norms at every step of a trajectory."""
    others = {x.key: x.value for x in b}
    return {
        x.line: [abs(float(p) - float(q)) / abs(float(q) or 1.0) for p, q in zip(x.value, others[x.key], strict=False)]
        for x in a
        if x.axes == ("step",) and x.key in others
    }


def chosen_levels(spec: str | None) -> list[Level]:
    """The levels that a text such as "1-5", "data,forward" or "all" names; by default 1 to 9. InputError for others."""
    names = list(LEVELS)
    if spec is None:
        return [level for level in LEVELS.values() if level.by_default]
    if spec == "all":
        return list(LEVELS.values())
    chosen: set[str] = set()
    for item in spec.split(","):
        first, dash, last = item.strip().partition("-")
        ends = [_number(x, names, spec) for x in ([first, last] if dash else [first])]
        if ends[0] > ends[-1]:
            raise InputError(f"--levels {spec}: expected {item.strip()} to end behind its beginning: turn it round")
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
