"""The cost of saving and restoring eight environments: ``python -m tests.benchmarks.environment_states [TASK ...]``."""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext.checkpoints.environments import prepare_environments, restore_environments, save_environments

TASKS = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "HalfCheetah-v5", "Ant-v5", "LunarLander-v3")
REPEATS = 50


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of some calls."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main(tasks: list[str]) -> None:
    """A line for each task."""
    for task in tasks:
        env = make_vec_env(task, 8, seed=0)
        prepare_environments(env)
        env.reset()
        for _ in range(100):
            env.step(np.array([env.action_space.sample() for _ in range(8)]))
        state = save_environments(env)
        data = pickle.dumps(state)
        saving = milliseconds(lambda env=env: save_environments(env))  # type: ignore[misc]
        start = time.perf_counter()
        lines = restore_environments(make_vec_env(task, 8), pickle.loads(data))
        restoring = 1e3 * (time.perf_counter() - start)
        print(f"{task}: saved in {saving:.2f} ms, {len(data):,} bytes; made and restored in {restoring:.0f} ms {lines}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(TASKS))
