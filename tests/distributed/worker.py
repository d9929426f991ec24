"""One of several processes: RANK COUNT FOLDER and the names of jobs; their results are pickled into FOLDER/RANK."""

from __future__ import annotations

import pickle
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.forked import Program


def launch(count: int, folder: Path, *arguments: str, module: str = "tests.distributed.worker") -> list[Program]:
    """Starts ``count`` processes of ``module``, which meet in a file of ``folder``."""
    run = str(folder / "run")
    return [
        Program(module, str(rank), str(count), str(folder), *arguments, SB3_PPO_EXT_TESTED_RUN=run)
        for rank in range(count)
    ]


def results(children: list[Program], folder: Path) -> list[Any]:
    """What each of the processes has left, by rank."""
    for status, printed in [child.end() for child in children]:
        assert status == 0, printed
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
