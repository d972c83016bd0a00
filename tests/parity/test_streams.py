"""What is printed never stops a command; files that hide packages and broken environments are one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINTS = """
import sys
from parity.streams import keep_printing
keep_printing()
for i in range(100_000):
    print("line", i)
print("error", file=sys.stderr)
sys.stdout.flush()
open(sys.argv[1], "w").write("done")
"""


def shell(script: str, *arguments: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "streams",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        ">/dev/full",
        ">/dev/full 2>/dev/full",
        "| head -1 >/dev/null; exit ${PIPESTATUS[0]}",
    ],
)
def test_streams_that_take_nothing_stop_nothing(tmp_path, streams):
    done = shell(f'"$1" -c "$2" "$3" {streams}', PRINTS, tmp_path / "end")
    assert done.returncode == 0 and done.stderr in ("", "error\n")
    assert (tmp_path / "end").read_text() == "done"


def test_characters_that_a_stream_cannot_take_are_replaced():
    done = shell(
        '"$1" -c "from parity.streams import keep_printing; keep_printing(); print(chr(8364))"',
        PYTHONIOENCODING="ascii",
    )
    assert (done.returncode, done.stdout) == (0, "?\n")


@pytest.mark.parametrize("command", ["jaxrun.train", "torchref.sample", "parity.verify", "parity.data"])
@pytest.mark.parametrize("file", ["optax.py", "numpy/__init__.py", "torch.py"])
def test_a_file_that_hides_a_package_is_one_sentence(tmp_path, command, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise SystemExit(7)\n")
    done = shell('"$1" -m "$2" --help', command, cwd=tmp_path)
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and f"{tmp_path / file}: expected no file" in done.stderr
    )


@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS='cuda': expected platforms that JAX finds here, found none"),
        ({"XLA_FLAGS": "--xla_no_such_flag=1"}, "XLA_FLAGS='--xla_no_such_flag=1': expected flags that XLA knows"),
        ({"WORLD_SIZE": "abc", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}, "WORLD_SIZE='abc'"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}, "RANK='-1'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT='x'"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1_2"}, "SLURM_JOB_ID='1_2'"),
    ],
)  # fmt: skip
def test_a_broken_environment_is_one_sentence(tmp_path, variables, sentence):
    done = shell('"$1" -m jaxrun.train --track tiny --runs "$2"', tmp_path / "runs", **variables)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()
