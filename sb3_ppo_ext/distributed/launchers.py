"""Launchers that name their processes by other variables than torchrun: SLURM's srun is translated, MPI is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")  # Open MPI, MVAPICH, Intel MPI and MPICH
APART = "set WORLD_SIZE=1 for runs that have nothing to do with each other"
SRUN_TORCHRUN = (
    "srun --ntasks-per-node=1 torchrun --nnodes $SLURM_NNODES --nproc-per-node N --rdzv-backend c10d --rdzv-endpoint "
    '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500 --rdzv-id $SLURM_JOB_ID script.py'
)


def as_torchrun(variables: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, for the tasks of a step of SLURM; nothing where no such launcher is at work.

    ``ValueError`` where MPI has started several processes, or the first machine of a step cannot be told: the message
    has the command of torchrun.
    """
    if variables.get("WORLD_SIZE"):
        return {}
    if _is_srun(variables):
        return _of_srun(variables)
    for name in MPI_SIZES:
        if int(variables.get(name) or 1) > 1:
            raise ValueError(
                f"{name}={variables[name]}: MPI has started several processes (accelerate does so on CPUs), and "
                f"torch.distributed does not take its variables. Start them by torchrun --nproc-per-node "
                f"{variables[name]} script.py, on several machines with --nnodes and --rdzv-endpoint; or {APART}"
            )
    return {}


def _is_srun(variables: Mapping[str, str]) -> bool:
    """Whether the process is one of several tasks of a step; a batch script and a shell are none, with many tasks."""
    interactive = variables.get("SLURM_JOB_NAME") in ("bash", "interactive")
    several = int(variables.get("SLURM_STEP_NUM_TASKS") or 1) > 1
    return several and bool(variables.get("SLURM_PROCID")) and not interactive


def _of_srun(variables: Mapping[str, str]) -> dict[str, str]:
    step = variables.get("SLURM_STEP_ID") or "0"
    return {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables.get("SLURM_LOCALID") or "0",
        "MASTER_ADDR": variables.get("MASTER_ADDR") or _first_machine(variables),
        # The same in all tasks, and another for other steps: those of a job may run beside each other.
        "MASTER_PORT": variables.get("MASTER_PORT")
        or str(20000 + (int(variables.get("SLURM_JOB_ID") or 0) * 16 + int(step)) % 10000),
    }


def _first_machine(variables: Mapping[str, str]) -> str:
    """The name of the machine of rank 0: SLURM numbers the tasks of a step along its list of nodes."""
    if int(variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES") or 1) == 1:
        return "127.0.0.1"
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_NODELIST") or ""
    # "gpu7,gpu9", "gpu[07-12,20]" or "gpu[07-12]-ib": a name, or a number out of one pair of brackets.
    found = re.match(r"([^,\[\]]+)(?:\[(\d+)[^\]]*\]([^,\[\]]*))?(?:,|$)", nodes)
    if found is None:
        raise ValueError(
            f"SLURM_STEP_NODELIST={nodes!r}: srun has started several processes, and the first machine cannot be read "
            f"from that. Set MASTER_ADDR to its name, or start them by {SRUN_TORCHRUN}; or {APART}"
        )
    return "".join(text or "" for text in found.groups())
