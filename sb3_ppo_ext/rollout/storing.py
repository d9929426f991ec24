"""How a step of all environments is added to a rollout buffer: by ``add``, or with one copy of each number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.host.sb3 import adds_as_sb3
from sb3_ppo_ext.objective.batch import Observation

# Adds a step: takes the arguments of ``buffer.add``, and ``on_device``, which has the observation and the action as
# tensors of the policy's device.
Store = Callable[..., None]


@singledispatch
def storing(buffer: RolloutBuffer) -> Store:
    """What adds the steps of a rollout: ``buffer.add``, or the same with one copy of each number for SB3's buffers.

    A class of buffers that lie on a device registers a function of its own.
    """
    return partial(copy_step if adds_as_sb3(buffer) else add_step, buffer)


def add_step(buffer: RolloutBuffer, *step: Any, on_device: tuple[Observation, Tensor]) -> None:
    """Calls ``buffer.add``."""
    buffer.add(*step)


def copy_step(
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
    """Does what ``add`` of Stable-Baselines3's buffers does."""
    if log_prob.dim() == 0:
        buffer.add(obs, action, reward, episode_start, value, log_prob)
        return
    step = buffer.pos
    observations: Any = buffer.observations
    if type(observations) is dict:
        for key, array in observations.items():
            array[step] = fitted(obs[key], buffer.observation_space[key], array)  # type: ignore[index]  # a Dict
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
