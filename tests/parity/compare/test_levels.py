"""Parts of the levels that need no program."""

import subprocess
import sys
import time

import numpy as np
import pytest

from parity.compare.levels.layout import _finish
from parity.data.plain import plain_spans
from parity.data.stream import Segment, available_spans


@pytest.mark.parametrize("lengths", [[30_000, 5_000], [2_049, 2_050, 2_051], [1_024, 9_000], [1_025, 1_026]])
def test_plain_spans_are_the_streams(lengths):
    plan = [Segment(3, 1024, 64), Segment(50, 512, 64)]
    shards = [np.zeros(length, np.uint16) for length in lengths]
    assert list(plain_spans(shards, plan)) == list(available_spans(lengths, plan))


def test_a_process_of_a_layout_that_fails_ends_the_others_and_is_quoted(tmp_path):
    workers = []
    for i, code in enumerate(("import time; time.sleep(600)", "raise SystemExit('no memory')")):
        stderr = open(tmp_path / str(i), "w+")  # noqa: SIM115
        workers.append((subprocess.Popen([sys.executable, "-c", code], stderr=stderr), stderr))
    begin_s = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with 1:\nno memory"):
        _finish(workers)
    assert time.monotonic() - begin_s < 60 and all(process.returncode is not None for process, _ in workers)
