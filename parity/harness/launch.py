"""Which of several processes this is: by options, by torchrun's variables, or by those of a SLURM step."""

import os
import re
import socket

from parity.cli import environment_seconds
from parity.errors import InputError
from parity.harness.processes import HANG_S, ProcessGroup, port_error

PORT = 29_400  # where SLURM gives none


def join_process_group(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> ProcessGroup:
    """The group that this process belongs to, connected; a group of one where nothing names others.

    Afterwards the variables are set as torchrun sets them, for the frameworks. Raises InputError where what is given
    does not fit together, or the others do not come.
    """
    env = _from_options(coordinator, processes, process) or _from_torchrun() or _from_slurm()
    if not env or env["WORLD_SIZE"] == "1":
        return ProcessGroup()
    rank, size, port = (whole_number(name, env[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host = env["MASTER_ADDR"]
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        whole_number(name, env.get(name, os.environ.get(name, "1")))
    if not 0 <= rank < size:
        raise InputError(
            f"process {rank} of {size}: expected a number from 0 to {size - 1}: number the processes from 0"
        )
    if not 0 < port < 65_535:
        raise InputError(
            f"port {port} of {host}: expected one from 1 to 65534, since the next one is used too: choose another"
        )
    if rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _check_free(host, port)
    os.environ.update(env)
    group = ProcessGroup(rank, size, environment_seconds("JAXRUN_HANG_S", HANG_S))
    group.connect((host, port + 1))
    return group


def whole_number(name: str, value: str) -> int:
    """The value of an environment variable as an integer from 0. Raises InputError where it is none."""
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise InputError(
            f"{name}={value!r}: expected a whole number in this environment variable: unset it, or start the processes "
            "with torchrun"
        )
    return int(value)


def _from_options(coordinator: str | None, processes: int | None, process: int | None) -> dict[str, str] | None:
    options = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if all(value is None for value in options.values()):
        return None
    if missing := [name for name, value in options.items() if value is None]:
        raise InputError(
            f"{' and '.join(missing)}: expected with the rest of --coordinator HOST:PORT, --processes N and --process "
            "I, found none: give all three"
        )
    address = re.fullmatch(r"\[?([^\[\]]+)\]?:(\d+)", str(coordinator))
    if not address:
        raise InputError(
            f"--coordinator {coordinator}: expected HOST:PORT of the first process, for example node1:29400"
        )
    return {
        "WORLD_SIZE": str(processes),
        "RANK": str(process),
        "MASTER_ADDR": address[1],
        "MASTER_PORT": address[2],
        "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0"),
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_WORLD_SIZE", "1"),
    }


def _from_torchrun() -> dict[str, str] | None:
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    if missing := [name for name in names if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {missing[0]} is not set: start the processes with "
            "torchrun, or give --coordinator, --processes and --process"
        )
    return {name: os.environ[name] for name in names}


def _from_slurm() -> dict[str, str] | None:
    env = os.environ
    if env.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in env:
        return None
    nodes, job = env.get("SLURM_STEP_NODELIST", "localhost"), whole_number("SLURM_JOB_ID", env.get("SLURM_JOB_ID", "0"))
    first_node = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)  # of node1,node2 or of node[01-04,07]
    local_tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return {
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": local_tasks[0] if local_tasks else "1",
        "MASTER_ADDR": (first_node[1] + (first_node[2] or "")) if first_node else nodes,
        "MASTER_PORT": env.get("MASTER_PORT", str(PORT + 2 * (job % 10_000))),
    }


def _check_free(host: str, port: int) -> None:
    """Raises InputError where the frameworks' port is taken: their own messages are of no help."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise port_error(host, port, error) from None
