"""What the rules judge a run by. Whatever is expensive is computed when the first rule asks for it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from parity.data.slices import Slice, open_slice, prepare_command
from parity.errors import InputError
from parity.verify.evidence import Evidence
from parity.verify.log import Log
from parity.verify.sandbox.client import SandboxedProgram, SandboxError, choose_isolation
from parity.weights import generator

T = TypeVar("T")
CLOSE_S = 0.1  # between two looks whether a process that is not needed any more has ended


class NotJudged(Exception):
    """Why a rule could not be judged, in a sentence that says what to do."""


@dataclass
class Context:
    """The evidence of a run, how to judge it, and the sandboxed processes its program runs in.

    `seed`: of all random picks, chosen after the run, so that the run could not know it. `whole`: repeat the whole
    training from the seed, and trust no checkpoint. `facts`: what the verdict says about how it was judged. `at_steps`:
    steps whose val loss an attempt's claim is about.
    """

    evidence: Evidence
    data_dir: Path | None
    seed: int
    segments: int
    trust_code: bool
    scratch: Path
    device: str = "auto"
    whole: bool = False
    at_steps: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    programs: dict[str, SandboxedProgram | SandboxError] = field(default_factory=dict)
    cache: dict[Callable[["Context"], Any], Any] = field(default_factory=dict)
    threads: dict[str, ThreadPoolExecutor] = field(default_factory=dict)
    work: dict[str, list[Future]] = field(default_factory=dict)

    @property
    def log(self) -> Log:
        return self.evidence.log

    @cached_property
    def slice(self) -> Slice:
        """The track's slice. Raises NotJudged where it is not on this machine."""
        name = self.evidence.track.slice
        try:
            return open_slice(name, self.data_dir)
        except InputError as error:
            raise NotJudged(
                f"slice {name} is not here ({error}): get it with {prepare_command(name, self.data_dir)}"
            ) from None

    @property
    def trusts_code(self) -> bool:
        """Whether the program is one of our own recipes, whose code here is the verifier's: what costs more than it can
        show of such code is left out, unless the whole training is repeated."""
        return not (self.evidence.has_user_code or self.whole)

    @property
    def program(self) -> SandboxedProgram:
        """The program with which most rules work. Raises SandboxError where it may not or cannot run."""
        return self.sandboxed("program")

    def sandboxed(self, purpose: str, evidence: Evidence | None = None, compilers: bool = False) -> SandboxedProgram:
        """A sandboxed process for one purpose, started once. Where that fails, later calls raise the same error.

        `evidence`: of another run than this context's. `compilers`: it may start some. Raises SandboxError.
        """
        evidence = evidence or self.evidence
        if purpose not in self.programs:
            try:
                isolation, gpu, facts = choose_isolation(evidence, self.device, self.trust_code, compilers)
                if evidence is self.evidence:
                    self._add_isolation(facts)
                # User code may not learn from one process what another has seen; ours is held by code.harness.
                others = {} if evidence.has_user_code else self.programs
                trusted = [
                    other
                    for name, other in others.items()
                    if isinstance(other, SandboxedProgram) and all(future.done() for future in self.work.get(name, ()))
                ]
                self.programs[purpose] = SandboxedProgram.start(
                    evidence, self.scratch, isolation, self.device, gpu, trusted, compilers
                )
            except SandboxError as error:
                self.programs[purpose] = error
        program = self.programs[purpose]
        if isinstance(program, SandboxError):
            raise program
        return program

    def _add_isolation(self, facts: dict[str, Any]) -> None:
        """Enters the isolation of one more process: what holds for all of them, and every gap."""
        for name, combined in (("isolation_holds", set.intersection), ("isolation_gaps", set.union)):
            if name in self.facts:
                both = combined(set(self.facts[name]), facts[name])
                facts[name] = [text for text in dict.fromkeys([*self.facts[name], *facts[name]]) if text in both]
        self.facts |= facts

    def end(self, purpose: str) -> None:
        """Ends the process of a purpose; the next that is asked for is a new one."""
        program = self.programs.pop(purpose, None)
        if isinstance(program, SandboxedProgram):
            program.close()

    def once(self, make: Callable[["Context"], T]) -> T:
        """What `make` returns for this run, computed by the first rule that needs it."""
        if make not in self.cache:
            self.cache[make] = make(self)
        return self.cache[make]

    def random(self, name: str) -> np.random.Generator:
        """Random numbers for one purpose, the same for a seed however many others were drawn."""
        return generator(self.seed, name)

    def submit(self, purpose: str, work: Callable[[], T]) -> Future[T]:
        """Does work beside the rules that asks one sandboxed process, whatever else it is asked after it is done."""
        self.sandboxed(purpose)  # in this thread, since its process may be started only once
        future = self.threads.setdefault(purpose, ThreadPoolExecutor(1)).submit(work)
        self.work.setdefault(purpose, []).append(future)
        return future

    def settle(self) -> None:
        """Waits for what goes on beside, so that nothing disturbs what is timed."""
        wait([future for futures in self.work.values() for future in futures])

    def close(self) -> None:
        """Ends the sandboxed processes."""
        for purpose, futures in self.work.items():
            begun = [future for future in futures if not future.cancel()]
            while wait(begun, CLOSE_S).not_done:
                if isinstance(program := self.programs[purpose], SandboxedProgram):
                    program.process.set_deadline(0.0)  # its own thread sees that it ends, and closes it
        for thread in self.threads.values():
            thread.shutdown()
        for program in self.programs.values():
            if isinstance(program, SandboxedProgram):
                program.close()
        self.programs.clear()
