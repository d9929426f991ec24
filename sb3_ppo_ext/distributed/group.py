"""Which processes train together: those of the group that exists, or those that a launcher has started."""

from __future__ import annotations

import atexit
import os
import socket
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from sb3_ppo_ext.distributed.launchers import as_torchrun
from sb3_ppo_ext.distributed.process_group import ProcessGroup
from sb3_ppo_ext.distributed.processes import ALONE, Processes
from sb3_ppo_ext.host.pytorch.process_groups import met

TIMEOUT = 1800.0  # seconds
REACHABLE_WITHIN = 20.0  # seconds
STARTED_WITHIN = (
    120.0  # seconds between the first process of a launcher and rank 0, which imports as long as the others
)
BY_HAND_WITHIN = 10.0  # seconds that rank 0 may start later where somebody starts each process
MET_WITHIN = 300.0  # seconds between the first process and the last
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_joined: tuple[Any, ProcessGroup] | None = None  # the default group that it was made of, and its processes


def join_processes(timeout: float = TIMEOUT) -> Processes:
    """The processes that train together; called by every process, in the same order. PPOX calls it itself.

    An existing default group of ``torch.distributed`` is used, and stays. Otherwise one is made where the variables of
    a launcher (torchrun, SLURM's srun) name several processes, and destroyed when the process ends. ``timeout``:
    seconds after which a process that does not answer ends the training; it counts in the first call.
    """
    global _joined
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        of_srun = as_torchrun(os.environ)
        os.environ.update(of_srun)
        if _number("WORLD_SIZE", "1") < 2:
            return ALONE
        _start(timedelta(seconds=timeout), patience=_patience(launched=bool(of_srun)))
    if dist.get_world_size() == 1:
        return ALONE
    if _joined is None or _joined[0] is not dist.group.WORLD:
        _joined = dist.group.WORLD, ProcessGroup(timedelta(seconds=timeout))
    return _joined[1]


def _patience(launched: bool) -> float:
    """Seconds that the store may come later than this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return 0.0  # torchrun has made it before
    return STARTED_WITHIN if launched or "TORCHELASTIC_RUN_ID" in os.environ else BY_HAND_WITHIN


def _start(timeout: timedelta, patience: float) -> None:
    """Makes the default group of the processes that a launcher has started; rank 0 may be ``patience`` seconds late."""
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, and {', '.join(missing)} not set: start the processes by "
            "torchrun --nproc-per-node N script.py, which sets all of them, or unset WORLD_SIZE to train in one process"
        )
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank >= size:
        raise ValueError(f"RANK={rank}: WORLD_SIZE={size} processes have the ranks 0 to {size - 1}")
    _require_address(os.environ["MASTER_ADDR"], _number("MASTER_PORT"), patience)
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        place = met(timedelta(seconds=MET_WITHIN), timeout)
    except TimeoutError as error:
        raise ValueError(
            f"WORLD_SIZE={size}: not all of the processes have come to MASTER_ADDR={os.environ['MASTER_ADDR']}, "
            f"MASTER_PORT={os.environ['MASTER_PORT']} ({error}). Start all of them, as torchrun does, or unset "
            "WORLD_SIZE to train in one process"
        ) from error
    dist.init_process_group(backend, timeout=timeout, **place)
    atexit.register(_end)


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name) or default
    if not text.isdecimal():
        raise ValueError(f"{name}={text}: a whole number is needed; torchrun sets it")
    return int(text)


def _require_address(host: str, port: int, patience: float) -> None:
    """``ValueError`` where nothing answers at the address at which the processes are to meet."""
    if os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # this process is what answers there
    error = _refusal(host, port, patience)
    if error is not None:
        raise ValueError(
            f"MASTER_ADDR={host}, MASTER_PORT={port}: the processes are to meet there, and nothing answers ({error}). "
            "Name the first machine as the others reach it, and a port that its firewall lets through: "
            "torchrun --rdzv-backend c10d --rdzv-endpoint HOST:PORT ..."
        ) from error


def _refusal(host: str, port: int, patience: float) -> OSError | None:
    """Why no connection can be made, where a process that is not there yet has ``patience`` seconds to come."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), REACHABLE_WITHIN).close()
        except ConnectionRefusedError as error:
            if time.monotonic() > deadline:
                return error
            time.sleep(0.2)
        except OSError as error:
            return error
        else:
            return None


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
