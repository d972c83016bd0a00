"""Figures that must not drift: losses, norms and projections of 5 steps of each recipe at tiny.

    python scripts/golden.py             compares both backends with tests/golden/ and prints the differences
    python scripts/golden.py --record    writes the figures again and prints the changes

Both sides of a comparison can go wrong together; these figures stay where they were. All are float64, so that they hold
on any machine to 1e-12, relative to the largest figure of their kind.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from parity import weights as canonical
from parity.compare.case import Case, compared_recipe, track_of
from parity.data.slices import prepare
from parity.errors import run_command
from parity.program import BACKENDS, build
from parity.recipes import RECIPES

FOLDER = Path(__file__).parents[1] / "tests" / "golden"
STEPS = 5
TOLERANCE = 1e-12

Figures = dict[str, dict[str, float]]


def figures(backend: str, recipe: str, data_dir: Path | None = None) -> Figures:
    """A backend's figures: {kind: {step or weight: figure}}."""
    track = track_of("tiny")
    with tempfile.TemporaryDirectory() as folder:
        case = Case(compared_recipe(recipe, "tiny", "float64"), track, prepare(track.slice, data_dir), Path(folder))
        program = build(backend, case.recipe, device="cpu")
        state = program.load(case.start)  # not the initial weights: half of muon's are zero
        result: Figures = {"loss": {}, "gradient norm": {}, "weight norm": {}, "weight projection": {}}
        for step, batch in enumerate(case.batches(0, STEPS)):
            state, metrics = program.step(state, program.put_global_batch(*batch))
            metrics = program.fetch({name: metrics[name] for name in ("loss", "grad_norm")})
            result["loss"][str(step)] = float(metrics["loss"])
            result["gradient norm"][str(step)] = float(metrics["grad_norm"])
        for name, w in program.export(state).items():
            direction = canonical.generator(0, f"golden:{name}").standard_normal(w.shape)
            result["weight norm"][name] = float(np.linalg.norm(w))
            result["weight projection"][name] = float(np.sum(w * direction) / np.linalg.norm(direction))
    return result


def recorded(recipe: str) -> Figures:
    """The recorded figures of a recipe."""
    return json.loads((FOLDER / f"{recipe}.json").read_text())


def differences(result: Figures, expected: Figures) -> list[str]:
    """A sentence for every figure that differs by more than the tolerance, or is on one side only."""
    lines = []
    for kind in expected.keys() | result.keys():
        new, old = result.get(kind, {}), expected.get(kind, {})
        scale = max(map(abs, old.values()), default=1.0)
        for name in sorted(new.keys() | old.keys()):
            if name not in new or name not in old:
                lines.append(f"{kind} {name}: {'new' if name in new else 'gone'}")
            elif not abs(new[name] - old[name]) <= TOLERANCE * scale:  # also nan
                lines.append(f"{kind} {name}: was {old[name]!r}, is {new[name]!r}")
    return sorted(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the figures again")
    parser.add_argument("--data-dir", type=Path, default=None)
    options = parser.parse_args()
    code = 0
    for recipe in RECIPES:
        path = FOLDER / f"{recipe}.json"
        for backend in reversed(BACKENDS):  # torchref, the reference, is what is recorded
            result = figures(backend, recipe, options.data_dir)
            lines = differences(result, recorded(recipe) if path.exists() else {})
            print(f"{recipe} in {backend}: {len(lines)} of {sum(map(len, result.values()))} figures differ")
            print("".join(f"  {line}\n" for line in lines), end="")
            if lines and options.record and backend == "torchref":
                FOLDER.mkdir(exist_ok=True)
                path.write_text(json.dumps(result, indent=1) + "\n")
                print(f"  wrote {path}")
            elif lines:
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(run_command(main))
