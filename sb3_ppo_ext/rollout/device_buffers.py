"""Rollout buffers whose arrays are tensors on the policy's device.

The results of acting never leave the device; rewards and episode starts are copied to it once a rollout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.rollout.storing import Store, storing

PENDING = 64  # steps whose tensors are collected before they are copied into the arrays together


class Collected:
    """An array of a buffer to which every step adds: an access copies the pending steps first."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, buffer: DeviceRollouts | None, owner: type) -> Any:
        if buffer is None:
            return self
        buffer.settle()
        return buffer.arrays[self.name]

    def __set__(self, buffer: DeviceRollouts, array: Any) -> None:
        buffer.arrays[self.name] = array


class DeviceRollouts(RolloutBuffer):
    """The common part of the two buffers below. Arrays are [T, N, ...], as in Stable-Baselines3's.

    It is a subclass and no mixin so that ``exchange_buffer`` can move an object from one class to the other.
    """

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
    rewards: Any
    episode_starts: Any
    advantages: Any
    returns: Any
    observations, actions, values, log_probs = Collected(), Collected(), Collected(), Collected()

    def reset(self) -> None:
        """Empties the buffer; its arrays are new, so that those of the last rollout keep their contents."""
        shape = (self.buffer_size, self.n_envs)
        self.arrays: dict[str, Any] = {}
        self._steps: list[list[Tensor]] = []  # pending, not in the arrays yet
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
            return {key: self._zeros((*shape, *self.obs_shape[key]), item.dtype) for key, item in space.spaces.items()}
        return self._zeros((*shape, *self.obs_shape), space.dtype)

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Tensor, log_prob: Tensor) -> None:
        """Adds one step of all environments: tensors of the device as they are, copies of what is on the host."""
        self._steps.append([self._on_device(array) for array in (*_arrays_of(obs), action, value, log_prob)])
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.pos += 1
        self.full = self.pos == self.buffer_size
        if len(self._steps) == PENDING:
            self.settle()

    def _on_device(self, array: Any) -> Tensor:
        # A tensor of a device was made for this step; on the host it may be an array that the environment reuses.
        if isinstance(array, Tensor) and array.device.type != "cpu":
            return array
        return torch.as_tensor(array).to(self.device, copy=True)

    @torch.no_grad()
    def settle(self) -> None:
        """Copies the pending steps into the arrays."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        written = slice(self.pos - len(steps), self.pos)
        names = ("actions", "values", "log_probs")
        arrays = [*_arrays_of(self.arrays["observations"]), *(self.arrays[name] for name in names)]
        for array, column in zip(arrays, zip(*steps, strict=True), strict=True):
            rows = array[written]
            rows.copy_(torch.stack(column).reshape(rows.shape))

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Computes advantages and returns [T, N], equal to Stable-Baselines3's up to rounding."""
        self.advantages = self.advantages_for(self.values, last_values, dones)
        self.returns = self.advantages + self.values

    def advantages_for(
        self, values: Tensor, last_values: Tensor, dones: np.ndarray, gae_lambda: float | None = None
    ) -> Tensor:
        """The advantages [T, N] of the steps under other values [T, N], and another lambda than the buffer's."""
        gae_lambda = self.gae_lambda if gae_lambda is None else gae_lambda
        ended = np.concatenate((self.episode_starts[1:], dones.astype(np.float32).reshape(1, -1)))
        rewards, non_terminal = (torch.from_numpy(array).to(self.device) for array in (self.rewards, 1 - ended))
        next_values = torch.cat((values[1:], last_values.detach().reshape(1, -1)))
        delta = rewards + self.gamma * next_values * non_terminal - values
        return discounted_sums(delta, self.gamma * gae_lambda * non_terminal)

    def get(self, batch_size: int | None = None) -> Any:
        """Yields minibatches like ``RolloutBuffer.get``, in a permutation that is drawn on the device."""
        assert self.full, "the buffer is not full"
        order = torch.randperm(self.buffer_size * self.n_envs, device=self.device)
        for rows in torch.split(order, batch_size or len(order)):
            yield self._get_samples(rows)  # type: ignore[arg-type]  # tensors here

    def flat(self, array: Tensor) -> Tensor:
        """The array [T, N, ...] as [N * T, ...], in the order of ``swap_and_flatten``."""
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


@storing.register
def _storing_on_device(buffer: DeviceRollouts) -> Store:
    def store(obs: Any, action: np.ndarray, *rest: Any, on_device: tuple[Observation, Tensor]) -> None:
        buffer.add(*on_device, *rest)

    return store


# The attributes that ``exchange_buffer`` drops when it moves a buffer to or from the device.
ARRAYS = (*(name for name, value in vars(DeviceRollouts).items() if isinstance(value, Collected)), "arrays", "_steps")


class DeviceRolloutBuffer(DeviceRollouts):
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


DEVICE_BUFFERS = (DeviceRolloutBuffer, DeviceDictRolloutBuffer)


def discounted_sums(delta: Tensor, discount: Tensor) -> Tensor:
    """The sums A_t = delta_t + discount_t A_{t+1} over the first dimension [T, ...], in log2(T) passes.

    The recursion of Schulman et al. 2016, eq. 16. After a pass every sum reaches twice as far: pairs (sum, product)
    compose associatively, as in any parallel scan (Hillis & Steele 1986).
    """
    total, factor, reach = delta.clone(), discount.clone(), 1
    while reach < len(delta):
        total[:-reach] += factor[:-reach] * total[reach:]
        factor[:-reach] = factor[:-reach] * factor[reach:]
        reach *= 2
    return total


def _arrays_of(observation: Any) -> list[Any]:
    return list(observation.values()) if isinstance(observation, dict) else [observation]
