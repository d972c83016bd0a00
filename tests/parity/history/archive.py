"""Made-up runs and records, and rows of the public history by label."""

from dataclasses import replace
from statistics import fmean, stdev

from parity.history.gains import gains
from parity.history.records import LADDER_TRACK, Point, Record, Run, load, own_runs
from parity.history.reproduction import reproductions


def run_of(
    losses,
    name="run",
    folder="2030-01-01_Thing",
    variant="",
    seconds=100.0,
    baseline=False,
    gpu="GPU",
    every=10,
    total=None,
):
    """A run that was evaluated after every `every` steps."""
    last = total or every * len(losses)
    points = tuple(
        Point(every * (i + 1), last, loss, 1000 * seconds * (i + 1) / len(losses)) for i, loss in enumerate(losses)
    )
    return Run(name, 0, LADDER_TRACK, folder, variant, baseline, gpu, "2.9", points)


def record_with(losses, **changes):
    """A record whose reported figures are of these losses, rounded as the reported ones are."""
    record = Record(
        1,
        "1",
        "2030-01-01",
        "2030-01-01_Thing",
        "Thing",
        100.0,
        len(losses),
        (10,),
        round(fmean(losses), 5),
        min(losses),
        max(losses),
        round(stdev(losses), 5),
        None,
        100.0,
        100.0,
    )
    return replace(record, **changes)


def row(label):
    """Record, reproduction and gain of a label."""
    history = load()
    index = [record.label for record in history.records].index(label)
    return history.records[index], reproductions(history)[index], gains(history)[index]


def record_of(label):
    return row(label)[0]


def own(label):
    """A record's own runs."""
    return own_runs(record_of(label), load().runs)
