"""One way to look better than one is, how it is planted, and what must give it away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BACKENDS = ("jaxrun", "torchref")


@dataclass(frozen=True)
class Cheat:
    """`plant` depends on the `kind`:

    - edit: called with a copy of an honest run's directory (another honest run, of seed 1, is beside it as `other`);
    - program: called with a backend, returns the text of an own program that is trained for real;
    - train: called with a backend and a folder, returns arguments and environment of the trainer for a real run;
    - attempt: called with the folder of an honest attempt of three runs.

    `rules` must fail, all of them, and no other but those of `may`. An empty `rules` with `open` set is a cheat that is
    not caught, or only by luck, and `open` says why; one with `unjudged` set leaves the verdict incomplete.
    """

    name: str
    sentence: str
    kind: Literal["edit", "program", "train", "attempt"]
    plant: Callable[..., Any]
    rules: tuple[str, ...]
    may: tuple[str, ...] = ()
    depth: str = "log"
    backends: tuple[str, ...] = BACKENDS
    unjudged: tuple[str, ...] = ()
    open: str = ""
    refused: bool = False
    """The harness does not run it to its end."""
    whole: bool = False
    """Judged with the whole training made again."""
    after: Callable[[Path], None] | None = None
    """What is done to the run's directory besides, once a program has been trained."""
    seen: bool = False
    """Whether it happened on a public track."""
    recipe: str = "muon"
    """The recipe that a program is made from."""


@dataclass
class Outcome:
    """What the verifier said of a planted cheat in a backend."""

    cheat: Cheat
    backend: str
    status: str
    failing: list[str]
    unjudged: list[str]
    seconds: float
    path: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether the named rules fail and only rules that may."""
        wanted, found = set(self.cheat.rules), set(self.failing)
        if self.cheat.open:
            return self.status == "holds" or found <= set(self.cheat.may)
        if self.cheat.refused:
            return self.status == "refused"
        if self.cheat.unjudged and not set(self.cheat.unjudged) <= set(self.unjudged):
            return False
        return self.status != "holds" and wanted <= found <= wanted | set(self.cheat.may)
