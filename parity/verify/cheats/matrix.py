"""Plants every cheat in honest runs, judges them, and shows cheat against rule: `python -m parity.verify --cheats`."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from parity.errors import InputError, RunFailed, nearest
from parity.formats.files import atomic_file
from parity.tables import RULE, WIDTH
from parity.verify.cheats import conditions, edits, file_edits, knowledge, places, programs, scores, work
from parity.verify.cheats.cheat import Cheat, Outcome
from parity.verify.cheats.workshop import Workshop

CHEATS: dict[str, Cheat] = {
    cheat.name: cheat
    for cheat in (
        *edits.CHEATS,
        *file_edits.CHEATS,
        *programs.CHEATS,
        *scores.CHEATS,
        *work.CHEATS,
        *places.CHEATS,
        *conditions.TRAINED,
        *knowledge.CHEATS,
        *conditions.ATTEMPTS,
    )
}


def outcome(
    shop: Workshop, cheat: Cheat, backend: str, without: tuple[str, ...] = (), depth: str | None = None
) -> Outcome:
    """Plants a cheat in a backend and judges it."""
    begin_s = time.monotonic()
    try:
        verdict = shop.judge(cheat, path := shop.planted(cheat, backend), without, depth)
    except (InputError, RunFailed) as error:
        return Outcome(cheat, backend, "refused", [], [], time.monotonic() - begin_s, reasons={"": str(error)})
    judgements = [*verdict.judgements, *(j for run in verdict.runs for j in run.judgements)]
    return Outcome(
        cheat,
        backend,
        verdict.status,
        failing=list(dict.fromkeys(j.rule for j in judgements if j.status == "fails")),
        unjudged=list(dict.fromkeys(j.rule for j in judgements if j.status == "not judged")),
        seconds=time.monotonic() - begin_s,
        path=path,
        steps_counted=verdict.facts.get("steps_counted", ""),
        reasons={j.rule: j.reason for j in judgements if j.status != "holds"},
    )


def plant_all(shop: Workshop, cheats: Iterable[Cheat], say: Callable[[Outcome], None], jobs: int = 2) -> list[Outcome]:
    """Every cheat in every backend that it makes sense in."""
    pairs = [(cheat, backend) for cheat in cheats for backend in cheat.backends]
    for cheat, backend in pairs:  # made before the others start, so that two do not make one
        if cheat.kind == "edit":
            shop.honest(backend)
            shop.honest(backend, 1)
        elif cheat.kind == "attempt":
            shop.attempt(backend)

    def plant(pair: tuple[Cheat, str]) -> Outcome:
        planted = outcome(shop, *pair)
        say(planted)
        return planted

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(plant, pairs))


def show_cheats(only: tuple[str, ...], data_dir: Path | None, html: Path | None, as_json: bool) -> int:
    """The command: prints the matrix, writes the page, and returns the exit code."""
    for name in only:
        if name not in CHEATS:
            raise InputError(f"--only {name}: {nearest(name, CHEATS)}")
    cheats = [CHEATS[name] for name in only] if only else list(CHEATS.values())
    with tempfile.TemporaryDirectory(prefix="jaxrun-cheats-", ignore_cleanup_errors=True) as folder:
        shop = Workshop(Path(folder), data_dir)
        outcomes = plant_all(shop, cheats, lambda planted: None if as_json else print(line(planted), flush=True))
    if html is not None:
        from parity.verify.cheats.page import page

        with atomic_file(html) as file:
            file.write(page(outcomes).encode())
    if as_json:
        print(json.dumps([planted.to_json() for planted in outcomes]))
    else:
        print("\n".join(summary(outcomes)))
    return 0 if all(planted.right for planted in outcomes) else 1


def line(planted: Outcome) -> str:
    """One planted cheat in a line of at most 100 columns."""
    head = f"{planted.mark:<6}{planted.cheat.name:<24} {planted.backend:<9} {planted.seconds:5.1f} s  "
    return f"{head}{_rules(planted)}"[:WIDTH]


def _rules(planted: Outcome) -> str:
    """The rules that failed, or else those that could not be judged, or why the cheat was refused."""
    if planted.failing:
        return ", ".join(planted.failing)
    return f"not judged: {', '.join(planted.unjudged)}" if planted.unjudged else planted.reasons.get("", "nothing")


def summary(outcomes: list[Outcome]) -> Iterator[str]:
    """What all outcomes together show."""
    yield RULE
    cheats = {planted.cheat.name: planted.cheat for planted in outcomes}
    caught = sum(planted.mark == "ok" for planted in outcomes)
    yield f"{len(outcomes)} plantings of {len(cheats)} cheats: {caught} caught by the named rules and no others"
    for cheat in cheats.values():
        if cheat.open:
            yield f"open: {cheat.name}: {cheat.sentence}: {cheat.open}"[:WIDTH]
    for planted in outcomes:
        if not planted.right:
            expected = ", ".join(planted.cheat.rules) or "incomplete"
            yield f"WRONG: {planted.cheat.name} in {planted.backend}: expected {expected}; found {_rules(planted)}"
