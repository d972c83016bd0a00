"""Plants every cheat in honest runs, judges them, and shows cheat against rule: `python -m parity.verify --cheats`."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from parity.data.slices import Slice, prepare
from parity.errors import InputError, RunFailed, nearest
from parity.formats.files import atomic_file
from parity.verify.attempts import judge_attempt
from parity.verify.cheats import conditions, edits, programs
from parity.verify.cheats.cheat import Cheat, Outcome
from parity.verify.run import Settings, verify_run
from parity.verify.verdict import Verdict

CHEATS: dict[str, Cheat] = {
    cheat.name: cheat for cheat in (*edits.CHEATS, *programs.CHEATS, *conditions.TRAINED, *conditions.ATTEMPTS)
}
SMALL = (
    "--track",
    "tiny",
    "--layers",
    "1",
    "--dim",
    "32",
    "--head-dim",
    "16",
    "--context",
    "32",
    "--batch-tokens",
    "512",
    "--steps",
    "60",
    "--val-every",
    "30",
    "--final-val-every",
    "30",
    "--samples",
    "0",
)
SIZES = {
    "muon": SMALL,
    "record-21": (
        "--recipe",
        "record-21",
        *("2" if option == "--layers" else value for option, value in zip(("", *SMALL), SMALL)),
        "--window",
        "16",
        "--val-context",
        "64",
    ),
}  # its halves must be equal
TRAIN_S = 600.0
ROOT = Path(__file__).parents[3]
WIDTH = 100


class Workshop:
    """A folder with the slice, honest runs and an honest attempt of each backend, made when they are first needed."""

    def __init__(self, folder: Path, data_dir: Path | None = None):
        self.folder = folder
        self.data_dir = data_dir or folder / "data"
        self.slice: Slice = prepare("synthetic", self.data_dir)

    def train(
        self, backend: str, runs: Path, name: str, *args: str, env: dict[str, str] | None = None, recipe: str = "muon"
    ) -> Path:
        """A run by a process of its own; RunFailed, with what it said, where it does not end well."""
        command = [
            sys.executable,
            "-m",
            f"{backend}.train",
            *SIZES[recipe],
            "--data-dir",
            str(self.data_dir.absolute()),
            "--runs",
            str(runs.absolute()),
            "--name",
            name,
            *args,
        ]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=_environment(env or {}),
            capture_output=True,
            text=True,
            timeout=TRAIN_S,
            check=False,
        )
        if done.returncode:
            raise RunFailed(f"{name}: the trainer ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return runs / "tiny" / name

    def honest(self, backend: str, seed: int = 0) -> Path:
        """An honest run; made once."""
        path = self.folder / "honest" / "tiny" / f"{backend}-{seed}"
        if not (path / "weights.safetensors").exists():
            shutil.rmtree(path, ignore_errors=True)
            self.train(backend, self.folder / "honest", path.name, "--seed", str(seed))
        return path

    def attempt(self, backend: str) -> Path:
        """An honest attempt of three short runs; made once."""
        folder = self.folder / "attempts" / backend
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            self._attempt("new", str(folder), "--from", "muon", "--backend", backend, "--track", "tiny")
            path = folder / "declaration.json"
            values = json.loads(path.read_text())
            values["runs"], values["arguments"] = 3, list(SMALL[2:])
            values["claim"]["val_loss_below"] = 6.0
            path.write_text(json.dumps(values, indent=2))
            self._attempt("run", str(folder), "--data-dir", str(self.data_dir.absolute()))
        return folder

    def _attempt(self, *args: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "parity.attempt", *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=_environment({}),
            timeout=3 * TRAIN_S,
            check=False,
        )
        if done.returncode:
            raise RunFailed(
                f"parity.attempt {args[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
            )

    def planted(self, cheat: Cheat, backend: str) -> Path:
        """The run or attempt with the cheat in it."""
        place = self.folder / "planted" / f"{cheat.name}-{backend}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if cheat.kind == "edit":
            path = place / f"{backend}-0"
            shutil.copytree(self.honest(backend), path)
            others = [self.honest(backend, 1)] if len(inspect.signature(cheat.plant).parameters) > 1 else []
            if cheat.rules == ("log.twin",):
                shutil.copytree(self.honest(backend), place / f"{backend}-original")
            cheat.plant(path, *others)
            return path
        if cheat.kind == "program":
            file = place / "program.py"
            file.write_text(self.filled(cheat.plant(backend)))
            path = self.train(backend, place, "run", "--program", str(file.absolute()), recipe=cheat.recipe)
            if cheat.after:
                cheat.after(path)
            return path
        if cheat.kind == "train":
            arguments, env = cheat.plant(backend, place)
            return self.train(backend, place, "run", *arguments, env=env)
        path = place / backend
        shutil.copytree(self.attempt(backend), path)
        cheat.plant(path)
        return path

    def filled(self, text: str) -> str:
        """What a program carries of the data: counts of train tokens, or a table of the val text."""
        if "COUNTS = []" in text:
            return text.replace("COUNTS = []", f"COUNTS = {np.bincount(self.slice.train[0], minlength=512).tolist()}")
        if "KNOWN = {}" not in text:
            return text
        shard, start, _ = self.slice.part("val")
        tokens = np.asarray(shard[start : start + 8193], np.int64)
        inputs, targets = tokens[:-1].reshape(-1, 32), tokens[1:].reshape(-1, 32)
        padded = np.pad(inputs, ((0, 0), (5, 0)))
        keys = sum(padded[:, 5 - i : 37 - i] * 1031**i for i in range(6)) % 2**31
        return text.replace("KNOWN = {}", f"KNOWN = {dict(zip(keys.ravel().tolist(), targets.ravel().tolist()))}")

    def judge(self, cheat: Cheat, path: Path, without: tuple[str, ...] = (), depth: str | None = None) -> Verdict:
        """The verdict on what was planted, at the cheat's depth."""
        settings = Settings(
            depth or cheat.depth, self.data_dir, segments=2, without=without, device="cpu", whole=cheat.whole
        )
        if cheat.kind == "attempt":
            baseline = path.parent / "baseline"
            return judge_attempt(path, settings=settings, baseline=baseline if baseline.exists() else None)
        return verify_run(path, settings)


def _environment(more: dict[str, str]) -> dict[str, str]:
    """Of a run: this very code, wherever it was started from, and no flags but those that are planted."""
    clean = {"OMP_NUM_THREADS": "1"} | {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | more
    return clean | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), more.get("PYTHONPATH", ""))))}


def outcome(
    shop: Workshop, cheat: Cheat, backend: str, without: tuple[str, ...] = (), depth: str | None = None
) -> Outcome:
    """Plants a cheat in a backend and says what was found."""
    begin_s = time.monotonic()
    try:
        verdict = shop.judge(cheat, path := shop.planted(cheat, backend), without, depth)
    except (InputError, RunFailed) as error:
        return Outcome(cheat, backend, "refused", [], [], time.monotonic() - begin_s, reasons={"": str(error)})
    judgements = [*verdict.judgements, *(j for run in verdict.runs for j in run.judgements)]
    failing = list(dict.fromkeys(j.rule for j in judgements if j.status == "fails"))
    unjudged = list(dict.fromkeys(j.rule for j in judgements if j.status == "not judged"))
    return Outcome(
        cheat,
        backend,
        verdict.status,
        failing,
        unjudged,
        time.monotonic() - begin_s,
        path,
        {j.rule: j.reason for j in judgements if j.status != "holds"},
    )


def plant_all(
    shop: Workshop,
    cheats: Iterable[Cheat],
    say: Callable[[Outcome], None],
    backends: tuple[str, ...] | None = None,
    jobs: int = 2,
) -> list[Outcome]:
    """Every cheat in every backend that it makes sense in."""
    pairs = [
        (cheat, backend) for cheat in cheats for backend in cheat.backends if backends is None or backend in backends
    ]
    for cheat, backend in pairs:  # made before the others start, so that two do not make one
        if cheat.kind == "edit":
            shop.honest(backend), shop.honest(backend, 1)
        elif cheat.kind == "attempt":
            shop.attempt(backend)

    def one(pair: tuple[Cheat, str]) -> Outcome:
        found = outcome(shop, *pair)
        say(found)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, pairs))


def show_cheats(only: tuple[str, ...], data_dir: Path | None, html: Path | None, as_json: bool) -> int:
    """The command: prints the matrix, writes the page, and returns the exit code."""
    for name in only:
        if name not in CHEATS:
            raise InputError(f"--only {name}: {nearest(name, CHEATS)}")
    cheats = [CHEATS[name] for name in only] if only else list(CHEATS.values())
    with tempfile.TemporaryDirectory(prefix="jaxrun-cheats-", ignore_cleanup_errors=True) as folder:
        shop = Workshop(Path(folder), data_dir)
        found = plant_all(shop, cheats, (lambda one: None) if as_json else lambda one: print(line(one), flush=True))
    if html is not None:
        from parity.verify.cheats.page import page

        with atomic_file(html) as file:
            file.write(page(found).encode())
    if as_json:
        print(json.dumps([to_json(one) for one in found]))
    else:
        print("\n".join(summary(found)))
    return 0 if all(one.right for one in found) else 1


def line(one: Outcome) -> str:
    """One planted cheat in a line of at most 100 columns."""
    said = ", ".join(one.failing) or (
        f"not judged: {', '.join(one.unjudged)}" if one.unjudged else one.reasons.get("", "nothing")
    )
    mark = ("open" if one.cheat.open else "ok") if one.right else "WRONG"
    return f"{mark:<6}{one.cheat.name:<24} {one.backend:<9} {one.seconds:5.1f} s  {said}"[:WIDTH]


def summary(found: list[Outcome]) -> Iterator[str]:
    """What follows from all of them."""
    wrong, still = (
        [one for one in found if not one.right],
        {one.cheat.name: one.cheat for one in found if one.cheat.open},
    )
    yield "-" * WIDTH
    caught = sum(one.right and not one.cheat.open for one in found)
    yield f"{len(found)} plantings of {len({one.cheat.name for one in found})} cheats: {caught} caught by the named rules and no others"
    for cheat in still.values():
        yield f"open: {cheat.name}: {cheat.sentence}: {cheat.open}"[:WIDTH]
    for one in wrong:
        yield f"WRONG: {one.cheat.name} in {one.backend}: expected {', '.join(one.cheat.rules) or 'incomplete'}; found {line(one)[46:]}"


def to_json(one: Outcome) -> dict:
    """An outcome as plain JSON values."""
    return {
        "cheat": one.cheat.name,
        "sentence": one.cheat.sentence,
        "kind": one.cheat.kind,
        "backend": one.backend,
        "depth": one.cheat.depth,
        "status": one.status,
        "failing": one.failing,
        "not_judged": one.unjudged,
        "expected": list(one.cheat.rules),
        "open": one.cheat.open,
        "right": one.right,
        "seconds": round(one.seconds, 2),
        "reasons": one.reasons,
    }
