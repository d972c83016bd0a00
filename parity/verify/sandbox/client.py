"""The program of a run in a sandboxed process: the verifier's side of the pipe.

Our own recipes are built from the installed backend; user programs and optimizers from the run's packed source, in a
scratch folder. The process can read neither the data nor the run directory: batches come with the calls, and a
checkpoint is copied into a readable folder only while it is restored, under a name that does not tell its step.
"""

import ast
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import InputError, remedy
from parity.formats.files import open_plain
from parity.verify.evidence import Evidence
from parity.verify.sandbox import parent, wire
from parity.verify.sandbox.process import Limits, SandboxedProcess
from parity.verify.timing import Spent, timed

START_S, CALL_S = 300.0, 600.0
MOST_IMPORTS = 100
LIMITS = Limits(memory_bytes=16 << 30, time_s=START_S, file_bytes=4 << 30)
WITHOUT_COMPILERS = {"TORCHDYNAMO_DISABLE": "1"}  # torch.compile leaves functions as they are
WITH_COMPILERS = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no processes that wait for work
SET = {
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",  # they would make the folder's name part of every key
}
COMPILED = "compiled"  # the folder of JAX's compiled functions in a process' scratch folder
MOST_TOKENS = 1 << 18  # of a vocabulary, where no recipe of ours says
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


class SandboxError(Exception):
    """The program could not be started or did not answer as it must; the sentence says what to do."""


class SandboxedProgram:
    """Calls to the process. Every method raises SandboxError where the process dies, takes too long, or raises.

    `recipe` has the program's own facts: its plan, precision, tokenizer size and so on, by name. `built`: what building
    it took, once the backend was imported.
    """

    def __init__(self, process: SandboxedProcess, scratch: Path, inbox: Path, evidence: Evidence):
        self.process, self.scratch, self.inbox, self._evidence = process, scratch, inbox, evidence
        self.recipe: dict[str, Any] = {}
        self.audit: list[str] = []
        self.built = Spent()

    @classmethod
    def start(
        cls,
        evidence: Evidence,
        folder: Path,
        isolation: parent.Isolation,
        device: str,
        gpu: bool,
        compiled_by: Iterable["SandboxedProgram"] = (),
        compilers: bool = False,
    ) -> "SandboxedProgram":
        """Starts the process for a run and builds its program there; `folder` is for its files. Raises SandboxError.

        `compiled_by`: processes of trusted code whose compiled functions it begins with. `compilers`: it may start the
        compilers that torch.compile needs; otherwise functions are not compiled by it.
        """
        scratch, inbox = (Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)) for name in ("scratch", "inbox"))
        compiled = scratch / COMPILED
        for other in compiled_by:
            if (other.scratch / COMPILED).is_dir():
                shutil.copytree(other.scratch / COMPILED, compiled, dirs_exist_ok=True)
        compiled.mkdir(exist_ok=True)
        user_program, optimizer_folder = _unpack(evidence, scratch / "source")
        process = parent.start(
            "parity.verify.sandbox.server",
            [str(optimizer_folder)] if optimizer_folder else [],
            readable=[inbox],
            scratch=scratch,
            limits=LIMITS,
            isolation=isolation,
            environment=_environment(evidence)
            | SET
            | (WITH_COMPILERS if compilers else WITHOUT_COMPILERS)
            | {"JAX_COMPILATION_CACHE_DIR": str(compiled)},
            gpu=gpu,
            compilers=compilers,
        )
        program = cls(process, scratch, inbox, evidence)
        try:
            program.call("prepare", START_S, backend=evidence.backend, device=device, modules=_imports(evidence))
            with timed(process) as program.built:
                program.recipe = program.call(
                    "build",
                    START_S,
                    backend=evidence.backend,
                    recipe=evidence.user_program["base"] if evidence.user_program else evidence.run["recipe"],
                    user_program=user_program,
                    optimizer=evidence.optimizer,
                    device=device,
                    compile=compilers and bool(evidence.run.get("options", {}).get("compile")),
                )
        except SandboxError:
            program.close()
            raise
        return program

    def call(self, name: str, seconds: float = CALL_S, **arguments: Any) -> Any:
        """One call and its answer."""
        self._send(name, seconds, arguments)
        return self._receive(name, seconds, arguments)

    def _send(self, name: str, seconds: float, arguments: dict[str, Any]) -> None:
        self.process.set_deadline(seconds)
        try:
            wire.write(self.process.stdin, {"call": name, "arguments": arguments})
        except wire.WireError as error:
            raise self._ended(name, error) from None

    def _receive(self, name: str, seconds: float, arguments: dict[str, Any]) -> Any:
        self.process.set_deadline(seconds)
        try:
            answer = wire.read(self.process.stdout, self._answer_bytes(name, arguments))
        except wire.WireError as error:
            raise self._ended(name, error) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("audit", []), list):
            raise SandboxError(f"the program's answer to {name} is of no known form")
        self.audit += [str(event)[:300] for event in answer.get("audit", []) if len(self.audit) < 100]
        if "error" in answer:
            raise SandboxError(f"the program raised an error in {name}: {str(answer['error'])[:300]}")
        return answer["value"]

    def _ended(self, name: str, error: wire.WireError) -> SandboxError:
        self.process.close()
        reason = self.process.reason or f"{error}{_last_line(self.process.stderr_tail())}"
        return SandboxError(f"the program did not answer the call {name}: {reason}")

    def _answer_bytes(self, name: str, arguments: dict[str, Any]) -> int:
        """The most bytes of arrays that the answer to a call has, by the shapes that the verifier expects."""
        if name == "token_losses":
            return 8 * arguments["inputs"].size
        if name == "log_probs":
            recipe = self._evidence.recipe
            columns = 1024 + 2 * (recipe.tokenizer_size if recipe else MOST_TOKENS)  # a vocabulary may be padded
            return 8 * len(arguments["inputs"]) * len(arguments["positions"]) * columns
        return self._evidence.weights_bytes

    def init(self, seed: int) -> int:
        return self.call("init", seed=seed)

    def load(self, weights: dict[str, np.ndarray], step: int) -> int:
        """A state with these weights, as if this many updates had made it."""
        return self.call("load", weights=weights, step=step)

    def restore(self, checkpoint: Path) -> int:
        """A checkpoint's state, whose files the process can read only meanwhile. SandboxError without room for them."""
        try:
            files = self._evidence.checkpoint_files(checkpoint)
        except (OSError, InputError) as error:
            raise SandboxError(f"{checkpoint} cannot be restored: {error}") from None
        size = sum(files.values())
        free = shutil.disk_usage(self.inbox).free
        if size + (64 << 20) > free:
            raise SandboxError(
                f"{self.inbox.parent}: a replay needs {size:,} bytes for a checkpoint, the disk has {free:,} left: "
                "make room, or set TMPDIR to a larger one"
            )
        copy = self.inbox / f"state-{secrets.token_hex(4)}"
        try:
            for name in sorted(files.keys() - {"checkpoint.json"}):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                with open_plain(checkpoint / name) as file, open(copy / name, "xb") as target:
                    shutil.copyfileobj(file, target)
            copy.mkdir(exist_ok=True)
        except (OSError, InputError) as error:
            what_to_do = remedy(error) if isinstance(error, OSError) else "make the run again"
            raise SandboxError(f"{checkpoint} could not be copied to {self.inbox} ({error}): {what_to_do}") from None
        try:
            return self.call("restore", directory=str(copy))
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def export(self, state: int) -> dict[str, np.ndarray]:
        weights = self.call("export", state=state)
        if not isinstance(weights, dict) or not all(isinstance(value, np.ndarray) for value in weights.values()):
            raise SandboxError("the program's export is no mapping from names to arrays")
        return weights

    def export_and_drop(self, state: int) -> dict[str, np.ndarray]:
        weights = self.export(state)
        self.drop(state)
        return weights

    def digest(self, state: int) -> str:
        return str(self.call("digest", state=state))

    def token_losses(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(B, T) losses in float64. SandboxError where the program's are of another shape."""
        losses = self.call("token_losses", state=state, inputs=inputs, targets=targets)
        if not isinstance(losses, np.ndarray) or losses.shape != inputs.shape:
            raise SandboxError(f"token_losses expected shape {inputs.shape}, found {_kind(losses)}")
        return losses.astype(np.float64)

    def log_probs(self, state: int, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(B, P, V) as the program gives them."""
        (rows,) = self.log_probs_in_turn(state, [(inputs, positions)])
        return rows

    def log_probs_in_turn(self, state: int, asked: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """log_probs of several (inputs, positions). While an answer is used, the program computes the next one.

        Nothing else may be asked of the program meanwhile. A call is sent once the answer before it has been read, so
        that the two sides never wait for each other.
        """
        before: dict[str, Any] | None = None
        for inputs, positions in asked:
            arguments = {"state": state, "inputs": inputs, "positions": positions}
            answer = None if before is None else self._rows(before)
            self._send("log_probs", CALL_S, arguments)
            if answer is not None:
                yield answer
            before = arguments
        if before is not None:
            yield self._rows(before)

    def _rows(self, arguments: dict[str, Any]) -> np.ndarray:
        rows = self._receive("log_probs", CALL_S, arguments)
        expected = len(arguments["inputs"]), len(arguments["positions"])
        if not isinstance(rows, np.ndarray) or rows.ndim != 3 or rows.shape[:2] != expected:
            raise SandboxError(f"log_probs expected ({expected[0]}, {expected[1]}, V), found {_kind(rows)}")
        return rows

    def gradients(self, state: int, inputs: np.ndarray, targets: np.ndarray, prefix: int) -> dict[str, np.ndarray]:
        return self.call("gradients", state=state, inputs=inputs, targets=targets, prefix=prefix)

    def step(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        metrics = self.call("step", state=state, inputs=inputs, targets=targets)
        return {name: float(metrics[name]) for name in ("loss", "grad_norm")}

    def steps(self, state: int, inputs: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
        """The metrics of several updates, by batches (N, B, T). SandboxError where they are not as many."""
        metrics = self.call("steps", state=state, inputs=inputs, targets=targets)
        if not isinstance(metrics, list) or len(metrics) != len(inputs):
            raise SandboxError(f"steps expected {len(inputs)} metrics, found {_kind(metrics)}")
        return [{name: float(values[name]) for name in ("loss", "grad_norm")} for values in metrics]

    def drop(self, state: int) -> None:
        self.call("drop", state=state)

    def close(self) -> None:
        self.process.close()
        for folder in (self.scratch, self.inbox):
            shutil.rmtree(folder, ignore_errors=True)


def choose_isolation(
    evidence: Evidence, device: str, trust_code: bool, compilers: bool = False
) -> tuple[parent.Isolation, bool, dict[str, Any]]:
    """The isolation for a run's program, whether it uses a GPU, and the facts of it for the verdict.

    Raises SandboxError where the run has user code that nothing here could isolate and that is not trusted.
    """
    gpu = any(entry["platform"] != "cpu" for entry in evidence.run["devices"]) and device != "cpu"
    isolation = parent.available(gpu, compilers)
    isolated = bool({"bubblewrap", "landlock"} & set(isolation.mechanisms))
    if evidence.has_user_code and not isolated and not trust_code:
        raise SandboxError(
            "the run has user code, and this machine has no isolation for it: install bubblewrap, or pip install "
            "'jaxrun[isolation]' on Linux, or judge it with --trust-code if you trust it"
        )
    facts = {
        "isolation": isolation.kind + (", user code trusted" if evidence.has_user_code and not isolated else ""),
        "isolation_holds": list(isolation.holds),
        "isolation_gaps": list(isolation.gaps),
    }
    return isolation, gpu, facts


def _imports(evidence: Evidence) -> list[str]:
    """The modules that user code names in its imports, its own left out."""
    file = evidence.user_program["file"] if evidence.user_program else None
    if evidence.optimizer:
        file = evidence.optimizer.partition(":")[0] + ".py"
    try:
        tree = ast.parse(evidence.source.get(file or "", b""))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    own = {name.removesuffix(".py").partition("/")[0] for name in evidence.source if name.endswith(".py")}
    packages = {"jaxrun", "torchref", "parity"}
    imported = [name for name in dict.fromkeys(names) if name.partition(".")[0] not in own - packages][:MOST_IMPORTS]
    compiled = evidence.was_compiled and evidence.backend == "torchref"
    return imported + (["torch._dynamo", "torch._inductor"] if compiled else [])


def _environment(evidence: Evidence) -> dict[str, str]:
    """Variables that change how a program computes: the verifier's, and the run's number of threads."""
    here = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    there = evidence.run.get("environment") or {}
    threads = {name: str(there.get(name, "")) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return here | {name: value for name, value in threads.items() if value.isdecimal() and 0 < int(value[:6]) <= 1024}


def _unpack(evidence: Evidence, folder: Path) -> tuple[str | None, Path | None]:
    """Writes the user code into a folder: the path of the user program, or the folder to import an optimizer from."""
    folder.mkdir()
    if program := evidence.user_program:
        content = evidence.source.get(program["file"])
        if content is None or hashlib.sha256(content).hexdigest() != program["sha256"]:
            raise SandboxError(f"source.zip has no {program['file']} of the digest that run.json names")
        path = folder / program["file"]
        path.write_bytes(content)
        return str(path), None
    if evidence.optimizer:
        name = evidence.optimizer.partition(":")[0] + ".py"
        if name in evidence.source:
            (folder / name).write_bytes(evidence.source[name])
        return None, folder
    return None, None


def _kind(value: Any) -> str:
    return f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
