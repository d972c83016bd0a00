"""`python -m parity.attempt run`: seeds are declared, then runs made one by one; an interrupted one goes on."""

import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from parity.attempt.cost import lacking, progress
from parity.attempt.record import (
    DECLARATION,
    RECORD,
    Declaration,
    MadeRun,
    Record,
    digest_of,
    read_declaration,
    runs_of,
    seeds_for,
)
from parity.attempt.trainer import Requests, listening, train
from parity.errors import InputError, Interrupted, RunFailed


@dataclass(frozen=True)
class Job:
    """One run that is to be there. `label` is its place among those of its purpose, from 1."""

    purpose: str
    label: int
    seed: int

    def __str__(self) -> str:
        return f"{'tuning' if self.purpose == 'tune' else 'final'} run {self.label}, seed {self.seed}"


class Attempt:
    """An attempt that is worked on. `quiet`: the trainer's output goes to a file beside each run."""

    def __init__(self, folder: Path, record: Record, data_dir: Path | None, say: Callable[[str], None], quiet: bool):
        self.folder, self.record, self.data_dir, self.say, self.quiet = folder, record, data_dir, say, quiet
        self.declaration, self.digests, self.kept = read(folder)

    @property
    def runs(self) -> list[MadeRun]:
        return runs_of(self.record.events)

    @property
    def declarations(self) -> int:
        """How often seeds were declared."""
        return sum(event["event"] == "declared" for event in self.record.events)

    @property
    def command(self) -> str:
        """How one goes on."""
        from parity.cli import python_command

        return f"{python_command()} -m parity.attempt run {shlex.quote(str(self.folder))}"


def read(folder: Path) -> tuple[Declaration, dict[str, str], list[str]]:
    """What an attempt declares, the digests that its seeds follow from, and the options that a resumed run needs again;
    InputError where it cannot be run."""
    from parity.harness.options import parse

    declaration = read_declaration(folder / DECLARATION)
    try:
        options, _, _, given = parse(declaration.backend, declaration.trainer_arguments())
    except InputError as error:
        raise InputError(f"{folder / DECLARATION}: arguments: {error}") from None
    kept = {f"--{name}": str(getattr(options, name)) for name in ("device", "samples") if name in given}
    digests = {
        "program_sha256": digest_of(folder / declaration.file),
        "declaration_sha256": digest_of(folder / DECLARATION),
    }
    return declaration, digests, [*sum(kept.items(), ()), *["--tensorboard"] * options.tensorboard]


def run(
    folders: Sequence[Path],
    *,
    tune: bool = False,
    seed: int = 0,
    again: bool = False,
    data_dir: Path | None = None,
    say: Callable[[str], None] = print,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Makes the final runs of attempts, or one tuning run of each. Several attempts take turns, run by run, so that their
    seconds can be compared in pairs. `told` gets every new event of the records; the trainer's output then goes to files.

    Raises InputError where one cannot be run, RunFailed where a budget is used up or a run failed, Interrupted where
    that was asked for.
    """
    _check(folders)
    with ExitStack() as open_, listening() as requests:
        work = []
        for folder in folders:
            open_.enter_context(locked(folder))
            record = Record(folder / RECORD, told or (lambda event: None))
            attempt = Attempt(folder, record, data_dir, say, told is not None)
            settle(attempt)
            work.append(
                (
                    attempt,
                    [tuning(attempt, seed)]
                    if tune
                    else [Job("final", label, seed) for label, seed in enumerate(declare(attempt, again), 1)],
                )
            )
        for turn in zip_longest(*(jobs for _, jobs in work)):
            for (attempt, jobs), job in zip(work, turn):
                if job is not None:
                    make(attempt, requests, job, jobs)
        failed = [
            str(attempt.folder / made.run)
            for attempt, jobs in work
            for job in jobs
            if (made := mine(attempt, job)) and made.exit_code
        ]
    if failed:
        raise RunFailed(
            f"{len(failed)} of {sum(len(jobs) for _, jobs in work)} {'tuning' if tune else 'final'} runs failed, which "
            f"is their result: {', '.join(failed)}"
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One `run` at a time in a folder; the lock falls with the process, kill -9 included."""
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"{folder}: another run of this attempt is at work: wait for it to end, or stop it") from None
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): check its permissions, or free some space"
        ) from None
    try:
        yield
    finally:
        lock.release()


def settle(attempt: Attempt) -> None:
    """Records what became of runs whose end nobody recorded: killed with their trainer, or gone on with by hand."""
    for made in attempt.runs:
        path = attempt.folder / made.run
        if made.settled:
            continue
        if held(path):
            raise InputError(
                f"{path}: its trainer is still at work (pid {_pid(path)}), left from a run that was "
                "killed or started by hand: wait for it to end, or stop it"
            )
        if progress(path)[2] is not None:
            ended(attempt, made.run, 0)
        elif made.live:
            ended(attempt, made.run, None)


def held(path: Path) -> bool:
    """Whether a trainer works in a run directory."""
    import filelock

    try:
        with filelock.FileLock(path / ".lock", timeout=0) if (path / ".lock").exists() else nullcontext():
            return False
    except filelock.Timeout:
        return True


def _pid(path: Path) -> str:
    try:
        return (path / ".lock.pid").read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def declare(attempt: Attempt, again: bool) -> list[int]:
    """The seeds of the final runs: those declared before, or new ones, on the disk before this returns."""
    found = next((event for event in reversed(attempt.record.events) if event["event"] == "declared"), None)
    if found is not None:
        files = {"program_sha256": attempt.declaration.file, "declaration_sha256": DECLARATION}
        changed = [attempt.folder / file for key, file in files.items() if found[key] != attempt.digests[key]]
        if changed and not again:
            raise InputError(
                f"{changed[0]}: expected the file that the seeds were declared for, found another: put it "
                f"back, or declare anew with {attempt.command} --again: all earlier runs stay counted"
            )
        if again and not changed:
            raise InputError(
                f"--again: nothing has changed since the seeds of {attempt.folder} were declared, and "
                "equal files have equal seeds: leave it out"
            )
        if not changed:
            return [int(seed) for seed in found["seeds"]]
    seeds = seeds_for(**attempt.digests, count=attempt.declaration.runs)
    command = ["python", "-m", f"{attempt.declaration.backend}.train", *attempt.declaration.trainer_arguments()]
    attempt.record.append(
        "declared",
        **attempt.digests,
        seeds=seeds,
        runs=len(seeds),
        command=command,
        declaration=asdict(attempt.declaration),
    )
    attempt.say(f"declared {len(seeds)} seeds: {', '.join(map(str, seeds))}")
    return seeds


def tuning(attempt: Attempt, seed: int) -> Job:
    """The tuning run that is to be made: the one that was interrupted, or the next."""
    made = [run for run in attempt.runs if run.purpose == "tune"]
    going = [
        n
        for n, run in enumerate(made, 1)
        if run.seed == seed
        and not run.settled
        and {name: getattr(run, name) for name in attempt.digests} == attempt.digests
    ]
    return Job("tune", going[-1] if going else len(made) + 1, seed)


def mine(attempt: Attempt, job: Job) -> MadeRun | None:
    """The run that a job stands for, where it has been started; final ones since the seeds were declared."""
    made = [run for run in attempt.runs if run.purpose == job.purpose]
    if job.purpose == "tune":
        return made[job.label - 1] if job.label <= len(made) else None
    return next((run for run in made if run.seed == job.seed and run.declaration == attempt.declarations), None)


def make(attempt: Attempt, requests: Requests, job: Job, jobs: list[Job]) -> None:
    """Sees to it that a run is there: starts it, or goes on with it."""
    found = mine(attempt, job)
    if found is not None and found.settled:
        return
    if requests.number:
        raise Interrupted(f"stopped before {job}; go on with\n  {attempt.command}", requests.number)
    if read(attempt.folder)[1] != attempt.digests:
        raise InputError(
            f"{attempt.folder}: expected its files as they were when the runs began, found them changed "
            "since: put them back, or declare anew with --again"
        )
    new = sum(mine(attempt, other) is None for other in jobs)
    if reason := lacking(attempt.declaration.budget, attempt.runs, new, found):
        attempt.record.append("stopped", reason=reason)
        raise RunFailed(f"{attempt.folder}: {reason}; python -m parity.attempt show tells what was used for what")
    path, arguments = begin(attempt, job, found)
    attempt.say(f"{job}; in {attempt.folder}: python -m {attempt.declaration.backend}.train {shlex.join(arguments)}")
    data = [] if attempt.data_dir is None else ["--data-dir", str(attempt.data_dir.absolute())]
    output = attempt.folder / f"{path}.txt" if attempt.quiet else None
    code = train(attempt.declaration.backend, [*arguments, *data], attempt.folder, output, requests)
    ended(attempt, path, code)
    if code not in (0, 1):
        raise _unfinished(attempt, requests, path, code)


def begin(attempt: Attempt, job: Job, found: MadeRun | None) -> tuple[str, list[str]]:
    """Records that a run is started or gone on with; returns its path in the folder and the trainer's options."""
    if found is None:
        stem = f"runs/{attempt.declaration.track}/{job.purpose}-{job.label}-{job.seed}"
        path, number, taken = stem, 1, {run.run for run in attempt.runs}
        while path in taken or (attempt.folder / path).exists():
            number += 1
            path = f"{stem}-{number}"
        attempt.record.append("started", run=path, seed=job.seed, purpose=job.purpose, **attempt.digests)
    else:
        path = found.run
        fresh = not _has_begun(attempt.folder / path)
        if fresh:
            shutil.rmtree(attempt.folder / path, ignore_errors=True)  # no step was made in it
        attempt.record.append("resumed", run=path, fresh=fresh)
        if not fresh:
            return path, ["--resume", path, *attempt.kept]
    own = attempt.declaration.trainer_arguments()
    return path, [*own, "--seed", str(job.seed), "--runs", "runs", "--name", Path(path).name]


def _has_begun(path: Path) -> bool:
    """Whether a run directory has what a trainer needs to go on: run.json and a whole line of its log."""
    try:
        with open(path / "log.jsonl", "rb") as file:
            return file.readline(1_000_000).endswith(b"\n") and (path / "run.json").is_file()
    except OSError:
        return False


def ended(attempt: Attempt, path: str, code: int | None) -> None:
    """Records what a run has come to; `code` None: nobody knows."""
    seconds, steps, totals = progress(attempt.folder / path)
    if code is None or code > 3:
        attempt.record.append("interrupted", run=path, exit_code=code, seconds=seconds, steps_made=steps)
        return
    reached = {name: (totals or {}).get(name) for name in ("steps", "val_loss", "flops")}
    attempt.record.append("ended", run=path, exit_code=code, seconds=seconds, steps_made=steps, **reached)


def _unfinished(attempt: Attempt, requests: Requests, path: str, code: int) -> Exception:
    """What to say where a trainer ended without a result."""
    full = attempt.folder / path
    if requests.number or code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return Interrupted(
            f"{full} was stopped, and that is recorded; go on with\n  {attempt.command}", requests.number or code - 128
        )
    if code > 128:
        return InputError(
            f"{full}: its trainer was ended by signal {code - 128}: if that was for memory, free some; "
            f"{attempt.command} goes on"
        )
    where = f": {_last_line(Path(f'{full}.txt'))}" if attempt.quiet else ", as said above"
    if code == 3:
        return InputError(
            f"{full}: its trainer ended with a fault{where}: mend the program and declare anew with "
            f"--again; if it is not to blame, {attempt.command} goes on"
        )
    return InputError(f"{full}: the trainer cannot make this run{where}: mend that, then {attempt.command}")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1][:300] if lines else 'it said nothing'} ({path} has all it said)"
