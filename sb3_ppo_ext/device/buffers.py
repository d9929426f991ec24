"""Rollout buffers whose arrays are tensors on the policy's device.

What acting computes there never leaves it; rewards and episode starts come from the host and go over once a rollout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor


class DeviceRollouts:
    """What both buffers below do differently from Stable-Baselines3's. Arrays are [T, N, ...], as there."""

    buffer_size: int
    n_envs: int
    pos: int
    full: bool
    device: torch.device
    observation_space: spaces.Space[Any]
    obs_shape: Any
    action_dim: int
    gamma: float
    gae_lambda: float
    generator_ready: bool
    observations: Any
    rewards: Any
    episode_starts: Any
    actions: Any
    values: Any
    log_probs: Any
    advantages: Any
    returns: Any

    def reset(self) -> None:
        """Empty, with arrays of its own: whoever kept those of the last rollout keeps their contents."""
        shape = (self.buffer_size, self.n_envs)
        self.pos, self.full, self.generator_ready = 0, False, False
        self.observations = self._empty_observations(shape)
        self.rewards, self.episode_starts = (np.zeros(shape, np.float32) for _ in range(2))
        self.actions = self._zeros((*shape, self.action_dim))
        self.values, self.log_probs, self.advantages, self.returns = (self._zeros(shape) for _ in range(4))

    def _zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Tensor:
        return torch.zeros(shape, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype, device=self.device)

    def _empty_observations(self, shape: tuple[int, int]) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: self._zeros((*shape, *self.obs_shape[key]), part.dtype) for key, part in space.spaces.items()}
        return self._zeros((*shape, *self.obs_shape), space.dtype)

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Tensor, log_prob: Tensor) -> None:
        """One step of all environments: tensors of the device are copied there, arrays of the host sent to it."""
        step = self.pos
        for kept, given in zip(_parts(self.observations), _parts(obs), strict=True):
            _put([kept[step]], [given])
        _put([self.actions[step], self.values[step], self.log_probs[step]], [action, value, log_prob])
        self.rewards[step] = reward
        self.episode_starts[step] = episode_start
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As Stable-Baselines3's, up to rounding."""
        self.advantages = self.advantages_for(self.values, last_values, dones)
        self.returns = self.advantages + self.values

    def advantages_for(self, values: Tensor, last_values: Tensor, dones: np.ndarray) -> Tensor:
        """Advantages [T, N] for other values [T, N] of the same steps."""
        ended = np.concatenate((self.episode_starts[1:], dones.astype(np.float32).reshape(1, -1)))
        rewards, non_terminal = (torch.from_numpy(array).to(self.device) for array in (self.rewards, 1 - ended))
        next_values = torch.cat((values[1:], last_values.detach().reshape(1, -1)))
        delta = rewards + self.gamma * next_values * non_terminal - values
        return discounted_sums(delta, self.gamma * self.gae_lambda * non_terminal)

    def get(self, batch_size: int | None = None) -> Any:
        """As Stable-Baselines3's ``RolloutBuffer.get``; the permutation is drawn on the device."""
        assert self.full, "the buffer is not full"
        order = torch.randperm(self.buffer_size * self.n_envs, device=self.device)
        for rows in torch.split(order, batch_size or len(order)):
            yield self._get_samples(rows)  # type: ignore[attr-defined]  # of the buffer it is mixed into

    def flat(self, array: Tensor) -> Tensor:
        """[T, N, ...] as [N * T, ...], in the order of ``swap_and_flatten``."""
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


class DeviceRolloutBuffer(DeviceRollouts, RolloutBuffer):
    """``RolloutBuffer`` on the device."""

    def _get_samples(self, rows: Any, env: Any = None) -> Any:
        from stable_baselines3.common.type_aliases import RolloutBufferSamples

        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        return RolloutBufferSamples(*(self.flat(getattr(self, name))[rows] for name in names))


class DeviceDictRolloutBuffer(DeviceRollouts, DictRolloutBuffer):  # type: ignore[misc]  # its space is any here
    """``DictRolloutBuffer`` on the device."""

    def _get_samples(self, rows: Any, env: Any = None) -> Any:
        from stable_baselines3.common.type_aliases import DictRolloutBufferSamples

        names = ("actions", "values", "log_probs", "advantages", "returns")
        observations = {key: self.flat(array)[rows] for key, array in self.observations.items()}
        return DictRolloutBufferSamples(observations, *(self.flat(getattr(self, name))[rows] for name in names))


def discounted_sums(delta: Tensor, discount: Tensor) -> Tensor:
    """A_t = delta_t + discount_t A_{t+1} over the first dimension [T, ...], in log2(T) passes.

    The recursion of Schulman et al. 2016, eq. 16. After a pass every sum reaches twice as far: pairs (sum, product)
    compose associatively, as in any parallel scan (Hillis & Steele 1986).
    """
    total, factor, reach = delta.clone(), discount.clone(), 1
    while reach < len(delta):
        total[:-reach] += factor[:-reach] * total[reach:]
        factor[:-reach] = factor[:-reach] * factor[reach:]
        reach *= 2
    return total


def _parts(observation: Any) -> list[Any]:
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def _put(places: list[Tensor], given: list[Any]) -> None:
    tensors = [one if isinstance(one, Tensor) else torch.from_numpy(np.asarray(one)) for one in given]
    shaped = [tensor.reshape(place.shape) for place, tensor in zip(places, tensors, strict=True)]
    if any(tensor.requires_grad for tensor in shaped):
        shaped = [tensor.detach() for tensor in shaped]
    # All of them in one launch; a single copy has less to look at.
    if len(places) == 1:
        places[0].copy_(shaped[0])
    else:
        torch._foreach_copy_(places, shaped)
