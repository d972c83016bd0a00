"""Public logs: every format that speedruns printed, unusual logs, and arbitrary files."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.history.public_log import main_logs, read_log, read_logs

spec = importlib.util.spec_from_file_location("fuzzing", Path(__file__).parents[1] / "verify" / "test_fuzz.py")
fuzzing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzzing)

SOURCE = (
    'import torch\nprint0(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{t:.0f}ms")\n'
    + "=" * 100
    + "\n"
)
HARDWARE = (
    "Running Python 3.12.7 (main, Jan 19 2025, 05:38:41) [GCC 13.2.0]\n"
    + "".join(
        f"|   {i}  NVIDIA H100 80GB HBM3          On  |   00000000:{i}1:00.0 Off |                    0 |\n"
        for i in range(8)
    )
    + "=" * 100
    + "\n"
)
STEPS = (0, 125, 250, 375, 500)


def plain(last: int = 500, shift: float = 0.0) -> str:
    """A log in the most common format."""
    lines = ["step:0/500 val_loss:10.8258 train_time:0ms step_avg:nanms"]
    for step in range(1, last + 1):
        if step % 125 == 0:
            lines.append(
                f"step:{step}/500 val_loss:{8 - step / 100 + shift:.4f} train_time:{step * 100}ms step_avg:100.00ms"
            )
        lines.append(f"step:{step}/500 train_time:{step * 100}ms step_avg:100.00ms") if step % 125 else None
    return "\n".join(lines) + "\n"


def in_seconds() -> str:
    return (
        "Running PyTorch 2.11.0 compiled for CUDA 13.0\nRunning on device_name=NVIDIA L40S with world_size=4\n"
        + "".join(
            f"step:{s}/500 val_loss:{8 - s / 100:.5f} train_time:{s / 10:.3f}s "
            f"step_avg:{100 if s else float('nan'):.2f}ms\n"
            for s in STEPS
        )
    )


def extra_fields() -> str:
    return "".join(
        f"step:{s}/500 lr:0.1 val_loss:{8 - s / 100:.5f} train_time:{s / 10:.3f}s step_avg:100.00ms extrap:{s} "
        "rel:7.7e-04 kept:yes\n"
        for s in STEPS[1:]
    )


def llmc() -> str:
    return (
        "s:0 tel:10.968871\n"
        + "".join(f"s:{s} trl:{9 - s / 100:.6f}\n" for s in range(19, 250, 20))
        + "s:250 tel:5.275959\n"
    )


def written(tmp_path: Path, text: str | bytes, name: str = "log.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def kinds(log) -> set[str]:
    return {finding.kind for finding in log.findings}


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (plain(), (500, 500, 3.0, 50_000)),
        (SOURCE + HARDWARE + plain(), (500, 500, 3.0, 50_000)),
        (in_seconds(), (500, 500, 3.0, 50_000)),
        (extra_fields(), (500, 500, 3.0, 50_000)),
        (llmc(), (250, None, 5.275959, None)),
        (plain().replace("\n", "\r\n"), (500, 500, 3.0, 50_000)),
        ("\ufeff" + plain(), (500, 500, 3.0, 50_000)),
        (plain() + plain(shift=0.1), (500, 500, 3.1, 50_000)),
        (plain() + plain(200), (500, 500, 3.0, 50_000)),
        (plain(400), (375, 500, 4.25, 37_500)),
        (plain().rstrip("\n"), (500, 500, 3.0, 50_000)),
    ],
    ids=[
        "plain",
        "source",
        "seconds",
        "extra",
        "llmc",
        "crlf",
        "bom",
        "two trials",
        "second cut off",
        "cut off",
        "no last newline",
    ],
)
def test_the_final_step_loss_and_time_are_read_in_every_format(tmp_path, text, final):
    result = read_log(written(tmp_path, text)).to_json()["final"]
    assert (result["step"], result["steps"]) == final[:2] and result["val_loss"] == pytest.approx(final[2])
    assert result["train_time_ms"] == (final[3] if final[3] is None else pytest.approx(final[3]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (plain(400), "truncated"),
        (plain() + plain(shift=0.1), "several-trials"),
        ("just words\n", "not-a-log"),
        ("", "not-a-log"),
        ("step:5/10 train_time:50ms step_avg:10ms\n" * 3, "no-validation"),
        (plain().replace("val_loss:3.0000 train_time:50000ms", "val_loss:3.0000 train_time:90000ms"), "times-disagree"),
        (
            plain().replace(
                "step:375/500 val_loss:4.2500 train_time:37500ms", "step:375/500 val_loss:4.2500 train_time:100ms"
            ),
            "times-fall",
        ),
        (plain().replace("val_loss:3.0000", "val_loss:nan"), "loss-impossible"),
        (in_seconds(), "other-hardware"),
        (plain() + plain(), "repeated-lines"),
    ],
)
def test_what_is_unusual_is_reported(tmp_path, text, kind):
    assert kind in kinds(read_log(written(tmp_path, text)))


def test_hardware_is_read_from_both_kinds_of_lines(tmp_path):
    assert read_log(written(tmp_path, HARDWARE + plain())).to_json()["hardware"] == {
        "devices": ["NVIDIA H100 80GB HBM3"],
        "count": 8,
    }
    assert read_log(written(tmp_path, in_seconds())).to_json()["hardware"] == {"devices": ["NVIDIA L40S"], "count": 4}


def test_a_copy_names_the_other_file(tmp_path):
    first, second = written(tmp_path, plain(), "a.txt"), written(tmp_path, SOURCE + plain(), "b.txt")
    logs = read_logs([first, second, written(tmp_path, plain(shift=0.2), "c.txt")])
    assert ["duplicate" in kinds(log) for log in logs] == [True, True, False]
    assert "a.txt" in next(f.text for f in logs[1].findings if f.kind == "duplicate")


def test_the_command_prints_a_list_and_its_exit_code_is_the_answer(tmp_path, capsys):
    good, bad = written(tmp_path, plain(), "a.txt"), written(tmp_path, plain(400, 0.3), "b.txt")
    assert main_logs([good], as_json=True) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["final"] == {"step": 500, "steps": 500, "val_loss": 3.0, "train_time_ms": 50000.0}
    assert result["path"] == str(good)
    assert main_logs([good, bad], as_json=False) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    with pytest.raises(InputError, match=r"none.txt"):
        main_logs([tmp_path / "none.txt"], as_json=False)


def mutated(tmp_path: Path, count: int) -> None:
    base = (SOURCE + HARDWARE + plain() + in_seconds() + llmc()).encode()
    path = tmp_path / "log.txt"
    for seed in range(count):
        path.write_bytes(fuzzing.mutate(base, random.Random(seed)))
        result = read_log(path).to_json()
        assert (result["final"] is None) == (result["refused"] is not None)
        json.dumps(result, allow_nan=False)


def test_mutated_logs_are_read_or_refused(tmp_path):
    mutated(tmp_path, 500)


@pytest.mark.slow
def test_many_mutated_logs_are_read_or_refused(tmp_path):
    mutated(tmp_path, 20_000)


@pytest.mark.slow
def test_a_thousand_logs_and_a_huge_one_take_little_memory(tmp_path):
    for i in range(1000):
        written(tmp_path, SOURCE * 50 + HARDWARE + plain(shift=i / 1e4), f"{i}.txt")
    written(tmp_path, b"x" * (1 << 28) + b"\n" + plain().encode(), "huge.txt")
    code = (
        "import sys; from pathlib import Path; from parity.history.public_log import main_logs\n"
        f"from parity.harness.fingerprint import peak_memory_bytes\nmain_logs([Path({str(tmp_path)!r})], True)\n"
        "print(peak_memory_bytes(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert len(json.loads(done.stdout)) == 1001 and int(done.stderr.split()[-1]) < 300e6
