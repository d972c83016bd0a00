"""The public history of the NanoGPT speedruns: reported by others, not verified here.

Two data files in `public/`: `track1.json`, the ladder of track 1's records (92 records in 94 rows: record 21 was timed
three times), and `runs.json`, validation curves of public runs of three tracks. Losses are nats per token, times are
seconds of training (milliseconds in the curves' points, as printed). docs/appendix/history.md has the definitions and
the results.
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

from parity.errors import InputError
from parity.formats import schemas
from parity.formats.strict_json import decode, fault

DATA = Path(__file__).parent / "public"
NOTE = "reported by others, not verified here"
HARDWARE = "8 x H100"
"""The hardware of track 1's claimed seconds."""
TARGET = 3.28
LADDER_TRACK = "track_1_short"
OTHER_HARDWARE = 2.0  # mean times further apart than this factor come from different numbers of GPUs

_WHOLE_WORDS = ("PyTorch", "AdamW", "UNet", "ReLU", "NorMuon", "MuddFormer", "H2D", "FP8", "BF16", "FP4", "BFloat16")
_WORD = re.compile("|".join(_WHOLE_WORDS) + r"|[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")
_DATE = re.compile(r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8})[-_]?")
_BASELINE = re.compile(r"baseline|comparison|prior|master", re.IGNORECASE)
_SEED = re.compile(r"seed[-_]?[0-9]+(?:_stdout)?$")
_READ_APART = ("n", "date", "folder", "title", "claimed_seconds", "steps", "logs")
_NO_VARIANT = frozenset(("logs", "code_logs", "stdout", "runs", "results"))


class Point(NamedTuple):
    """One evaluation: step, steps in the run, val loss, training time in milliseconds (None: not printed)."""

    step: int
    total_steps: int
    val_loss: float
    train_time_ms: float | None


@dataclass(frozen=True)
class Record:
    """One row of the ladder, as reported: `seconds` is the claim on 8 x H100, the other figures describe its logs.

    A figure is None where there are no logs; one run has neither deviation nor p. `p` is of the t-test that the mean is
    below 3.28. `logs`: the variants of runs that are the record's own, where its folder has none of them. `proposal`:
    the logs are of what its author proposed on an older program, not of the program that was merged. `retiming`: the
    row is an older record, timed again.
    """

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
    logs: tuple[str, ...] = ()
    proposal: bool = False
    retiming: bool = False


@dataclass(frozen=True)
class Run:
    """One public training run. A log file with several runs gives several, numbered by `trial`.

    `variant` is the path below the record's folder that tells what was run (empty: the record itself); `baseline`: path
    or file name mark it as a run of an older program, for comparison.
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


@dataclass(frozen=True, eq=False)  # compared by identity, so that results can be cached by it
class History:
    """All rows of the ladder, oldest first, all public runs, and their source."""

    source: str
    records: tuple[Record, ...]
    runs: tuple[Run, ...]


@functools.lru_cache(maxsize=4)
def load(folder: Path = DATA) -> History:
    """The public history, read once. Raises InputError where a file is missing or does not match its schema."""
    ladder, curves = _read(folder, "track1.json", "ladder"), _read(folder, "runs.json", "runs")
    records = [_record(row, index, ladder["records"]) for index, row in enumerate(ladder["records"])]
    runs = [run for row in curves["runs"] for run in _runs_of_log(row)]
    return History(ladder["source"], tuple(records), tuple(runs))


@functools.lru_cache(maxsize=1024)
def title_of(folder: str) -> str:
    """A record folder's name as words: `2024-11-19_FlexAttention` is `Flex Attention`."""
    return " ".join(word[0].upper() + word[1:] for word in _WORD.findall(_DATE.sub("", folder))) or folder


def runs_of(record: Record, runs: Iterable[Run]) -> list[Run]:
    """The complete runs of a record: of its folder, and of a folder of another date with the same title (30 and 82); or
    of the variants that it names (89)."""
    if record.logs:
        return [run for run in runs if run.complete and f"{run.folder}/{run.variant}" in record.logs]
    if record.folder is None:
        return []
    title = title_of(record.folder)
    return [run for run in runs if run.track == LADDER_TRACK and run.complete and title_of(run.folder) == title]


def own_runs(record: Record, runs: Iterable[Run]) -> list[Run]:
    """The complete runs of the record itself: without baselines, the group (of one variant, number of steps and GPU)
    with the least mean time, since a record claims a time. Variants that it names are one program."""
    if record.logs:
        return distinct(runs_of(record, runs))
    groups = groups_of(run for run in runs_of(record, runs) if not run.baseline)
    return min(groups, key=_mean_seconds, default=[])


def baseline_runs(record: Record, runs: Iterable[Run]) -> list[Run]:
    """The older program, run again beside a record: in the same folder, on the same GPUs as the record's own runs.

    Of several groups of baselines, the one with the most steps: shorter ones are controls, cut to the record's steps.
    """
    own = own_runs(record, runs)
    folders = {run.folder for run in own}
    if record.logs:
        return []
    groups = [
        group
        for group in groups_of(run for run in runs_of(record, runs) if run.baseline)
        if same_hardware(group, own) and group[0].folder in folders
    ]
    return max(groups, key=lambda group: (group[0].steps, "baseline" in group[0].variant), default=[])


def groups_of(runs: Iterable[Run], by_gpu: bool = True) -> list[list[Run]]:
    """Runs of one program together: the same variant, number of steps and (with `by_gpu`) GPU, without copies."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.variant, run.baseline, run.steps, run.gpu if by_gpu else ""), []).append(run)
    return [distinct(group) for group in groups.values()]


def distinct(runs: Iterable[Run]) -> list[Run]:
    """The runs without copies: a run whose evaluations, with their times, are all among another's is that run again."""
    originals: list[tuple[Run, set[Point]]] = []
    for run in sorted(runs, key=lambda run: -len(run.points)):
        evaluations = {point for point in run.points if point.step}
        if not any(evaluations <= others for _, others in originals):
            originals.append((run, evaluations))
    return sorted((run for run, _ in originals), key=lambda run: (run.path, run.trial))


def same_hardware(some: Sequence[Run], others: Sequence[Run]) -> bool:
    """Whether all runs of both sets name the same GPU, and their times fit the same number of GPUs."""
    if not some or not others or {r.gpu for r in some} != {r.gpu for r in others} or some[0].gpu is None:
        return False
    ratio = _mean_seconds(some) / _mean_seconds(others)
    return 1 / OTHER_HARDWARE < ratio < OTHER_HARDWARE


def mean_curve(runs: Sequence[Run]) -> list[tuple[int, float | None, float]]:
    """(step, mean seconds, mean val loss) at the evaluations that all runs share; seconds are None where a run has
    none."""
    if not runs:
        return []
    tables = [{point.step: point for point in run.points} for run in runs]
    curve = []
    for step in sorted(set.intersection(*map(set, tables))):
        points = [table[step] for table in tables]
        times = [point.train_time_ms for point in points if point.train_time_ms is not None]
        seconds = fmean(times) / 1000 if len(times) == len(points) else None
        curve.append((step, seconds, fmean(point.val_loss for point in points)))
    return curve


def _mean_seconds(runs: Sequence[Run]) -> float:
    times = [run.seconds for run in runs if run.seconds]
    return fmean(times) if times else float("inf")


def _read(folder: Path, name: str, schema_part: str) -> Any:
    path, value = folder / name, None
    try:
        value = decode(path.read_bytes())
        problem = schemas.check(decode((DATA / "schema.v1.json").read_bytes())[schema_part])(value)
    except OSError as error:
        problem = f"expected a file that can be read, found {error.strerror}"
    except (ValueError, RecursionError) as error:
        problem = f"expected JSON, found {fault(error)}"
    if problem:
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
    timed_again = Counter(other["n"] for other in rows)[row["n"]] > 1
    figures = {k: v for k, v in row.items() if k not in _READ_APART}
    return Record(
        row["n"],
        f"{row['n']} ({date})" if timed_again else str(row["n"]),
        date,
        row["folder"],
        row.get("title") or (title_of(row["folder"]) if row["folder"] else None),
        row["claimed_seconds"],
        **figures,
        steps=tuple(row.get("steps", ())),
        logs=tuple(row.get("logs", ())),
        retiming=index > 0 and rows[index - 1]["n"] == row["n"],
    )


def _runs_of_log(row: dict[str, Any]) -> list[Run]:
    """The runs of one log: a new one begins where the step does not rise, unless it only repeats the one before."""
    trials: list[list[Point]] = []
    for values in row["points"]:
        point = Point(*values)
        if not trials or point.step <= trials[-1][-1].step:
            trials.append([])
        trials[-1].append(point)
    new = [t for i, t in enumerate(trials) if not i or not {p[:3] for p in t} <= {p[:3] for p in trials[i - 1]}]
    _, in_folder, below = row["path"].partition(f"/{row['record']}/")
    *folders, file = (below if in_folder else row["path"].rsplit("/", 1)[-1]).split("/")
    folders = [name for name in folders if name not in _NO_VARIANT and not _SEED.fullmatch(name)]
    # the optimization track keeps its oldest results in no folder: each file is a result of its own
    folder = f"root/{file.split('.')[0]}" if row["record"] == "root" else row["record"]
    baseline = bool(_BASELINE.search("/".join((*folders, file))))
    return [
        Run(row["path"], i, row["track"], folder, "/".join(folders), baseline, row["gpu"], row["torch"], tuple(points))
        for i, points in enumerate(new)
    ]
