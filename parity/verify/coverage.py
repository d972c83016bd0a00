"""Which segments between checkpoints are repeated: drawn by steps, and those that stand out, always."""

from collections.abc import Sequence

import numpy as np

from parity.weights import Weights

Segment = tuple[int, int]
DRAWN = 8  # one of so many steps is drawn at least
STANDING_OUT = 16  # and one of so many by each of the two ways to stand out
NEIGHBOURS = 3  # on each side that a segment is compared with
FALL_STEPS = 8  # before a segment and after it, whose mean losses are compared


def drawn(segments: Sequence[Segment], least: int, random: np.random.Generator) -> set[int]:
    """Indices of segments in a random order: at least `least` of them, and an eighth of all steps."""
    total, chosen, covered = sum(b - a for a, b in segments), set(), 0
    for i in random.permutation(len(segments)).tolist():
        if len(chosen) >= least and DRAWN * covered >= total:
            break
        chosen.add(i)
        covered += segments[i][1] - segments[i][0]
    return chosen


def standing_out(segments: Sequence[Segment], excess: np.ndarray) -> set[int]:
    """The segments of the largest excess, as many as a sixteenth of all steps needs, at least one. nan: not known."""
    total, chosen, covered = sum(b - a for a, b in segments), set(), 0
    for i in np.argsort(-np.nan_to_num(excess, nan=-np.inf), kind="stable").tolist():
        if chosen and STANDING_OUT * covered >= total:
            break
        chosen.add(i)
        covered += segments[i][1] - segments[i][0]
    return chosen


def beyond_neighbours(values: np.ndarray) -> np.ndarray:
    """By how much each value is above the median of its neighbours, up to three on each side."""
    excess = np.zeros(len(values))
    for i in range(len(values)):
        near = [*values[max(0, i - NEIGHBOURS) : i], *values[i + 1 : i + 1 + NEIGHBOURS]]
        known = [value for value in near if np.isfinite(value)]
        excess[i] = values[i] - (np.median(known) if known else 0.0)
    return excess


def falls(losses: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """How far the training loss falls over each segment, in nats a step.

    From the mean of up to 8 steps before it to that of up to 8 after it, so that all of a jump within counts.
    """
    values = []
    for first, last in segments:
        before = losses[max(0, first - FALL_STEPS) : first] if first else losses[:1]
        after = losses[last : last + FALL_STEPS] if last < len(losses) else losses[max(first, last - 2) :]
        values.append((np.mean(before) - np.mean(after)) / (last - first))
    return np.array(values)


def movement(before: Weights, after: Weights) -> np.ndarray:
    """How far each weight moved, L2, by name in order; nan where names or shapes differ."""
    if before.keys() != after.keys():
        return np.full(len(before), np.nan)
    return np.array(
        [
            np.linalg.norm(np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64))
            if before[name].shape == after[name].shape
            else np.nan
            for name in before
        ]
    )


def speeds(movements: Sequence[np.ndarray], segments: Sequence[Segment]) -> np.ndarray:
    """How fast the weights move in each segment, as the log of their movement a step, every weight counted alike."""
    table = np.array([moved / (b - a) for moved, (a, b) in zip(movements, segments, strict=True)])
    usual = np.maximum(np.median(table, axis=0), 1e-30)
    return np.log(np.maximum(np.sqrt(np.mean((table / usual) ** 2, axis=1)), 1e-30))
