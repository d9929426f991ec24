"""Milliseconds per step of eight environments: RayVecEnv beside SubprocVecEnv and DummyVecEnv.

    python -m tests.benchmarks.remote_environments [--seconds 1.0] [--repeats 5] [--workers 2] [--json figures.json]

An environment computes for 0.1, 1 or 10 ms in each step (of its process), or waits as long, as where the
simulator runs elsewhere. The kinds take turns; the figure is the median. RayVecEnv has --workers workers with as many
environments each, SubprocVecEnv a process for each environment. Then a worker is killed, and the seconds are
printed until the step that it was in is done, with the episodes of all its environments repeated.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ppo_ext.vec_env import RayVecEnv
from tests.benchmarks.measuring import Table, in_turn, machine_line, number, timed, write_json

N_ENVS = 8
DURATIONS = (0.1, 1.0, 10.0)  # milliseconds


class Takes(gym.Env[Any, Any]):
    """Takes some milliseconds for a step."""

    observation_space = spaces.Box(-1, 1, (17,), np.float32)
    action_space = spaces.Box(-1, 1, (6,), np.float32)

    def __init__(self, milliseconds: float, waits: bool) -> None:
        self.seconds, self.waits, self.steps = milliseconds / 1000, waits, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 17).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.waits:
            time.sleep(self.seconds)
        else:
            end = time.process_time() + self.seconds
            while time.process_time() < end:
                pass
        self.steps += 1
        observation = self.np_random.uniform(-1, 1, 17).astype(np.float32)
        return observation, 1.0, False, self.steps % 1000 == 0, {"x": 0.0, "speed": 1.0}


def process_of(env: Any) -> int:
    """The process that an environment lives in."""
    return os.getpid()


def kinds(workers: int) -> dict[str, Callable[[list[Any]], VecEnv]]:
    """The VecEnvs, by name."""
    per_worker = N_ENVS // workers
    return {
        "DummyVecEnv": DummyVecEnv,
        "SubprocVecEnv": partial(SubprocVecEnv, start_method="forkserver"),
        "RayVecEnv": partial(RayVecEnv, envs_per_worker=per_worker, resources={"CPU": 0}),
        "RayVecEnv, a worker each": partial(RayVecEnv, envs_per_worker=1, resources={"CPU": 0}),
    }


def milliseconds(env: VecEnv, seconds: float) -> float:
    """Per step of all environments."""
    actions = np.zeros((N_ENVS, 6), np.float32)
    steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        env.step(actions)
        steps += 1
    return 1e3 * passed / steps


def measured(envs: dict[str, VecEnv], duration: float, waits: bool, seconds: float, repeats: int) -> dict[str, float]:
    """The median of each kind, for steps of ``duration`` milliseconds."""
    for env in envs.values():
        env.set_attr("seconds", duration / 1000)
        env.set_attr("waits", waits)
        env.seed(0)
        env.reset()
        milliseconds(env, seconds / 4)
    turns = in_turn(repeats, {name: partial(milliseconds, env, seconds) for name, env in envs.items()})
    return {name: statistics.median(turns[name]) for name in envs}


def seconds_of_replacement(workers: int, steps: int) -> float:
    """From the death of a worker in a step to the end of the step, after ``steps`` of 1 ms in each episode."""
    env = RayVecEnv([partial(Takes, 1.0, False)] * N_ENVS, envs_per_worker=N_ENVS // workers, resources={"CPU": 0})
    env.seed(0)
    env.reset()
    actions = np.zeros((N_ENVS, 6), np.float32)
    for _ in range(steps):
        env.step(actions)
    os.kill(env.apply(process_of, repeated="never")[0], signal.SIGKILL)
    taken = timed(lambda: env.step(actions))
    assert env.replacements == 1 and env.lost_episodes == 0
    env.close()
    return taken


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine_line())
    envs = {name: kind([partial(Takes, 1.0, False)] * N_ENVS) for name, kind in kinds(options.workers).items()}
    figures = {
        f"{duration:g} ms, {'waiting' if waits else 'computing'}": measured(
            envs, duration, waits, options.seconds, options.repeats
        )
        for waits in (False, True)
        for duration in DURATIONS
    }
    for env in envs.values():
        env.close()
    table = Table("ms per step of 8", *figures, width=18)
    for kind in kinds(options.workers):
        table.row(kind, *(number(row[kind]) for row in figures.values()))
    replaced = statistics.median(seconds_of_replacement(options.workers, 200) for _ in range(3))
    print(f"a worker with {N_ENVS // options.workers} environments, replaced after 200 steps of 1 ms: {replaced:.1f} s")
    write_json(options.json, {"ms": figures, "s of a replacement": replaced})


if __name__ == "__main__":
    main()
