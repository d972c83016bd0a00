"""Setting up a run: everything is checked before its directory is made, so that bad input leaves nothing behind."""

import dataclasses
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import parity
from parity import program as programs
from parity import user_program
from parity.data import slices
from parity.data.progress import Progress
from parity.data.stream import check_plan, spans
from parity.errors import InputError
from parity.formats import source_zip
from parity.formats.files import sha256_file
from parity.harness import fingerprint, rundir
from parity.harness.clock import TrainingClock
from parity.harness.evaluation import check_length, largest_batch
from parity.harness.guard import Guard
from parity.harness.options import Arguments, Options
from parity.harness.processes import Team
from parity.harness.rundir import RunDir
from parity.harness.runlog import NoLog, RunLog, read
from parity.harness.screen import Screen
from parity.memory import SETTINGS, keep_freed_memory
from parity.program import Program
from parity.recipes import Recipe, from_fields, to_fields
from parity.track import Track, check_recipe, track_for

FRAMEWORKS = {"jaxrun": "jax", "torchref": "torch"}
KEPT = ("optimizer", "compile")  # options that a resumed run must share with the run it goes on with
EVAL_TOKENS_PER_DEVICE = 65_536  # so that the logits of an evaluation fit beside the training state
LARGE_STATE_WEIGHTS = 32_000_000  # of a larger state digests are taken at checkpoints only: each reads all of it
LAYOUT = (
    "devices",
    "microbatches",
    "shards",
    "remat",
)  # options that change what is computed where, and a result by rounding only
FREE_ON_RESUME = {
    "resume",
    "device",
    *LAYOUT,
    "coordinator",
    "processes",
    "process",
    "data_dir",
    "samples",
    "json",
    "tensorboard",
}


@dataclass
class Run:
    """Everything that one execution works with. `identity` is what its checkpoints must share with it."""

    backend: str
    options: Options
    track: Track
    recipe: Recipe
    seed: int
    slice: slices.Slice
    program: Program
    place: RunDir
    log: RunLog
    screen: Screen
    clock: TrainingClock
    identity: dict[str, Any]
    guard: Guard
    team: Team
    resumed: bool = False
    source_sha256: str | None = None  # of the code that goes on with a resumed run
    last_s: float = 0.0  # the clock's reading at the last logged step
    telemetry_s: float = 0.0  # what logging and showing steps has cost, inside the training time
    losses: dict[int, float] = field(default_factory=dict)  # step -> training loss
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)  # updates -> the eval event's fields
    saved: set[int] = field(default_factory=set)  # checkpoints that the log has
    flops_per_step: int | None = None
    ask_every: int = 1  # steps between two looks, by all processes together, for a wish to stop

    @property
    def resume_command(self) -> str:
        return f"{python()} -m {self.backend}.train --resume {shlex.quote(str(self.place.path))}"

    @property
    def eval_batch_tokens(self) -> int:
        devices = len(self.program.devices)
        wanted = min(self.recipe.batch_tokens, EVAL_TOKENS_PER_DEVICE * devices)
        return largest_batch(self.track.val_tokens, wanted, self.recipe.eval_context, devices)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Logs the beginning and the end of something that is not training; both clocks stand on every line."""
        self.log.event("phase", name=name, edge="begin")
        before, self.guard.phase = self.guard.phase, name
        yield
        self.guard.phase = before
        self.log.event("phase", name=name, edge="end")


def python() -> str:
    """This Python as one types it here: `python` where that is found first, else its path, from this folder if below it."""
    path = Path(sys.executable)
    if shutil.which("python") == str(path):
        return "python"
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


@contextmanager
def open_run(backend: str, arguments: Arguments, team: Team | None = None) -> Iterator[Run]:
    """A new run, or the one that --resume names, ready to train; locked, and closed in order at the end. Of several processes, the
    first keeps the run directory.

    Raises InputError for whatever can be found out before the first step.
    """
    options, track, recipe, given = arguments
    team = team or Team()
    if team.size > 1:
        programs.init_distributed(backend, options.device)
    place, seed, before, guard = None, options.seed, None, None
    if options.resume is not None:
        _refuse_changes(given)
        place = rundir.open_existing(options.resume, lock=team.first)
    try:
        if place is not None:
            before = place.read_run_json()
            track, recipe, seed, options = _from_run_json(backend, before, options, given, place.path)
        if options.tensorboard and not find_spec("tensorboard"):
            raise InputError(
                "--tensorboard needs the package tensorboard: pip install 'jaxrun[tensorboard]', or leave it out"
            )
        if before is None and "precision" not in given and programs.platform(backend, options.device) == "gpu":
            recipe = dataclasses.replace(recipe, precision="bfloat16")
        if "" not in sys.path:
            sys.path.insert(0, "")  # own optimizers are looked for in the folder that the command is run from
        guard, base, module = _guard(track, options, place), recipe, None
        if options.program is not None:
            guard.start()
            module = _own_module(track, options, before)
            recipe = user_program.make_recipe(module, base)
            check_recipe(track, recipe)
            guard.stop()
        slice_ = _slice(track, recipe, options.data_dir)
        guard.start()
        program = _build(backend, recipe, options, module)
        guard.stop()  # the harness itself writes the run's first files
        if team.size > 1 and not hasattr(program, "put_local_batch"):
            raise InputError(
                f"{options.program}: expected a program with a method put_local_batch, found none: without it a run has one process"
            )
        if track.val_tokens % (recipe.eval_context * len(program.devices)):
            raise InputError(
                f"--devices {len(program.devices)}: the track's {track.val_tokens:,} val tokens are "
                f"{track.val_tokens // recipe.eval_context} rows, which so many devices do not divide: choose another"
            )
        identity = {
            "track": track.name,
            "recipe": to_fields(recipe),
            "seed": seed,
            "backend": backend,
            "slice": _digest(slice_, recipe),
            "options": _kept(options),
            "program": _program_digest(options),
        }
        if before is not None and before["slice"]["digest"] != identity["slice"]:
            raise InputError(
                f"{place.path}: the run was made on slice {before['slice']['digest'][:12]}, found "
                f"{identity['slice'][:12]} in {slice_.directory}: use --data-dir with its own slice"
            )
        _agree(team, backend, options, identity)
        place, log = _opened(team, place, program, track, identity, options, base, guard)
        shown = sys.stderr if options.json else None
        screen = Screen(recipe.name, track.name, recipe.steps, stream=shown if team.first else open(os.devnull, "w"))  # noqa: SIM115
        run = Run(
            backend,
            options,
            track,
            recipe,
            seed,
            slice_,
            program,
            place,
            log,
            screen,
            TrainingClock(),
            identity,
            guard,
            team,
        )
        team.resume_command = run.resume_command
        try:
            if before is not None:
                _read_back(run)
                if team.first:
                    _keep_changed_source(run, before["source_sha256"])
            guard.start()
            yield run
        finally:
            screen.close()
            log.close()
    finally:
        if guard is not None:
            guard.stop()
        if place is not None:
            place.release()


def _opened(
    team: Team,
    place: RunDir | None,
    program: Program,
    track: Track,
    identity: dict[str, Any],
    options: Options,
    base: Recipe,
    guard: Guard,
) -> tuple[RunDir, RunLog | NoLog]:
    """The run directory and its log: a new one, or the one that is there, which the first process keeps and the others read."""
    if place is not None:
        log = RunLog.resume(place.log) if team.first else NoLog()
        team.gather("the log is whole")  # before the others read it
        return place, log
    if not team.first:
        host(team)
        return RunDir(Path(team.share(None))), NoLog()
    name = rundir.default_name(program.recipe.name, identity["backend"], identity["seed"])
    place = rundir.create(options.runs, track.name, options.name, default=name)
    try:
        guard.allow(place.path)
        _write_run_json(place, identity["backend"], program, track, identity, options, base, team)
        log = RunLog(place.log)
        log.event(
            "start",
            run=place.path.name,
            **{k: identity[k] for k in ("track", "seed", "backend", "slice")},
            run_json=sha256_file(place.run_json),
        )
        team.share(str(place.path))
    except BaseException:
        place.release()
        raise
    return place, log


def _guard(track: Track, options: Options, place: RunDir | None) -> Guard:
    """Watches what own code does; made before any of it is loaded."""
    files = [options.program] if options.program else []
    if options.optimizer and (spec := find_spec(options.optimizer.partition(":")[0].partition(".")[0])):
        files += spec.submodule_search_locations or [spec.origin]
    if getattr(options, "compile", False):
        files.append(tempfile.gettempdir())  # where compilers put what they read and write
    fingerprint.host()  # asks the system by another program, once
    return Guard(
        slices.data_home(options.data_dir) / track.slice, map(Path, [*files, *([place.path] if place else [])])
    )


def _own_module(track: Track, options: Options, before: dict[str, Any] | None) -> Any:
    """The file with the run's own program; InputError where the track or other options leave no room for one."""
    if track.fixed:
        raise InputError(
            f"--program: track {track.name} fixes data, batch and architecture, so that only the optimizer is "
            "yours: bring it as --optimizer module:function, or choose --track pocket or small"
        )
    for name in ("optimizer", "compile"):
        if getattr(options, name, None):
            raise InputError(f"--{name} and --program exclude each other: what runs is up to the program's file")
    if before is not None and (found := _program_digest(options)) != before["program"]["sha256"]:
        raise InputError(
            f"{options.program}: expected the file that the run was started with (sha256 "
            f"{before['program']['sha256'][:12]}), found {str(found)[:12]}: put it back, or start a new run"
        )
    return user_program.load(options.program)


def _program_digest(options: Options) -> str | None:
    """sha256 of the file of an own program; None where there is none."""
    return sha256_file(options.program) if options.program and Path(options.program).is_file() else None


def _refuse_changes(given: frozenset[str]) -> None:
    if changed := sorted(given - FREE_ON_RESUME):
        option = "--" + changed[0].replace("_", "-")
        raise InputError(
            f"{option} cannot be given with --resume: the run goes on as it was started; leave it out, or "
            "start a new run"
        )


def _from_run_json(
    backend: str, before: dict[str, Any], options: Options, given: frozenset[str], path: Path
) -> tuple[Track, Recipe, int, Options]:
    if before["backend"] != backend:
        raise InputError(
            f"{path} is a run of {before['backend']}: go on with it with python -m {before['backend']}.train "
            f"--resume {path}"
        )
    layout = {
        name: value for name, value in before.get("layout", {}).items() if name not in given and name != "devices"
    }
    options, recipe = dataclasses.replace(options, **before.get("options", {}), **layout), before["recipe"]
    if program := before.get("program"):
        options, recipe = dataclasses.replace(options, program=Path(program["path"])), program["base"]
    return track_for(before["track"]), from_fields(recipe), before["seed"], options


def _slice(track: Track, recipe: Recipe, data_dir: Path | None) -> slices.Slice:
    """The track's slice, prepared where it is not here yet, with enough tokens of the recipe's vocabulary."""
    needed = sum(segment.steps * segment.tokens for segment in recipe.plan) + 1
    slice_ = slices.prepare(track.slice, data_dir, train_tokens=needed, progress=Progress())
    if slice_.manifest.vocab_size != recipe.tokenizer_size:
        raise InputError(
            f"slice {track.slice} has a vocabulary of {slice_.manifest.vocab_size}, found --tokenizer-size "
            f"{recipe.tokenizer_size}: they must be equal"
        )
    check_plan(slice_.train_lengths, recipe.plan, f"slice {track.slice}")
    check_length(slice_, "val", track.val_tokens, slice_.part("val")[2])
    _ = slice_.token_bytes  # read now, so that nothing of the slice has to be opened later
    if track.val_tokens % recipe.eval_context:
        option = "--context" if recipe.eval_context == recipe.context else "--val-context"
        raise InputError(
            f"{option} {recipe.eval_context} does not divide the track's {track.val_tokens:,} val tokens: choose "
            "one that does, so that exactly these are scored"
        )
    _check_documents(slice_, recipe)
    return slice_


def _check_documents(slice_: slices.Slice, recipe: Recipe) -> None:
    """Raises InputError where the recipe keeps documents apart and the slice does not say where they start."""
    if not recipe.separate_documents:
        return
    if slice_.manifest.end_of_text != recipe.end_of_text:
        raise InputError(
            f"slice {slice_.manifest.slice}: recipe {recipe.name} expects documents to start with token {recipe.end_of_text}, "
            f"found end of text {slice_.manifest.end_of_text}: choose a slice whose last token it is"
        )
    if bare := [shard.file for shard in slice_.manifest.shards if not shard.documents]:
        raise InputError(
            f"slice {slice_.manifest.slice}: recipe {recipe.name} keeps documents apart by the token {recipe.end_of_text} that "
            f"each starts with, found none in {bare[0]}: choose another recipe, or prepare a slice with document starts"
        )


def _digest(slice_: slices.Slice, recipe: Recipe) -> str:
    """The digest of what the run reads of a slice: train shards that its plan does not reach do not count."""
    *_, last = spans(slice_.train_lengths, recipe.plan)
    return slice_.manifest.used(last.shard + 1).digest


def _build(backend: str, recipe: Recipe, options: Options, module: Any) -> Program:
    if module is not None:
        if options.microbatches != 1 or getattr(options, "shards", None) or getattr(options, "remat", "none") != "none":
            raise InputError(
                "--microbatches, --shards and --remat are for the recipes' own programs: a program of your own divides its batch itself"
            )
        program = user_program.build(module, recipe, device=options.device, devices=options.devices)
        with user_program.explained(module.__file__, "init"):
            program.init(options.seed)
        if program.framework != FRAMEWORKS[backend]:
            raise InputError(
                f"{module.__file__}: expected a program in {FRAMEWORKS[backend]}, found {program.framework}: start "
                "it with the other trainer"
            )
        return program
    chosen = {"device": options.device, "devices": options.devices, "optimizer": options.optimizer}
    chosen |= {
        name: getattr(options, name)
        for name in ("microbatches", "shards", "remat", "compile")
        if hasattr(options, name)
    }
    program = programs.build(backend, recipe, **chosen)
    if options.optimizer:
        program.init(options.seed)  # what is wrong with an own optimizer is said before there is a run directory
    return program


def _kept(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in KEPT if hasattr(options, name)}


def _write_run_json(
    place: RunDir,
    backend: str,
    program: Program,
    track: Track,
    identity: dict[str, Any],
    options: Options,
    base: Recipe,
    team: Team,
) -> None:
    recipe = program.recipe
    source = _pack(place.source, backend, options)
    own_program = (
        {
            "path": str(options.program),
            "file": options.program.name,
            "sha256": identity["program"],
            "base": to_fields(base),
        }
        if options.program
        else None
    )
    place.write_run_json(
        {
            "schema": rundir.SCHEMA,
            "track": track.name,
            "recipe": identity["recipe"],
            "seed": identity["seed"],
            "backend": backend,
            "precision": recipe.precision,
            "options": identity["options"],
            "program": own_program,
            "created_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "command": [f"python -m {backend}.train", *sys.argv[1:]],
            "devices": _devices(backend, program.devices),
            "processes": team.size,
            "layout": {name: getattr(options, name) for name in LAYOUT if hasattr(options, name)}
            | {"devices": len(program.devices)},
            "host": host(team),
            "versions": fingerprint.versions(),
            "environment": fingerprint.environment(),
            "slice": {"name": track.slice, "digest": identity["slice"]},
            "source_sha256": source,
            "plan": [dataclasses.asdict(segment) for segment in recipe.plan],
            "val_row": recipe.eval_context,
            "val_tokens": track.val_tokens,
            "malloc": SETTINGS if keep_freed_memory() else {},
            "eval_steps": list(recipe.eval_steps()),
            "checkpoints": list(recipe.checkpoint_steps()),
            "flops": None,
        }
    )


def host(team: Team) -> dict[str, Any]:
    """The machine of the first process, and how many there are where the others run on more. All processes call."""
    machines = len(set(team.gather(socket.gethostname())))
    return fingerprint.host() | ({"machines": machines} if machines > 1 else {})


def _devices(backend: str, said: list[str]) -> list[dict[str, Any]]:
    """The kinds of devices that the program computes on, each with its platform and number, as the framework itself has them.

    Raises InputError for devices that are not there, whatever a program says.
    """
    machines = (
        int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if backend == "torchref"
        else 1
    )
    there = {found["kind"]: found | {"count": found["count"] * machines} for found in fingerprint.devices(backend)}
    there |= {"cpu": {"kind": "cpu", "platform": "cpu", "count": len(said)}}
    for kind in sorted(set(said)) or ["nothing"]:
        if not 0 < said.count(kind) <= there.get(kind, {"count": 0})["count"]:
            names = ", ".join(
                f"{count} x {name}" for name, count in ((name, found["count"]) for name, found in there.items())
            )
            raise InputError(
                f"the program says that it computes on {said.count(kind)} x {kind}, found {names}: name the devices it uses"
            )
    return [there[kind] | {"count": said.count(kind)} for kind in sorted(set(said))]


def _agree(team: Team, backend: str, options: Options, identity: dict[str, Any]) -> None:
    """Raises InputError, before the first step, where a process has other data, another recipe, code, or versions than the first."""
    if team.size > 1:
        with tempfile.TemporaryDirectory() as folder:
            code = _pack(Path(folder, "source.zip"), backend, options)
        layout = {name: getattr(options, name) for name in LAYOUT if hasattr(options, name)}
        team.agree(
            identity | {"layout": layout, "code": code} | fingerprint.versions() | {"Python": sys.version.split()[0]}
        )


def _pack(path: Path, backend: str, options: Options) -> str:
    """Packs the code that runs; returns its digest."""
    root = Path(parity.__file__).parents[1]
    files = [Path(file) for file in (options.program, _own_file(options.optimizer)) if file]
    return source_zip.pack(path, [root / "parity", root / backend], files)


def _keep_changed_source(run: Run, source_sha256: str) -> None:
    """Where the code is no longer that of the run's start, keeps it beside it and says so."""
    path = run.place.path / f"source-{run.log.lines:06d}.zip"
    run.source_sha256 = _pack(path, run.backend, run.options)
    if run.source_sha256 == source_sha256:
        path.unlink()
    else:
        run.screen.note(f"the code has changed since the run was started: what runs now is kept in {path.name}")


def _own_file(optimizer: str | None) -> str | None:
    """The file that an own optimizer comes from; None for one that Python itself brings without a file."""
    return getattr(sys.modules[optimizer.partition(":")[0]], "__file__", None) if optimizer else None


def _read_back(run: Run) -> None:
    """Takes what the log of a resumed run already says: losses, evaluations, and the training time so far."""
    run.resumed, seconds = True, 0.0
    for event in read(run.place.log):
        if event["event"] == "step":
            run.losses[event["step"]] = float(event["loss"])
            seconds = event["train_s"]
        elif event["event"] == "eval":
            run.evaluations[event["step"]] = event
        elif event["event"] == "checkpoint":
            run.saved.add(event["step"])
        elif event["event"] == "finish":
            raise InputError(
                f"{run.place.path} is finished: there is nothing to resume; start another with a new --name"
            )
    run.clock, run.last_s = TrainingClock(seconds), seconds
