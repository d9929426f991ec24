"""Microseconds per environment step of SB3's VecEnvs and of ours, nothing but environments in the loop.

    python -m tests.benchmarks.vector_environments [--seconds 1.0] [--repeats 3] [--processes 8] [--json figures.json]

SubprocVecEnv is left out where it would start more processes than --processes.

Random actions, drawn beforehand; all episodes, so that restarts are part of the figure. The kinds take turns, and the
figure is the median over the turns of (seconds / steps / environments). GymnasiumVecEnv of HalfCheetah is Gymnasium's
SyncVectorEnv, that of CartPole Gymnasium's NumPy batch. Run it on a quiet machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_ppo_ext.vec_env import EnvPoolVecEnv, GymnasiumVecEnv
from tests.benchmarks.measuring import Table, in_turn, machine_line, number, write_json

TASKS = ("CartPole-v1", "HalfCheetah-v5")
COUNTS = (1, 8, 64)

KINDS: dict[str, Callable[[str, int], VecEnv]] = {
    "DummyVecEnv": lambda task, count: make_vec_env(task, count, seed=0),
    "SubprocVecEnv": lambda task, count: make_vec_env(
        task, count, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    ),
    "GymnasiumVecEnv": lambda task, count: GymnasiumVecEnv(task, count, seed=0),
    "EnvPoolVecEnv": lambda task, count: EnvPoolVecEnv(task, count, seed=0),
    "EnvPoolVecEnv, 1 thread": lambda task, count: EnvPoolVecEnv(task, count, seed=0, threads=1),
}


def microseconds(env: VecEnv, seconds: float) -> float:
    """Per step of one environment."""
    env.seed(0)
    env.reset()
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]
    steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for action in actions:
            env.step(action)
        steps += len(actions)
    return 1e6 * passed / steps / env.num_envs


def measured(task: str, count: int, seconds: float, repeats: int, processes: int) -> dict[str, float]:
    """The median of each kind; what is not installed is left out."""
    envs: dict[str, VecEnv] = {}
    for kind, make in KINDS.items():
        if kind == "SubprocVecEnv" and count > processes:
            continue
        try:
            envs[kind] = make(task, count)
        except ImportError as error:
            print(f"{kind}: {error}")
    turns = in_turn(repeats, {kind: partial(microseconds, env, seconds) for kind, env in envs.items()})
    for env in envs.values():
        env.close()
    return {kind: statistics.median(turns[kind]) for kind in envs}


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine_line())
    figures = {
        f"{task}, {count}": measured(task, count, options.seconds, options.repeats, options.processes)
        for task in TASKS
        for count in COUNTS
    }
    table = Table("µs per environment step", *figures, width=18)
    for kind in KINDS:
        table.row(kind, *(number(row.get(kind)) for row in figures.values()))
    write_json(options.json, {"µs": figures})


if __name__ == "__main__":
    main()
