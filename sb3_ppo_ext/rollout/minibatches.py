"""Minibatches of B rows of Stable-Baselines3's rollout buffer [T, N], under TorchRL's default key names.

The tensors are made once per rollout and gathered by row; row order and minibatches are those of
``RolloutBuffer.get`` for the same numpy random state. The minibatches of a buffer class with another ``get`` or
``_get_samples`` (augmentation, say) come from its ``get``, without their rows' indices: ``indexable`` is False.
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
from sb3_ppo_ext.rollout.advantages import compute_returns_and_advantage, value_targets
from sb3_ppo_ext.rollout.device_buffers import DEVICE_BUFFERS
from sb3_ppo_ext.rollout.lost_rows import lost_rows, normalized_without, without_lost
from sb3_ppo_ext.rollout.rows import gathered_rows, observation_rows

# Rows per forward pass outside of the minibatches: enough to amortise the call, small beside a rollout of images.
CHUNK = 256


def indexable(buffer_class: type[RolloutBuffer]) -> bool:
    """Whether minibatches can be gathered by row index: the class samples as Stable-Baselines3's buffers do."""
    return samples_as_sb3(buffer_class) or buffer_class in DEVICE_BUFFERS


class Rollout:
    """One collected rollout, ready for several epochs of minibatches."""

    def __init__(self, buffer: RolloutBuffer, action_space: spaces.Space[Any], *, normalize_advantage: bool) -> None:
        self.buffer = buffer
        self.action_space = action_space
        self.normalize_advantage = normalize_advantage  # over all rows of the rollout
        self.size = buffer.buffer_size * buffer.n_envs
        self.indexable = indexable(type(buffer))
        self.value_lambda: float | None = None  # of the value targets, where they have one of their own
        self.lost = lost_rows(buffer)
        self.order: tuple[Tensor, ...] = ()  # of the last epoch: the rows of each minibatch
        self.value_target = self._flat(buffer.returns).flatten()
        self.state_value = self._flat(buffer.values).flatten()
        self._set_advantage()
        if self.indexable:
            self.rows = Minibatch(
                self._observations(),
                self._actions(self._flat(buffer.actions).float()),
                self._flat(buffer.log_probs).flatten(),
                self.state_value,
                self.advantage,
                self.value_target,
            )

    @property
    def controller_inputs(self) -> dict[str, float]:
        """Measurements for controllers besides those of the minibatches."""
        return {}

    def summary(self) -> object:
        """The rollout's own entry in ``model.last_update``; None where it has none."""
        return None

    def explained_variance(self) -> float:
        """``1 - Var(returns - values) / Var(returns)``: 1 for exact values, 0 for a constant."""
        return float(explained_variance(self.buffer.values.flatten(), self.buffer.returns.flatten()))

    def _set_advantage(self) -> None:
        advantage = self._flat(self.buffer.advantages).flatten()
        self.advantage = normalized_without(advantage, self.lost) if self.normalize_advantage else advantage

    def _flat(self, array: np.ndarray) -> Tensor:
        """The array [T, N, ...] as a tensor [N * T, ...] on the buffer's device."""
        flat = np.ascontiguousarray(self.buffer.swap_and_flatten(array))
        return torch.from_numpy(flat).to(self.buffer.device)

    def _observations(self) -> Observation:
        if isinstance(self.buffer, DictRolloutBuffer):
            return {key: self._flat(array) for key, array in self.buffer.observations.items()}
        return self._flat(self.buffer.observations)

    def _actions(self, action: Tensor) -> Tensor:
        # Categorical.log_prob takes a flat index; for the other spaces SB3's samples are float32 rows.
        return action.long().flatten() if isinstance(self.action_space, spaces.Discrete) else action

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """The minibatches of one epoch: every row once, in a new random order; the last may be smaller.

        Where rows are lost, others are there twice.
        """
        if not self.indexable:
            yield from self._minibatches_of_custom_buffer(batch_size)
            return
        self.order = orders = self.orders(batch_size)
        for rows in orders:
            yield gathered_rows(self.rows, rows)

    def orders(self, batch_size: int) -> tuple[Tensor, ...]:
        """The row indices of the minibatches of one epoch, a tensor for each."""
        order = torch.from_numpy(np.random.permutation(self.size)).to(self.buffer.device)
        return torch.split(without_lost(order, self.lost), batch_size)

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
        """The mean and the standard deviation of the rollout's advantages, as ``normalized`` computes them."""
        advantage = torch.from_numpy(np.asarray(self.buffer.advantages)).flatten()
        return advantage.mean().item(), (advantage.std() + 1e-8).item()

    def spread_rows(self, count: int) -> Tensor:
        """Indices of ``count`` rows, evenly spread over the rollout."""
        return torch.linspace(0, self.size - 1, count, device=self.buffer.device).long()

    def map_rows(self, function: Callable[[Observation], Tensor], chunk: int) -> Tensor:
        """The results of ``function`` for all observations, ``chunk`` rows at a time, without gradient."""
        return torch.cat([function(observation) for observation in self._chunks(chunk)])

    def remember_distributions(self, function: Callable[[Observation], ActionDistribution], chunk: int) -> None:
        """Computes and keeps the action distribution of every row, for the exact KL to it."""
        chunks = [function(observation) for observation in self._chunks(chunk)]
        self.rows = self.rows._replace(distribution=concatenated(chunks))

    def _chunks(self, chunk: int) -> Iterator[Observation]:
        with torch.no_grad():
            for rows in torch.split(torch.arange(self.size, device=self.buffer.device), chunk):
                yield observation_rows(self.rows.observation, rows)

    def use_value_lambda(self, value_lambda: float, last_values: Tensor, dones: np.ndarray) -> None:
        """Takes the value targets by ``value_lambda``, from now on; advantages stay those of the buffer's lambda."""
        self.value_lambda = value_lambda
        self._set_value_target(last_values, dones)
        self.rows = self.rows._replace(value_target=self.value_target)

    def _set_value_target(self, last_values: Tensor, dones: np.ndarray) -> None:
        if self.value_lambda is not None:
            self.buffer.returns = value_targets(self.buffer, last_values, dones, self.value_lambda)
        self.value_target = self._flat(self.buffer.returns).flatten()

    def refresh_advantage(self, values: Tensor, last_values: Tensor, dones: np.ndarray) -> None:
        """Computes advantages and value targets again from ``values`` [N * T], by the buffer's GAE.

        ``state_value`` stays: value clipping refers to the values at collection. So do the values that
        Stable-Baselines3 adds to the reward where a time limit has cut an episode.
        """
        collected = self.buffer.values
        self.buffer.values = values.cpu().numpy().reshape(self.buffer.n_envs, self.buffer.buffer_size).T
        compute_returns_and_advantage(self.buffer, last_values, dones)
        self._set_value_target(last_values, dones)
        self.buffer.values = collected
        self._set_advantage()
        self.rows = self.rows._replace(advantage=self.advantage, value_target=self.value_target)
