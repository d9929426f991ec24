"""Programs in processes of their own, without the seconds that a new interpreter needs to import PyTorch.

They are forked from a server of ``multiprocessing``, which is a new interpreter that has imported packages of others
and nothing of this project. Where processes cannot be forked they are spawned.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
# torch._dynamo: PyTorch imports it with the first step of any optimizer, which takes a second.
IMPORTED = ["stable_baselines3", "torch._dynamo", "torch.distributed", "torch.utils.tensorboard"]
if FORKS:
    CONTEXT.set_forkserver_preload(IMPORTED)


class Program:
    """``python -m MODULE ARGUMENTS`` in ``folder``, running; the packages are those of this checkout."""

    def __init__(self, module: str, *arguments: str, folder: Path | None = None, **environment: str) -> None:
        file, path = tempfile.mkstemp()
        os.close(file)
        self.printed = Path(path)  # standard output and standard error
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = CONTEXT.Process(target=_run, args=(module, arguments, folder or ROOT, variables, path))
        self.process.start()

    def end(self, timeout: float = 240) -> tuple[int | None, str]:
        """Waits for the program's end, which a timeout brings about: the exit status and what was printed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        printed = self.printed.read_text(encoding="utf-8")
        self.printed.unlink()
        return self.process.exitcode, printed


def _run(module: str, arguments: tuple[str, ...], folder: Path, variables: dict[str, str], printed: str) -> None:
    import torch

    with open(printed, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    first = [str(folder), str(ROOT), str(ROOT / "integrations")]
    sys.path[:] = [*first, *(path for path in sys.path if path not in first)]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
