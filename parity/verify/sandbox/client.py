"""The program of a run in a process apart: the verifier's side of the pipe.

Our own recipes are built from the installed backend; own programs and optimizers from the run's packed source, in a
scratch folder. The process can read neither the data nor the run directory: batches come with the calls, and a checkpoint is
put into a folder that it can read when it is asked for, under a name that does not tell its step, and taken away again.
"""

import hashlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from parity.verify.evidence import Evidence
from parity.verify.rules import Context, NotJudged
from parity.verify.sandbox import parent as isolation
from parity.verify.sandbox import wire

START_S, CALL_S = 300.0, 600.0
MEMORY_BYTES = 16 << 30
FILE_BYTES = 4 << 30
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "JAX_PLATFORMS",
    "CUDA_VISIBLE_DEVICES",
    "XLA_FLAGS",
    "LD_LIBRARY_PATH",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)


class Remote:
    """Calls to the process. Every method raises NotJudged where the process dies, takes too long, or raises."""

    def __init__(self, process: Any, folder: Path, given: Path):
        self.process, self.folder, self.given = process, folder, given
        self.facts: dict[str, Any] = {}
        self.audit: list[str] = []

    @classmethod
    def start(cls, context: Context) -> "Remote":
        """Starts the process for a run and builds its program there. Raises NotJudged where that may not or cannot be."""
        evidence = context.evidence
        gpu = any(device["platform"] != "cpu" for device in evidence.run["devices"]) and context.device != "cpu"
        confined = isolation.available(gpu)
        apart = bool({"bubblewrap", "landlock"} & set(confined.parts))
        if evidence.strange and not apart and not context.trust_code:
            raise NotJudged(
                "the run has own code, and this machine has no isolation for it: install bubblewrap, or pip install "
                "'jaxrun[isolation]' on Linux, or judge it with --trust-code if you trust it"
            )
        context.facts["isolation"] = confined.kind + ("" if apart or not evidence.strange else ", own code trusted")
        context.facts["isolation_holds"], context.facts["isolation_gaps"] = list(confined.holds), list(confined.gaps)
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=context.scratch))
        own, optimizer_folder = _unpack(evidence, folder / "source")
        given = Path(tempfile.mkdtemp(prefix="given-", dir=context.scratch))
        process = isolation.start(
            "parity.verify.sandbox.server",
            [str(optimizer_folder)] if optimizer_folder else [],
            readable=[given],
            scratch=folder,
            limits=isolation.Limits(MEMORY_BYTES, START_S, FILE_BYTES),
            isolation=confined,
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            gpu=gpu,
        )
        remote = cls(process, folder, given)
        base = evidence.own["base"] if evidence.own else evidence.run["recipe"]
        try:
            remote.facts = remote.call(
                "build",
                START_S,
                backend=evidence.backend,
                recipe=base,
                own=own,
                optimizer=evidence.optimizer,
                device=context.device,
            )
        except NotJudged:
            remote.close()
            raise
        return remote

    def call(self, name: str, seconds: float = CALL_S, **arguments: Any) -> Any:
        """One call and its answer."""
        self.process.set_deadline(seconds)
        try:
            wire.write(self.process.stdin, {"call": name, "arguments": arguments})
            answer = wire.read(self.process.stdout)
        except wire.Broken as error:
            self.process.close()
            why = self.process.reason or f"the process ended ({error}){_last(self.process.stderr_tail())}"
            raise NotJudged(f"the program could not be asked for {name}: {why}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("audit", []), list):
            raise NotJudged(f"the program's answer to {name} is of no known form")
        self.audit += [str(event)[:300] for event in answer.get("audit", []) if len(self.audit) < 100]
        if "error" in answer:
            raise NotJudged(f"the program raised at {name}: {str(answer['error'])[:300]}")
        return answer["value"]

    def init(self, seed: int) -> int:
        return self.call("init", seed=seed)

    def load(self, weights: dict[str, np.ndarray], step: int) -> int:
        """A state with these weights, as if it had been made by so many updates."""
        return self.call("load", weights=weights, step=step)

    def restore(self, checkpoint: Path) -> int:
        """A checkpoint's state. Its files are where the process can read them only meanwhile. NotJudged without room for them."""
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.given).free
        if size + (64 << 20) > free:
            raise NotJudged(
                f"{self.given.parent}: a replay needs {size:,} bytes for a checkpoint, the disk has {free:,} left: make "
                "room, or set TMPDIR to a larger one"
            )
        place = self.given / f"state-{secrets.token_hex(4)}"
        try:
            shutil.copytree(checkpoint, place, ignore=shutil.ignore_patterns("checkpoint.json"), symlinks=True)
        except OSError as error:
            raise NotJudged(f"{checkpoint} could not be copied to {self.given} ({error}): make room there") from None
        try:
            return self.call("restore", directory=str(place))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def export(self, state: int) -> dict[str, np.ndarray]:
        found = self.call("export", state=state)
        if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
            raise NotJudged("the program's export is no mapping from names to arrays")
        return found

    def digest(self, state: int) -> str:
        return str(self.call("digest", state=state))

    def token_losses(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(B, T) float64 of what the program gives. NotJudged where it is of another shape."""
        found = self.call("token_losses", state=state, inputs=inputs, targets=targets)
        return self._shaped(found, inputs.shape, "token_losses").astype(np.float64)

    def log_probs(self, state: int, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(B, P, V) as the program gives them."""
        found = self.call("log_probs", state=state, inputs=inputs, positions=positions)
        if not isinstance(found, np.ndarray) or found.ndim != 3 or found.shape[:2] != (len(inputs), len(positions)):
            raise NotJudged(f"log_probs expected ({len(inputs)}, {len(positions)}, V), found {_kind(found)}")
        return found

    def gradients(self, state: int, inputs: np.ndarray, targets: np.ndarray, prefix: int) -> dict[str, np.ndarray]:
        return self.call("gradients", state=state, inputs=inputs, targets=targets, prefix=prefix)

    def step(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        found = self.call("step", state=state, inputs=inputs, targets=targets)
        return {name: float(found[name]) for name in ("loss", "grad_norm")}

    def drop(self, state: int) -> None:
        self.call("drop", state=state)

    def close(self) -> None:
        self.process.close()
        for folder in (self.folder, self.given):
            shutil.rmtree(folder, ignore_errors=True)

    def _shaped(self, found: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
        if not isinstance(found, np.ndarray) or found.shape != shape:
            raise NotJudged(f"{what} expected shape {shape}, found {_kind(found)}")
        return found


def _unpack(evidence: Evidence, folder: Path) -> tuple[str | None, Path | None]:
    """Writes the run's own code into a folder: the path of the own program, or the folder an own optimizer is imported from."""
    folder.mkdir()
    if own := evidence.own:
        content = evidence.source.get(own["file"])
        if content is None or hashlib.sha256(content).hexdigest() != own["sha256"]:
            raise NotJudged(f"source.zip has no {own['file']} of the digest that run.json names")
        path = folder / own["file"]
        path.write_bytes(content)
        return str(path), None
    if evidence.optimizer:
        for name, content in evidence.source.items():
            if name == evidence.optimizer.partition(":")[0] + ".py":
                (folder / name).write_bytes(content)
        return None, folder
    return None, None


def _kind(value: Any) -> str:
    return f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _last(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
