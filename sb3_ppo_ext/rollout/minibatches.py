"""From Stable-Baselines3's rollout buffer [T, N] to minibatches of B rows, under TorchRL's default key names.

The tensors are made once per rollout and gathered by row; row order and minibatches are those of
``RolloutBuffer.get`` for the same numpy random state. A buffer class with its own ``get`` or ``_get_samples``
(augmentation, say) is asked through ``get`` instead, and then nobody knows which row is which: ``has_rows`` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from sb3_ppo_ext.host.sb3 import samples_as_sb3
from sb3_ppo_ext.objective.batch import Minibatch, Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution, concatenated
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.rollout.advantages import compute_returns_and_advantage
from sb3_ppo_ext.rollout.device_buffers import DEVICE_BUFFERS
from sb3_ppo_ext.rollout.rows import gathered_rows, observation_rows, split_rows, splits_evenly

# Rows per forward pass outside of the minibatches: enough to amortise the call, small beside a rollout of images.
CHUNK = 256


def has_rows(buffer_class: type[RolloutBuffer]) -> bool:
    """Whether the class hands out its rows as Stable-Baselines3's own buffers do."""
    return samples_as_sb3(buffer_class) or buffer_class in DEVICE_BUFFERS


class Rollout:
    """One collected rollout, ready for several epochs of minibatches."""

    def __init__(self, buffer: RolloutBuffer, action_space: spaces.Space[Any], *, normalize_advantage: bool) -> None:
        self.buffer = buffer
        self.action_space = action_space
        self.normalize_advantage = normalize_advantage  # over the whole rollout
        self.size = buffer.buffer_size * buffer.n_envs
        self.has_rows = has_rows(type(buffer))
        self.order: tuple[Tensor, ...] = ()  # of the last epoch: the rows of each minibatch
        self.value_target = self._flat(buffer.returns).flatten()
        self.state_value = self._flat(buffer.values).flatten()
        self._set_advantage()
        if self.has_rows:
            self.rows = Minibatch(
                self._observations(),
                self._actions(self._flat(buffer.actions).float()),
                self._flat(buffer.log_probs).flatten(),
                self.state_value,
                self.advantage,
                self.value_target,
            )

    @property
    def measured(self) -> dict[str, float]:
        """What controllers answer to besides what the minibatches show."""
        return {}

    def summary(self) -> object:
        """What callbacks may want of the rollout after its update, where there is something."""
        return None

    def explained_variance(self) -> float:
        """``1 - Var(returns - values) / Var(returns)``: 1 where the values were right, 0 where a constant does."""
        return float(explained_variance(self.buffer.values.flatten(), self.buffer.returns.flatten()))

    def _set_advantage(self) -> None:
        advantage = self._flat(self.buffer.advantages).flatten()
        self.advantage = normalized(advantage) if self.normalize_advantage else advantage

    def _flat(self, array: np.ndarray) -> Tensor:
        """[T, N, ...] as [N * T, ...] on the buffer's device."""
        flat = np.ascontiguousarray(self.buffer.swap_and_flatten(array))
        return torch.from_numpy(flat).to(self.buffer.device)

    def _observations(self) -> Observation:
        if isinstance(self.buffer, DictRolloutBuffer):
            return {key: self._flat(array) for key, array in self.buffer.observations.items()}
        return self._flat(self.buffer.observations)

    def _actions(self, action: Tensor) -> Tensor:
        # Categorical.log_prob takes a flat index; the other spaces keep the float32 rows of SB3's samples.
        return action.long().flatten() if isinstance(self.action_space, spaces.Discrete) else action

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """One epoch: every row once, in a fresh random order, the last minibatch possibly smaller."""
        if not self.has_rows:
            yield from self._minibatches_of_custom_buffer(batch_size)
            return
        self.order = orders = self.orders(batch_size)
        if self.rows.distribution is None and splits_evenly(self.rows, batch_size):
            yield from split_rows(gathered_rows(self.rows, torch.cat(orders)), batch_size)
            return
        for rows in orders:
            yield gathered_rows(self.rows, rows)

    def orders(self, batch_size: int) -> tuple[Tensor, ...]:
        """One epoch as indices of rows, one tensor for each minibatch."""
        order = torch.from_numpy(np.random.permutation(self.size)).to(self.buffer.device)
        return torch.split(order, batch_size)

    def _minibatches_of_custom_buffer(self, batch_size: int) -> Iterator[Minibatch]:
        mean, scale = self._advantage_statistics()
        for sample in self.buffer.get(batch_size):
            yield Minibatch(
                sample.observations,
                self._actions(sample.actions),
                sample.old_log_prob,
                sample.old_values,
                (sample.advantages - mean) / scale if self.normalize_advantage else sample.advantages,
                sample.returns,
            )

    def _advantage_statistics(self) -> tuple[float, float]:
        """What ``normalized`` subtracts and divides by, over the whole rollout."""
        advantage = torch.from_numpy(np.asarray(self.buffer.advantages)).flatten()
        return advantage.mean().item(), (advantage.std() + 1e-8).item()

    def map_rows(self, function: Callable[[Observation], Tensor], chunk: int) -> Tensor:
        """``function`` of all observations, ``chunk`` rows at a time, without gradient."""
        return torch.cat([function(observation) for observation in self._chunks(chunk)])

    def remember_distributions(self, function: Callable[[Observation], ActionDistribution], chunk: int) -> None:
        """Keeps the action distribution of every row, for the exact KL to it."""
        parts = [function(observation) for observation in self._chunks(chunk)]
        self.rows = self.rows._replace(distribution=concatenated(parts))

    def _chunks(self, chunk: int) -> Iterator[Observation]:
        with torch.no_grad():
            for rows in torch.split(torch.arange(self.size, device=self.buffer.device), chunk):
                yield observation_rows(self.rows.observation, rows)

    def refresh_advantage(self, values: Tensor, last_values: Tensor, dones: np.ndarray) -> None:
        """Advantages and value targets anew from ``values`` [N * T], by the buffer's own GAE.

        ``state_value`` stays: value clipping holds on to the values of the policy that collected the rollout. So do
        the bootstrapped values that Stable-Baselines3 adds to the reward where an episode was cut by its time limit.
        """
        collected = self.buffer.values
        self.buffer.values = values.cpu().numpy().reshape(self.buffer.n_envs, self.buffer.buffer_size).T
        compute_returns_and_advantage(self.buffer, last_values, dones)
        self.buffer.values = collected
        self._set_advantage()
        self.value_target = self._flat(self.buffer.returns).flatten()
        self.rows = self.rows._replace(advantage=self.advantage, value_target=self.value_target)
