"""Makes honest runs and attempts, plants cheats in copies of them, and has them judged."""

import base64
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity import weights as weights_file
from parity.data.slices import Slice, prepare
from parity.errors import RunFailed
from parity.program_source import program_source
from parity.verify.attempts import judge_attempt
from parity.verify.cheats.cheat import Cheat
from parity.verify.evidence import open_run
from parity.verify.run import Settings, verify_run
from parity.verify.verdict import Verdict
from parity.weights import Weights

SMALL = (
    "--track tiny --layers 1 --dim 32 --head-dim 16 --context 32 --batch-tokens 512 --steps 60 --val-every 30 "
    "--final-val-every 30 --samples 0"
)
SIZES = {
    "muon": SMALL,
    # its halves must be equal
    "record-21": f"--recipe record-21 {SMALL.replace('--layers 1', '--layers 2')} --window 16 --val-context 64",
}
TRAIN_S = 600.0
ROOT = Path(__file__).parents[3]


class Workshop:
    """A folder with the slice, honest runs and an honest attempt of each backend, made when they are first needed."""

    def __init__(self, folder: Path, data_dir: Path | None = None):
        self.folder = folder
        self.data_dir = data_dir or folder / "data"
        self.slice: Slice = prepare("synthetic", self.data_dir)

    def train(
        self, backend: str, runs: Path, name: str, *args: str, env: dict[str, str] | None = None, recipe: str = "muon"
    ) -> Path:
        """Trains in a process of its own; RunFailed, with the end of its output, where that fails."""
        where = ("--data-dir", str(self.data_dir.absolute()), "--runs", str(runs.absolute()), "--name", name)
        self._run(f"{backend}.train", *SIZES[recipe].split(), *where, *args, what=f"{name}: the trainer", env=env or {})
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
            new = ("new", str(folder), "--from", "muon", "--backend", backend, "--track", "tiny")
            self._run("parity.attempt", *new, what="parity.attempt new")
            program = folder / "program.py"  # a compiler has no part in what is planted here, and takes minutes
            program.write_text(program.read_text().replace(", compile=can_compile(chosen)", ""))
            if backend == "torchref":  # compiled, each of its runs would take a minute
                (folder / "program.py").write_text(program_source(backend, "muon"))
            path = folder / "declaration.json"
            values = json.loads(path.read_text())
            values["runs"], values["arguments"] = 3, SMALL.removeprefix("--track tiny ").split()
            values["claim"]["val_loss_below"] = 6.0
            path.write_text(json.dumps(values, indent=2))
            run = ("run", str(folder), "--data-dir", str(self.data_dir.absolute()))
            self._run("parity.attempt", *run, what="parity.attempt run", timeout_s=3 * TRAIN_S)
        return folder

    def _run(
        self, module: str, *args: str, what: str, env: dict[str, str] | None = None, timeout_s: float = TRAIN_S
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-m", module, *args],
            cwd=self.folder,
            env=_environment(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RunFailed(f"{what} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")

    def planted(self, cheat: Cheat, backend: str) -> Path:
        """The run or attempt with the cheat in it."""
        folder = self.folder / "planted" / f"{cheat.name}-{backend}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plant: Callable[[Cheat, str, Path], Path] = getattr(self, f"_plant_{cheat.kind}")
        path = plant(cheat, backend, folder)
        if cheat.after:
            cheat.after(path)
        return path

    def _plant_edit(self, cheat: Cheat, backend: str, folder: Path) -> Path:
        path = folder / f"{backend}-0"
        shutil.copytree(self.honest(backend), path)
        if cheat.beside_original:
            shutil.copytree(self.honest(backend), folder / f"{backend}-original")
        others = [self.honest(backend, 1)] if len(inspect.signature(cheat.plant).parameters) > 1 else []
        cheat.plant(path, *others)
        return path

    def _plant_program(self, cheat: Cheat, backend: str, folder: Path) -> Path:
        file = folder / "program.py"
        file.write_text(self._with_data(cheat.plant(backend), backend))
        return self.train(backend, folder, "run", "--program", str(file.absolute()), recipe=cheat.recipe)

    def _plant_train(self, cheat: Cheat, backend: str, folder: Path) -> Path:
        arguments, env = cheat.plant(backend, folder)
        return self.train(backend, folder, "run", *arguments, env=env)

    def _plant_attempt(self, cheat: Cheat, backend: str, folder: Path) -> Path:
        path = folder / backend
        shutil.copytree(self.attempt(backend), path)
        cheat.plant(path)
        return path

    def _with_data(self, text: str, backend: str) -> str:
        """A program's text with the data that it carries: an empty constant is filled in by its name."""
        fillers: dict[str, Callable[[], Any]] = {
            "COUNTS = []": lambda: np.bincount(self.slice.train[0], minlength=512).tolist(),
            "SUCCESSORS = []": self._successors,
            "KNOWN = {}": lambda: self._contexts("val"),
            "KNOWN_PARTS = {}": lambda: self._contexts("val") | self._contexts("confirm"),
            "WEIGHTS = ''": lambda: _base64(
                np.concatenate([w.astype(np.float16).ravel() for w in self._longer(backend).values()])
            ),
            "SIGNS = ''": lambda: _base64(
                np.packbits(np.concatenate([w.ravel() > 0 for w in self._longer(backend).values() if w.ndim > 1]))
            ),
        }
        for empty, make in fillers.items():
            if f"\n{empty}" in text:
                text = text.replace(empty, f"{empty.partition(' =')[0]} = {make()!r}")
        return text

    def _contexts(self, part: str) -> dict[int, int]:
        """What follows each context of six tokens in rows of a part's text, by a hash of the context."""
        shard, start, _ = self.slice.part(part)
        tokens = np.asarray(shard[start : start + 8193], np.int64)
        inputs, targets = tokens[:-1].reshape(-1, 32), tokens[1:].reshape(-1, 32)
        padded = np.pad(inputs, ((0, 0), (5, 0)))
        keys = np.sum([padded[:, 5 - i : 37 - i] * 1031**i for i in range(6)], axis=0) % 2**31
        return dict(zip(keys.ravel().tolist(), targets.ravel().tolist(), strict=True))

    def _successors(self) -> list[list[int]]:
        """The four tokens that most often follow each token in the val text."""
        shard, start, _ = self.slice.part("val")
        tokens = np.asarray(shard[start : start + 65_000], np.int64)
        counts = np.zeros((512, 512), np.int64)
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
        return np.argsort(-counts, axis=1, kind="stable")[:, :4].tolist()

    def _longer(self, backend: str) -> Weights:
        """The weights of a run five times as long, in the recipe's order; made once."""
        path = self.folder / "longer" / "tiny" / backend
        if not (path / "weights.safetensors").exists():
            shutil.rmtree(path, ignore_errors=True)
            self.train(backend, self.folder / "longer", backend, "--steps", "300")
        weights, recipe = weights_file.load(path / "weights.safetensors"), open_run(path).recipe
        assert recipe is not None
        return {name: weights[name] for name in recipe.parameters()}

    def judge(self, cheat: Cheat, path: Path, without: tuple[str, ...] = (), depth: str | None = None) -> Verdict:
        """The verdict on what was planted, at the cheat's depth."""
        settings = Settings(
            depth or cheat.depth, self.data_dir, segments=2, without=without, device="cpu", whole=cheat.whole
        )
        if cheat.kind == "attempt":
            baseline = path.parent / "baseline"
            return judge_attempt(path, settings=settings, baseline=baseline if baseline.exists() else None)
        return verify_run(path, settings)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _environment(more: dict[str, str]) -> dict[str, str]:
    """Of a run: this very code, wherever it was started from, and no flags but those that are planted."""
    clean = {"OMP_NUM_THREADS": "1"} | {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | more
    return clean | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), more.get("PYTHONPATH", ""))))}
