"""Verifies one run: opens its evidence, judges it rule by rule to a depth, and gives the verdict."""

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from parity.errors import InputError, nearest
from parity.verify.evidence import open_run
from parity.verify.rules import RULES, Context, chosen, judge
from parity.verify.rules import clock as clock_rules
from parity.verify.rules import data as data_rules
from parity.verify.rules import guard as guard_rules
from parity.verify.rules import log as log_rules
from parity.verify.rules import probe as probe_rules
from parity.verify.rules import recompute as recompute_rules
from parity.verify.rules import replay as replay_rules
from parity.verify.verdict import DEPTHS, Verdict

MODULES = (
    log_rules,
    clock_rules,
    guard_rules,
    data_rules,
    probe_rules,
    recompute_rules,
    replay_rules,
)  # they enter the rules
DEFAULT_DEPTH = "replay"
SEGMENTS = 2


@dataclass(frozen=True)
class Settings:
    """How a run is judged. `seed` of what is picked at random: None draws one now, which the run could not know."""

    depth: str = DEFAULT_DEPTH
    data_dir: Path | None = None
    segments: int = SEGMENTS
    seed: int | None = None
    trust_code: bool = False
    device: str = "auto"
    whole: bool = False
    without: tuple[str, ...] = ()


def verify_run(path: Path, settings: Settings, say: Callable[[str], None] = lambda text: None) -> Verdict:
    """The verdict on a run directory.

    Raises InputError where nothing can be judged: no run directory, an unknown version, or a run that still goes on.
    """
    check(settings)
    evidence = open_run(path)
    seed = secrets.randbits(48) if settings.seed is None else settings.seed
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
        )
        rules = chosen(settings.depth, settings.without)
        try:
            judgements = judge(rules, context, say)
        finally:
            context.close()
    facts = {
        "track": evidence.track.name,
        "backend": evidence.backend,
        "recipe": evidence.run["recipe"]["name"],
        "seed": evidence.run["seed"],
        "picks_seed": seed,
        "log_sha256": evidence.log.sha256,
        "version": _version(),
        **context.facts,
    }
    optional = {"cross.loss", "replay.single"} if evidence.own else set()
    if evidence.track.confirm_gap is None:
        optional.add("recompute.confirm")
    required = frozenset(rule.id for rule, _ in chosen(settings.depth)) - optional
    return Verdict(str(path), settings.depth, tuple(judgements), required, facts)


def check(settings: Settings) -> None:
    """Raises InputError for a depth, a rule or a number of stretches that there is not."""
    if settings.depth not in DEPTHS:
        raise InputError(f"--depth {settings.depth}: {nearest(settings.depth, DEPTHS)}")
    for name in settings.without:
        if name not in RULES:
            raise InputError(f"--without {name}: {nearest(name, RULES)}")
    if settings.segments < 1:
        raise InputError(f"--segments: expected at least 1, found {settings.segments}: choose another")
    if settings.seed is not None and settings.seed < 0:
        raise InputError(f"--picks-seed: expected 0 or more, found {settings.seed}: choose another")


def _version() -> str:
    try:
        return metadata.version("jaxrun")
    except metadata.PackageNotFoundError:
        return "unknown"
