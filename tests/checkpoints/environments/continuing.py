"""Two vector environments made alike: the second goes on from what was saved of the first."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.checkpoints.environments import (
    Restored,
    prepare_environments,
    restore_environments,
    save_environments,
)

Make = Callable[[], VecEnv]


class Run(NamedTuple):
    """What was saved after some steps, and what came after it."""

    state: bytes
    actions: list[Any]
    results: list[Any]
    lines: list[str]  # said before the first step


def interrupted(make: Make, before: int = 60, after: int = 200, prepare: bool = True) -> Run:
    """Saves after ``before`` steps and goes on for ``after`` more."""
    env = make()
    space = copy.deepcopy(env.action_space)
    space.seed(1)
    actions = [np.array([space.sample() for _ in range(env.num_envs)]) for _ in range(before + after)]
    lines = prepare_environments(env) if prepare else []
    env.seed(3)
    env.reset()
    for action in actions[:before]:
        env.step(action)
    state = pickle.dumps(save_environments(env))
    results = [plain(env.step(action)) for action in actions[before:]]
    env.close()
    return Run(state, actions[before:], results, lines)


def continued(make: Make, run: Run) -> tuple[Restored, bool]:
    """What restoring says, and whether the steps that follow give the same to the last bit."""
    env = make()
    restored = restore_environments(env, pickle.loads(run.state))
    if restored.new_episodes:
        env.close()
        return restored, False
    equal = all(plain(env.step(action)) == result for action, result in zip(run.actions, run.results, strict=True))
    env.close()
    return restored, equal


def goes_on_exactly(make: Make, before: int = 60, after: int = 200) -> bool:
    """Whether the restored environment is silent and equal."""
    run = interrupted(make, before, after)
    restored, equal = continued(make, run)
    assert run.lines == [] and restored == []
    return equal


def plain(step: Any) -> Any:
    """Observations, rewards, ends and infos as bytes and texts; without what a clock has written."""
    observation, reward, done, infos = step
    return as_bytes(observation), as_bytes(reward), as_bytes(done), [as_bytes(dict(info)) for info in infos]


def as_bytes(value: Any) -> Any:
    """Arrays by their bytes; the seconds of an episode left out."""
    if isinstance(value, dict):
        return {key: as_bytes(entry) for key, entry in sorted(value.items()) if key != "t"}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.str, value.tobytes()
    return repr(value)
