"""malloc must be set to keep memory before a framework starts its threads: else JAX steps take 1.4 times as long."""

import sys
from pathlib import Path

import pytest

WATCHED = """
import sys
import parity.program

def watching():
    print("imported before:", [name for name in ("jax", "torch") if name in sys.modules])
    sys.exit(0)

parity.program.keep_freed_memory = watching
from parity.harness.train import main
main(sys.argv[1], sys.argv[2:])
sys.exit("it was never set")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize("backend", ["jaxrun", "torchref"])
def test_malloc_is_set_before_a_framework_is_imported(backend, commands, tmp_path: Path, synthetic):
    (tmp_path / "watched.py").write_text(WATCHED)
    done = commands.run(
        "watched",
        backend,
        "--track",
        "tiny",
        "--steps",
        1,
        "--val-every",
        1,
        "--dim",
        32,
        "--layers",
        1,
        "--runs",
        tmp_path,
        cwd=tmp_path,
    )
    assert (done.code, done.out.splitlines()[-1]) == (0, "imported before: []"), done.err
