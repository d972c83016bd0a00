"""How a run is opened: everything is checked before its directory is made, so that bad input leaves nothing behind."""

import dataclasses
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from parity import program as programs
from parity import user_program
from parity.cli import check_text, python_command
from parity.data import slices
from parity.data.stream import by_documents, check_plan
from parity.errors import InputError
from parity.formats.files import sha256_file
from parity.harness import fingerprint, run_json, rundir
from parity.harness.clock import now_s
from parity.harness.duration import check_duration
from parity.harness.evaluation import check_length
from parity.harness.guard import Guard
from parity.harness.options import Arguments, Options
from parity.harness.places import Places
from parity.harness.processes import ProcessGroup
from parity.harness.run import Progress, Run, RunFiles, RunSpec, program_digest
from parity.harness.rundir import RunDir
from parity.harness.runlog import NoLog, RunLog
from parity.harness.screen import Screen
from parity.program import Program
from parity.progress import ProgressLine
from parity.recipes import Recipe, from_fields
from parity.track import Track, check_recipe, track_for

FRAMEWORKS = {"jaxrun": "jax", "torchref": "torch"}
PROGRAM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*[.]py")
FREE_ON_RESUME = {
    *(
        "resume",
        "device",
        "coordinator",
        "processes",
        "process",
        "data_dir",
        "samples",
        "json",
        "tensorboard",
        "save_every",
    ),
    *run_json.LAYOUT,
}


@dataclass(frozen=True)
class Request:
    """What is to be run: by the command line, or by the run.json of the run that --resume names."""

    backend: str
    options: Options
    track: Track
    base: Recipe
    seed: int
    dir: RunDir | None = None
    run_json: dict[str, Any] | None = None


@contextmanager
def open_run(backend: str, arguments: Arguments, processes: ProcessGroup | None = None) -> Iterator[Run]:
    """A new run, or the one that --resume names, ready to train; locked, and closed in order at the end.

    Raises InputError for whatever can be found out before the first step.
    """
    processes = processes or ProcessGroup()
    if processes.size > 1:
        programs.init_distributed(backend, arguments.options.device)
    if "" not in sys.path:
        sys.path.insert(0, "")  # user optimizers are looked for in the folder that the command is run from
    with ExitStack() as stack:
        request = resolve(backend, arguments, processes, stack)
        programs.import_backend(backend)  # takes seconds, and is not the user's doing
        guard, build_s = watch(request, stack), 0.0
        with guard:
            begin_s = now_s()
            module, recipe = load_user_program(request)
            build_s += now_s() - begin_s
        slice_ = open_slice(request.track, recipe, request.options.data_dir)
        with guard:
            begin_s = now_s()
            program = build_program(request, recipe, module)
            build_s += now_s() - begin_s
        spec = RunSpec(
            backend,
            request.options,
            request.track,
            request.base,
            recipe,
            request.seed,
            slice_,
            program,
            guard,
            processes,
            build_s,
        )
        check(spec, request)
        files, progress = open_dir(spec, request, stack)
        with guard:
            yield Run(spec, files, progress)


def resolve(backend: str, arguments: Arguments, processes: ProcessGroup, stack: ExitStack) -> Request:
    """What is to be run; for --resume, the run directory locked.

    Raises InputError for options that do not go together.
    """
    options, track, recipe, explicit = arguments
    for name in ("runs", "program", "resume"):
        check_text(getattr(options, name), f"--{name}")
    if options.resume is None:
        platform = programs.platform(backend, options.device)
        if platform == "gpu" and "precision" not in explicit:
            recipe = dataclasses.replace(recipe, precision="bfloat16")
        if platform == "cpu" and not options.force:
            check_duration(track, recipe, processes.size)
        request = Request(backend, options, track, recipe, options.seed)
    else:
        if changed := sorted(explicit - FREE_ON_RESUME):
            option = "--" + changed[0].replace("_", "-")
            raise InputError(
                f"{option} cannot be given with --resume: the run continues as it was started; leave it out, or start "
                "a new run"
            )
        directory = rundir.open_existing(options.resume, lock=processes.first)
        stack.callback(directory.release)
        request = _request_from_run_json(backend, directory, options, explicit)
    if options.tensorboard and not find_spec("tensorboard"):
        raise InputError(
            "--tensorboard needs the package tensorboard: pip install 'jaxrun[tensorboard]', or leave it out"
        )
    return request


def _request_from_run_json(backend: str, directory: RunDir, options: Options, explicit: frozenset[str]) -> Request:
    values = directory.read_run_json()
    if values["backend"] != backend:
        raise InputError(
            f"{directory.path} is a run of {values['backend']}: continue it with python -m {values['backend']}.train "
            f"--resume {directory.path}"
        )
    layout = {name: value for name, value in values.get("layout", {}).items() if name not in {*explicit, "devices"}}
    options, base = dataclasses.replace(options, **values.get("options", {}), **layout), values["recipe"]
    if program := values.get("program"):
        options, base = dataclasses.replace(options, program=Path(program["path"])), program["base"]
    track = track_for(values["track"])
    return Request(backend, options, track, from_fields(base), values["seed"], directory, values)


def watch(request: Request, stack: ExitStack) -> Guard:
    """The guard over what user code does, made before any of it is loaded."""
    options, readable, scratch = request.options, [], None
    if options.program:
        readable.append(options.program)
    if options.optimizer and (spec := find_spec(options.optimizer.partition(":")[0].partition(".")[0])):
        readable += spec.submodule_search_locations or [spec.origin]
    if options.program or options.optimizer or getattr(options, "compile", False):
        scratch = stack.enter_context(own_caches())
    fingerprint.host()  # asks the system by another program, once
    try:
        tempfile.gettempdir()  # tries by writing a file, once
    except FileNotFoundError:
        raise InputError(
            "expected a folder for temporary files, found none that can be written: set TMPDIR to one"
        ) from None
    writable = [request.dir.path] if request.dir else []
    places = Places(map(Path, filter(None, readable)), writable, scratch)
    return Guard(slices.data_home(options.data_dir) / request.track.slice, places)


@contextmanager
def own_caches() -> Iterator[Path]:
    """A new folder for what is compiled (`compiled`) and for temporary files (`tmp`), used until the end of the run.

    Nothing that an earlier run left reaches this one through a cache, and nothing of this one a later run.
    """
    with tempfile.TemporaryDirectory(prefix="jaxrun-run-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        before = {name: os.environ.get(name) for name in (*fingerprint.CACHES, "TMPDIR")}
        for part in ("compiled", "tmp"):
            (scratch / part).mkdir()
        os.environ |= {name: str(scratch / "compiled" / name.lower()) for name in fingerprint.CACHES}
        os.environ["TMPDIR"] = str(scratch / "tmp")
        directory, tempfile.tempdir = tempfile.tempdir, str(scratch / "tmp")
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        try:
            with no_input():
                yield scratch
        finally:
            tempfile.tempdir = directory
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {name: value} if value is not None else {}


@contextmanager
def no_input() -> Iterator[None]:
    """Nothing can be read from the standard input, unless it is a terminal, where a debugger may ask."""
    try:
        before = None if os.isatty(0) else os.dup(0)
    except OSError:  # there is none
        before = None
    if before is None:
        yield
        return
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def load_user_program(request: Request) -> tuple[ModuleType | None, Recipe]:
    """The module of --program and the recipe that it makes; without one, None and the base recipe.

    Raises InputError where the track or other options leave no room for a user program.
    """
    options, track = request.options, request.track
    if options.program is None:
        return None, request.base
    if track.fixed:
        raise InputError(
            f"--program: track {track.name} fixes data, batch and architecture, so that only the optimizer is "
            "yours: bring it as --optimizer module:function, or choose --track pocket or small"
        )
    if not PROGRAM_NAME.fullmatch(options.program.name):
        raise InputError(
            f"--program {options.program}: expected a file named by letters, digits, '_', '-', '.' and blanks that "
            "starts with a letter or digit and ends in .py, as run.json names it, found another name: rename it"
        )
    for name in ("optimizer", "compile"):
        if getattr(options, name, None):
            raise InputError(f"--{name} and --program exclude each other: what runs is up to the program's file")
    digest = program_digest(options)
    if request.run_json is not None and digest != (started := request.run_json["program"]["sha256"]):
        raise InputError(
            f"{options.program}: expected the file that the run was started with (sha256 {started[:12]}), found "
            f"{str(digest)[:12]}: put it back, or start a new run"
        )
    module = user_program.load(options.program)
    recipe = user_program.make_recipe(module, request.base)
    check_recipe(track, recipe)
    return module, recipe


def open_slice(track: Track, recipe: Recipe, data_dir: Path | None) -> slices.Slice:
    """The track's slice, prepared if it is not here yet, with enough tokens of the recipe's vocabulary."""
    train_tokens, before = sum(segment.steps * segment.tokens for segment in recipe.plan) + 1, None
    while True:
        slice_ = slices.prepare(track.slice, data_dir, train_tokens=train_tokens, progress=ProgressLine())
        last = not by_documents(recipe.plan) or slice_.train_lengths == before
        if last or slice_.documents.steps(recipe.plan) == recipe.steps:
            break
        before = slice_.train_lengths  # what is cut from documents is known only once they are here
        train_tokens = max(train_tokens * 5 // 4, sum(before) + 1)
    if slice_.manifest.vocab_size != recipe.tokenizer_size:
        raise InputError(
            f"slice {track.slice} has a vocabulary of {slice_.manifest.vocab_size}, found --tokenizer-size "
            f"{recipe.tokenizer_size}: they must be equal"
        )
    check_plan(slice_.train_lengths, recipe.plan, f"slice {track.slice}", slice_.documents)
    check_length(slice_, "val", track.val_tokens, slice_.part("val")[2])
    _ = slice_.token_bytes  # read now, so that nothing of the slice has to be opened later
    if track.val_tokens % recipe.eval_context:
        option = "--context" if recipe.eval_context == recipe.context else "--val-context"
        raise InputError(
            f"{option} {recipe.eval_context} does not divide the track's {track.val_tokens:,} val tokens: choose "
            "one that does, so that exactly these are scored"
        )
    check_documents(slice_, recipe)
    return slice_


def check_documents(slice_: slices.Slice, recipe: Recipe) -> None:
    """Raises InputError where the recipe separates documents and the slice does not show where they start."""
    if not recipe.separate_documents:
        return
    if slice_.manifest.end_of_text != recipe.end_of_text:
        raise InputError(
            f"slice {slice_.manifest.slice}: recipe {recipe.name} expects documents to start with token "
            f"{recipe.end_of_text}, found end of text {slice_.manifest.end_of_text}: choose a slice whose last token "
            "it is"
        )
    if without := [shard.file for shard in slice_.manifest.shards if not shard.documents]:
        raise InputError(
            f"slice {slice_.manifest.slice}: recipe {recipe.name} separates documents by the token "
            f"{recipe.end_of_text} that each starts with, found none in {without[0]}: choose another recipe, or "
            "prepare a slice with document starts"
        )


def build_program(request: Request, recipe: Recipe, module: ModuleType | None) -> Program:
    """The program of a recipe in the backend, or that of the user's file, which must answer a first init."""
    options = request.options
    if module is None:
        chosen = {
            name: getattr(options, name)
            for name in ("device", "devices", "optimizer", "microbatches", "shards", "remat", "compile")
            if hasattr(options, name)
        }
        program = programs.build(request.backend, recipe, **chosen)
        if options.optimizer:
            with user_program.user_code(user_program.source_file(options.optimizer), "the optimizer"):
                program.init(request.seed)  # a faulty user optimizer is reported before there is a run directory
        return program
    if options.microbatches != 1 or getattr(options, "shards", None) or getattr(options, "remat", "none") != "none":
        raise InputError(
            "--microbatches, --shards and --remat are for the recipes' own programs: a user program divides its batch "
            "itself"
        )
    program, file = user_program.build(module, recipe, device=options.device, devices=options.devices), module.__file__
    with user_program.user_code(str(file), "init"):
        program.init(request.seed)
    if program.framework != FRAMEWORKS[request.backend]:
        raise InputError(
            f"{file}: expected a program in {FRAMEWORKS[request.backend]}, found {program.framework}: start it with "
            "the other trainer"
        )
    return program


def check(spec: RunSpec, request: Request) -> None:
    """Raises InputError where program, devices, data or the other processes do not fit the run."""
    program, devices, rows = spec.program, len(spec.program.devices), spec.track.val_tokens // spec.recipe.eval_context
    if spec.processes.size > 1 and not hasattr(program, "put_local_batch"):
        raise InputError(
            f"{spec.options.program}: expected a program with a method put_local_batch, found none: without it a run "
            "has one process"
        )
    if spec.recipe.checkpoint_steps() != Recipe.checkpoint_steps(spec.recipe):
        raise InputError(
            f"{spec.options.program}: checkpoints are the harness' to place, evenly: leave out the recipe's own "
            "checkpoint_steps, and choose their number by its field `checkpoints`"
        )
    planned = sum(segment.steps for segment in spec.recipe.plan)
    if planned != spec.recipe.steps:
        raise InputError(
            f"{spec.options.program}: the plan has {planned:,} steps, expected the recipe's {spec.recipe.steps:,}: "
            "change one of the two"
        )
    if rows % devices:
        raise InputError(
            f"--devices {devices}: the track's {spec.track.val_tokens:,} val tokens are {rows} rows, which so many "
            "devices do not divide: choose another"
        )
    if request.run_json is not None and request.dir is not None:
        started, current = request.run_json["slice"]["digest"], spec.identity["slice"]
        if started != current:
            raise InputError(
                f"{request.dir.path}: the run was made on slice {started[:12]}, found {current[:12]} in "
                f"{spec.slice.directory}: use --data-dir with its own slice"
            )
    if spec.processes.size > 1:
        with tempfile.TemporaryDirectory() as folder:
            code = run_json.pack_source(Path(folder, "source.zip"), spec.backend, spec.options)
        facts = {"layout": run_json.layout(spec.options), "code": code, "Python": sys.version.split()[0]}
        spec.processes.agree(spec.identity | facts | fingerprint.versions())


def open_dir(spec: RunSpec, request: Request, stack: ExitStack) -> tuple[RunFiles, Progress]:
    """The run directory, its log and screen, made or continued by the first process; all close with `stack`."""
    processes = spec.processes
    if request.dir is not None:
        directory, log = request.dir, RunLog.resume(request.dir.log) if processes.first else NoLog()
        processes.gather("the log is whole")  # before the others read it
    elif processes.first:
        directory, log = _make_dir(spec, stack)
    else:
        run_json.host(processes)
        directory, log = RunDir(Path(processes.broadcast(None))), NoLog()
    stack.callback(log.close)
    stream = sys.stderr if spec.options.json else None
    if not processes.first:
        stream = io.StringIO()
    screen = Screen(spec.label, spec.track.name, spec.recipe.steps, stream=stream)
    stack.callback(screen.close)
    command = f"{python_command()} -m {spec.backend}.train --resume {shlex.quote(str(directory.path))}"
    processes.resume_command = command
    if names := spec.idle_weights:
        screen.note(f"no optimizer updates {len(names)} weights: {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
    if request.run_json is None:
        return RunFiles(directory, log, screen, False, command), Progress()
    progress, source_sha256 = Progress.from_log(directory), None
    if processes.first:
        path = directory.path / f"source-{log.lines:06d}.zip"
        source_sha256 = run_json.pack_source(path, spec.backend, spec.options)
        if source_sha256 == request.run_json["source_sha256"]:
            path.unlink()
        else:
            screen.note(f"the code has changed since the run was started: the code that runs now is in {path.name}")
    return RunFiles(directory, log, screen, True, command, source_sha256), progress


def _make_dir(spec: RunSpec, stack: ExitStack) -> tuple[RunDir, RunLog]:
    """A new run directory with run.json, source.zip and a log; the other processes learn its path."""
    options = spec.options
    label = re.sub(r"[^A-Za-z0-9.]+", "-", spec.label.partition("(")[0])
    name = rundir.default_name(label, spec.backend, spec.seed)
    directory = rundir.create(options.runs, spec.track.name, options.name, default=name)
    stack.callback(directory.release)
    spec.guard.allow(directory.path)
    log = None
    try:
        source_sha256 = run_json.pack_source(directory.source, spec.backend, options)
        directory.write_run_json(run_json.values(spec, source_sha256))
        log = RunLog(directory.log)
        facts = {name: spec.identity[name] for name in ("track", "seed", "backend", "slice")}
        run_json_sha256 = sha256_file(directory.run_json)
        log.event("start", run=directory.path.name, **facts, run_json=run_json_sha256, build_s=spec.build_s)
    except BaseException:  # a directory without a first event could be neither resumed nor made again
        if log:
            with suppress(InputError):
                log.close()
        directory.discard()
        raise
    spec.processes.broadcast(str(directory.path))
    return directory, log
