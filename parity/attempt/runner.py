"""`python -m parity.attempt run`: declares seeds, then runs them one by one, and continues interrupted runs."""

import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from parity.attempt.trainer import StopRequests, listening, train
from parity.cli import python_command
from parity.declaration.cost import progress, shortfall
from parity.declaration.record import (
    DECLARATION,
    RECORD,
    AttemptRun,
    Declaration,
    Record,
    digest_of,
    read_declaration,
    runs_of,
    seeds_for,
)
from parity.errors import InputError, Interrupted, RunFailed
from parity.formats.folder_lock import holder, locked


@dataclass(frozen=True)
class Job:
    """One run to have. `number` counts those of its purpose, from 1."""

    purpose: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{'tuning' if self.purpose == 'tune' else 'final'} run {self.number}, seed {self.seed}"


class Attempt:
    """An attempt at work. `quiet`: the trainer's output goes to a file beside each run."""

    def __init__(self, folder: Path, record: Record, data_dir: Path | None, say: Callable[[str], None], quiet: bool):
        self.folder, self.record, self.data_dir, self.say, self.quiet = folder, record, data_dir, say, quiet
        self.declaration, self.digests, self.resume_options = read_folder(folder)

    @property
    def runs(self) -> list[AttemptRun]:
        return runs_of(self.record.events)

    @property
    def declarations(self) -> int:
        """How often seeds were declared."""
        return sum(event["event"] == "declared" for event in self.record.events)

    @property
    def command(self) -> str:
        """The command that continues the attempt."""
        return f"{python_command()} -m parity.attempt run {shlex.quote(str(self.folder))}"

    def run_of(self, job: Job) -> AttemptRun | None:
        """A job's run, where it was started; of final runs, since the seeds were declared."""
        runs = [run for run in self.runs if run.purpose == job.purpose]
        if job.purpose == "tune":
            return runs[job.number - 1] if job.number <= len(runs) else None
        return next((run for run in runs if run.seed == job.seed and run.declaration == self.declarations), None)


def read_folder(folder: Path) -> tuple[Declaration, dict[str, str], list[str]]:
    """An attempt's declaration, the digests that its seeds follow from, and the options that a resumed run needs again;
    InputError where it cannot be run."""
    from parity.harness.options import parse

    declaration = read_declaration(folder / DECLARATION)
    try:
        options, _, _, explicit = parse(declaration.backend, declaration.trainer_arguments())
    except InputError as error:
        raise InputError(f"{folder / DECLARATION}: arguments: {error}") from None
    resume_options = []
    for name in ("device", "samples"):
        resume_options += [f"--{name}", str(getattr(options, name))] if name in explicit else []
    resume_options += ["--tensorboard"] if options.tensorboard else []
    program, declared = digest_of(folder / declaration.file), digest_of(folder / DECLARATION)
    return declaration, {"program_sha256": program, "declaration_sha256": declared}, resume_options


def run(
    folders: Sequence[Path],
    *,
    tune: bool = False,
    seed: int = 0,
    again: bool = False,
    data_dir: Path | None = None,
    say: Callable[[str], None] = print,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Does the final runs of attempts, or one tuning run of each; several attempts are interleaved, run by run, so that
    their seconds can be compared in pairs.

    `on_event` receives every new event of the records; the trainer's output then goes to files. Raises InputError where
    an attempt cannot be run, RunFailed where a budget is used up or a run failed, Interrupted on request.
    """
    _check(folders)
    with ExitStack() as locks, listening() as requests:
        work: list[tuple[Attempt, list[Job]]] = []
        for folder in folders:
            locks.enter_context(locked(folder, "another run of this attempt", "wait for it to end, or stop it"))
            record = Record(folder / RECORD, on_event or (lambda event: None))
            attempt = Attempt(folder, record, data_dir, say, quiet=on_event is not None)
            settle(attempt)
            if tune:
                jobs = [tuning_job(attempt, seed)]
            else:
                jobs = [Job("final", number, seed) for number, seed in enumerate(declare(attempt, again), 1)]
            work.append((attempt, jobs))
        for round_ in zip_longest(*(jobs for _, jobs in work)):
            for (attempt, jobs), job in zip(work, round_, strict=True):
                if job is not None:
                    complete(attempt, requests, job, jobs)
    all_runs = [(attempt, attempt.run_of(job)) for attempt, jobs in work for job in jobs]
    failed = [str(attempt.folder / run.run) for attempt, run in all_runs if run and run.exit_code]
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(all_runs)} {'tuning' if tune else 'final'} runs failed, which is their result: "
            f"{', '.join(failed)}"
        )


def _check(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not (folder / DECLARATION).is_file():
            raise InputError(
                f"{folder}: expected the folder of an attempt with {DECLARATION} in it, found none: make one "
                "with python -m parity.attempt new"
            )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("expected folders of different attempts, found one named twice: leave it out once")


def settle(attempt: Attempt) -> None:
    """Records the end of runs whose end is not recorded: killed with their trainer, or continued by hand."""
    for run in attempt.runs:
        path = attempt.folder / run.run
        if run.settled:
            continue
        if pid := holder(path):
            raise InputError(
                f"{path}: its trainer is still at work (pid {pid}), left from a run that was killed or started by "
                "hand: wait for it to end, or stop it"
            )
        if progress(path)[2] is not None:
            record_end(attempt, run.run, 0)
        elif run.live:
            record_end(attempt, run.run, None)


def declare(attempt: Attempt, again: bool) -> list[int]:
    """The seeds of the final runs: those declared before, or new ones, on the disk before this returns."""
    declared = next((event for event in reversed(attempt.record.events) if event["event"] == "declared"), None)
    if declared is not None:
        files = {"program_sha256": attempt.declaration.file, "declaration_sha256": DECLARATION}
        changed = [attempt.folder / file for name, file in files.items() if declared[name] != attempt.digests[name]]
        if changed and not again:
            raise InputError(
                f"{changed[0]}: expected the file that the seeds were declared for, found another: put it back, or "
                f"declare new seeds with {attempt.command} --again: all earlier runs stay counted"
            )
        if again and not changed:
            raise InputError(
                f"--again: nothing has changed since the seeds of {attempt.folder} were declared, and "
                "equal files have equal seeds: leave it out"
            )
        if not changed:
            return [int(seed) for seed in declared["seeds"]]
    seeds = seeds_for(**attempt.digests, count=attempt.declaration.runs)
    command = ["python", "-m", f"{attempt.declaration.backend}.train", *attempt.declaration.trainer_arguments()]
    declaration = asdict(attempt.declaration)
    attempt.record.append(
        "declared", **attempt.digests, seeds=seeds, runs=len(seeds), command=command, declaration=declaration
    )
    attempt.say(f"declared {len(seeds)} seeds: {', '.join(map(str, seeds))}")
    return seeds


def tuning_job(attempt: Attempt, seed: int) -> Job:
    """The interrupted tuning run of this seed and these files, or the next."""
    runs = [run for run in attempt.runs if run.purpose == "tune"]
    interrupted = [
        number
        for number, run in enumerate(runs, 1)
        if run.seed == seed
        and not run.settled
        and {name: getattr(run, name) for name in attempt.digests} == attempt.digests
    ]
    return Job("tune", interrupted[-1] if interrupted else len(runs) + 1, seed)


def complete(attempt: Attempt, requests: StopRequests, job: Job, jobs: list[Job]) -> None:
    """Starts a job's run, or continues it, unless it has a result."""
    run = attempt.run_of(job)
    if run is not None and run.settled:
        return
    if requests.number:
        raise Interrupted(f"stopped before {job}; continue with\n  {attempt.command}", requests.number)
    if read_folder(attempt.folder)[1] != attempt.digests:
        raise InputError(
            f"{attempt.folder}: expected its files as they were when the runs began, found them changed "
            "since: put them back, or declare new seeds with --again"
        )
    new = sum(attempt.run_of(other) is None for other in jobs)
    if reason := shortfall(attempt.declaration.budget, attempt.runs, new, run):
        attempt.record.append("stopped", reason=reason)
        raise RunFailed(f"{attempt.folder}: {reason}; python -m parity.attempt show lists what was used for what")
    path, arguments = begin(attempt, job, run)
    attempt.say(f"{job}; in {attempt.folder}: python -m {attempt.declaration.backend}.train {shlex.join(arguments)}")
    data = [] if attempt.data_dir is None else ["--data-dir", str(attempt.data_dir.absolute())]
    output = attempt.folder / f"{path}.txt" if attempt.quiet else None
    code = train(attempt.declaration.backend, [*arguments, *data], attempt.folder, output, requests)
    record_end(attempt, path, code)
    if code not in (0, 1):
        raise _unfinished(attempt, requests, path, code)


def begin(attempt: Attempt, job: Job, run: AttemptRun | None) -> tuple[str, list[str]]:
    """Records that a run is started or resumed; returns its path in the folder and the trainer's options."""
    if run is None:
        stem = f"runs/{attempt.declaration.track}/{job.purpose}-{job.number}-{job.seed}"
        path, number, taken = stem, 1, {run.run for run in attempt.runs}
        while path in taken or (attempt.folder / path).exists():
            number += 1
            path = f"{stem}-{number}"
        attempt.record.append("started", run=path, seed=job.seed, purpose=job.purpose, **attempt.digests)
    else:
        path = run.run
        fresh = not _can_resume(attempt.folder / path)
        if fresh:
            shutil.rmtree(attempt.folder / path, ignore_errors=True)  # it has no step
        attempt.record.append("resumed", run=path, fresh=fresh)
        if not fresh:
            return path, ["--resume", path, *attempt.resume_options]
    arguments = attempt.declaration.trainer_arguments()
    return path, [*arguments, "--seed", str(job.seed), "--runs", "runs", "--name", Path(path).name]


def _can_resume(path: Path) -> bool:
    """Whether a run directory has what a trainer needs to resume: run.json and a whole line of its log."""
    try:
        with open(path / "log.jsonl", "rb") as file:
            return file.readline(1_000_000).endswith(b"\n") and (path / "run.json").is_file()
    except OSError:
        return False


def record_end(attempt: Attempt, path: str, code: int | None) -> None:
    """Records the end of a run; `code` None: unknown."""
    seconds, steps, totals = progress(attempt.folder / path)
    if code is None or code > 3:
        attempt.record.append("interrupted", run=path, exit_code=code, seconds=seconds, steps_made=steps)
        return
    reached = {name: (totals or {}).get(name) for name in ("steps", "val_loss", "flops")}
    attempt.record.append("ended", run=path, exit_code=code, seconds=seconds, steps_made=steps, **reached)


def _unfinished(attempt: Attempt, requests: StopRequests, path: str, code: int) -> Exception:
    """The error for a trainer that ended without a result."""
    run = attempt.folder / path
    if requests.number or code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return Interrupted(
            f"{run} was stopped, and that is recorded; continue with\n  {attempt.command}",
            requests.number or code - 128,
        )
    if code > 128:
        return InputError(
            f"{run}: its trainer was ended by signal {code - 128}: if that was for memory, free some; "
            f"{attempt.command} continues"
        )
    where = f": {_last_line(Path(f'{run}.txt'))}" if attempt.quiet else ", see above"
    if code == 3:
        return InputError(
            f"{run}: its trainer ended with a fault{where}: fix the program and declare new seeds with --again; if it "
            f"is not to blame, {attempt.command} continues"
        )
    return InputError(f"{run}: the trainer cannot make this run{where}: fix that, then {attempt.command}")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1][:300] if lines else 'no output'} ({path} has all of its output)"
