"""Verifies an attempt: every run of it, that nothing was left out or picked, and the claim by the track's own test."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from parity import statistics
from parity.declaration.cost import spent
from parity.declaration.record import Declaration, read_declaration, read_record, runs_of, seeds_for
from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.track import TRACKS
from parity.verify.evidence import Evidence, logged_float, open_run
from parity.verify.rules import Finding, fails, holds, judge, not_judged
from parity.verify.rules.log import harness_code
from parity.verify.run import Settings, verify_run, version
from parity.verify.verdict import Rule, Verdict

LEVEL = 0.01  # of the one-sided test of a claim, as on the public track
SPREAD_LEVEL = 1e-4  # of a spread as small by chance, where the true one is half of the baseline's
SHARED = ("recipe", "plan", "backend", "devices", "host", "environment", "options", "versions")


def is_attempt(path: Path) -> bool:
    """Whether a folder is an attempt's."""
    try:
        return (path / "attempt.jsonl").is_file() or (path / "declaration.json").is_file()
    except OSError as error:  # no file can have such a name
        raise InputError(f"{str(path)[:80]}: cannot be opened ({error.strerror}): check the name") from None


@dataclass
class Attempt:
    """An attempt's folder: its declaration, its record, and its final runs in the order of the declaration."""

    folder: Path
    declaration: Declaration
    record: list[dict[str, Any]]

    @property
    def declared(self) -> dict[str, Any] | None:
        """The last declaration of seeds."""
        return next((event for event in reversed(self.record) if event["event"] == "declared"), None)

    def finals(self) -> list[dict[str, Any]]:
        """The final runs that were started since the last declaration, each once, in order."""
        last = max((i for i, event in enumerate(self.record) if event["event"] == "declared"), default=0)
        started: dict[str, dict[str, Any]] = {}
        for event in self.record[last:]:
            if event["event"] == "started" and event["purpose"] == "final":
                started.setdefault(event["run"], event)
        return list(started.values())

    def path(self, run: str) -> Path:
        """A run's directory; InputError for one outside the attempt."""
        path = (self.folder / run).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise InputError(
                f"{self.folder}: its record names the run {run[:80]!r} outside its folder: the record was changed"
            )
        return path


@dataclass
class Case:
    """What the rules of an attempt judge: the verdicts on its final runs, and why the others could not be opened."""

    attempt: Attempt
    baseline: Path | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    opened: dict[Path, Evidence] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, Evidence]:
        """The final runs whose directory exists, by their name in the record."""
        paths = {event["run"]: self.attempt.path(event["run"]) for event in self.attempt.finals()}
        return {run: self.open(path) for run, path in paths.items() if path.is_dir()}

    def open(self, path: Path) -> Evidence:
        """A run's evidence, read once."""
        if path not in self.opened:
            self.opened[path] = open_run(path)
        return self.opened[path]


def open_attempt(folder: Path) -> Attempt:
    """Reads an attempt; InputError where its declaration or its record cannot be read."""
    record = folder / "attempt.jsonl"
    declaration = read_declaration(folder / "declaration.json")
    return Attempt(folder, declaration, read_record(record) if record.exists() else [])


def judge_attempt(
    folder: Path,
    *,
    depth: str = "replay",
    data_dir: Path | None = None,
    trust_code: bool = False,
    baseline: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    settings: Settings | None = None,
) -> Verdict:
    """The verdict on an attempt: its runs', then its own rules. Raises InputError where its folder cannot be read."""
    settings = settings or Settings(depth, data_dir, trust_code=trust_code)
    attempt = open_attempt(folder)
    case = Case(attempt, baseline)
    if (claimed := attempt.declaration.claim.at_step) is not None:
        settings = replace(settings, at_steps=(claimed,))
    for event in attempt.finals():
        say(f"run {event['run']}")
        try:
            case.verdicts.append(verify_run(attempt.path(event["run"]), settings, say))
        except InputError as error:
            case.missing.append(str(error))
    judgements = tuple(judge(id, partial(check, case)) for id, check in CHECKS.items())
    facts = {name: getattr(attempt.declaration, name) for name in ("author", "kind", "track", "backend")}
    facts |= {"started": costs(attempt), "version": version()}
    if case.verdicts:
        facts["isolation"] = case.verdicts[0].facts.get("isolation", "not asked")
    return Verdict(str(folder), settings.depth, judgements, frozenset(RULES), facts, tuple(case.verdicts))


def costs(attempt: Attempt) -> dict[str, Any]:
    """Runs, seconds of training and FLOPs of everything that was ever started for the attempt, by its record."""
    runs = runs_of(attempt.record)
    return {**asdict(spent(runs)), "tuning": sum(run.purpose == "tune" for run in runs)}


RULES: dict[str, Rule] = {}
CHECKS: dict[str, Callable[[Case], Finding]] = {}


def rule(id: str, sentence: str) -> Callable[[Callable[[Case], Finding]], Callable[[Case], Finding]]:
    """Enters a function into the rules of attempts."""

    def enter(check: Callable[[Case], Finding]) -> Callable[[Case], Finding]:
        RULES[id], CHECKS[id] = Rule(id, "log", sentence), check
        return check

    return enter


@rule(
    "attempt.declared",
    "the seeds were declared before the first run, as the digests of program and declaration give them",
)
def declared(case: Case) -> Finding:
    attempt, event = case.attempt, case.attempt.declared
    if event is None:
        return not_judged("nothing was declared yet: python -m parity.attempt run")
    if event["runs"] != attempt.declaration.runs:
        return fails(f"the declaration has {attempt.declaration.runs} runs, the record {event['runs']}")
    seeds = seeds_for(event["program_sha256"], event["declaration_sha256"], event["runs"])
    if event["seeds"] != seeds:
        return fails(f"expected the seeds {seeds[:3]}..., found {event['seeds'][:3]}...: they are not free to choose")
    digests = {"declaration.json": event["declaration_sha256"], attempt.declaration.file: event["program_sha256"]}
    for name, digest in digests.items():
        if not (attempt.folder / name).is_file() or sha256_file(attempt.folder / name) != digest:
            return fails(
                f"{name} is no longer what was declared (sha256 {digest[:12]}): put it back, or make a new declaration "
                "with --again"
            )
    for started in attempt.finals():
        if started["seed"] not in seeds:
            return fails(f"{started['run']} has seed {started['seed']}, which was not declared")
    used = {verdict.subject: verdict.facts["seed"] for verdict in case.verdicts}
    for started in attempt.finals():
        path = attempt.path(started["run"])
        if str(path) not in used:
            continue  # attempt.complete judges missing runs
        if used[str(path)] != started["seed"]:
            return fails(f"{started['run']} was declared with seed {started['seed']} and made with {used[str(path)]}")
        starts = case.open(path).log.of("start")
        if starts and starts[0]["time_s"] < event["time_s"] - 1:
            return fails(f"{started['run']} began before its seed was declared")
    return holds(f"{len(seeds)} seeds, {seeds[0]} first", seeds=seeds)


@rule("attempt.complete", "every declared run is there, in order, and no other took its place")
def complete(case: Case) -> Finding:
    event = case.attempt.declared
    if event is None:
        return not_judged("nothing was declared yet")
    order = [started["seed"] for started in case.attempt.finals()]
    if order != event["seeds"][: len(order)]:
        return fails("the runs were not made in the order of the declared seeds")
    if case.missing:
        return fails(case.missing[0], missing=case.missing)
    if len(order) < len(event["seeds"]):
        return fails(
            f"{len(event['seeds'])} runs were declared, {len(order)} were made: continue with python -m parity.attempt "
            "run"
        )
    return holds(f"all {len(order)} declared runs")


@rule("attempt.alike", "all runs have one program, one plan, one stopping step and one kind of hardware")
def alike(case: Case) -> Finding:
    runs, event, track = list(case.runs.values()), case.attempt.declared, case.attempt.declaration.track
    if not runs or event is None:
        return not_judged("there are no runs")
    first = runs[0]
    for run in runs:
        name, file = run.path.name, _user_file(run)
        if (digest := hashlib.sha256(run.source.get(file, b"")).hexdigest()) != event["program_sha256"]:
            return fails(f"{name} has a program of digest {digest[:12]}, declared was {event['program_sha256'][:12]}")
        if run.track.name != track:
            return fails(f"{name} is on track {run.track.name}, declared was {track}")
        if different := [fact for fact in SHARED if run.run.get(fact) != first.run.get(fact)]:
            return fails(f"{name} differs from {first.path.name} in {different[0]}")
        if harness_code(run) != harness_code(first):
            return fails(f"{name} differs from {first.path.name} in the code of harness or backend")
        if run.steps != first.steps or not len(run.log.step) or int(run.log.step.max()) != int(first.log.step.max()):
            return fails(f"{name} stopped at another step than {first.path.name}")
    return holds(f"{len(runs)} runs of {first.steps:,} steps on {first.run['devices'][0]['kind']}")


def _user_file(run: Evidence) -> str:
    """The file in a run's source that an attempt's own code is in."""
    return run.user_program["file"] if run.user_program else (run.optimizer or "").partition(":")[0] + ".py"


@rule("attempt.twins", "no two runs have the same losses or the same weights")
def twins(case: Case) -> Finding:
    names: dict[tuple[str, str], str] = {}
    for name, run in case.runs.items():
        log, weights = run.log, run.log.states("final weights")
        keys = [("weights", weights[-1]["digest"] if weights else str(run.path))]
        if len(log.n) > 1:
            keys.insert(0, ("losses", log.columns["loss"].tobytes().hex()[:4096]))
        for key in keys:
            if key in names:
                return fails(f"{name} and {names[key]} have the same {key[0]}")
            names[key] = name
    return holds(f"{len(case.attempt.finals())} different runs")


@rule("attempt.spread", "the final losses of the runs scatter as those of different seeds do")
def spread(case: Case) -> Finding:
    track = TRACKS[case.attempt.declaration.track]
    losses = [_loss(case, verdict, None) for verdict in case.verdicts]
    if len(losses) < 2:
        return holds("one run does not scatter")
    if track.spread is None:
        return holds(f"the baseline's spread on track {track.name} is not known yet")
    p = statistics.p_spread(losses, track.spread)
    sd = statistics.standard_deviation(losses)
    figures = {"sd": sd, "baseline": 2 * track.spread, "p": p}
    if not p >= SPREAD_LEVEL:
        return fails(
            f"the final losses of {len(losses)} runs have a standard deviation of {sd:.2g}: expected about "
            f"{2 * track.spread:.2g}, the baseline's; even at half of that p is {p:.1g}: these are no different seeds",
            **figures,
        )
    return holds(f"standard deviation {sd:.2g} of {len(losses)} runs, the baseline's {2 * track.spread:.2g}", **figures)


@rule("attempt.budget", "everything ever started for it is counted, and within its budget")
def budget(case: Case) -> Finding:
    attempt, cost, limits = case.attempt, costs(case.attempt), asdict(case.attempt.declaration.budget)
    counted = {str(attempt.path(event["run"])) for event in attempt.record if event["event"] == "started"}
    folders = (path.parent for path in attempt.folder.glob("runs/*/*/run.json"))
    if uncounted := [path for path in folders if str(path.resolve()) not in counted]:
        name = uncounted[0].relative_to(attempt.folder)
        return fails(f"{name} is not in the record of what was started", started=cost)
    for name, limit in limits.items():
        if limit is not None and (cost[name] is None or cost[name] > limit * (1 + 1e-9)):
            used = cost[name] or "an unknown amount"
            return fails(f"{name}: the budget is {limit:g}, {used} were spent", started=cost)
    flops = f"{cost['flops']:.3g}" if cost["flops"] is not None else "an unknown number of"
    return holds(f"{cost['runs']} runs, {cost['seconds']:.0f} s, {flops} FLOPs, tuning included", started=cost)


@rule("attempt.claim", "the claim holds by the track's test, over all declared runs")
def claim(case: Case) -> Finding:
    attempt, claimed = case.attempt, case.attempt.declaration.claim
    track, event = TRACKS[attempt.declaration.track], attempt.declared
    losses = [_loss(case, verdict, claimed.at_step) for verdict in case.verdicts]
    target = track.target if claimed.val_loss_below is None else claimed.val_loss_below
    if claimed.val_loss_below is None and claimed.seconds is None:
        mean = f"; mean {sum(losses) / len(losses):.4f} of {len(losses)}" if losses else ""
        return holds(f"nothing is claimed: nothing to test{mean}", losses=losses)
    if target is None:
        return holds(f"track {track.name} has no target and no loss was claimed: nothing to test", losses=losses)
    if event is None or len(losses) < len(event["seeds"]) or case.missing:
        return not_judged(f"{len(losses)} of the declared runs can be counted: all must be", losses=losses)
    seconds = [_seconds(case, verdict, claimed.at_step) for verdict in case.verdicts]
    if claimed.seconds is not None and not max(seconds) <= claimed.seconds:
        return fails(
            f"the claim is {claimed.seconds:g} s of training, the longest run took {max(seconds):.1f} s",
            seconds=seconds,
        )
    if track.target is not None and target > track.target:
        return fails(f"the claim is {target}, the track's target {track.target}", losses=losses)
    return _test_claim(case, losses, target)


def _test_claim(case: Case, losses: list[float], target: float) -> Finding:
    """The track's test of the mean loss, and the comparison with the baseline."""
    track = TRACKS[case.attempt.declaration.track]
    try:
        test = statistics.track_test(track.name, losses, target)
    except InputError as error:
        return not_judged(str(error), losses=losses)
    tries = sum(event["event"] == "declared" for event in case.attempt.record)
    p = min(1.0, test.p * tries)  # Bonferroni: Holm's first step, for declarations that were tried one after another
    passes = test.holds if track.name == "optimizer" and tries == 1 else p < LEVEL
    reasons = [f"mean {test.mean:.4f} of {test.n} against {target}: p {p:.2g}"]
    if tries > 1:
        reasons[0] += f", after {tries} declarations"
    evidence = {"losses": losses, "mean": test.mean, "sd": test.sd, "p": p, "declarations": tries, "target": target}
    if bound := _leak_bound(case):
        evidence["leak_bound"] = bound
        if target - test.mean < bound:
            reasons.append(
                f"the margin {target - test.mean:.4f} is below the {bound:.4f} nats that a look ahead can have brought "
                "which the verifier's samples did not meet (--whole takes more)"
            )
    if not passes and target > test.mean and test.sd > 0:
        evidence["runs_needed"] = statistics.runs_needed(target - test.mean, test.sd)
        reasons.append(f"at this margin and spread {evidence['runs_needed']} runs pass with probability 0.8")
    if case.baseline is not None:
        try:
            evidence["baseline"], comparison = _compare(case, case.baseline)
        except InputError as error:
            return not_judged(str(error), **evidence)
        reasons.append(comparison)
    elif track.scored == "seconds":
        reasons.append("its seconds were not compared with a baseline on this machine (--baseline ATTEMPT)")
    return (holds if passes else fails)("; ".join(reasons), **evidence)


def _loss(case: Case, verdict: Verdict, step: int | None) -> float:
    """The val loss that counts: the verifier's own, at the end or at a step; the logged one where the verdict's depth
    recomputes none.

    Raises InputError for a step whose loss cannot be recomputed.
    """
    if step is not None:
        evaluation = _evaluation(case, verdict, step)
        if verdict.of("recompute.evaluations") is None:
            return logged_float(evaluation["val_loss"])
        recomputed = verdict.facts.get("evaluations", {})
        if str(step) not in recomputed:
            raise InputError(
                f"{verdict.subject}: the claim is for step {step}, whose val loss was not recomputed: claim a step at "
                "which the plan has both an evaluation and a checkpoint"
            )
        return recomputed[str(step)]
    logged = verdict.of("log.totals")
    return logged_float(verdict.facts.get("val_loss", logged.evidence.get("val_loss") if logged else None))


def _leak_bound(case: Case) -> float:
    """Nats that an undetected look ahead of user code can have brought, on average of the runs; 0 for our own code."""
    step = case.attempt.declaration.claim.at_step
    bounds = [
        verdict.facts.get("leak_bounds", {}).get(str(run.steps if step is None else step), 0.0)
        for verdict in case.verdicts
        if (run := case.open(Path(verdict.subject))).has_user_code
    ]
    return sum(bounds) / len(bounds) if bounds else 0.0


def _seconds(case: Case, verdict: Verdict, step: int | None) -> float:
    """Seconds of training to the step of the claim."""
    if step is not None:
        return logged_float(_evaluation(case, verdict, step)["train_s"])
    return float(case.open(Path(verdict.subject)).log.columns["train_s"][-1])


def _evaluation(case: Case, verdict: Verdict, step: int) -> dict[str, Any]:
    evaluations = [event for event in case.open(Path(verdict.subject)).log.of("eval") if event["step"] == step]
    if not evaluations:
        raise InputError(
            f"{verdict.subject}: the claim is for step {step}, which the run did not evaluate: claim a step that it did"
        )
    return evaluations[-1]


def _compare(case: Case, baseline: Path) -> tuple[dict[str, Any], str]:
    """Seconds and losses against a baseline's runs, which must be of the same hardware."""
    other = open_attempt(baseline)
    theirs = [open_run(other.path(event["run"])) for event in other.finals()]
    mine = list(case.runs.values())
    for run in theirs:
        if (verdict := verify_run(run.path, Settings("log"))).status != "holds":
            raise InputError(
                f"{baseline}: its run {run.path.name} does not hold ({verdict.conclusion()}): a baseline must"
            )
    if not theirs or _hardware(theirs[0]) != _hardware(mine[0]):
        raise InputError(
            f"{baseline}: expected runs on the hardware of {case.attempt.folder}, found others: run the baseline again "
            "here"
        )
    seconds = [[float(run.log.columns["train_s"][-1]) for run in runs] for runs in (mine, theirs)]
    losses = [[logged_float(run.log.of("eval")[-1]["val_loss"]) for run in runs] for runs in (mine, theirs)]
    faster, better = (statistics.welch(values[0], values[1]) for values in (seconds, losses))
    means = [sum(values) / len(values) for values in seconds]
    comparison = f"{means[0]:.1f} s against the baseline's {means[1]:.1f} s (p {faster.p:.2g}), loss p {better.p:.2g}"
    return {"seconds": seconds, "losses": losses, "p_seconds": faster.p, "p_losses": better.p}, comparison


def _hardware(run: Evidence) -> tuple[Any, Any]:
    return run.run["devices"], run.run["host"]["cpu"]


def corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """Several attempts judged together: their claims judged again by p-values that Holm's method corrects."""
    claims = {i: claim for i, verdict in enumerate(verdicts) if (claim := verdict.of("attempt.claim"))}
    claims = {i: claim for i, claim in claims.items() if "p" in claim.evidence}
    if len(claims) < 2:
        return verdicts
    adjusted, passes = statistics.holm([claim.evidence["p"] for claim in claims.values()], LEVEL)
    result = list(verdicts)
    for (i, claim), p, passing in zip(claims.items(), adjusted, passes, strict=True):
        new = replace(
            claim,
            status=claim.status if passing else "fails",
            evidence={**claim.evidence, "p_holm": p},
            reason=f"{claim.reason}; judged with {len(claims) - 1} other attempts p {p:.2g} (Holm)",
        )
        judgements = tuple(new if j.rule == new.rule else j for j in verdicts[i].judgements)
        result[i] = replace(verdicts[i], judgements=judgements)
    return result
