"""How a step of all environments is added to a rollout buffer: by ``add``, or with one copy of each number."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.host.sb3 import adds_as_sb3
from sb3_ppo_ext.objective.batch import Observation


@singledispatch
def store(
    buffer: RolloutBuffer,
    obs: Any,
    action: np.ndarray,
    reward: np.ndarray,
    episode_start: Any,
    value: Tensor,
    log_prob: Tensor,
    *,
    on_device: tuple[Observation, Tensor],
) -> None:
    """Calls ``buffer.add``, or does the same with one copy of each number for Stable-Baselines3's buffers.

    ``on_device`` has the observation and the action as tensors of the policy's device: a class of buffers that lie
    there registers a function of its own.
    """
    if not adds_as_sb3(buffer) or log_prob.dim() == 0:
        buffer.add(obs, action, reward, episode_start, value, log_prob)
        return
    step = buffer.pos
    observations: Any = buffer.observations
    if isinstance(buffer.observation_space, spaces.Dict):
        for key, array in observations.items():
            array[step] = fitted(obs[key], buffer.observation_space[key], array)
    else:
        observations[step] = fitted(obs, buffer.observation_space, observations)
    buffer.actions[step] = action.reshape(buffer.actions.shape[1:])
    buffer.rewards[step] = reward
    buffer.episode_starts[step] = episode_start
    buffer.values[step] = value.cpu().numpy().reshape(-1)
    buffer.log_probs[step] = log_prob.cpu().numpy()
    buffer.pos += 1
    if buffer.pos == buffer.buffer_size:
        buffer.full = True


def fitted(obs: np.ndarray, space: spaces.Space[Any], array: np.ndarray) -> np.ndarray:
    """Observations [N, ...] for a row of ``array``, which stores Discrete ones, [N], as [N, 1]."""
    return obs.reshape(array.shape[1:]) if isinstance(space, spaces.Discrete) else obs
