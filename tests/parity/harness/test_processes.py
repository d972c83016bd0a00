"""Agreement of real processes, and what happens when one of them dies, sends no heartbeat or hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.harness import launch, processes

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, sys, time
from parity.errors import run_command
from parity.harness import launch, processes
processes.SILENT_S, processes.JOIN_S = {silent}, {join}

def work():
    address, size, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    group, reason = launch.join_process_group(address, size, rank), ""
    group.resume_command = "python -m jaxrun.train --resume RUN"
    print("joined", flush=True)
    try:
{body}
    except BaseException as error:
        reason = str(error)
        raise
    finally:
        group.close(reason)

sys.exit(run_command(work))
"""


@pytest.fixture
def start():
    """Starts processes that run a body with `group` and `rank`; at most those of `ranks`."""
    started = []

    def start(
        body: str, size: int, ranks=None, silent: float = 20, join: float = 60, **env: str
    ) -> list[subprocess.Popen]:
        port = free_port()
        code = SCRIPT.format(body="\n".join(" " * 8 + line for line in body.splitlines()), silent=silent, join=join)
        for rank in range(size) if ranks is None else ranks:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, f"127.0.0.1:{port}", str(size), str(rank)],
                    cwd=ROOT,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=os.environ | env,
                )
            )
        return list(started)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def free_port() -> int:
    """A port that is free, with the next, when it is looked for."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            try:
                other.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


def ends(processes, timeout_s: float = 30):
    return [(*process.communicate(timeout=timeout_s), process.returncode) for process in processes]


def test_all_get_what_each_gives_in_the_order_of_their_numbers(start):
    results = ends(
        start(
            "for i in range(50):\n  got = group.gather([i, rank])\nprint(got, group.broadcast(rank + 5), "
            "group.first_set(rank or None))",
            3,
        )
    )
    assert [out.splitlines()[-1] for out, _, _ in results] == ["[[49, 0], [49, 1], [49, 2]] 5 1"] * 3
    assert [code for *_, code in results] == [0, 0, 0]


def test_one_process_alone_agrees_with_itself():
    alone = processes.ProcessGroup()
    assert alone.first and alone.gather(3) == [3] and alone.broadcast("x") == "x" and alone.first_set(None) is None
    alone.agree({"recipe": 1})
    alone.close("anything")


def test_another_recipe_is_found_by_all_before_anything_else(start):
    for _, err, code in ends(
        start('group.agree({"code": "a", "recipe": "one" if rank < 2 else "other"})\nprint("went on")', 3)
    ):
        assert code == 2
        assert (
            "process 2 of 3 has another recipe than process 0: expected one, found other: start all with the same "
            "command" in err
        )


def test_a_process_that_dies_ends_the_others_at_once_and_is_named(start):
    processes = start("group.gather(0)\ntime.sleep(60)", 3)
    for process in processes:
        process.stdout.readline()
    time.sleep(0.5)
    begin_s = time.monotonic()
    processes[1].kill()
    results = ends(processes)
    assert time.monotonic() - begin_s < 5
    for i in (0, 2):
        _, err, code = results[i]
        assert (
            code == 2
            and "error: process 1 of 3 died" in err
            and "continue with\n  python -m jaxrun.train --resume RUN" in err
        )


def test_the_death_of_the_first_process_is_noticed_too(start):
    processes = start("group.gather(0)\ntime.sleep(60)", 3)
    for process in processes:
        process.stdout.readline()
    processes[0].kill()
    for _, err, code in ends(processes)[1:]:
        assert code == 2 and "error: process 0 of 3 died" in err


def test_an_error_of_one_process_is_told_by_the_others(start):
    processes = start('group.gather(0)\nif rank == 2: raise OSError("its disk is full")\ntime.sleep(60)', 3)
    for _, err, code in ends(processes)[:2]:
        assert code == 2 and "process 2 of 3 ended: its disk is full" in err


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_process_that_is_stopped_is_named_after_a_while(start, stopped):
    processes = start("group.gather(0)\ntime.sleep(60)", 3, silent=3)
    for process in processes:
        process.stdout.readline()
    os.kill(processes[stopped].pid, signal.SIGSTOP)
    others = [process for i, process in enumerate(processes) if i != stopped]
    for _, err, code in ends(others):
        assert code == 2 and f"process {stopped} of 3 has sent no heartbeat for 3 s" in err


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_process_that_makes_no_progress_is_named_after_a_while(start, hanging):
    some = "for i in range(5):\n  group.progress()\n"
    body = f"{some}if rank == {hanging}: time.sleep(60)\n{some}group.gather(0)"
    for _, err, code in ends(start(body, 3, JAXRUN_HANG_S="2")):
        assert code == 2 and f"process {hanging} of 3 has made no progress for 2 s while others wait for it" in err


def test_processes_that_do_not_come_are_named(start):
    ((_, err, code),) = ends(start("pass", 3, ranks=[0], join=1))
    assert code == 2 and "found 1 after 1 s, without 1, 2: start one process for each number" in err


def test_a_first_process_that_does_not_come_is_said(start):
    ((_, err, code),) = ends(start("pass", 2, ranks=[1], join=1))
    assert code == 2 and "process 1 of 2: expected process 0 at 127.0.0.1:" in err


def test_a_port_that_somebody_else_has_is_said_by_both(tmp_path):
    """Processes meet at the second of the two ports: a listener there that never answers holds nobody for long."""
    code = SCRIPT.format(body="        pass", silent=20, join=2)
    for taken in (0, 1):
        port = free_port()
        with socket.create_server(("127.0.0.1", port + taken)) as _:
            for rank in (0, 1)[: 1 + taken]:
                done = subprocess.run(
                    [sys.executable, "-c", code, f"127.0.0.1:{port}", "2", str(rank)],
                    cwd=ROOT,
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert done.returncode == 2
                expected = (
                    "found another run's (nothing)" if rank else f"port {port + taken} of 127.0.0.1 cannot be used"
                )
                assert expected in done.stderr, done.stderr


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"coordinator": "node1:29400"}, "--processes and --process: expected with the rest"),
        ({"coordinator": "node1", "processes": 2, "process": 0}, "--coordinator node1: expected HOST:PORT"),
        ({"coordinator": "node1:29400", "processes": 2, "process": 2}, "process 2 of 2: expected a number from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_together_are_said(given, sentence):
    with pytest.raises(InputError, match=sentence):
        launch.join_process_group(**given)


def test_torchruns_variables_must_be_whole(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE is 4, and RANK is not set: start the processes with torchrun"):
        launch.join_process_group()


@pytest.mark.parametrize(
    "nodes, first", [("node1", "node1"), ("a01,a02", "a01"), ("gpu[003-004,007]", "gpu003"), ("x-[2]", "x-2")]
)
def test_a_slurm_step_names_its_processes(monkeypatch, nodes, first):
    for name, value in {
        "STEP_NUM_TASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
        "STEP_NODELIST": nodes,
        "STEP_TASKS_PER_NODE": "8(x2)",
        "JOB_ID": "70001",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert launch._from_slurm() == {
        "WORLD_SIZE": "16",
        "RANK": "9",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": first,
        "MASTER_PORT": "29402",
    }
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert launch._from_slurm() is None
