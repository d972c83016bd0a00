"""Level 2: canonical initial weights: names, shapes, dtypes, bytes."""

from collections.abc import Iterator

from parity.compare.case import Case
from parity.compare.guarded import Guarded
from parity.compare.observation import Observation


def observe(program: Guarded, case: Case) -> Iterator[Observation]:
    """Names of all weights, then shape, dtype and bytes of each."""
    table = case.recipe.parameters()
    weights = program.export(program.init(case.seed))
    yield Observation("names", "all weights", " ".join(sorted(weights)), expected=" ".join(sorted(table)))
    for name, parameter in table.items():
        if name in weights:
            w = program.array(weights[name], f"initial weight {name}")
            yield Observation("shapes", name, str(w.shape), expected=str(parameter.shape))
            yield Observation("dtypes", name, w.dtype.name)
            yield Observation("bytes", name, w)
