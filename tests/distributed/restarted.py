"""A training under torchrun, FOLDER of its run, of which the second process is killed once, in the third rollout."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.distributed import join_processes
from tests.distributed.jobs import ENVS, case_model, result_of


class KilledOnce(BaseCallback):
    """Leaves a file behind, by which it knows after the restart that it has been killed."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def _on_step(self) -> bool:
        in_third_rollout = self.num_timesteps == 2 * ENVS * 16 + 2 * ENVS
        if in_third_rollout and join_processes().rank == 1 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def main(folder: Path) -> None:
    """Begins the run, or goes on with it, and leaves its results in the folder."""
    warnings.simplefilter("ignore")
    checkpoints = Checkpoints(folder, every=0)
    model: Any = case_model("gSDE", normalize={})
    callback = KilledOnce(str(folder / "killed"))
    if checkpoints.exist():
        model = PPOX.resume(folder, model.env, callback, device="cpu").learn()
    else:
        model.learn(4 * ENVS * 16, callback, checkpoint=checkpoints)
    (folder / f"result {join_processes().rank}").write_bytes(pickle.dumps(result_of(model)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
