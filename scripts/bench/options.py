"""The command line of `scripts/bench.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Options:
    """Benchmarks of the trainers."""

    what: tyro.conf.Positional[
        Literal["step", "plain", "growth", "attention", "loader", "parts", "start", "first", "verify", "seeds"]
    ]
    """Which figures."""
    recipes: tuple[str, ...] = ("muon", "nanogpt")
    """Recipes to measure."""
    backends: tuple[str, ...] = ("jaxrun", "torchref")
    """Backends for `seeds` and `first`."""
    scale: str = "pocket"
    """Sizes of the recipe for `step` and `parts`."""
    fields: tuple[str, ...] = ()
    """Other fields of the recipe for `step` and `plain`, such as dim=256 vocab_size=50304."""
    chart: Path | None = None
    """Where `growth` and `attention` draw their charts."""
    turns: int = 7
    """Rounds of interleaved timings."""
    steps: int = 5
    """Steps of a variant in a round, after one that is not counted; spread over the run where a window grows."""
    seeds: int = 5
    """Seeds for `seeds`: 0, 1, ..."""
    data_dir: Path | None = None
    """Where slices are."""
    runs: Path = Path("runs")
    """Where `seeds` leaves its runs; those that are already complete there are not repeated."""
    json: Path | None = None
    """Also write the figures here."""

    @property
    def recipe_fields(self) -> dict[str, int]:
        return {name: int(value) for name, _, value in (text.partition("=") for text in self.fields)}

    @property
    def data_arguments(self) -> list[str]:
        return ["--data-dir", str(self.data_dir)] if self.data_dir else []
