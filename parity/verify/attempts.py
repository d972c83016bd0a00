"""Verifies an attempt: every run of it, that nothing was left out or picked, and the claim by the track's own test."""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.track import TRACKS
from parity.verify.evidence import open_run
from parity.verify.rules import STRANGE
from parity.verify.rules.log import _real, ran
from parity.verify.run import Settings, _version, verify_run
from parity.verify.verdict import Judgement, Rule, Verdict

LEVEL = 0.01  # of the one-sided test of a claim, as on the public track
RULES = {
    rule.id: rule
    for rule in (
        Rule(
            "attempt.declared",
            "log",
            "the seeds were declared before the first run, as the digests of program and declaration give them",
            of="attempt",
        ),
        Rule(
            "attempt.complete",
            "log",
            "every declared run is there, in order, and no other took its place",
            of="attempt",
        ),
        Rule(
            "attempt.alike",
            "log",
            "all runs have one program, one plan, one stopping step and one kind of hardware",
            of="attempt",
        ),
        Rule("attempt.twins", "log", "no two runs have the same losses or the same weights", of="attempt"),
        Rule("attempt.budget", "log", "everything ever started for it is counted, and within its budget", of="attempt"),
        Rule("attempt.claim", "log", "the claim holds by the track's test, over all declared runs", of="attempt"),
    )
}


def is_attempt(path: Path) -> bool:
    """Whether a folder is an attempt's."""
    return (path / "attempt.jsonl").is_file() or (path / "declaration.json").is_file()


@dataclasses.dataclass
class Attempt:
    """What an attempt's folder holds: its declaration, its record, and its final runs in the order of the declaration."""

    folder: Path
    declaration: Any
    record: list[dict[str, Any]]

    @property
    def declared(self) -> dict[str, Any] | None:
        """The last declaration of seeds."""
        return next((event for event in reversed(self.record) if event["event"] == "declared"), None)

    def since(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind since the last declaration."""
        last = max((i for i, event in enumerate(self.record) if event["event"] == "declared"), default=0)
        return [event for event in self.record[last:] if event["event"] == kind]

    def finals(self) -> list[dict[str, Any]]:
        """The final runs that were started since the last declaration, each once, in order."""
        found: dict[str, dict[str, Any]] = {}
        for event in self.since("started"):
            if event["purpose"] == "final":
                found.setdefault(event["run"], event)
        return list(found.values())

    def path(self, run: str) -> Path:
        """A run's directory; InputError for one outside the attempt."""
        path = (self.folder / run).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise InputError(
                f"{self.folder}: its record names the run {run[:80]!r} outside its folder: the record was changed"
            )
        return path


def open_attempt(folder: Path) -> Attempt:
    """Reads an attempt; InputError where its declaration or its record cannot be read."""
    from parity.attempt.record import read_declaration, read_record

    record = folder / "attempt.jsonl"
    return Attempt(
        folder, read_declaration(folder / "declaration.json"), read_record(record) if record.exists() else []
    )


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
    verdicts, lost = [], []
    for event in attempt.finals():
        say(f"run {event['run']}")
        try:
            verdicts.append(verify_run(attempt.path(event["run"]), settings, say))
        except InputError as error:
            lost.append(str(error))
    others = {"baseline": baseline} if baseline else {}
    judgements = []
    for name, check in CHECKS.items():
        begin_s = time.monotonic()
        try:
            status, reason, evidence = check(attempt, verdicts, lost, **(others if name == "attempt.claim" else {}))
        except InputError as error:
            status, reason, evidence = "not judged", str(error), {}
        except STRANGE as error:
            status, reason, evidence = (
                "not judged",
                f"the evidence makes no sense here ({type(error).__name__}: {str(error)[:100]})",
                {},
            )
        judgements.append(Judgement(name, status, reason, time.monotonic() - begin_s, evidence))
    facts = {
        "author": attempt.declaration.author,
        "kind": attempt.declaration.kind,
        "track": attempt.declaration.track,
        "backend": attempt.declaration.backend,
        "started": costs(attempt),
        "version": _version(),
    }
    if verdicts:
        facts["isolation"] = verdicts[0].facts.get("isolation", "not asked")
    return Verdict(str(folder), settings.depth, tuple(judgements), frozenset(RULES), facts, tuple(verdicts))


Outcome = tuple[str, str, dict[str, Any]]


def declared(attempt: Attempt, verdicts: list[Verdict], lost: list[str]) -> Outcome:
    from parity.attempt.record import seeds_for

    event = attempt.declared
    if event is None:
        return "not judged", "nothing was declared yet: python -m parity.attempt run", {}
    if event["runs"] != attempt.declaration.runs:
        return "fails", f"the declaration has {attempt.declaration.runs} runs, the record {event['runs']}", {}
    wanted = seeds_for(event["program_sha256"], event["declaration_sha256"], event["runs"])
    if event["seeds"] != wanted:
        return (
            "fails",
            f"expected the seeds {wanted[:3]}..., found {event['seeds'][:3]}...: they are not free to choose",
            {},
        )
    now = {"declaration.json": event["declaration_sha256"], attempt.declaration.file: event["program_sha256"]}
    for name, digest in now.items():
        if not (attempt.folder / name).is_file() or sha256_file(attempt.folder / name) != digest:
            return (
                "fails",
                f"{name} is no longer what was declared (sha256 {digest[:12]}): put it back, or declare anew with --again",
                {},
            )
    for started in attempt.finals():
        if started["seed"] not in wanted:
            return "fails", f"{started['run']} has seed {started['seed']}, which was not declared", {}
    made = {verdict.subject: verdict.facts["seed"] for verdict in verdicts}
    for started in attempt.finals():
        path = attempt.path(started["run"])
        if str(path) not in made:
            continue  # a lost run is the next rule's business
        if made[str(path)] != started["seed"]:
            return (
                "fails",
                f"{started['run']} was declared with seed {started['seed']} and made with {made[str(path)]}",
                {},
            )
        begun = open_run(attempt.path(started["run"])).log.of("start")
        if begun and begun[0]["time_s"] < event["time_s"] - 1:
            return "fails", f"{started['run']} began before its seed was declared", {}
    return "holds", f"{len(wanted)} seeds, {wanted[0]} first", {"seeds": wanted}


def complete(attempt: Attempt, verdicts: list[Verdict], lost: list[str]) -> Outcome:
    event = attempt.declared
    if event is None:
        return "not judged", "nothing was declared yet", {}
    order = [started["seed"] for started in attempt.finals()]
    if order != event["seeds"][: len(order)]:
        return "fails", "the runs were not made in the order of the declared seeds", {}
    if lost:
        return "fails", lost[0], {"missing": lost}
    if len(order) < len(event["seeds"]):
        return (
            "fails",
            f"{len(event['seeds'])} runs were declared, {len(order)} were made: go on with python -m parity.attempt run",
            {},
        )
    return "holds", f"all {len(order)} declared runs", {}


def alike(attempt: Attempt, verdicts: list[Verdict], lost: list[str]) -> Outcome:
    runs = [
        open_run(attempt.path(started["run"])) for started in attempt.finals() if attempt.path(started["run"]).is_dir()
    ]
    event = attempt.declared
    if not runs or event is None:
        return "not judged", "there are no runs", {}
    for run in runs:
        own = run.source.get(run.own["file"] if run.own else (run.optimizer or "").partition(":")[0] + ".py", b"")
        if (digest := hashlib.sha256(own).hexdigest()) != event["program_sha256"]:
            return (
                "fails",
                f"{run.path.name} has a program of digest {digest[:12]}, declared was {event['program_sha256'][:12]}",
                {},
            )
        if run.track.name != attempt.declaration.track:
            return (
                "fails",
                f"{run.path.name} is on track {run.track.name}, declared was {attempt.declaration.track}",
                {},
            )
        for name in ("recipe", "plan", "backend", "devices", "host", "environment", "options", "versions"):
            if run.run.get(name) != runs[0].run.get(name):
                return "fails", f"{run.path.name} differs from {runs[0].path.name} in {name}", {}
        if ran(run) != ran(runs[0]):
            return "fails", f"{run.path.name} differs from {runs[0].path.name} in the code of harness or backend", {}
        if (
            run.steps != runs[0].steps
            or len(run.log.step) == 0
            or int(run.log.step.max()) != int(runs[0].log.step.max())
        ):
            return "fails", f"{run.path.name} stopped at another step than {runs[0].path.name}", {}
    return "holds", f"{len(runs)} runs of {runs[0].steps:,} steps on {runs[0].run['devices'][0]['kind']}", {}


def twins(attempt: Attempt, verdicts: list[Verdict], lost: list[str]) -> Outcome:
    seen: dict[str, str] = {}
    for started in attempt.finals():
        path = attempt.path(started["run"])
        if not path.is_dir():
            continue
        log = open_run(path).log
        weights = log.states("final weights")
        for what in (
            f"losses {log.columns['loss'].tobytes().hex()[:4096]}",
            f"weights {weights[-1]['digest'] if weights else path}",
        ):
            if what in seen and (what.startswith("weights") or len(log.n) > 1):
                return "fails", f"{started['run']} and {seen[what]} have the same {what.split()[0]}", {}
            seen[what] = started["run"]
    return "holds", f"{len(attempt.finals())} different runs", {}


def budget(attempt: Attempt, verdicts: list[Verdict], lost: list[str]) -> Outcome:
    found, limits = costs(attempt), dataclasses.asdict(attempt.declaration)["budget"]
    known = {str(attempt.path(event["run"])) for event in attempt.record if event["event"] == "started"}
    uncounted = [
        path.parent for path in attempt.folder.glob("runs/*/*/run.json") if str(path.parent.resolve()) not in known
    ]
    if uncounted:
        return (
            "fails",
            f"{uncounted[0].relative_to(attempt.folder)} is not in the record of what was started",
            {"started": found},
        )
    for name, limit in (limits or {}).items():
        if limit is not None and (found[name] is None or found[name] > limit * (1 + 1e-9)):
            return (
                "fails",
                f"{name}: the budget is {limit:g}, spent were {found[name] or 'nobody knows how many'}",
                {"started": found},
            )
    flops = f"{found['flops']:.3g}" if found["flops"] is not None else "an unknown number of"
    return (
        "holds",
        f"{found['runs']} runs, {found['seconds']:.0f} s, {flops} FLOPs, tuning included",
        {"started": found},
    )


def claim(attempt: Attempt, verdicts: list[Verdict], lost: list[str], baseline: Path | None = None) -> Outcome:
    from parity import statistics

    track = TRACKS[attempt.declaration.track]
    step = attempt.declaration.claim.at_step
    losses = [_loss(attempt, verdict, step) for verdict in verdicts]
    event = attempt.declared
    wanted = attempt.declaration.claim.val_loss_below
    if wanted is None and attempt.declaration.claim.seconds is None:
        return "holds", "nothing is claimed: nothing to test" + _spread(losses), {"losses": losses}
    target = wanted if wanted is not None else track.target
    if target is None:
        return "holds", f"track {track.name} has no target and no loss was claimed: nothing to test", {"losses": losses}
    if event is None or len(losses) < len(event["seeds"]) or lost:
        return "not judged", f"{len(losses)} of the declared runs can be counted: all must be", {"losses": losses}
    limit, seconds = attempt.declaration.claim.seconds, [_seconds(verdict, step) for verdict in verdicts]
    if limit is not None and not max(seconds) <= limit:
        return (
            "fails",
            f"the claim is {limit:g} s of training, the longest run took {max(seconds):.1f} s",
            {"seconds": seconds},
        )
    if track.target is not None and target > track.target:
        return "fails", f"the claim is {target}, the track's target {track.target}", {"losses": losses}
    try:
        test = statistics.track_test(track.name, losses, target)
    except InputError as error:
        return "not judged", str(error), {"losses": losses}
    tried = sum(event["event"] == "declared" for event in attempt.record)
    p = min(1.0, test.p * tried)  # Bonferroni: Holm's first step, for declarations that were tried one after another
    good = test.holds if track.name == "optimizer" and tried == 1 else p < LEVEL
    said = f"mean {test.mean:.4f} of {test.n} against {target}: p {p:.2g}" + (
        f", after {tried} declarations" if tried > 1 else ""
    )
    evidence = {"losses": losses, "mean": test.mean, "sd": test.sd, "p": p, "declarations": tried, "target": target}
    if not good and target - test.mean > 0 and test.sd > 0:
        evidence["runs_needed"] = statistics.runs_needed(target - test.mean, test.sd)
        said += f"; at this margin and spread {evidence['runs_needed']} runs pass with probability 0.8"
    if baseline is not None:
        try:
            evidence["baseline"], more = _against(attempt, verdicts, baseline)
        except InputError as error:
            return "not judged", str(error), evidence
        said += f"; {more}"
    elif track.scored == "seconds":
        said += "; its seconds were not held against a baseline on this machine (--baseline ATTEMPT)"
    return "holds" if good else "fails", said, evidence


def _spread(losses: list[float]) -> str:
    return f"; mean {sum(losses) / len(losses):.4f} of {len(losses)}" if losses else ""


def _loss(attempt: Attempt, verdict: Verdict, step: int | None) -> float:
    """The val loss that counts for the claim: the verifier's own, where it was computed; at an earlier step, the logged one."""
    if step is None:
        logged = verdict.of("log.totals")
        return _real(verdict.facts.get("val_loss", logged.evidence.get("val_loss") if logged else None))
    return _real(_evaluated(verdict, step)["val_loss"])


def _seconds(verdict: Verdict, step: int | None) -> float:
    """Seconds of training to the step of the claim."""
    if step is None:
        return float(open_run(Path(verdict.subject)).log.columns["train_s"][-1])
    return _real(_evaluated(verdict, step)["train_s"])


def _evaluated(verdict: Verdict, step: int) -> dict[str, Any]:
    found = [event for event in open_run(Path(verdict.subject)).log.of("eval") if event["step"] == step]
    if not found:
        raise InputError(
            f"{verdict.subject}: the claim is for step {step}, which the run did not evaluate: claim a step that it did"
        )
    return found[-1]


def _against(attempt: Attempt, verdicts: list[Verdict], baseline: Path) -> tuple[dict[str, Any], str]:
    """Seconds and losses beside a baseline's runs, which must be of the same hardware."""
    from parity import statistics

    other = open_attempt(baseline)
    theirs = [open_run(other.path(event["run"])) for event in other.finals()]
    mine = [open_run(attempt.path(event["run"])) for event in attempt.finals()]
    for run in theirs:
        if (found := verify_run(run.path, Settings("log"))).status != "holds":
            raise InputError(
                f"{baseline}: its run {run.path.name} does not hold ({found.conclusion()}): a baseline must"
            )
    if (
        not theirs
        or theirs[0].run["devices"] != mine[0].run["devices"]
        or theirs[0].run["host"]["cpu"] != mine[0].run["host"]["cpu"]
    ):
        raise InputError(
            f"{baseline}: expected runs on the hardware of {attempt.folder}, found others: run the baseline anew here"
        )
    seconds = [[float(run.log.columns["train_s"][-1]) for run in runs] for runs in (mine, theirs)]
    losses = [[_real(run.log.of("eval")[-1]["val_loss"]) for run in runs] for runs in (mine, theirs)]
    faster, better = statistics.welch(*seconds), statistics.welch(*losses)
    said = (
        f"{sum(seconds[0]) / len(seconds[0]):.1f} s against the baseline's {sum(seconds[1]) / len(seconds[1]):.1f} s (p {faster.p:.2g}), "
        f"loss p {better.p:.2g}"
    )
    return {"seconds": seconds, "losses": losses, "p_seconds": faster.p, "p_losses": better.p}, said


def corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """Several attempts judged together: their claims' p-values corrected by Holm's method, and judged again by them."""
    from parity import statistics

    claims = [verdict.of("attempt.claim") for verdict in verdicts]
    tested = [i for i, claim in enumerate(claims) if claim and "p" in claim.evidence]
    if len(tested) < 2:
        return verdicts
    adjusted, hold = statistics.holm([claims[i].evidence["p"] for i in tested], LEVEL)
    for i, p, good in zip(tested, adjusted, hold):
        status = "fails" if not good else claims[i].status
        claim = dataclasses.replace(
            claims[i],
            status=status,
            evidence={**claims[i].evidence, "p_holm": p},
            reason=f"{claims[i].reason}; beside {len(tested) - 1} other attempts p {p:.2g} (Holm)",
        )
        judgements = tuple(claim if j.rule == "attempt.claim" else j for j in verdicts[i].judgements)
        verdicts[i] = dataclasses.replace(verdicts[i], judgements=judgements)
    return verdicts


CHECKS = {
    "attempt.declared": declared,
    "attempt.complete": complete,
    "attempt.alike": alike,
    "attempt.twins": twins,
    "attempt.budget": budget,
    "attempt.claim": claim,
}


def costs(attempt: Attempt) -> dict[str, Any]:
    """Runs, seconds of training and FLOPs of everything that was ever started for the attempt, as its record has them."""
    from parity.attempt.cost import spent
    from parity.attempt.record import runs_of

    runs = runs_of(attempt.record)
    return {**dataclasses.asdict(spent(runs)), "tuning": sum(run.purpose == "tune" for run in runs)}
