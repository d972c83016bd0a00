"""One way to make a run look better than it is: how it is planted, and which rules must find it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BACKENDS = ("jaxrun", "torchref")


@dataclass(frozen=True)
class Cheat:
    """`plant` depends on the `kind`:

    - edit: called with a copy of an honest run's directory, and perhaps with another honest run, of seed 1;
    - program: called with a backend, returns the text of a user program that is trained for real;
    - train: called with a backend and a folder, returns arguments and environment of the trainer for a real run;
    - attempt: called with the folder of an honest attempt of three runs.

    `rules` must fail, all of them, and no others but those of `may`. Empty `rules` with `open` set mean a cheat that is
    not found, or only by luck, and `open` says why; one with `unjudged` leaves the verdict incomplete.
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
    """Judged with the whole training repeated."""
    after: Callable[[Path], None] | None = None
    """A further change of the run's directory, once a program has been trained."""
    public: bool = False
    """Whether it happened on a public track."""
    own_count: bool = False
    """The verdict holds, and says that steps and tokens are the program's own count."""
    recipe: str = "muon"
    """The recipe that a program is made from."""
    beside_original: bool = False
    """Whether the honest run that is edited stands in the same folder."""


Planter = Callable[[Callable[..., Any]], Callable[..., Any]]


class Catalogue(list[Cheat]):
    """Cheats of one kind, entered by decorating the functions that plant them."""

    def __init__(self, kind: Literal["edit", "program", "train", "attempt"]):
        super().__init__()
        self.kind: Literal["edit", "program", "train", "attempt"] = kind

    def add(self, name: str, sentence: str, *rules: str, **more: Any) -> Planter:
        """Enters the decorated function as what plants a cheat that `rules` must find."""

        def enter(plant: Callable[..., Any]) -> Callable[..., Any]:
            self.append(Cheat(name, sentence, self.kind, plant, rules, **more))
            return plant

        return enter


@dataclass
class Outcome:
    """The verdict on a planted cheat in a backend."""

    cheat: Cheat
    backend: str
    status: str
    failing: list[str]
    unjudged: list[str]
    seconds: float
    path: Path | None = None
    steps_counted: str = ""
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether the named rules fail and only rules that may."""
        wanted, failing = set(self.cheat.rules), set(self.failing)
        if self.cheat.open:
            return self.status == "holds" or failing <= set(self.cheat.may)
        if self.cheat.refused:
            return self.status == "refused"
        if self.cheat.own_count:
            return self.status == "holds" and self.steps_counted == "own"
        if self.cheat.unjudged and not set(self.cheat.unjudged) <= set(self.unjudged):
            return False
        return self.status != "holds" and wanted <= failing <= wanted | set(self.cheat.may)

    @property
    def mark(self) -> Literal["ok", "open", "WRONG"]:
        """The outcome in a word."""
        return ("open" if self.cheat.open else "ok") if self.right else "WRONG"

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain JSON values."""
        return {
            "cheat": self.cheat.name,
            "sentence": self.cheat.sentence,
            "kind": self.cheat.kind,
            "backend": self.backend,
            "depth": self.cheat.depth,
            "status": self.status,
            "failing": self.failing,
            "not_judged": self.unjudged,
            "expected": list(self.cheat.rules),
            "open": self.cheat.open,
            "right": self.right,
            "seconds": round(self.seconds, 2),
            "reasons": self.reasons,
        }
