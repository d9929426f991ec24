"""The step of a vector environment: the results of ``env.step``, with less copying where the layers allow it.

A layer is a ``DummyVecEnv`` or a wrapper around another layer. Each layer that does what Stable-Baselines3 defines
(``host/sb3.py``) has a lean step over that of the layer below. Any other layer is called as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_ppo_ext.host import sb3
from sb3_ppo_ext.rollout.dummy_vec_env import copied_observation, dummy_step
from sb3_ppo_ext.rollout.shared_statistics import SharedStatistics
from sb3_ppo_ext.rollout.vec_normalize import normalized_step

Step = Callable[[np.ndarray], VecEnvStepReturn]


def step_of(env: VecEnv) -> Step:
    """A function with the results and side effects of ``env.step``."""
    return lean_step(env) or env.step


def lean_step(env: VecEnv) -> Step | None:
    """The lean step of a layer; None where it is not one of Stable-Baselines3's, as that defines it."""
    if sb3.steps_as_sb3(env):
        return partial(dummy_step, env)  # type: ignore[arg-type]  # a DummyVecEnv
    for is_original, step in WRAPPERS:
        if is_original(env):
            below: VecEnv = env.venv  # type: ignore[attr-defined]  # a VecEnvWrapper
            return partial(step, env, lean_step(below) or partial(step_by_halves, below))
    return None


def step_by_halves(env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    """The calls that a wrapper makes to the layer below it: ``step`` is not among them."""
    env.step_async(actions)
    return env.step_wait()


def monitored_step(env: VecMonitor, below: Step, actions: np.ndarray) -> VecEnvStepReturn:
    """``VecMonitor.step``: returns and lengths of episodes; the infos of last steps are copies with "episode"."""
    obs, rewards, dones, infos = below(actions)
    env.episode_returns += rewards
    env.episode_lengths += 1
    infos = list(infos[:])
    for index in ended(dones):
        infos[index] = infos[index].copy()
        end_episode(env, index, infos[index])
    return obs, rewards, dones, infos


def end_episode(env: VecMonitor, index: int, info: dict[str, Any]) -> None:
    """Puts return, length and time of the episode into ``info`` and the file, and starts the next one's."""
    episode: dict[str, Any] = {"r": env.episode_returns[index], "l": env.episode_lengths[index]}
    episode["t"] = round(time.time() - env.t_start, 6)
    episode |= {key: info[key] for key in env.info_keywords}
    info["episode"] = episode
    env.episode_count += 1
    env.episode_returns[index] = env.episode_lengths[index] = 0
    if env.results_writer:
        env.results_writer.write_row(episode)


def stacked_step(env: VecFrameStack, below: Step, actions: np.ndarray) -> VecEnvStepReturn:
    """``VecFrameStack.step``: the last observations of each environment."""
    obs, rewards, dones, infos = below(actions)
    stacked, infos = env.stacked_obs.update(obs, dones, infos)  # type: ignore[arg-type]  # no tuples
    return stacked, rewards, dones, infos


def transposed_step(env: VecTransposeImage, below: Step, actions: np.ndarray) -> VecEnvStepReturn:
    """``VecTransposeImage.step``: images with their channels first."""
    obs, rewards, dones, infos = below(actions)
    for index in ended(dones):
        if "terminal_observation" in infos[index]:
            infos[index]["terminal_observation"] = env.transpose_observations(infos[index]["terminal_observation"])
    assert isinstance(obs, (np.ndarray, dict))  # VecTransposeImage's own check
    if isinstance(obs, dict) and not env.skip:
        obs = copied_observation(obs)
        for key in env.image_space_keys:
            obs[key] = env.transpose_image(obs[key])
        return obs, rewards, dones, infos
    return env.transpose_observations(obs), rewards, dones, infos


def ended(dones: np.ndarray) -> list[int]:
    """The environments whose episode has ended."""
    return np.flatnonzero(dones).tolist() if np.count_nonzero(dones) else []  # counting takes a tenth of the time


def normalizes(env: object) -> bool:
    """Whether ``normalized_step`` is the step of ``env``, also while its statistics are shared."""
    return sb3.normalizes_as_sb3(env, SharedStatistics)


WRAPPERS: tuple[tuple[Callable[[object], bool], Callable[..., VecEnvStepReturn]], ...] = (
    (normalizes, normalized_step),
    (sb3.monitors_as_sb3, monitored_step),
    (sb3.stacks_as_sb3, stacked_step),
    (sb3.transposes_as_sb3, transposed_step),
)
