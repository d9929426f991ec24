"""One of several processes: RANK COUNT FOLDER and the names of jobs; their results are pickled into FOLDER/RANK."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def launch(count: int, folder: Path, *arguments: str, module: str = "tests.distributed.worker") -> list[Any]:
    """Starts ``count`` processes of ``module``, which meet in a file of ``folder``."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["SB3_PPO_EXT_TESTED_RUN"] = str(folder / "run")
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(count), str(folder), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def results(children: list[Any], folder: Path) -> list[Any]:
    """What each of the processes has left, by rank."""
    outputs = [child.communicate(timeout=240)[0] for child in children]
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(len(children))]


def meet(rank: int, count: int, folder: Path, timeout: float = 60) -> None:
    """Makes the default group."""
    from torch import distributed as dist

    store = vars(dist)["FileStore"](str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=timeout))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    this_rank, processes, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    meet(this_rank, processes, directory)
    from tests.distributed import jobs, resumed

    table = {**jobs.JOBS, **resumed.JOBS}
    if not table.keys() >= set(sys.argv[4:]):
        from tests.distributed import language_jobs

        table = language_jobs.JOBS
    found = {name: table[name]() for name in sys.argv[4:]}
    (directory / str(this_rank)).write_bytes(pickle.dumps(found))
