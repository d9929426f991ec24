"""A program that trains one run in a process after the other, each killed at a random moment, the last one left alone.

``python -m tests.checkpoints.killed_run FOLDER KILLS SEED``. It forks: what takes seconds to import is imported once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.folder import stored
from tests.checkpoints.runs import SETTINGS, parameters
from tests.environments import walk

TOTAL = 640  # 40 updates


def session(folder: Path) -> None:
    """What the user's program does each time it is started."""
    torch.set_num_threads(1)
    env = Monitor(walk(), str(folder / "0"))
    evaluation = EvalCallback(
        Monitor(walk()),
        eval_freq=50,
        n_eval_episodes=1,
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )
    evaluation.eval_env.seed(3)
    if stored(folder):
        model = PPOX.resume(folder, env, evaluation, device="cpu").learn(TOTAL)
    else:
        model = PPOX("MlpPolicy", env, seed=1, tensorboard_log=str(folder / "tb"), **SETTINGS)
        model.learn(TOTAL, evaluation, checkpoint=Checkpoints(folder, every=0))
    np.save(folder / "parameters.npy", parameters(model).numpy())


def killed_after(folder: Path, seconds: float | None) -> bool:
    """Whether a session was killed, and did not end before."""
    process = os.fork()
    if process == 0:
        try:
            session(folder)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a session ended with {status}")
    return status != 0


def main() -> None:
    """Kills, and then lets it finish."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    killed = sum(killed_after(folder, draw.uniform(0.02, 0.8)) for _ in range(kills))
    killed_after(folder, None)
    print(killed)


if __name__ == "__main__":
    main()
