"""The public history of the NanoGPT speedruns: reported by others, not verified here.

Two files of data in `public/`: `track1.json`, the ladder of track 1's records (record 21 was timed three times, so that
89 records make 91 rows), and `runs.json`, validation curves of public runs of three tracks. Losses are nats per token,
times are seconds (the curves' points: milliseconds, as printed) of training. docs/history.md has the definitions and
what was found.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from parity.errors import InputError, nearest

DATA = Path(__file__).parent / "public"
NOTE = "reported by others, not verified here"
HARDWARE = "8 x H100"
"""What track 1's claimed seconds were measured on."""
TARGET = 3.28
LADDER_TRACK = "track_1_short"
OTHER_HARDWARE = 2.0  # two sets of runs whose times differ by more than this factor did not run on as many GPUs

_KEPT_WORDS = ("PyTorch", "AdamW", "UNet", "ReLU", "NorMuon", "MuddFormer", "H2D", "FP8", "BF16", "FP4", "BFloat16")
_WORD = re.compile("|".join(_KEPT_WORDS) + r"|[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")
_DATE = re.compile(r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8})[-_]?")
_BASELINE = re.compile(r"baseline|comparison|prior|master", re.IGNORECASE)
_SEED = re.compile(r"seed[-_]?[0-9]+(?:_stdout)?$")
_NO_VARIANT = frozenset(("logs", "code_logs", "stdout", "runs", "results"))


class Point(NamedTuple):
    """One evaluation: step, steps in the run, val loss in nats per token, training time in milliseconds (None: not
    printed)."""

    step: int
    total_steps: int
    val_loss: float
    train_time_ms: float | None


@dataclass(frozen=True)
class Record:
    """One row of the ladder, as reported: `seconds` is what was claimed on 8 x H100; the other figures are those given
    for its logs (None: no logs, or one run, which has neither deviation nor p). `p` is of the t-test that the mean is
    below 3.28."""

    n: int
    label: str
    date: str
    folder: str | None
    title: str | None
    seconds: float
    runs: int | None = None
    steps: tuple[int, ...] = ()
    loss_mean: float | None = None
    loss_min: float | None = None
    loss_max: float | None = None
    loss_std: float | None = None
    p: float | None = None
    time_mean: float | None = None
    time_min: float | None = None
    retiming: bool = False


@dataclass(frozen=True)
class Run:
    """One public training from its beginning: a log file that holds several makes several runs, told apart by `trial`.

    `variant` is the part of the path below the record's folder that says what was run (empty: the record itself);
    `baseline` whether that or the file's name says that it is a run of something older, to compare with.
    """

    path: str
    trial: int
    track: str
    folder: str
    variant: str
    baseline: bool
    gpu: str | None
    torch: str | None
    points: tuple[Point, ...]

    @property
    def loss(self) -> float:
        return self.points[-1].val_loss

    @property
    def seconds(self) -> float | None:
        time_ms = self.points[-1].train_time_ms
        return None if time_ms is None else time_ms / 1000

    @property
    def steps(self) -> int:
        """The step of the last evaluation."""
        return self.points[-1].step

    @property
    def complete(self) -> bool:
        return self.steps == self.points[-1].total_steps


@dataclass(frozen=True, eq=False)  # one is itself only, so that results can be cached by it
class History:
    """All rows of the ladder, oldest first, all public runs, and where they are from."""

    source: str
    records: tuple[Record, ...]
    runs: tuple[Run, ...]


@functools.lru_cache(maxsize=4)
def load(folder: Path = DATA) -> History:
    """The public history, read once. Raises InputError where a file is missing or is not what its schema says."""
    ladder, curves = _read(folder, "track1.json", "ladder"), _read(folder, "runs.json", "runs")
    records = [_record(row, index, ladder["records"]) for index, row in enumerate(ladder["records"])]
    runs = [run for row in curves["runs"] for run in _trials(row)]
    return History(ladder["source"], tuple(records), tuple(runs))


def record_of(label: str, records: Sequence[Record]) -> Record:
    """The row of a label (`12`, `21 (2025-01-26)`). Raises InputError with the nearest labels where there is none."""
    for record in records:
        if record.label == label:
            return record
    raise InputError(
        f"record {label[:40]!r}: no row of the public ladder; {nearest(label[:40], [r.label for r in records])}"
    )


@functools.lru_cache(maxsize=1024)
def title_of(folder: str) -> str:
    """A record folder's name as words: `2024-11-19_FlexAttention` is `Flex Attention`."""
    return " ".join(word[0].upper() + word[1:] for word in _WORD.findall(_DATE.sub("", folder))) or folder


def runs_of(record: Record, runs: Iterable[Run]) -> list[Run]:
    """The complete runs of a record: of its folder, and of a folder of another date with the same title (records 30 and
    82)."""
    if record.folder is None:
        return []
    title = title_of(record.folder)
    return [run for run in runs if run.track == LADDER_TRACK and run.complete and title_of(run.folder) == title]


def own_runs(record: Record, runs: Iterable[Run]) -> list[Run]:
    """Those of a record's complete runs that are of the record itself: not of a baseline, and of what then remains the
    group (of one variant, number of steps and GPU) with the least mean time, since a record claims a time."""
    groups = groups_of(run for run in runs_of(record, runs) if not run.baseline)
    return min(groups, key=_mean_seconds, default=[])


def baseline_runs(record: Record, runs: Iterable[Run]) -> list[Run]:
    """The older program, run again beside a record: of the groups whose name or file says baseline, on the same GPUs as
    the record's own runs and in the same folder, the one with the most steps (shorter ones are controls, cut to the
    record's steps)."""
    own = own_runs(record, runs)
    if not own:
        return []
    groups = [
        group
        for group in groups_of(run for run in runs_of(record, runs) if run.baseline)
        if same_hardware(group, own) and group[0].folder in {run.folder for run in own}
    ]
    return max(groups, key=lambda group: (group[0].steps, "baseline" in group[0].variant), default=[])


def groups_of(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one thing together: the same variant, number of steps and GPU, without copies."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.variant, run.baseline, run.steps, run.gpu), []).append(run)
    return [distinct(group) for group in groups.values()]


def distinct(runs: Iterable[Run]) -> list[Run]:
    """The runs without copies: one whose evaluations, with their times, are all among another's is the same run
    again."""
    kept: list[tuple[Run, set[Point]]] = []
    for run in sorted(runs, key=lambda run: -len(run.points)):
        evaluations = {p for p in run.points if p.step}
        if not any(evaluations <= other for _, other in kept):
            kept.append((run, evaluations))
    return sorted((run for run, _ in kept), key=lambda run: (run.path, run.trial))


def same_hardware(some: Sequence[Run], others: Sequence[Run]) -> bool:
    """Whether two sets of runs name the same GPU, all of them, and take times that say that there were as many of
    them."""
    if not some or not others or {r.gpu for r in some} != {r.gpu for r in others} or some[0].gpu is None:
        return False
    ratio = _mean_seconds(some) / _mean_seconds(others)
    return 1 / OTHER_HARDWARE < ratio < OTHER_HARDWARE


def mean_curve(runs: Sequence[Run]) -> list[tuple[int, float | None, float]]:
    """(step, mean seconds, mean val loss) at the evaluations that all the runs share; seconds are None where one lacks
    them."""
    if not runs:
        return []
    tables = [{p.step: p for p in run.points} for run in runs]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    curve = []
    for step in shared:
        points = [table[step] for table in tables]
        times = [p.train_time_ms for p in points]
        seconds = None if None in times else fmean(t for t in times if t is not None) / 1000
        curve.append((step, seconds, fmean(p.val_loss for p in points)))
    return curve


def _mean_seconds(runs: Sequence[Run]) -> float:
    times = [run.seconds for run in runs if run.seconds]
    return fmean(times) if times else float("inf")


def _read(folder: Path, name: str, part: str) -> Any:
    from parity.formats import schemas
    from parity.formats.strict_json import decode, fault

    path = folder / name
    try:
        value = decode(path.read_bytes())
        schema = decode((DATA / "schema.v1.json").read_bytes())[part]
    except OSError as error:
        raise InputError(
            f"public history: {path}: expected a file that can be read, found {error.strerror}: install jaxrun again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"public history: {path}: expected JSON, found {fault(error)}: install jaxrun again") from None
    if problem := schemas.check(schema)(value):
        raise InputError(f"public history: {path}: {problem}: install jaxrun again")
    return value


def _record(row: dict[str, Any], index: int, rows: list[dict[str, Any]]) -> Record:
    try:
        date = datetime.strptime(row["date"], "%m/%d/%y").date().isoformat()
    except ValueError:
        raise InputError(
            f"public history: record {row['n']}: expected a date month/day/year, found {row['date']}: "
            "install jaxrun again"
        ) from None
    several = Counter(other["n"] for other in rows)[row["n"]] > 1
    given = {k: v for k, v in row.items() if k not in ("n", "date", "folder", "claimed_seconds", "steps")}
    return Record(
        row["n"],
        f"{row['n']} ({date})" if several else str(row["n"]),
        date,
        row["folder"],
        title_of(row["folder"]) if row["folder"] else None,
        row["claimed_seconds"],
        **given,
        steps=tuple(row.get("steps", ())),
        retiming=index > 0 and rows[index - 1]["n"] == row["n"],
    )


def _trials(row: dict[str, Any]) -> list[Run]:
    """The runs of one log: a new one begins where the step does not rise; a piece that only repeats the one before is
    none."""
    trials: list[list[Point]] = []
    for values in row["points"]:
        point = Point(*values)
        if not trials or point.step <= trials[-1][-1].step:
            trials.append([])
        trials[-1].append(point)
    whole = [t for i, t in enumerate(trials) if not i or not {p[:3] for p in t} <= {p[:3] for p in trials[i - 1]}]
    below = (
        row["path"].split(f"/{row['record']}/", 1)[-1]
        if f"/{row['record']}/" in row["path"]
        else row["path"].rsplit("/", 1)[-1]
    )
    *parts, file = below.split("/")
    parts = [part for part in parts if part not in _NO_VARIANT and not _SEED.fullmatch(part)]
    # the optimization track keeps its oldest results in no folder: each file is a result of its own
    folder = f"root/{file.split('.')[0]}" if row["record"] == "root" else row["record"]
    baseline = bool(_BASELINE.search("/".join((*parts, file))))
    return [
        Run(row["path"], i, row["track"], folder, "/".join(parts), baseline, row["gpu"], row["torch"], tuple(trial))
        for i, trial in enumerate(whole)
    ]
