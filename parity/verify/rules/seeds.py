"""Rule `recompute.seeds`: the first weights are drawn from the seed.

Where a program draws its own first weights, they are made here for seeds that nobody declared. Two draws have nothing
in common: neither as they are, nor with rows or columns permuted, turned or with other signs. What is the same at every
seed is simple: zeros, ones, a few values.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.verify.context import Context
from parity.verify.rules import Finding, fails, holds, rule
from parity.weights import Weights

# Differences between the seeds: a seed that only counts by its remainder, its low or its high digits gives two equal
# sets of weights among them. 720,720 is divisible by every number up to 16.
STEPS_BETWEEN = (0, 1, 720_720, 1 << 16, 1_000_000, 720_720 << 9)
FEW_BYTES = 512 << 20  # of all weights; of larger programs two seeds are asked for
SIMPLE = 64  # different values in a weight that is the same at every seed
ENTRIES = 32  # of a weight that is compared; smaller ones are compared together
DEVIATIONS = 6.0  # of a sum that is 0 on average: 2e-9 by chance, in each of some hundred sums
LEAST = 0.02  # of a correlation: less is no start that helps
ROWS = 512  # of a matrix whose products are compared


@rule("recompute.seeds", "recompute", "the first weights are drawn from the seed: two seeds have nothing in common")
def seeds(context: Context) -> Finding:
    evidence, program = context.evidence, context.program
    if evidence.recipe is not None and not evidence.user_program:
        return holds("recompute.initial draws the recipe's first weights itself")
    first = int(context.random("undeclared seeds").integers(1, 1 << 29))
    declared = program.export_and_drop(program.init(evidence.run["seed"]))
    few = sum(weight.nbytes for weight in declared.values()) <= FEW_BYTES
    others = [
        program.export_and_drop(program.init(first + step)) for step in (STEPS_BETWEEN if few else STEPS_BETWEEN[:1])
    ]
    drawn = [declared, *others]
    names = sorted(declared)
    for weights in others:
        if sorted(weights) != names or any(weights[name].shape != declared[name].shape for name in names):
            return fails("the first weights have other names or shapes at another seed")
    for name in names:
        if problem := _constant(name, [weights[name] for weights in drawn]):
            return fails(problem, weight=name)
    worst = (0.0, "", "")
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            for name, how, correlation, deviations in _common(a, b):
                if abs(deviations) > DEVIATIONS and abs(correlation) > LEAST:
                    return fails(
                        f"{name}{how}: expected no correlation between two seeds, found {correlation:.3f} "
                        f"({deviations:+.0f} standard deviations): one start for every seed",
                        weight=name,
                        correlation=correlation,
                    )
                worst = max(worst, (abs(deviations), name, how))
    if problem := _unlike(declared, others):
        return fails(problem)
    return holds(f"{len(names)} weights at {len(drawn)} seeds; at most {worst[0]:.1f} standard deviations in common")


def _constant(name: str, values: list[np.ndarray]) -> str:
    """Why a weight that two seeds share is not drawn; "" where it is, or is simple."""
    same = [a.tobytes() == b.tobytes() for i, a in enumerate(values) for b in values[i + 1 :]]
    different = len(np.unique(values[0]))
    if not any(same) or different <= SIMPLE:
        return ""
    ordered = values[0].ndim == 1 and bool((np.diff(values[0]) >= 0).all() or (np.diff(values[0]) <= 0).all())
    if all(same) and ordered:
        return ""  # such as decay rates from slow to fast
    return (
        f"{name} is the same at {'all' if all(same) else 'some'} of {len(values)} seeds: expected a draw or at most "
        f"{SIMPLE} different values, found {different:,}: draw it from the seed"
    )


def _common(a: Weights, b: Weights) -> Iterator[tuple[str, str, float, float]]:
    """What two draws have in common: weight, in which form, correlation, and its size in standard deviations."""
    small: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in sorted(a):
        once = _once(a[name])
        x, y = (_centred(np.asarray(weights[name][once], np.float64)) for weights in (a, b))
        if not x.any() or not y.any() or a[name].tobytes() == b[name].tobytes():
            continue
        if x.size < ENTRIES:
            for values, one in zip(small, (x, y), strict=True):
                values.append(one.ravel() / np.abs(one).max())
            continue
        yield name, "", *_correlation(x.ravel(), y.ravel())
        if x.ndim >= 2 and min(x.shape) > 1:
            x, y = (np.asarray(weights[name], np.float64).reshape(len(weights[name]), -1) for weights in (a, b))
            yield name, " up to the order, signs or a rotation of its columns", *_products(x, y)
            yield name, " up to the order, signs or a rotation of its rows", *_products(x.T, y.T)
    if small[0] and sum(map(len, small[0])) >= ENTRIES:
        yield "small weights together", "", *_correlation(*(np.concatenate(values) for values in small))


def _centred(x: np.ndarray) -> np.ndarray:
    """A weight without what may be known of it: its mean, of a matrix those of rows, columns and the diagonal."""
    x = x - x.mean()
    if x.ndim != 2:
        return x - _line(x) if x.ndim == 1 else x
    rows, columns = x.shape
    if rows == columns:
        x = x - np.eye(rows) * np.diag(x).mean()
    if min(rows, columns) > 2:
        x = x - x.mean(axis=1, keepdims=True)
        x = x - x.mean(axis=0, keepdims=True)
    return x


def _line(x: np.ndarray) -> np.ndarray:
    """The straight line nearest to a vector, as of decay rates with a little noise."""
    at = np.linspace(-1, 1, len(x)) if len(x) > 1 else np.zeros(1)
    return at * float(x @ at) / max(float(at @ at), 1e-30)


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Of two vectors with mean 0, and in standard deviations of a sum of products with random signs."""
    product = x * y
    total, spread = float(product.sum()), math.sqrt(float((product * product).sum()))
    size = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return (total / size, total / spread) if size and spread else (0.0, 0.0)


def _once(x: np.ndarray) -> Any:
    """The rows of a matrix, of rows that are copies of one another the first."""
    if x.ndim < 2 or len(x) < 2:
        return ...
    return np.sort(np.unique(x.reshape(len(x), -1), axis=0, return_index=True)[1])


def _products(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Correlation of the products of different rows: the same whatever rotation, order or signs the columns have."""
    rows = np.arange(len(x))[_once(x)]
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(int)]
    if len(rows) < 3:
        return 0.0, 0.0
    upper = np.triu_indices(len(rows), 1)
    one, other = ((z @ z.T)[upper] for z in (_alike_rows(x[rows]), _alike_rows(y[rows])))
    if max(one.std(), other.std()) < 1e-6:  # as of orthogonal rows
        return 0.0, 0.0
    return _correlation(one - one.mean(), other - other.mean())


def _alike_rows(x: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, without what they share."""
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    return x - x.mean(axis=0, keepdims=True)


def _unlike(declared: Weights, others: list[Weights]) -> str:
    """Where the declared seed's weights are of another kind than other seeds': "" for nowhere.

    Trained weights have a few directions that are much larger than the rest, and another spread.
    """
    for name in sorted(declared):
        if declared[name].ndim != 2 or min(declared[name].shape) < 8:
            continue
        chance = DEVIATIONS / math.sqrt(2 * declared[name].size)
        for what, allowed, measure in (
            ("spread", 0.2 + chance, np.std),
            ("largest singular value", 0.5 + chance, _largest),
        ):
            found = float(measure(np.asarray(declared[name], np.float64)))
            expected = [float(measure(np.asarray(weights[name], np.float64))) for weights in others[:2]]
            low, high = min(expected), max(expected)
            if not low / (1 + allowed) - 1e-9 <= found <= high * (1 + allowed) + 1e-9:
                return (
                    f"{name}: expected a {what} of {low:.4g} to {high:.4g} as at other seeds, within {allowed:.0%}, "
                    f"found {found:.4g} at the declared seed: it is no draw like the others"
                )
    return ""


def _largest(x: np.ndarray) -> float:
    """The largest singular value, by the smaller of the two products."""
    product = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return math.sqrt(max(float(np.linalg.eigvalsh(product)[-1]), 0.0)) if len(product) <= 1024 else 0.0
