"""An attempt to work on, and a trainer that only writes what a trainer would leave."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parity.attempt import runner
from parity.attempt.command import main
from parity.declaration.record import read_record
from parity.harness.runlog import RunLog


@dataclass
class AttemptFolder:
    """The folder of an attempt, and what one does with it."""

    folder: Path

    def change(self, **fields: Any) -> None:
        """Puts other values into declaration.json."""
        path = self.folder / "declaration.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def budget(self, **limits: Any) -> None:
        self.change(budget={"runs": None, "seconds": None, "flops": None} | limits)

    def run(self, *arguments: Any) -> int:
        return main(["run", str(self.folder), *map(str, arguments)])

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_record(self.folder / "attempt.jsonl")

    @property
    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events]

    def last(self, kind: str) -> dict[str, Any]:
        return [event for event in self.events if event["event"] == kind][-1]


@dataclass
class FakeTrainer:
    """Stands in for the trainer: makes steps of a second each and ends with the next of `codes`, then with 0."""

    codes: list[int] = field(default_factory=list)
    steps: int = 10
    calls: list[list[str]] = field(default_factory=list)
    before: list[Callable[[], None]] = field(default_factory=list)  # called when a run begins

    def __call__(self, backend: str, arguments: list[str], folder: Path, output: Path | None, requests: Any) -> int:
        self.calls.append(arguments)
        for action in self.before:
            action()
        code = self.codes.pop(0) if self.codes else 0
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("error: so it is\n")
        if code == 2:
            return code
        resumed = "--resume" in arguments
        name = (
            arguments[arguments.index("--resume") + 1]
            if resumed
            else f"runs/tiny/{arguments[arguments.index('--name') + 1]}"
        )
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "run.json").write_text("{}")
        path = folder / name / "log.jsonl"
        done = sum(b'"event":"step"' in line for line in path.read_bytes().splitlines()) if resumed else 0
        with RunLog.resume(path) if resumed else RunLog(path) as log:
            if not resumed:
                log.event("start")
            for step in range(done, self.steps if code == 0 else self.steps // 2):
                log.event("step", step=step, train_s=float(step + 1))
            if code == 0:
                log.event(
                    "finish", totals={"steps": self.steps, "train_s": float(self.steps), "val_loss": 4.5, "flops": 1e9}
                )
        return code


@pytest.fixture
def attempt(tmp_path: Path, capsys: pytest.CaptureFixture) -> AttemptFolder:
    """An attempt in PyTorch on track tiny, with two final runs."""
    folder = tmp_path / "attempt"
    assert main(["new", str(folder), "--backend", "torch", "--track", "tiny", "--runs", "2"]) == 0
    capsys.readouterr()
    return AttemptFolder(folder)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    fake = FakeTrainer()
    monkeypatch.setattr(runner, "train", fake)
    return fake
