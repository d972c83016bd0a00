"""Verifies one run: opens its evidence, judges it rule by rule to a depth, and returns the verdict."""

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from parity.errors import InputError, nearest
from parity.memory import keep_freed_memory
from parity.verify.context import Context
from parity.verify.evidence import open_run
from parity.verify.rules import RULES, begin_beside, chosen, judge
from parity.verify.verdict import DEPTHS, Verdict

DEFAULT_DEPTH = "replay"
SEGMENTS = 2


@dataclass(frozen=True)
class Settings:
    """How a run is judged. `seed` is that of the random picks; None draws one now, which the run could not know.
    `at_steps`: steps whose val loss an attempt's claim is about."""

    depth: str = DEFAULT_DEPTH
    data_dir: Path | None = None
    segments: int = SEGMENTS
    seed: int | None = None
    trust_code: bool = False
    device: str = "auto"
    whole: bool = False
    without: tuple[str, ...] = ()
    at_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError for an unknown depth or rule, and for a number out of range."""
        if self.depth not in DEPTHS:
            raise InputError(f"--depth {self.depth}: {nearest(self.depth, DEPTHS)}")
        for name in self.without:
            if name not in RULES:
                raise InputError(f"--without {name}: {nearest(name, RULES)}")
        if self.segments < 1:
            raise InputError(f"--segments: expected at least 1, found {self.segments}: choose another")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"--picks-seed: expected 0 or more, found {self.seed}: choose another")


def verify_run(path: Path, settings: Settings, say: Callable[[str], None] = lambda text: None) -> Verdict:
    """The verdict on a run directory.

    Raises InputError where nothing can be judged: no run directory, an unknown version, or a run that has not ended.
    """
    evidence = open_run(path)
    keep_freed_memory()  # rows of probabilities are read by tens of megabytes
    seed = secrets.randbits(48) if settings.seed is None else settings.seed
    judgements = []
    with tempfile.TemporaryDirectory(prefix="jaxrun-verify-", ignore_cleanup_errors=True) as scratch:
        context = Context(
            evidence,
            settings.data_dir,
            seed,
            settings.segments,
            settings.trust_code,
            Path(scratch),
            settings.device,
            settings.whole,
            settings.at_steps,
        )
        try:
            pairs = chosen(settings.depth, settings.without)
            first = next((rule for rule, _ in pairs if rule.depth == "recompute"), None)
            for rule, check in pairs:
                say(f"{rule.id}: {rule.sentence}")
                if rule is first:
                    begin_beside(context, (rule for rule, _ in pairs))
                judgements.append(judge(rule.id, partial(check, context)))
        finally:
            context.close()
    facts = {
        "track": evidence.track.name,
        "backend": evidence.backend,
        "recipe": evidence.run["recipe"]["name"],
        "seed": evidence.run["seed"],
        "picks_seed": seed,
        "log_sha256": evidence.log.sha256,
        "version": version(),
        **context.facts,
    }
    optional = {"cross.loss", "replay.single"} if evidence.user_program else set()
    if evidence.track.confirm_gap is None:
        optional.add("recompute.confirm")
    if "token_ids" in context.facts:  # the program says why it depends on them, for a person to read
        optional.add("knowledge.relabelled")
    required = frozenset(rule.id for rule, _ in chosen(settings.depth)) - optional
    return Verdict(str(path), settings.depth, tuple(judgements), required, facts)


def version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version("jaxrun")
    except metadata.PackageNotFoundError:
        return "unknown"
