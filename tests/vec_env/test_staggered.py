"""The first episodes of environments beside each other end at different moments; later ones are whole."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext.vec_env import StaggeredStart

N_ENVS, LENGTH = 8, 200  # Pendulum ends by its time limit alone


def ends(seed: int, steps: int = 3 * LENGTH) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
    """(step, environment) of each end, and its info."""
    env = make_vec_env("Pendulum-v1", N_ENVS, seed=seed, wrapper_class=StaggeredStart)
    env.reset()
    found, infos = [], []
    for step in range(1, steps + 1):
        _, _, done, info = env.step(np.zeros((N_ENVS, 1), np.float32))
        for index in np.flatnonzero(done):
            found.append((step, int(index)))
            infos.append(info[index])
    return found, infos


def test_the_first_episode_alone_is_cut_and_by_the_seed() -> None:
    found, infos = ends(seed=0)
    by_environment = [[step for step, index in found if index == place] for place in range(N_ENVS)]
    first = [steps[0] for steps in by_environment]
    assert all(1 <= step <= LENGTH for step in first) and len(set(first)) > N_ENVS // 2
    assert all(np.diff(steps).tolist() == [LENGTH] * (len(steps) - 1) for steps in by_environment)
    # A time limit: the value of what follows is part of the return. The monitor within counts whole episodes.
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"].shape == (3,) for info in infos)
    assert ["episode" in info for info in infos] == [step > first[index] for step, index in found]
    assert ends(seed=0)[0] == found != ends(seed=1)[0]


def test_an_end_before_the_cut_is_the_environment_s_own() -> None:
    env = StaggeredStart(gym.make("CartPole-v1"), max_episode_steps=10_000)
    env.reset(seed=0)
    while True:
        *_, terminated, truncated, _ = env.step(1)
        if terminated or truncated:
            break
    assert terminated and not truncated
    env.reset()
    assert env.left == 0  # it follows another
    env.step(1)
    env.reset()
    assert env.left > 0  # it does not


def test_an_environment_without_a_limit_needs_one() -> None:
    env = gym.make("Pendulum-v1").unwrapped
    with pytest.raises(ValueError, match=r"pass StaggeredStart\(env, max_episode_steps=n\)"):
        StaggeredStart(env)
    assert StaggeredStart(env, max_episode_steps=5).max_episode_steps == 5
